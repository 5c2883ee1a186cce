//! From images to a disk: pull, seal, lay out, write.

use std::path::Path;

use anyhow::{Context, Result, bail};
use finalize::{boot::Loader, layout, staged::BootType};
use uuid::Uuid;

use crate::{
    bootloader::{Options, systemd_boot},
    cmd, deploy,
    disk::{
        esp, ext4,
        layout::{OVERHEAD, Purpose, create},
    },
    payload::{Payload, Store},
    recipe::{DiskFormat, Recipe},
    seal,
    tree::{Content, Meta, Node},
};

/// The size of the ESP in bytes.
const ESP_SIZE: u64 = 512 << 20;

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
    let booted = store.pull(&recipe.image, scratch.path())?;
    let staged = recipe.stage.as_ref().map(|source| {
        says("pulling the staged image");
        store.pull(source, scratch.path())
    });
    let staged = staged.transpose()?;
    if staged.as_ref().is_some_and(|staged| staged.id == booted.id) {
        bail!("{} and {} are the same deployment: stage another one", recipe.image, booted.source);
    }
    says("sealing");
    let names = |what: &str| Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("{} {what}", recipe.seed).as_bytes());
    let root = names("root file system");
    let nodes = root_nodes(recipe, &store, &booted, staged.as_ref())?;
    let options = Options { root, sealing: recipe.sealing, more: &recipe.options };
    let esp_nodes = match (recipe.loader, recipe.boot_type) {
        (Loader::SystemdBoot, BootType::Bls) => systemd_boot::esp(&store, &booted, staged.as_ref(), &options)?,
        (loader, boot_type) => bail!("{loader} with {boot_type} is not supported yet"),
    };
    says("writing the disk");
    let disk = scratch.path().join("disk");
    let rest = recipe.size.saturating_sub(ESP_SIZE + OVERHEAD);
    let extents = create(&disk, recipe.size, &[(Purpose::Esp, ESP_SIZE), (Purpose::Root, rest)], &names)?;
    let [at_esp, at_root] = extents[..] else { bail!("the partition table is incomplete") };
    let volume_id = names("esp file system").as_fields().0;
    esp::create(&disk, at_esp, volume_id, &esp_nodes)?;
    ext4::create(&disk, at_root, ext4::Names { uuid: root, label: "root" }, &nodes)?;
    says("putting it in place");
    convert(&disk, recipe)?;
    Ok(Built { booted: booted.id, staged: staged.map(|staged| staged.id), root })
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
