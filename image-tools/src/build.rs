//! From images to a disk: resolve, pull, plan, write, convert. Each step consumes what the one before it has made.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use finalize::{cmdline::Verity, digest::DeploymentId};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tracing::info_span;
use uuid::Uuid;

use crate::{
    arch::Arch,
    deployment::{Boot, Choice, Deployments, Ids, Sealing},
    disk,
    oci::{self, Image, Reference},
    plan::{FileSystem, Format, Plan, Purpose, Wanted, lay_out, roomy},
    store::Store,
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
    /// The size of the disk in bytes.
    pub size: u64,
    /// The times of the file systems themselves, seconds since 1970.
    pub time: u64,
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
pub fn plan(request: Request, scratch: TempDir, runtime: Handle) -> Result<Planned> {
    let store = Store::create(&scratch.path().join("composefs"), runtime)?;
    let arch = request.arch.map(|arch| oci::Arch::from(arch.go));
    let pull = |reference: &Reference| {
        System::pull(
            Image::resolve(reference.clone(), arch.as_ref(), scratch.path())?,
            &store,
            request.choice.boot_type,
        )
    };
    let booted = pull(&request.image)?;
    let staged = request.stage.as_ref().map(pull).transpose()?;
    for system in [Some(&booted), staged.as_ref()].into_iter().flatten() {
        if let (Sealing::Unsealed, Boots::Uki(uki)) = (request.choice.sealing, &system.boots) {
            let why = "requires fs-verity, which a disk that is --unsealed has not: it would not boot";
            let why = format!("the UKI of {} {why}", system.image.reference);
            ensure!(uki.verity == Verity::Optional, CannotBoot(why));
        }
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
    let deployments =
        Deployments { store: &store, booted: &booted, staged: staged.as_ref(), choice: &request.choice, ids };
    let partitions = lay_out(request.size, wanted(&request, &deployments, &name)?)?;
    let programs = disk::programs(&partitions, request.format)?;
    let Request { size, format, time, output, .. } = request;
    let staged = staged.map(|staged| staged.id);
    let arch = booted.arch;
    let plan = Plan { booted: booted.id, staged, arch, size, uuid: name("disk"), format, time, partitions, programs };
    Ok(Planned { plan, output, root: ids.root, seed, scratch })
}

/// The partitions, in order.
fn wanted(request: &Request, of: &Deployments<'_>, name: &dyn Fn(&str) -> Uuid) -> Result<Vec<Wanted>> {
    let files = of.describe()?;
    let partition = |purpose: Purpose, size, file_system, nodes| {
        let uuid = name(purpose.name());
        Wanted { purpose, uuid, size, file_system, nodes }
    };
    let deployments = if of.staged.is_some() { 2 } else { 1 };
    let esp = request.esp_size.unwrap_or_else(|| roomy(&files.esp, deployments));
    let mut wanted = vec![partition(Purpose::Esp, Some(esp), FileSystem::Fat(of.ids.esp), files.esp.clone())];
    if request.esps == Esps::Mirrored {
        let serial = name("esp mirror file system").as_fields().0;
        wanted.push(partition(Purpose::EspMirror, Some(esp), FileSystem::Fat(serial), files.esp));
    }
    if let (Boot::Partition, Some(nodes)) = (request.choice.boot, files.boot) {
        let file_system = match request.boot {
            BootFs::Ext4 => FileSystem::Ext4(of.ids.boot),
            BootFs::Xfs => FileSystem::Xfs(of.ids.boot),
        };
        let size = request.boot_size.unwrap_or_else(|| roomy(&nodes, deployments));
        wanted.push(partition(Purpose::Boot, Some(size), file_system, nodes));
    }
    wanted.push(partition(Purpose::Root, None, FileSystem::Ext4(of.ids.root), files.root));
    Ok(wanted)
}

impl Planned {
    /// Makes the disk.
    ///
    /// # Errors
    ///
    /// Which program failed; then there is no output, or the old one still.
    pub fn write(self) -> Result<Built> {
        let Self { plan, output, root, seed, scratch } = self;
        let built = Built { booted: plan.booted.clone(), staged: plan.staged.clone(), root, seed };
        disk::write(plan, &scratch.path().join("disk"))?.convert(&output)?;
        Ok(built)
    }
}
