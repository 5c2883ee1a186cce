//! From images to a disk: resolve, pull, plan, write, convert. Each step consumes what the one before it has made.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use finalize::{
    cmdline::{Format as ErofsFormat, Verity},
    digest::DeploymentId,
};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tracing::info_span;
use uuid::Uuid;

use crate::{
    arch::Arch,
    check::{self, About},
    deployment::{Choice, Deployments, Ids, Sealing, systemd_boot},
    disk,
    node::Node,
    oci::{self, Image, Means, Reference},
    plan::{
        FileSystem, Format, NoRoom, Plan, Purpose, Wanted, disk_size, lay_out,
        size::{Later, Load},
    },
    secureboot,
    store::{Cache, Store, object_sizes},
    system::{Boots, CannotBoot, System},
};

/// A disk image to be built.
#[derive(Debug, Clone)]
pub struct Request {
    /// The deployment that is booted.
    pub image: Reference,
    /// The deployment that is staged.
    pub stage: Option<Reference>,
    /// What architecture is taken where an image is there for several.
    pub arch: Option<&'static Arch>,
    /// Where the disk image goes; replaced as a whole, and only when it is complete.
    pub output: PathBuf,
    /// Its format.
    pub format: Format,
    /// The format of the deployments' EROFS images.
    pub erofs: ErofsFormat,
    /// How it boots.
    pub choice: Choice,
    /// The file system of a boot partition.
    pub boot: BootFs,
    /// How many ESPs there are.
    pub esps: Esps,
    /// What all identifiers are made from; the same inputs and seed make the same bytes.
    pub seed: String,
    /// The size of the ESP in bytes; as its files need it unless told.
    pub esp_size: Option<u64>,
    /// The size of a boot partition in bytes; the same.
    pub boot_size: Option<u64>,
    /// The size of the disk in bytes; as its partitions need it unless told.
    pub size: Option<u64>,
    /// Where layers are kept for the next time.
    pub cache: Option<PathBuf>,
    /// The time of files that no image brings and of the file systems themselves, seconds since 1970; the newest image's
    /// unless told.
    pub time: Option<u64>,
}

/// The file system of a boot partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BootFs {
    /// ext4.
    Ext4,
    /// XFS.
    Xfs,
}

/// How many EFI system partitions a disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Esps {
    /// One.
    One,
    /// Two with the same content, as on mirrored disks.
    Mirrored,
}

/// What was built.
#[derive(Debug, serde::Serialize)]
pub struct Built {
    /// The booted deployment.
    pub booted: DeploymentId,
    /// The staged one.
    pub staged: Option<DeploymentId>,
    /// The UUID of the root file system.
    pub root: Uuid,
    /// What all identifiers were made from.
    pub seed: String,
}

/// A disk that can be written.
#[derive(Debug)]
pub struct Planned {
    /// What it will be.
    pub plan: Plan,
    output: PathBuf,
    root: Uuid,
    seed: String,
    scratch: TempDir,
}

/// Decides what the disk of `request` will be; nothing is written but the repository, in `scratch`.
///
/// # Errors
///
/// Names what is wrong with the input.
pub fn plan(request: Request, scratch: TempDir, runtime: &Handle) -> Result<Planned> {
    let cache = request.cache.as_deref().map(Cache::open).transpose()?;
    let store = Store::of_format(request.erofs, &scratch.path().join("composefs"))?.with_cache(cache);
    let arch = request.arch.map(|arch| oci::Arch::from(arch.go));
    let means = Means { scratch: scratch.path(), runtime: Some(runtime) };
    let way = request.choice.way;
    // Only the booted system has to finalize what is staged.
    let pull = |reference: &Reference, about: About| {
        let image = Image::resolve(reference.clone(), arch.as_ref(), means)?;
        check::demand(&store, &image, way, about).with_context(|| format!("pulling {reference}"))?;
        System::pull(image, &store, way.boot_type)
    };
    let about = if request.stage.is_some() { About::Update } else { About::Boot };
    let booted = pull(&request.image, about)?;
    let staged = request.stage.as_ref().map(|image| pull(image, About::Boot)).transpose()?;
    for system in [Some(&booted), staged.as_ref()].into_iter().flatten() {
        if let (Sealing::Unsealed, Boots::Uki(uki)) = (request.choice.sealing, &system.boots) {
            let why = "requires fs-verity, which a disk that is --unsealed has not: it would not boot";
            let why = format!("the UKI of {} {why}", system.image.reference);
            ensure!(uki.verity == Verity::Optional, CannotBoot(why));
        }
    }
    if let Some(enrol) = &request.choice.enrol {
        starts(&store, &enrol.dir, &booted, staged.as_ref())?;
    }
    if let Some(staged) = &staged {
        let (one, other) = (&request.image, &staged.image.reference);
        ensure!(staged.id != booted.id, "{one} and {other} are the same deployment: stage another one");
        let (is, other_is) = (booted.arch, staged.arch);
        let why = format!("{one} is for {is}, {other} for {other_is}: no machine boots both, choose with --arch");
        ensure!(is == other_is, CannotBoot(why));
    }
    let _step = info_span!(target: "image_tools::step", "plan").entered();
    let seed = request.seed.clone();
    let name = |what: &str| Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {what}", request.seed).as_bytes());
    let ids = Ids {
        root: name("root file system"),
        boot: name("boot file system"),
        esp: name("esp file system").as_fields().0,
    };
    let created = [Some(&booted), staged.as_ref()].into_iter().flatten().map(|system| system.image.created);
    let time = request.time.unwrap_or_else(|| created.max().unwrap_or(0));
    let deployments =
        Deployments { store: &store, booted: &booted, staged: staged.as_ref(), choice: &request.choice, ids, time };
    let wanted = wanted(&request, &deployments, &name)?;
    wanted.iter().flat_map(|partition| &partition.nodes).try_for_each(has_a_name)?;
    let partitions = lay_out(request.size, wanted)?;
    let programs = disk::programs(&partitions, request.format)?;
    let Request { format, output, .. } = request;
    // To the programs that make file systems, zero would mean now.
    let time = time.max(1);
    let size = request.size.unwrap_or_else(|| disk_size(&partitions));
    let staged = staged.map(|staged| staged.id);
    let arch = booted.arch;
    let plan = Plan { booted: booted.id, staged, arch, size, uuid: name("disk"), format, time, partitions, programs };
    Ok(Planned { plan, output, root: ids.root, seed, scratch })
}

/// Whether a firmware with the keys of `dir` starts the loader and the UKIs.
fn starts(store: &Store, dir: &Path, booted: &System, staged: Option<&System>) -> Result<()> {
    let mut programs = vec![];
    for system in [Some(booted), staged].into_iter().flatten() {
        if let Boots::Uki(uki) = &system.boots {
            programs.push(("UKI", system, uki.file.path.clone()));
        }
    }
    // Where it is missing, whoever needs it says so.
    let loader = store.file(&booted.tree, Path::new(&systemd_boot::signed(booted.arch)))?;
    programs.extend(loader.map(|loader| ("boot loader", booted, loader.path)));
    for (what, system, path) in programs {
        let reference = &system.image.reference;
        let why = secureboot::why_not(&path, dir).with_context(|| format!("looking into the {what} of {reference}"))?;
        let Some(why) = why else { continue };
        let remedy = "and would not start: seal the image with --secureboot-key and --secureboot-cert";
        return Err(CannotBoot(format!("the {what} of {reference} {why}, {remedy}")).into());
    }
    Ok(())
}

/// FAT, ext4 and XFS have names of at most 255 bytes, or characters, which are fewer.
fn has_a_name(node: &Node) -> Result<()> {
    let length = node.path.file_name().map_or(0, std::ffi::OsStr::len);
    let name = node.path.display();
    let why = || {
        format!(
            "the name {name} has more than 255 bytes: shorten ID or VERSION_ID in os-release, if it is made of these"
        )
    };
    ensure!(length <= 255, CannotBoot(why()));
    Ok(())
}

/// The partitions, in order.
fn wanted(request: &Request, of: &Deployments<'_>, name: &dyn Fn(&str) -> Uuid) -> Result<Vec<Wanted>> {
    let files = of.describe()?;
    let now = if of.staged.is_some() { 2 } else { 1 };
    let systems = || [Some(of.booted), of.staged].into_iter().flatten();
    let partition = |purpose: Purpose, size, file_system, nodes: Vec<Node>| {
        // What a deployment brings is called by its name; the objects are not.
        let objects = |system| if purpose == Purpose::Root { objects(system) } else { Load::default() };
        let each = systems().map(|system| Load::named(&nodes, system.id.as_str()) + objects(system));
        let later = Later::after(now, each.max_by_key(|load| load.bytes).unwrap_or_default());
        let uuid = name(purpose.name());
        Wanted { purpose, uuid, size, file_system, nodes, later }
    };
    let mut wanted = vec![partition(Purpose::Esp, request.esp_size, FileSystem::Fat(of.ids.esp), files.esp.clone())];
    if request.esps == Esps::Mirrored {
        let serial = name("esp mirror file system").as_fields().0;
        wanted.push(partition(Purpose::EspMirror, request.esp_size, FileSystem::Fat(serial), files.esp));
    }
    if let Some(nodes) = files.boot {
        let file_system = match request.boot {
            BootFs::Ext4 => FileSystem::Ext4(of.ids.boot),
            BootFs::Xfs => FileSystem::Xfs(of.ids.boot),
        };
        wanted.push(partition(Purpose::Boot, request.boot_size, file_system, nodes));
    }
    wanted.push(partition(Purpose::Root, None, FileSystem::Ext4(of.ids.root), files.root));
    Ok(wanted)
}

/// What a system brings into the repository, if it shares nothing: its objects, and a sixteenth of that for its EROFS image and
/// what says how its layers are made of objects.
fn objects(system: &System) -> Load {
    let load = Load::sealed(object_sizes(&system.tree).into_values());
    Load { bytes: load.bytes + load.bytes / 16, nodes: load.nodes + 16 }
}

/// Whether the build host has room in `dir` for the disk, and for a copy of it where it is converted. Contents that move from
/// there to the disk take no more than they did.
fn check_host(plan: &Plan, dir: &Path) -> Result<()> {
    let found = rustix::fs::statvfs(dir).with_context(|| format!("asking for what is free in {}", dir.display()))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize) >> 20;
    let nodes = || plan.partitions.iter().flat_map(|partition| &partition.nodes);
    let new: u64 = nodes().filter(|node| !node.moves()).map(Node::size).sum();
    let again: u64 = if plan.format == Format::Raw { 0 } else { nodes().map(Node::size).sum() };
    let needs = (new + again).div_ceil(1 << 20);
    let dir = dir.parent().unwrap_or(dir).to_owned();
    ensure!(needs <= free, NoRoom::Host { dir, free, needs });
    Ok(())
}

impl Planned {
    /// Makes the disk.
    ///
    /// # Errors
    ///
    /// Which program failed; then there is no output, or the old one still.
    pub fn write(self) -> Result<Built> {
        let Self { plan, output, root, seed, scratch } = self;
        check_host(&plan, scratch.path())?;
        let built = Built { booted: plan.booted.clone(), staged: plan.staged.clone(), root, seed };
        disk::write(plan, &scratch.path().join("disk"))?.convert(&output)?;
        Ok(built)
    }
}
