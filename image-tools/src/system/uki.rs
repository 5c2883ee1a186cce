//! The UKI that an image brings along: it must boot the image that it came in, or the machine would boot something that
//! is not deployed.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use composefs_boot::uki::{get_section, get_text_section};
use finalize::{
    cmdline::{Format, Target, Verity},
    digest::DeploymentId,
};
use sha2::{Digest, Sha256};

use super::{CannotBoot, must_find};
use crate::{
    node::HostFile,
    store::{self, Store, Tree},
};

/// Where an image has its UKI.
pub const DIR: &str = "boot/EFI/Linux";

/// A UKI of an image, and the addons that belong to it.
#[derive(Debug, Clone)]
pub struct Uki {
    /// The file on the build host.
    pub file: HostFile,
    /// The files of `<uki>.extra.d/`.
    pub addons: Vec<Addon>,
    /// SHA-256 over the kernel and the initrd in it, in hex.
    pub digest: String,
    /// Whether its command line requires fs-verity.
    pub verity: Verity,
}

/// A file beside a UKI.
#[derive(Debug, Clone)]
pub struct Addon {
    /// Its name.
    pub name: String,
    /// The file on the build host.
    pub file: HostFile,
}

impl Uki {
    /// The UKI of the image `id` with the files `tree`.
    ///
    /// # Errors
    ///
    /// When there is not exactly one, when it is no UKI, or when it boots another image: then with both digests.
    pub(super) fn find(store: &Store, tree: &Tree, id: &DeploymentId) -> Result<Self> {
        let names = names(tree, Path::new(DIR))?;
        let ukis: Vec<_> = names.iter().filter(|name| name.ends_with(".efi")).collect();
        let wanted = format!("the image must have one UKI, {DIR}/<name>.efi; it has {ukis:?}");
        ensure!(ukis.len() == 1, CannotBoot(format!("{wanted}: make one with `image-tools seal`")));
        let name = ukis[0];
        let file = must_find(store, tree, &Path::new(DIR).join(name))?;
        let bytes = std::fs::read(&file.path).with_context(|| format!("reading {}", file.path.display()))?;
        let (digest, verity) =
            check(&bytes, (id, store.format)).with_context(|| format!("looking into the UKI {DIR}/{name}"))?;
        let extra = Path::new(DIR).join(format!("{name}.extra.d"));
        let addons = self::names(tree, &extra)?.into_iter().map(|name| {
            let file = must_find(store, tree, &extra.join(&name))?;
            Ok(Addon { name, file })
        });
        Ok(Self { file, addons: addons.collect::<Result<_>>()?, digest, verity })
    }
}

/// The digest of kernel and initrd in the UKI `bytes`, which must boot `id` of this EROFS format, and whether that needs
/// fs-verity.
fn check(bytes: &[u8], (id, format): (&DeploymentId, Format)) -> Result<(String, Verity)> {
    let options = get_text_section(bytes, ".cmdline")?.trim_end_matches('\0');
    let found = Target::find(options)
        .ok_or_else(|| CannotBoot(format!("its command line names no deployment: {options:?}")))?;
    let wanted = Target { id: id.clone(), format, ..found.clone() };
    ensure!(
        found.format == format,
        CannotBoot(format!(
            "its command line must say {wanted}, of the EROFS format that was asked for, but says {found}"
        ))
    );
    let (found, verity) = (found.id, found.verity);
    ensure!(
        found == *id,
        CannotBoot(format!("it boots {found}, but the image that it came in is {id}: seal that image again"))
    );
    let mut hasher = Sha256::new();
    for name in [".linux", ".initrd"] {
        hasher.update(get_section(bytes, name).ok_or_else(|| CannotBoot(format!("it has no section {name}")))??);
    }
    Ok((hex::encode(hasher.finalize()), verity))
}

/// The names in a directory of the image.
fn names(tree: &Tree, dir: &Path) -> Result<Vec<String>> {
    let names = store::names(tree, dir)?.into_iter().map(|name| name.into_string().ok());
    names.map(|name| name.context("a name beside the UKI is not UTF-8")).collect()
}
