//! What is to be built, as meant.

use std::path::PathBuf;

use finalize::{boot::Loader, staged::BootType};

use crate::oci::Source;

/// A disk image to be built.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// The deployment that is booted.
    pub image: Source,
    /// The deployment that is staged.
    pub stage: Option<Source>,
    /// Where the disk image goes; replaced as a whole, and only when it is complete.
    pub output: PathBuf,
    /// Its format.
    pub format: DiskFormat,
    /// Who boots it.
    pub loader: Loader,
    /// What is booted.
    pub boot_type: BootType,
    /// Where GRUB's files are.
    pub boot: Boot,
    /// How many ESPs there are.
    pub esps: Esps,
    /// Whether files must be verified.
    pub sealing: Sealing,
    /// What all identifiers are made from; the same inputs and seed make the same bytes.
    pub seed: String,
    /// The size of the disk in bytes.
    pub size: u64,
    /// More words for the kernel command line.
    pub options: Vec<String>,
}

/// Where boot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// A directory of the root file system.
    Directory,
    /// A partition of its own.
    Partition(BootFs),
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

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum DiskFormat {
    /// The bytes of the disk, sparse.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
}

impl DiskFormat {
    /// The name by which qemu-img knows it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
            Self::Vhdx => "vhdx",
        }
    }
}

/// Whether the kernel verifies what it reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sealing {
    /// Every object has fs-verity, and the command line requires it.
    Sealed,
    /// No fs-verity.
    Unsealed,
}
