//! Looks into a disk image without mounting it: what is on it, and whether all of it is as it must be.

mod check;
pub mod ext4;
pub mod fat;
mod find;
mod fit;
pub mod grub;
pub mod kind;
pub mod machine;
mod next;
pub mod objects;
mod report;
pub mod table;
pub mod xfs;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use finalize::{boot::Loader, digest::DeploymentId, staged::BootType};
use serde::Serialize;
use xshell::cmd;

use self::{ext4::Ext4, fat::Fat, find::Found, grub::GrubFs, table::Partition};
use crate::{arch::Arch, program};

/// An opened disk image; another format is converted to raw for as long as this lives.
#[derive(Debug)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// What machine it is for, where somebody says so or the disk tells.
    pub arch: Option<&'static Arch>,
    found: Found,
    _scratch: Option<tempfile::TempDir>,
}

/// Where boot is: a partition of its own, or a directory of the physical root.
#[derive(Debug)]
pub struct Boot {
    /// The partition.
    pub partition: Partition,
    /// Its file system, as GRUB reads it.
    pub grub: GrubFs,
    /// Where the boot directory is in it: `/boot`, or nothing.
    pub prefix: &'static str,
}

/// What is on a disk.
#[derive(Debug, Serialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// What machine it is for, by the name that OCI images have it by.
    pub arch: Option<&'static Arch>,
    /// The partitions.
    pub partitions: Vec<Partition>,
    /// Who boots it; none that is known.
    pub loader: Option<Loader>,
    /// What boots next, the first one first.
    pub entries: Vec<BootEntry>,
    /// What is staged to take its place.
    pub staged_entries: Vec<BootEntry>,
    /// The deployments.
    pub deployments: Vec<Deployment>,
    /// The staged one.
    pub staged: Option<DeploymentId>,
    /// The record of the last finalization.
    pub record: Option<serde_json::Value>,
    /// What was not understood, or may matter elsewhere.
    pub notes: Vec<String>,
}

/// A boot entry.
#[derive(Debug, Serialize)]
pub struct BootEntry {
    /// Its file.
    pub file: String,
    /// What it boots, if that is a deployment.
    pub deployment: Option<DeploymentId>,
    /// What it is called.
    pub title: Option<String>,
    /// The files that it boots.
    pub files: Vec<String>,
    /// Its kernel command line; that of a UKI is in the UKI.
    pub options: Option<String>,
}

/// A deployment.
#[derive(Debug, Serialize)]
pub struct Deployment {
    /// Its name.
    pub id: DeploymentId,
    /// How it boots, when its origin says so.
    pub boot_type: Option<BootType>,
    /// What is in its state directory.
    pub state: Vec<String>,
    /// Whether its EROFS image is in the repository.
    pub has_image: bool,
}

impl Disk {
    /// Opens an image in any format that qemu-img reads, which is for a machine of the kind `arch`; for what it tells itself
    /// where nothing is said.
    ///
    /// # Errors
    ///
    /// When it has no partition table that is read: says what it has.
    pub fn open(image: &Path, arch: Option<&'static Arch>) -> Result<Self> {
        let mut scratch = None;
        let mut path = image.to_owned();
        let shell = program::shell()?;
        if format(image)? != "raw" {
            let dir = tempfile::tempdir()?;
            path = dir.path().join("disk.raw");
            program::run(cmd!(shell, "qemu-img convert -U -O raw {image} {path}"))?;
            scratch = Some(dir);
        }
        let named = || format!("reading the partitions of {}", image.display());
        let (partitions, damage) = table::read_both(&path).with_context(named)?;
        let mut found = find::find(&path, &partitions).with_context(|| format!("looking into {}", image.display()))?;
        found.notes.extend(damage);
        let arch = match arch {
            None => found.arch(&partitions)?,
            said => said,
        };
        Ok(Self { path, partitions, arch, found, _scratch: scratch })
    }

    /// The ESP that is booted from.
    ///
    /// # Errors
    ///
    /// When there is none.
    pub fn esp(&self) -> Result<&Fat> {
        self.found.esps.first().map(|(_, fat)| fat).context("the disk has no ESP")
    }

    /// The physical root.
    ///
    /// # Errors
    ///
    /// When there is none that is read.
    pub fn root(&self) -> Result<&Ext4> {
        self.found.root.as_ref().map(|(_, ext4)| ext4).context("the disk has no root file system that is read")
    }

    /// Where GRUB's files are.
    ///
    /// # Errors
    ///
    /// When neither a boot partition nor a root file system is there.
    pub fn boot(&self) -> Result<&Boot> {
        self.found.boot.as_ref().context("the disk has no boot directory")
    }
}

/// What qemu-img calls the format of an image.
fn format(image: &Path) -> Result<String> {
    let shell = program::shell()?;
    let info = program::run(cmd!(shell, "qemu-img info -U --output=json {image}"))?;
    let info: serde_json::Value = serde_json::from_str(&info).context("reading what qemu-img says")?;
    info["format"].as_str().map(str::to_owned).context("reading what qemu-img says: it names no format")
}
