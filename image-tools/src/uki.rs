//! The UKI that an image brings along: it must boot the image that it came in, or the machine would boot something that
//! is not deployed.

pub mod seal;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use composefs::{fsverity::Sha512HashValue, tree::FileSystem};
use composefs_boot::uki::{get_section, get_text_section};
use finalize::{cmdline::Target, digest::DeploymentId};
use sha2::{Digest, Sha256};

use crate::payload::Store;

/// Where an image has its UKI.
pub const DIR: &str = "boot/EFI/Linux";

/// A UKI of an image, and the addons that belong to it.
#[derive(Debug, Clone)]
pub struct Uki {
    /// The file on the build host.
    pub file: PathBuf,
    /// Names and files of `<uki>.extra.d/`.
    pub addons: Vec<(String, PathBuf)>,
    /// SHA-256 over the kernel and the initrd in it, in hex.
    pub digest: String,
}

impl Uki {
    /// The UKI of the image `id` with the files `tree`.
    ///
    /// # Errors
    ///
    /// When there is not exactly one, when it is no UKI, or when it boots another image: then with both digests.
    pub fn find(store: &Store, tree: &FileSystem<Sha512HashValue>, id: &DeploymentId) -> Result<Self> {
        let names = names(tree, Path::new(DIR))?;
        let ukis: Vec<_> = names.iter().filter(|name| name.ends_with(".efi")).collect();
        let [name] = ukis[..] else {
            bail!("the image must have one UKI, {DIR}/<name>.efi; it has {ukis:?}: make one with `image-tools seal`");
        };
        let file = store.file(tree, &Path::new(DIR).join(name))?;
        let bytes = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let digest = check(&bytes, id).with_context(|| format!("looking into the UKI {DIR}/{name}"))?;
        let extra = Path::new(DIR).join(format!("{name}.extra.d"));
        let addons = self::names(tree, &extra)?.into_iter().map(|name| {
            let file = store.file(tree, &extra.join(&name))?;
            Ok((name, file))
        });
        Ok(Self { file, addons: addons.collect::<Result<_>>()?, digest })
    }
}

/// The digest of kernel and initrd in the UKI `bytes`, which must boot `id`.
fn check(bytes: &[u8], id: &DeploymentId) -> Result<String> {
    let options = get_text_section(bytes, ".cmdline")?.trim_end_matches('\0');
    let found = Target::find(options).map(|target| target.id);
    let found = found.with_context(|| format!("its command line names no deployment: {options:?}"))?;
    ensure!(found == *id, "it boots {found}, but the image that it came in is {id}: seal that image again");
    let mut hasher = Sha256::new();
    for name in [".linux", ".initrd"] {
        hasher.update(get_section(bytes, name).with_context(|| format!("it has no section {name}"))??);
    }
    Ok(hex::encode(hasher.finalize()))
}

/// The names in a directory of the image, in order; none where there is no directory.
fn names(tree: &FileSystem<Sha512HashValue>, dir: &Path) -> Result<Vec<String>> {
    let Some(dir) = tree.as_dir().get_directory_ref_opt(dir.as_os_str())? else { return Ok(vec![]) };
    let names = dir.sorted_entries().map(|(name, _)| name.to_str().map(str::to_owned));
    names.map(|name| name.context("a name beside the UKI is not UTF-8")).collect()
}
