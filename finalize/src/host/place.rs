//! Finds where the boot loader's entries live: which loader, which file systems, mounted privately.

use std::{
    io,
    os::{fd::OwnedFd, unix::fs::FileTypeExt},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use cap_std::fs::Dir;

use super::{Access, Host, devices, dir, open, writable};
use crate::{
    boot::{BootDir, EntriesPlace, Loader, Place, swap::Method},
    layout::{EFI_LINUX_BOOTC, ENTRIES, ENTRIES_STAGED, GRUB, LOADER, USER_CFG},
    staged::BootType,
    sys,
};

/// The boot loader that started the machine: as typed, as the firmware's variables say, or as the files say.
///
/// # Errors
///
/// When it cannot be told: says how to choose.
pub fn loader(host: &Host) -> Result<Loader> {
    if let Some(loader) = host.ambient.loader {
        return Ok(loader);
    }
    let info = devices::efi_variable(&host.ambient.sys, "LoaderInfo").context("reading the EFI variable LoaderInfo")?;
    if let Some(loader) = info.as_deref().and_then(Loader::from_loader_info) {
        return Ok(loader);
    }
    let boot = boot_dir(host)?;
    let grub = ["grub2/grub.cfg", "grub/grub.cfg"].iter().any(|path| boot.1.is_file(path));
    let esps = esps(host);
    let on_esp = |esp: &Dir| esp.is_file("loader/loader.conf") && esp.is_dir("EFI/systemd");
    let systemd_boot = esps.as_ref().is_ok_and(|esps| esps.iter().any(on_esp));
    match (systemd_boot, grub) {
        (true, false) => Ok(Loader::SystemdBoot),
        (false, true) => Ok(Loader::Grub),
        (true, true) => bail!("both GRUB and systemd-boot are installed: choose with --loader"),
        (false, false) => match esps {
            Err(error) => Err(error.context("neither GRUB nor systemd-boot was found: choose with --loader")),
            Ok(_) => bail!("neither GRUB nor systemd-boot was found: choose with --loader"),
        },
    }
}

/// How the deployments of this machine boot, by what its boot file system has; for where no origin says it.
pub fn likely_kind(host: &Host) -> BootType {
    let has = |boot: &Dir, path: &str| boot.symlink_metadata(path).is_ok();
    match boot_dir(host) {
        Ok((_, boot)) if has(&boot, "grub2/user.cfg") && !has(&boot, "loader/entries") => BootType::Uki,
        _ => BootType::Bls,
    }
}

/// All places with entries of this machine, the one that booted last.
///
/// # Errors
///
/// When the loader cannot be told, or a file system with entries cannot be found or mounted.
pub fn find(host: &Host, boot_type: BootType) -> Result<Vec<Place>> {
    match (loader(host)?, boot_type) {
        (loader @ (Loader::SystemdBoot | Loader::GrubCc), _) => {
            let place = |root| EntriesPlace { root, boot: BootDir::Root, loader, method: Method::OneByOne };
            let boot = boot_of_systemd_boot(host)?;
            let has_boot = boot.is_some();
            let esps = taking_part(esps(host)?).into_iter();
            let esps = esps.filter(|esp| !has_boot || esp.is_dir(format!("{LOADER}/{ENTRIES_STAGED}")));
            Ok(esps.chain(boot).map(place).map(Place::Entries).collect())
        }
        (Loader::Grub, BootType::Bls) => {
            let (boot, root) = boot_dir(host)?;
            let root = if boot == BootDir::Root { root } else { host.sysroot.try_clone()? };
            let method = if sys::fat::has(&root)? { Method::OneByOne } else { Method::Exchange };
            Ok(vec![Place::Entries(EntriesPlace { root, boot, loader: Loader::Grub, method })])
        }
        (Loader::Grub, BootType::Uki) => {
            // One menu, and the ESP that booted: the UKIs of others are copies of it.
            let esp = those_with(esps(host)?, EFI_LINUX_BOOTC).pop().context("there is no ESP for the UKIs")?;
            let (_, boot) = boot_dir(host)?;
            let grub = boot.open_dir(GRUB).with_context(|| format!("opening {GRUB} in the boot directory"))?;
            Ok(vec![Place::Menu { esp, grub }])
        }
    }
}

/// The places whose entries boot the running deployment, where the entries of the next one are staged; and for GRUB with UKIs
/// the other ESPs, which are copies.
///
/// # Errors
///
/// As [`find`], and when no entry boots the running deployment.
pub fn for_staging(host: &Host, boot_type: BootType) -> Result<(Vec<Place>, Vec<Dir>)> {
    let mut copies = vec![];
    let all: Vec<_> = match loader(host)? {
        loader @ (Loader::SystemdBoot | Loader::GrubCc) => {
            let place = |root| EntriesPlace { root, boot: BootDir::Root, loader, method: Method::OneByOne };
            esps(host)?.into_iter().chain(boot_of_systemd_boot(host)?).map(place).map(Place::Entries).collect()
        }
        Loader::Grub => {
            if boot_type == BootType::Uki {
                copies = those_with(esps(host)?, EFI_LINUX_BOOTC);
                copies.pop();
            }
            find(host, boot_type)?
        }
    };
    let boots = |place: &Place| place.deployments().is_ok_and(|all| all.contains(&host.booted.id));
    let places: Vec<_> = all.into_iter().filter(boots).collect();
    ensure!(!places.is_empty(), "no boot entry names the running deployment {}", host.booted.id.short());
    Ok((places, copies))
}

/// The specification's $BOOT where it is not the ESP: a boot partition with entries, as typed or by its type.
pub(super) fn boot_of_systemd_boot(host: &Host) -> Result<Option<Dir>> {
    if let Some(path) = &host.ambient.boot {
        return opened(host, path).map(Some);
    }
    let has_entries = |dir: &Dir| {
        let entries = dir.open_dir(format!("{LOADER}/{ENTRIES}")).and_then(|dir| dir.entries());
        dir.is_dir(format!("{LOADER}/{ENTRIES_STAGED}")) || entries.is_ok_and(|mut all| all.next().is_some())
    };
    boot_partition(host, &has_entries)
}

/// The directory that holds GRUB's files, and where it is within its file system.
pub(super) fn boot_dir(host: &Host) -> Result<(BootDir, Dir)> {
    if let Some(path) = &host.ambient.boot {
        return Ok((BootDir::Root, opened(host, path)?));
    }
    let has_entries = |dir: &Dir| {
        let entries = [ENTRIES_STAGED, ENTRIES].iter().any(|name| dir.is_dir(format!("{LOADER}/{name}")));
        entries || dir.is_file(format!("{GRUB}/{USER_CFG}"))
    };
    let own = host.sysroot.open_dir("boot").context("opening boot of the physical root")?;
    if !has_entries(&own) {
        if let Some(partition) = boot_partition(host, &has_entries)? {
            return Ok((BootDir::Root, partition));
        }
        let mounted = Path::new("/boot");
        if host.ambient.sysroot == Path::new("/sysroot")
            && let Ok(partition) = opened(host, mounted)
            && has_entries(&partition)
        {
            return Ok((BootDir::Root, partition));
        }
    }
    Ok((BootDir::Boot, own))
}

/// The boot partition with entries, by its type (the Discoverable Partitions Specification, XBOOTLDR), mounted privately.
fn boot_partition(host: &Host, has_entries: &dyn Fn(&Dir) -> bool) -> Result<Option<Dir>> {
    // A machine of directories has no disks.
    let Ok(root) = root_device(host) else { return Ok(None) };
    for device in devices::boot_partitions(&host.ambient.sys, root) {
        let named = || format!("mounting the boot partition {}", device.display());
        let found = dir(mounted(host, &device, &["ext4", "vfat", "xfs", "btrfs"]).with_context(named)?);
        if has_entries(&found) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Where ESP and boot partition are mounted when somebody looks (systemd-gpt-auto-generator(8)).
const AUTOMOUNTS: [&str; 3] = ["/efi", "/boot", "/boot/efi"];

/// A private mount of the file system on `device`, which is one of `kinds`.
///
/// What waits for somebody who looks is mounted by its own unit, after systemd-fsck(8): FAT is not whole after a power cut in
/// the middle of a rename, and the kernel lets nobody write any more where it meets that.
///
/// To look, nothing is changed: a mount that is there is used as it is, else a read-only one is made. While that lives, nobody
/// else can mount the file system to write to it. To write, a file system that is mounted read-only is made writable first;
/// the mount that everybody sees stays read-only.
fn mounted(host: &Host, device: &Path, kinds: &[&str]) -> io::Result<OwnedFd> {
    let (access, mut there) = (host.access, sys::mount::mount_point_of(device)?);
    if there.is_none() && !host.is_ending && sys::mount::waits(&AUTOMOUNTS)? {
        // Its unit makes one pass only.
        mend(device);
        sys::mount::wake(&AUTOMOUNTS)?;
        there = sys::mount::mount_point_of(device)?;
    }
    if let Some(mount_point) = there {
        return match access {
            Access::Read => sys::mount::clone(&mount_point),
            Access::Write => sys::mount::clone_writable(&mount_point),
        };
    }
    if access == Access::Write && kinds.contains(&"vfat") {
        mend(device);
    }
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for kind in kinds {
        let options = if *kind == "vfat" { sys::mount::FAT_OPTIONS } else { &[] };
        let mounted = match access {
            Access::Read => sys::mount::detached_read_only(kind, device, options),
            Access::Write => sys::mount::detached(kind, device, options),
        };
        let mounted = mounted.or_else(|error| match (error.raw_os_error(), access) {
            (Some(libc::EBUSY), Access::Read) => sys::mount::detached_beside_writer(kind, device, options),
            (Some(libc::EBUSY), Access::Write) => sys::mount::detached_beside_reader(kind, device, options),
            _ => Err(error),
        });
        match mounted {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => last = error,
            other => return other,
        }
    }
    Err(last)
}

/// What nobody mounts, nobody has checked since the power cut. A file system that cannot be checked is used as it is: its files
/// are whole, and what cannot be deleted is left.
fn mend(device: &Path) {
    match sys::fat::mend(device) {
        Ok(false) => {}
        Ok(true) => {
            tracing::info!("{} was not unmounted the last time, and has been checked by fsck.fat", device.display())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => tracing::warn!(
            "{} was not unmounted the last time, and cannot be checked: install fsck.fat (dosfstools)",
            device.display()
        ),
        Err(error) => tracing::warn!("{} was not unmounted the last time: {error}", device.display()),
    }
}

/// The ESPs, each mounted privately, as long as `host` lives.
pub(super) fn esps(host: &Host) -> Result<Vec<Dir>> {
    if host.esps.get().is_none() {
        let given = &host.ambient.esp;
        let found = if given.is_empty() { devices::esps(&host.ambient.sys, root_device(host))? } else { given.clone() };
        let mounted: Vec<_> = found.iter().map(|path| esp_at(host, path)).collect::<Result<_>>()?;
        _ = host.esps.set(mounted);
    }
    Ok(host.esps.get().into_iter().flatten().map(Dir::try_clone).collect::<io::Result<_>>()?)
}

/// The ESPs that the next entries are for. One without `loader/` is somebody else's, Windows' say. One on which nothing was
/// staged while it was on another is a copy that nobody keeps, or was finished by a run that was stopped later.
fn taking_part(esps: Vec<Dir>) -> Vec<Dir> {
    let ours = those_with(esps, LOADER);
    let all = ours.len();
    let staged = those_with(ours, &format!("{LOADER}/{ENTRIES_STAGED}"));
    if staged.len() < all {
        tracing::info!("{} of {all} ESPs have nothing staged on them, and stay as they are", all - staged.len());
    }
    staged
}

/// The file systems that have the directory `path`; all of them when none has it.
fn those_with(all: Vec<Dir>, path: &str) -> Vec<Dir> {
    let (with, without): (Vec<_>, Vec<_>) = all.into_iter().partition(|dir| dir.is_dir(path));
    if with.is_empty() { without } else { with }
}

fn esp_at(host: &Host, path: &Path) -> Result<Dir> {
    let is_device = path.metadata().is_ok_and(|m| m.file_type().is_block_device());
    if !is_device {
        return opened(host, path);
    }
    let mounted = mounted(host, path, &["vfat"]);
    mounted.map(dir).with_context(|| format!("mounting the ESP {}", path.display()))
}

fn opened(host: &Host, path: &Path) -> Result<Dir> {
    match host.access {
        Access::Read => open(path),
        Access::Write => writable(path),
    }
}

/// The number of the block device below the physical root.
fn root_device(host: &Host) -> Result<(u32, u32)> {
    let number = |number| (rustix::fs::major(number), rustix::fs::minor(number));
    let device = number(rustix::fs::fstat(&host.sysroot).context("looking at the physical root")?.st_dev);
    if device.0 != 0 {
        return Ok(device);
    }
    // btrfs has numbers of its own.
    let source = sys::mount::source_of(&host.sysroot).context("looking for the device of the physical root")?;
    let found = rustix::fs::stat(&source).with_context(|| format!("looking at {}", source.display()))?;
    Ok(number(found.st_rdev))
}
