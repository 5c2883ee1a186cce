//! From an image to a staged deployment, on a machine that runs: resolve, check, pull, describe, write, mark.
//!
//! Until the marker is there, nothing boots what is written and nothing waits for a shutdown; so a power cut leaves at most what
//! `composefs-finalize gc` collects. What is written comes in this order, each part on the disk before the next one begins:
//! contents and image, what names them, the deployment's state, what it boots, its entries, the marker.

use std::{fmt, io, path::Path};

use anyhow::{Context, Result, bail, ensure};
use cap_std::fs::Dir;
use finalize::{
    boot::{Place, entries::Entries, user_cfg},
    cmdline::{Target, Verity},
    digest::DeploymentId,
    failed,
    host::Ambient,
    layout::{self, ENTRIES, ETC},
    staged::{Marker, Origin},
    staging::{Sites, Staging},
    stop::Stop,
    sys,
};

use xshell::cmd;

use crate::{
    arch::Arch,
    deployment::{
        state::{self, UNVERIFIED},
        update::{Added, Running, Update},
    },
    live::{self, Keeps},
    node::{Content, Node},
    oci::{Image, Means, Reference},
    program,
    store::{NoSpace, Store},
    system::{Boots, CannotBoot, System, kargs, os::Os},
    workshop::Workshop,
};

/// Where an /etc is made before it gets its name. *Ours*.
const ETC_STAGING: &str = "etc.staging";

/// What a boot file system keeps free, in bytes: entries are written to it at shutdown.
const BOOT_RESERVE: u64 = 1 << 20;

/// An update to be staged.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image; where there is none, what the running deployment comes from.
    pub image: Option<Reference>,
    /// Download only: the next shutdown does not finalize it.
    pub locked: bool,
    /// What the machine takes its updates from afterwards; the image unless told.
    pub target: Option<String>,
    /// The machine.
    pub ambient: Ambient,
}

/// The image has been tried, and the boot loader has gone back.
#[derive(Debug, thiserror::Error)]
#[error("this update has failed: {0}")]
pub struct Failing(String);

/// What there is to say of an update.
#[derive(Debug, serde::Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// The image is what runs.
    UpToDate(About),
    /// The image is staged already.
    AlreadyStaged(About),
    /// There is an update, and nothing was done.
    Available(About),
    /// The update is staged.
    Staged(About),
}

/// An image, and the deployment that it is.
#[derive(Debug, serde::Serialize)]
pub struct About {
    /// Its name.
    pub image: String,
    /// The digest of its manifest.
    pub digest: String,
    /// The deployment, where the image was read.
    pub deployment: Option<DeploymentId>,
    /// The version of the system in it, where it was read.
    pub version: Option<String>,
    /// The bytes of layers that the machine has not yet, as they are stored.
    pub to_fetch: u64,
    /// Whether it is downloaded only.
    pub locked: bool,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::UpToDate(about) | Self::AlreadyStaged(about) | Self::Available(about) | Self::Staged(about)) = self;
        let About { image, digest, to_fetch, .. } = about;
        let when = if about.locked { "it waits until it is unlocked" } else { "the next shutdown finalizes it" };
        let update = about.deployment.as_ref().map_or_else(String::new, |id| format!("update {} ", id.short()));
        match self {
            Self::UpToDate(_) => write!(f, "{image} is what this machine runs: nothing to do"),
            Self::AlreadyStaged(_) => write!(f, "{update}({image}) is staged already; {when}"),
            Self::Available(_) => {
                write!(f, "{image} has an update, {digest}: {} MiB to fetch", to_fetch.div_ceil(1 << 20))
            }
            Self::Staged(_) => {
                let version = about.version.as_deref().unwrap_or("of unknown version");
                write!(f, "staged {update}(version {version}, {image}); {when}")
            }
        }
    }
}

/// The machine, and the image that it may take.
struct Offer {
    machine: Staging,
    store: Store,
    running: Origin,
    image: Image,
    target: String,
    about: About,
}

/// Looks for the image, and whether the machine has it.
fn look(request: &Request, workshop: &Workshop, scratch: &Path) -> Result<Offer> {
    // A signal ends this program wherever it is: that is no worse than a power cut.
    let machine = Staging::open(&request.ambient, &Stop::never())?;
    let visible = request.ambient.sysroot.join(layout::REPOSITORY);
    let store = Store::of_machine(&machine.host.sysroot, &visible, scratch)?;
    let booted = &machine.host.booted.id;
    let running = machine.origin(booted).context("looking at the running deployment")?;
    let followed = running.image_reference.as_deref().map(|name| name.strip_prefix(UNVERIFIED).unwrap_or(name));
    let reference = match (&request.image, followed) {
        (Some(image), _) => image.clone(),
        (None, Some(name)) => name.parse().map_err(anyhow::Error::msg).context("reading what this machine follows")?,
        (None, None) => anyhow::bail!("this machine follows no image: name one"),
    };
    let target = request.target.clone().unwrap_or_else(|| reference.to_string());
    let means = Means { scratch, runtime: Some(&workshop.runtime) };
    let followed = request.image.is_none().then(|| format!("looking for {reference}, which this machine follows"));
    let image = Image::resolve(reference, None, means);
    let image = match followed {
        Some(what) => image.context(what)?,
        None => image?,
    };
    let mut to_fetch = 0;
    for layer in &image.layers {
        to_fetch += if store.has_layer(layer)? { 0 } else { layer.descriptor.size() };
    }
    let (name, digest) = (image.reference.to_string(), image.digest());
    let locked = request.locked;
    let about = About { image: name, digest, deployment: None, version: None, to_fetch, locked };
    Ok(Offer { machine, store, running, image, target, about })
}

impl Offer {
    /// Whether the running deployment, or the one that waits, is this image.
    fn known(&self) -> Result<(bool, Option<Marker>)> {
        let is_this = |origin: &Origin| origin.manifest_digest.as_ref() == Some(&self.about.digest);
        let waiting = self.machine.waiting()?;
        let staged = |marker: &Marker| self.machine.origin(&marker.depl_id).is_ok_and(|origin| is_this(&origin));
        Ok((is_this(&self.running), waiting.filter(staged)))
    }
}

/// Asks whether there is an update.
///
/// # Errors
///
/// When the image cannot be found, or the machine is none of composefs.
pub fn check(request: &Request, workshop: &Workshop) -> Result<Outcome> {
    let scratch = workshop.anywhere()?;
    let offer = look(request, workshop, scratch.path())?;
    Ok(match offer.known()? {
        (_, Some(_)) => Outcome::AlreadyStaged(offer.about),
        (true, None) => Outcome::UpToDate(offer.about),
        (false, None) => Outcome::Available(offer.about),
    })
}

/// Stages the image; an update that waits makes room for it once it has been read.
///
/// # Errors
///
/// When the image is refused, is not whole, or there is no room: then what waited still waits. Those of writing.
pub fn stage(request: &Request, workshop: &Workshop) -> Result<Outcome> {
    let scratch = workshop.anywhere()?;
    let offer = look(request, workshop, scratch.path())?;
    match offer.known()? {
        (_, Some(marker)) => {
            offer.machine.mark(&marker.depl_id, request.locked)?;
            return Ok(Outcome::AlreadyStaged(About { deployment: Some(marker.depl_id), ..offer.about }));
        }
        (true, None) => return Ok(Outcome::UpToDate(offer.about)),
        (false, None) => {}
    }
    let Offer { machine, store, running, image, target, mut about } = offer;
    // Known by its name before it is fetched once more, where the deployment is still there.
    for failed in failed::all(&machine.host.sysroot)? {
        let is_it = |origin: Origin| origin.manifest_digest.as_ref() == Some(&about.digest);
        ensure!(!machine.origin(&failed.deployment).is_ok_and(is_it), Failing(failed.to_string()));
    }
    let sites = machine.sites(running.boot_type)?;
    NoSpace::check(&machine.host.sysroot, about.to_fetch, ROOT)?;
    let system = System::pull(image, &store, running.boot_type)?;
    about.deployment = Some(system.id.clone());
    about.version = Some(system.os.version.clone());
    if system.id == machine.host.booted.id {
        return Ok(Outcome::UpToDate(about));
    }
    boots_here(&system, &store)?;
    if let Some(failed) = failed::of(&machine.host.sysroot, &system.id)? {
        bail!(Failing(failed.to_string()));
    }
    let before = Running::read(&store, &machine.host.booted.id, &system)?;
    let named = Target { id: system.id.clone(), ..machine.host.booted.clone() };
    let update = Update { running: &before, system: &system, target: named };
    let parts = describe(&update, &sites)?;
    parts.iter().try_for_each(Part::check_room)?;

    sys::fault::step("state");
    write_state(&machine.host.sysroot, &store, &system, &state::origin(&system, running.boot_type, Some(&target)))?;
    sys::fault::step("kernel");
    parts.iter().try_for_each(Part::write_kernel)?;
    sys::fault::step("cancel");
    machine.cancel()?;
    if sys::fault::lacks("mark-last") {
        machine.mark(&system.id, request.locked)?;
    }
    sys::fault::step("entries");
    parts.iter().try_for_each(Part::write_entries)?;
    sys::fault::step("mark");
    machine.mark(&system.id, request.locked)?;
    arm(&request.ambient);
    Ok(Outcome::Staged(about))
}

/// Whether the machine boots it.
fn boots_here(system: &System, store: &Store) -> Result<()> {
    let (image, here) = (&system.image.reference, Arch::host()?);
    let why = || format!("{image} is for {}, and this machine is {here}", system.arch);
    ensure!(system.arch == here, CannotBoot(why()));
    let needs_verity = matches!(&system.boots, Boots::Uki(uki) if uki.verity == Verity::Required);
    let why = || format!("the UKI of {image} requires fs-verity, which the repository of this machine has not");
    ensure!(store.is_sealed() || !needs_verity, CannotBoot(why()));
    Ok(())
}

/// Starts the unit whose stop finalizes the update. It runs already, most often.
fn arm(ambient: &Ambient) {
    if ambient.run != Path::new("/run") || !Path::new("/run/systemd/system").is_dir() {
        return;
    }
    let start = || -> Result<String> {
        let shell = program::shell()?;
        program::run(cmd!(shell, "systemctl start composefs-finalize.service"))
    };
    if let Err(error) = start() {
        tracing::warn!("nobody finalizes the update at shutdown, unless bootc does: {error:#}");
    }
}

/// The root file system, in words.
const ROOT: &str = "the root file system";

impl Running {
    /// The running deployment, from its image.
    fn read(store: &Store, id: &DeploymentId, next: &System) -> Result<Self> {
        let read = || {
            let tree = store.image(id)?;
            Ok::<_, anyhow::Error>((Os::find(store, &tree)?, kargs::find(store, &tree, next.arch)?))
        };
        let (os, kargs) = read().context("reading the image that runs")?;
        Ok(Self { id: id.clone(), os, kargs })
    }
}

/// What the update adds to one file system with kernels, and where its entries go.
struct Part<'a> {
    root: &'a Dir,
    /// Where `entries` are, if not there.
    menu: Option<&'a Dir>,
    added: Added,
    /// What live entries boot there.
    booted: Vec<String>,
}

/// What the update adds to each of the file systems that boot.
fn describe<'a>(update: &Update<'_>, sites: &'a Sites) -> Result<Vec<Part<'a>>> {
    let mut parts = vec![];
    for place in &sites.places {
        parts.push(match place {
            Place::Entries(entries) => {
                let live = Entries::read(&entries.loader_dir()?, ENTRIES).context("reading loader/entries")?;
                let live = live.unwrap_or_default();
                let booted = live.ordered(entries.loader);
                let booted = booted.iter().flat_map(|(_, entry)| entry.files().map(str::to_owned).collect::<Vec<_>>());
                Part { root: &entries.root, menu: None, added: update.at(entries, &live)?, booted: booted.collect() }
            }
            Place::Menu { esp, grub } => {
                let live = user_cfg::read(grub, layout::USER_CFG).context("reading grub2/user.cfg")?;
                let live = live.unwrap_or_default();
                let booted = live.deployments().iter().filter_map(|id| live.uki(id)).collect();
                Part { root: esp, menu: Some(grub), added: update.in_menu(&live)?, booted }
            }
        });
    }
    if let (Some(Place::Menu { .. }), Some(first)) = (sites.places.first(), parts.first()) {
        let kernel = first.added.kernel.clone();
        let booted = first.booted.clone();
        let added = |root| Part {
            root,
            menu: None,
            added: Added { kernel: kernel.clone(), entries: vec![] },
            booted: booted.clone(),
        };
        parts.extend(sites.copies.iter().map(added));
    }
    Ok(parts)
}

impl Part<'_> {
    fn check_room(&self) -> Result<()> {
        let needs = live::needs(self.root, &self.added.kernel)? + BOOT_RESERVE;
        NoSpace::check_leaving(self.root, (needs, 0), "the boot file system")
    }

    /// Writes what boots. What an earlier run has left half written, and nothing boots, is written again.
    fn write_kernel(&self) -> Result<()> {
        let is_booted = |node: &Node| {
            let path = format!("/{}", node.path.display());
            self.booted.iter().any(|booted| *booted == path || booted.starts_with(&format!("{path}/")))
        };
        let named = "writing what the update boots";
        for node in self.added.kernel.iter().filter(|node| !is_booted(node)) {
            if self.root.symlink_metadata(&node.path).is_ok() {
                let path = node.path.to_str().context("a name on the boot file system is not UTF-8")?;
                sys::remove::tree(self.root, path).context(named)?;
            }
        }
        live::write(self.root, &self.added.kernel, Keeps::Nothing).context(named)?;
        live::sync(self.root, &self.added.kernel).context(named)
    }

    fn write_entries(&self) -> Result<()> {
        let root = self.menu.unwrap_or(self.root);
        let write = || {
            live::write(root, &self.added.entries, Keeps::Nothing)?;
            live::sync(root, &self.added.entries)
        };
        write().context("writing the entries of the update")
    }
}

/// Writes the state directory of the deployment. One that is there is that of a deployment which has been booted, or was
/// staged before: its /etc stays, and the image's stands beside it, as after a finalization.
fn write_state(sysroot: &Dir, store: &Store, system: &System, origin: &Origin) -> Result<()> {
    let path = layout::deployment(&system.id);
    let write = || {
        sys::file::create_dir_all(sysroot, &path)?;
        let state = sysroot.open_dir(&path)?;
        sys::remove::tree(&state, ETC_STAGING)?;
        live::write(&state, &state::etc(store, system, Path::new(ETC_STAGING))?, Keeps::All)?;
        if state.symlink_metadata("var").is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            let link = Node::new("var", Default::default(), Content::Link(layout::VAR_LINK.into()));
            live::write(&state, &[link], Keeps::Nothing)?;
        }
        sys::file::write_atomic(&state, &layout::origin(&system.id), origin.to_string().as_bytes())?;
        sys::sync::file_system(sysroot.open(".")?)?;
        let taken = [ETC, layout::ETC_ORIG].map(|name| state.symlink_metadata(name).is_ok());
        match taken {
            [false, _] => sys::rename::move_to(&state, ETC_STAGING, ETC)?,
            [true, false] => sys::rename::move_to(&state, ETC_STAGING, layout::ETC_ORIG)?,
            [true, true] => sys::remove::tree(&state, ETC_STAGING)?,
        }
        sys::sync::fsync(state.open(".")?)?;
        // The entry of the state directory itself.
        Ok::<_, anyhow::Error>(sys::sync::fsync(sysroot.open_dir(layout::DEPLOYMENTS)?.open(".")?)?)
    };
    write().with_context(|| format!("writing {path}"))
}
