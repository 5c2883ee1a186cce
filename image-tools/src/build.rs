//! From images to a disk: pull, seal, lay out, write.

use std::path::Path;

use anyhow::{Context, Result, bail};
use finalize::{boot::Loader, layout};
use uuid::Uuid;

use crate::{
    bootloader::{Options, grub, systemd_boot},
    cmd, deploy,
    disk::{
        esp, ext4,
        layout::{OVERHEAD, Purpose, create},
        xfs,
    },
    payload::{Payload, Store},
    recipe::{Boot, BootFs, DiskFormat, Esps, Recipe},
    seal,
    tree::{Content, Meta, Node},
};

/// The size of the ESP in bytes.
const ESP_SIZE: u64 = 512 << 20;

/// The size of a boot partition in bytes.
const BOOT_SIZE: u64 = 512 << 20;

/// What was built.
#[derive(Debug, serde::Serialize)]
pub struct Built {
    /// The booted deployment.
    pub booted: finalize::digest::DeploymentId,
    /// The staged one.
    pub staged: Option<finalize::digest::DeploymentId>,
    /// The UUID of the root file system.
    pub root: Uuid,
}

/// Builds the disk image of `recipe`; `says` is told what is being done.
///
/// # Errors
///
/// Names what is wrong with the input or which program failed; then there is no output, or the old one still.
pub fn build(recipe: &Recipe, says: &mut dyn FnMut(&str)) -> Result<Built> {
    let beside = recipe.output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(beside).with_context(|| format!("creating {}", beside.display()))?;
    let scratch = tempfile::Builder::new().prefix(".image-tools-").tempdir_in(beside)?;
    let store = Store::create(&scratch.path().join("composefs"))?;
    says("pulling the booted image");
    if recipe.boot != Boot::Directory && recipe.loader == Loader::SystemdBoot {
        bail!("systemd-boot reads its entries from the ESP: a boot partition needs --bootloader grub");
    }
    let booted = store.pull(&recipe.image, recipe.boot_type, scratch.path())?;
    let staged = recipe.stage.as_ref().map(|source| {
        says("pulling the staged image");
        store.pull(source, recipe.boot_type, scratch.path())
    });
    let staged = staged.transpose()?;
    if staged.as_ref().is_some_and(|staged| staged.id == booted.id) {
        bail!("{} and {} are the same deployment: stage another one", recipe.image, booted.source);
    }
    says("sealing");
    let names = |what: &str| Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {what}", recipe.seed).as_bytes());
    let ids = Ids {
        root: names("root file system"),
        boot: names("boot file system"),
        esp: names("esp file system").as_fields().0,
        esp_mirror: names("esp mirror file system").as_fields().0,
    };
    let files = files(recipe, &store, (&booted, staged.as_ref()), &ids)?;
    says("writing the disk");
    let disk = scratch.path().join("disk");
    write(&disk, recipe, &files, (&ids, &names))?;
    says("putting it in place");
    convert(&disk, recipe)?;
    Ok(Built { booted: booted.id, staged: staged.map(|staged| staged.id), root: ids.root })
}

/// The identifiers of the file systems.
struct Ids {
    root: Uuid,
    boot: Uuid,
    esp: u32,
    esp_mirror: u32,
}

/// What each file system holds.
struct Files {
    esp: Vec<Node>,
    /// Where boot is a partition.
    boot: Option<Vec<Node>>,
    root: Vec<Node>,
}

fn files(recipe: &Recipe, store: &Store, (booted, staged): (&Payload, Option<&Payload>), ids: &Ids) -> Result<Files> {
    let mut root = root_nodes(recipe, store, booted, staged)?;
    let options = Options { root: ids.root, sealing: recipe.sealing, more: &recipe.options };
    if recipe.loader == Loader::SystemdBoot {
        return Ok(Files { esp: systemd_boot::esp(store, booted, staged, &options)?, boot: None, root });
    }
    let (uuid, prefix) = match recipe.boot {
        Boot::Directory => (ids.root, "/boot"),
        Boot::Partition(_) => (ids.boot, ""),
    };
    let menu = grub::Menu { booted, staged, options: &options, boot_type: recipe.boot_type };
    let made = grub::files(store, menu, grub::BootFs { uuid, prefix, esp: ids.esp })?;
    if recipe.boot != Boot::Directory {
        return Ok(Files { esp: made.esp, boot: Some(made.boot), root });
    }
    root.extend(made.boot.into_iter().map(|node| Node { path: Path::new("boot").join(&node.path), ..node }));
    Ok(Files { esp: made.esp, boot: None, root })
}

/// Makes the disk, partition by partition.
fn write(disk: &Path, recipe: &Recipe, files: &Files, (ids, names): (&Ids, &dyn Fn(&str) -> Uuid)) -> Result<()> {
    let boot = files.boot.as_ref().map(|_| (Purpose::Boot, BOOT_SIZE));
    let mirror = (recipe.esps == Esps::Mirrored).then_some((Purpose::EspMirror, ESP_SIZE));
    let mut parts: Vec<_> = [Some((Purpose::Esp, ESP_SIZE)), mirror, boot].into_iter().flatten().collect();
    let taken: u64 = parts.iter().map(|(_, size)| size).sum();
    parts.push((Purpose::Root, recipe.size.saturating_sub(OVERHEAD + taken)));
    let extents = create(disk, recipe.size, &parts, names)?;
    for ((purpose, _), at) in parts.iter().zip(extents) {
        match purpose {
            Purpose::Esp => esp::create(disk, at, ids.esp, &files.esp)?,
            Purpose::EspMirror => esp::create(disk, at, ids.esp_mirror, &files.esp)?,
            Purpose::Boot => {
                let nodes = files.boot.as_deref().unwrap_or_default();
                let xfs = recipe.boot == Boot::Partition(BootFs::Xfs);
                let make = if xfs { xfs::create } else { ext4::create };
                make(disk, at, ext4::Names { uuid: ids.boot, label: "boot" }, nodes)?;
            }
            Purpose::Root => ext4::create(disk, at, ext4::Names { uuid: ids.root, label: "root" }, &files.root)?,
        }
    }
    Ok(())
}

fn root_nodes(recipe: &Recipe, store: &Store, booted: &Payload, staged: Option<&Payload>) -> Result<Vec<Node>> {
    let mtime = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    let dir = |path: &str| Node::new(path, Meta::root(0o755, mtime), Content::Dir);
    let mut nodes = seal::repository(store, recipe.sealing, mtime)?;
    nodes.extend(["boot", "ostree", "state", layout::DEPLOYMENTS, "state/os", "state/os/default"].map(dir));
    nodes.push(Node::new("ostree/bootc", Meta::root(0o777, mtime), Content::Link("../composefs/bootc".into())));
    nodes.extend(deploy::var(store, booted)?);
    for payload in [Some(booted), staged].into_iter().flatten() {
        nodes.extend(deploy::state(store, payload, recipe.boot_type, mtime)?);
    }
    if let Some(staged) = staged {
        nodes.extend(deploy::staged(staged, mtime));
    }
    Ok(nodes)
}

/// From the raw disk to the output, in one step.
fn convert(disk: &Path, recipe: &Recipe) -> Result<()> {
    let mut finished = disk.to_owned();
    if recipe.format != DiskFormat::Raw {
        finished = disk.with_extension(recipe.format.name());
        let mut convert = std::process::Command::new("qemu-img");
        convert.args(["convert", "-f", "raw", "-O", recipe.format.name()]).arg(disk).arg(&finished);
        cmd::run(&mut convert)?;
    }
    std::fs::rename(&finished, &recipe.output).with_context(|| format!("writing {}", recipe.output.display()))
}
