//! What an image brings that boots.

pub mod kargs;
pub mod kernel;
pub mod os;
pub mod uki;

use std::path::Path;

use anyhow::{Context, Result};
use finalize::{boot::Loader, digest::DeploymentId, staged::BootType};

use self::{kernel::Kernel, os::Os, uki::Uki};
pub use crate::store::Incomplete;
use crate::{
    arch::Arch,
    node::HostFile,
    oci::Image,
    store::{Pulled, Store, Tree},
};

/// An image that boots nothing, or something else: why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CannotBoot(pub String);

/// How a machine boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// Who boots it.
    pub loader: Loader,
    /// What is booted.
    pub boot_type: BootType,
}

/// What the boot loader starts: as the image brings it.
#[derive(Debug, Clone)]
pub enum Boots {
    /// A kernel and an initrd.
    Kernel(Kernel),
    /// Both in one, with a command line.
    Uki(Uki),
}

impl Boots {
    /// SHA-256 over kernel and initrd, in hex.
    pub fn digest(&self) -> &str {
        match self {
            Self::Kernel(kernel) => &kernel.digest,
            Self::Uki(uki) => &uki.digest,
        }
    }
}

/// An operating system that boots, in the repository.
#[derive(Debug)]
pub struct System {
    /// The digest of its EROFS image.
    pub id: DeploymentId,
    /// The image that it came in.
    pub image: Image,
    /// What machine it is for.
    pub arch: &'static Arch,
    /// Its files.
    pub tree: Tree,
    /// The same as its EROFS image has them, with SELinux labels.
    pub labelled: Tree,
    /// What boots it.
    pub boots: Boots,
    /// What it says of itself.
    pub os: Os,
    /// What it adds to the kernel command line.
    pub kargs: Vec<String>,
}

impl System {
    /// Checks the image, reads it into the repository, and finds what boots.
    ///
    /// # Errors
    ///
    /// When the image is not what its digests say, or is not bootable: names what is missing.
    pub fn pull(image: Image, store: &Store, boot_type: BootType) -> Result<Self> {
        let reference = image.reference.clone();
        let _step = tracing::info_span!(target: "image_tools::step", "pull", image = %reference).entered();
        Self::read(image, store, boot_type).with_context(|| format!("pulling {reference}"))
    }

    fn read(image: Image, store: &Store, boot_type: BootType) -> Result<Self> {
        let arch = Arch::named(&image.arch.to_string()).map_err(|why| CannotBoot(why.to_string()))?;
        let Pulled { id, tree, labelled } = store.pull(&image)?;
        let boots = match boot_type {
            BootType::Bls => Boots::Kernel(Kernel::find(store, &tree)?),
            BootType::Uki => Boots::Uki(Uki::find(store, &tree, &id)?),
        };
        let os = Os::find(store, &tree)?;
        let kargs = kargs::find(store, &tree, arch)?;
        Ok(Self { id, image, arch, tree, labelled, boots, os, kargs })
    }

    /// The content of its file at `path`, without which it does not boot; `remedy` says what brings it.
    pub fn must_have(&self, store: &Store, path: &str, remedy: &str) -> Result<Vec<u8>> {
        let reference = &self.image.reference;
        let found = store.read(&self.tree, Path::new(path));
        let found = found.with_context(|| format!("looking for {path} in {reference}"))?;
        Ok(found.ok_or_else(|| CannotBoot(format!("{reference} has no {path}: {remedy}")))?)
    }
}

/// The file at `path`, without which an image does not boot.
fn must_find(store: &Store, tree: &Tree, path: &Path) -> Result<HostFile> {
    let found = store.file(tree, path)?;
    Ok(found.ok_or_else(|| CannotBoot(format!("the image has no {}", path.display())))?)
}
