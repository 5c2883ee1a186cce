//! A soft reboot into the staged deployment: the kernel stays as it was started, user space begins anew from the deployment's
//! root (systemd-soft-reboot.service(8), `/run/nextroot`). The finalization is the same as before any other reboot.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::{
    boot::bls::Entry,
    cmdline::{Target, words},
    deployment::Deployment,
    digest::DeploymentId,
    host::{self, EtcMount, Host, place},
    layout::{ETC, MARKER_DIR, SOFT_REBOOT, deployment, name_of},
    pending,
    record::{Ending, Record},
    staged::{BootType, Marker},
    sys,
};

/// What systemd makes the root of the next user space, below /run.
const NEXT_ROOT: &str = "nextroot";

/// systemd 254 and later have it.
const TARGET: &str = "/usr/lib/systemd/system/soft-reboot.target";

/// The unit that mounts the next root when it is stopped, after the finalization.
const UNIT: &str = "composefs-finalize-next-root.service";

/// Words that boot loaders add to a command line, or that name the deployment: they do not count.
const NOT_COMPARED: &[&str] = &["composefs", "composefs.digest", "composefs-finalize.try", "BOOT_IMAGE", "initrd"];

/// Whether a soft reboot starts the staged deployment as a reboot would: how it is named on a command line, or what speaks
/// against it, all of it.
///
/// # Errors
///
/// When the deployments or the entries cannot be read.
pub fn look(host: &Host) -> Result<Result<Target, Vec<String>>> {
    let mut against = vec![];
    let Some(Marker { depl_id: id, finalization_locked }) = host.marker()? else {
        return Ok(Err(vec!["nothing is staged".to_owned()]));
    };
    let mut check = |is_right: bool, why: &str| against.extend((!is_right).then(|| why.to_owned()));
    check(!finalization_locked, "the update is locked");
    check(Path::new(TARGET).exists(), "this system has no soft-reboot.target (systemd 254 or later)");
    check(
        host.is_image() && host.etc_mount(&host.etc()?)? == EtcMount::Bind,
        "/etc is not the deployment's own directory",
    );
    let staged = Deployment::open(&host.sysroot, &id)?;
    let booted = Deployment::open(&host.sysroot, &host.booted.id)?;
    let kinds = [&staged, &booted].map(|one| one.origin.boot_type);
    if kinds != [BootType::Bls; 2] {
        check(false, "a UKI brings its own kernel and command line");
        return Ok(Err(against));
    }
    let kernels = [&staged, &booted].map(|one| one.origin.boot_digest.as_ref());
    match kernels {
        [Some(staged), Some(booted)] => check(staged == booted, "the update has another kernel or initramfs"),
        _ => check(false, "an origin has no digest of kernel and initramfs, so they may differ"),
    }
    let options = options(host, &id)?;
    let target = Target::find(&options).filter(|target| target.id == id);
    let target = target.with_context(|| format!("the staged entry does not name {}", id.short()))?;
    if let Some(differ) = differ(&host.cmdline()?, &options) {
        check(false, &format!("the kernel was started with other options: {differ}"));
    }
    Ok(if against.is_empty() { Ok(target) } else { Err(against) })
}

/// The options of the staged entry, the same in every place.
fn options(host: &Host, id: &DeploymentId) -> Result<String> {
    let entries =
        place::find(host, BootType::Bls)?.iter().map(|place| place.staged_entry(id)).collect::<Result<Vec<_>>>()?;
    let entry = entries.into_iter().flatten().next();
    let entry = entry.with_context(|| format!("no staged entry boots {}: stage the update again", id.short()))?;
    Ok(entry.text.parse::<Entry>().context("reading the staged entry")?.options())
}

/// The words that one command line has and the other has not. Between words of the same key the order counts, as it does to the
/// kernel.
fn differ(running: &str, wanted: &str) -> Option<String> {
    let [running, wanted] = [running, wanted].map(|text| {
        let key = |word: &&str| word.split('=').next().unwrap_or_default().to_owned();
        let mut all: Vec<_> = words(text).filter(|word| !NOT_COMPARED.contains(&&*key(word))).collect();
        all.sort_by_key(key);
        all
    });
    if running == wanted {
        return None;
    }
    let only = |these: &[&str], those: &[&str], sign| {
        these.iter().filter(|word| !those.contains(word)).map(|word| format!("{sign}{word}")).collect::<Vec<_>>()
    };
    let words = [only(&running, &wanted, '-'), only(&wanted, &running, '+')].concat();
    Some(if words.is_empty() { "in another order".to_owned() } else { words.join(" ") })
}

/// Begins a soft reboot into `target`: the finalization comes first, as before every other one.
///
/// # Errors
///
/// When systemd refuses; then nothing is asked for any more.
pub fn begin(host: &Host, target: &Target) -> Result<()> {
    let run = host::open(&host.ambient.run)?;
    let write = || {
        sys::file::create_dir_all(&run, MARKER_DIR)?;
        sys::file::write_volatile(
            &run.open_dir(MARKER_DIR)?,
            name_of(SOFT_REBOOT),
            0o600,
            format!("{target}\n").as_bytes(),
        )
    };
    write().with_context(|| format!("writing /run/{SOFT_REBOOT}"))?;
    let begun = sys::unit::systemctl(&["start", UNIT]).and_then(|()| sys::unit::systemctl(&["soft-reboot"]));
    if begun.is_err() {
        pending::remove(host, SOFT_REBOOT)?;
    }
    begun.context("asking systemd for a soft reboot")
}

/// What a soft reboot starts.
#[derive(Debug)]
pub enum NextRoot {
    /// None was asked for.
    Nothing,
    /// The update.
    Update(DeploymentId),
    /// What runs, once more, and why not the update.
    Again(anyhow::Error),
}

/// Mounts what a soft reboot starts on `/run/nextroot`, as its initramfs would: the deployment that was asked for, if its
/// finalization has come to its end, else the running one. Its own mounts do not do: /var and the physical root come from the
/// initramfs, and are gone when everything is unmounted.
///
/// # Errors
///
/// When neither can be mounted; then nothing is. What systemd starts would lack /var.
pub fn mount(host: &Host) -> Result<NextRoot> {
    let asked = sys::file::read(&host::open(&host.ambient.run)?, SOFT_REBOOT);
    let Some(asked) = asked.with_context(|| format!("reading /run/{SOFT_REBOOT}"))? else {
        return Ok(NextRoot::Nothing);
    };
    pending::remove(host, SOFT_REBOOT)?;
    match finalized(host, &asked).and_then(|target| mount_one(host, &target).map(|()| target.id)) {
        Ok(id) => Ok(NextRoot::Update(id)),
        Err(error) => match mount_one(host, &host.booted) {
            Ok(()) => Ok(NextRoot::Again(error)),
            Err(why) => Err(why.context(format!("{error:#}; and what runs cannot be mounted anew"))),
        },
    }
}

/// What was asked for, if it was finalized.
fn finalized(host: &Host, asked: &str) -> Result<Target> {
    let target = Target::find(asked).with_context(|| format!("/run/{SOFT_REBOOT} names no deployment"))?;
    let record = Record::read(&host.sysroot)?.context("there is no record of a finalization")?;
    let is_next =
        record.outcome == Ending::Finalized && record.to.as_ref() == Some(&target.id) && record.next == record.to;
    ensure!(is_next, "update {} is not finalized, or does not boot next", target.id.short());
    Ok(target)
}

fn mount_one(host: &Host, target: &Target) -> Result<()> {
    let root = host.ambient.run.join(NEXT_ROOT);
    std::fs::create_dir_all(&root).with_context(|| format!("creating {}", root.display()))?;
    let Err(error) = assemble(host, target, &root) else { return Ok(()) };
    sys::mount::detach(&root).with_context(|| format!("unmounting {} after: {error:#}", root.display()))?;
    Err(error)
}

/// What composefs-setup-root mounts, in its order, with what is mounted here.
fn assemble(host: &Host, target: &Target, root: &Path) -> Result<()> {
    let image = host.image(target)?;
    sys::mount::attach(image, root).with_context(|| format!("mounting the image on {}", root.display()))?;
    let sysroot = &host.ambient.sysroot;
    let state = sysroot.join(deployment(&target.id));
    let physical = sys::mount::clone(sysroot);
    let others = [
        ("sysroot", physical),
        (ETC, sys::mount::clone_writable(&state.join(ETC))),
        ("var", sys::mount::clone_writable(&state.join("var"))),
    ];
    for (name, tree) in others {
        let to = root.join(name);
        tree.and_then(|tree| sys::mount::attach(tree, &to)).with_context(|| format!("mounting {}", to.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_kernel_would_see_differently_counts() {
        let running = "BOOT_IMAGE=(hd0)/vmlinuz root=LABEL=root rw console=tty0 console=ttyS0 composefs=ab quiet";
        let check = |wanted, differs: Option<&str>| assert_eq!(differ(running, wanted).as_deref(), differs, "{wanted}");
        check("root=LABEL=root rw console=tty0 console=ttyS0 composefs=cd quiet", None);
        check("quiet rw console=tty0 console=ttyS0 composefs.digest=cd root=LABEL=root initrd=\\x", None);
        check("root=LABEL=root rw console=ttyS0 console=tty0 quiet", Some("in another order"));
        check("root=LABEL=root rw console=tty0 console=ttyS0", Some("-quiet"));
        check("root=LABEL=root ro console=tty0 console=ttyS0 quiet x=\"a b\"", Some("-rw +ro +x=\"a b\""));
    }
}
