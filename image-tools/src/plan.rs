//! What a disk will be, as a value: its partitions, what each of them holds and why it is there, and the programs that
//! will make it. Nothing is written before there is a plan.

mod print;
pub mod size;

use std::path::PathBuf;

use finalize::digest::DeploymentId;
use uuid::Uuid;

use self::size::{Later, Room};
use crate::{arch::Arch, node::Node};

const MIB: u64 = 1 << 20;

/// The bytes that a disk has beside its partitions: 1 MiB at either end.
const OVERHEAD: u64 = 2 * MIB;

/// A disk.
#[derive(Debug)]
pub struct Plan {
    /// The booted deployment.
    pub booted: DeploymentId,
    /// The staged one.
    pub staged: Option<DeploymentId>,
    /// What machine it is for.
    pub arch: &'static Arch,
    /// Its size in bytes.
    pub size: u64,
    /// The identifier of its partition table.
    pub uuid: Uuid,
    /// The format of the image.
    pub format: Format,
    /// The times of the file systems themselves, seconds since 1970. Zero would mean now.
    pub time: u64,
    /// Its partitions, in order.
    pub partitions: Vec<Partition>,
    /// The programs that will be run, as one would type them; the image is called DISK.
    pub programs: Vec<String>,
}

/// A partition.
#[derive(Debug)]
pub struct Partition {
    /// What it is for.
    pub purpose: Purpose,
    /// Its identifier.
    pub uuid: Uuid,
    /// Its first byte.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
    /// What takes that up.
    pub room: Room,
    /// What is made in it.
    pub file_system: FileSystem,
    /// What that holds.
    pub nodes: Vec<Node>,
}

/// A partition that has no place yet.
#[derive(Debug)]
pub struct Wanted {
    /// What it is for.
    pub purpose: Purpose,
    /// Its identifier.
    pub uuid: Uuid,
    /// The size that was asked for, in bytes, a multiple of 1 MiB.
    pub size: Option<u64>,
    /// What is made in it.
    pub file_system: FileSystem,
    /// What that holds.
    pub nodes: Vec<Node>,
    /// What it must have room for besides.
    pub later: Later,
}

/// What a partition is for; each has its type of the Discoverable Partitions Specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The EFI system partition.
    Esp,
    /// Another one with the same content, as mirrored disks have it.
    EspMirror,
    /// Kernels and boot entries (XBOOTLDR).
    Boot,
    /// The physical root.
    Root,
}

impl Purpose {
    /// The name of the partition.
    pub fn name(self) -> &'static str {
        match self {
            Self::Esp => "esp",
            Self::EspMirror => "esp-mirror",
            Self::Boot => "boot",
            Self::Root => "root",
        }
    }

    /// Why a disk has it.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Esp => "the firmware finds the boot loader there",
            Self::EspMirror => "the firmware goes on from there when the first disk is gone (--mirror-esp)",
            Self::Boot => "GRUB's files, kernels and entries (--boot-partition)",
            Self::Root => "the composefs repository and the state of each deployment: what the others leave",
        }
    }
}

/// A file system, and its identifiers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// FAT32, with a serial number.
    Fat(u32),
    /// ext4.
    Ext4(Uuid),
    /// XFS.
    Xfs(Uuid),
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// The bytes of the disk, sparse.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// VMware's.
    Vmdk,
    /// Hyper-V's.
    Vhdx,
}

impl Format {
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

/// Something is too small.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// What was asked for, in MiB, and what would do.
    #[error(
        "the {what} of {has} MiB is too small for what it must hold: {least} MiB would do; choose {option} {least} or more, \
         or leave {option} out"
    )]
    TooSmall {
        /// The partition, or the disk.
        what: &'static str,
        /// Its size.
        has: u64,
        /// A size that would do.
        least: u64,
        /// What chooses it.
        option: &'static str,
    },
    /// The build host has no room for the image, in MiB.
    #[error(
        "{} has {free} MiB free, and the disk image takes {needs} MiB more there until it is complete: choose another --output",
        dir.display()
    )]
    Host {
        /// Where it is made.
        dir: PathBuf,
        /// What is free.
        free: u64,
        /// What is needed.
        needs: u64,
    },
    /// A file system was full before all files were in it.
    #[error("the {what} partition of {has} MiB is full before all of its files are in it: choose a larger {option}")]
    Full {
        /// The partition.
        what: &'static str,
        /// Its size in MiB.
        has: u64,
        /// What chooses it.
        option: &'static str,
    },
}

impl NoRoom {
    /// Of a partition that was full before all files were in it.
    pub fn full(partition: &Partition) -> Self {
        let what = partition.purpose.name();
        let option = if partition.purpose == Purpose::Boot { "--boot-size" } else { "--size" };
        Self::Full { what, has: partition.size / MIB, option }
    }
}

/// Puts the partitions one after the other on a disk of `size` bytes, or of as many as they need; the root partition has what
/// the others leave.
///
/// # Errors
///
/// When there is no room for them, or in one of them for its files and those of three deployments.
pub fn lay_out(size: Option<u64>, wanted: Vec<Wanted>) -> Result<Vec<Partition>, NoRoom> {
    let mut sizes = vec![];
    for wanted in &wanted {
        sizes.push(if wanted.purpose == Purpose::Root { 0 } else { wanted.sized()? });
    }
    let others = OVERHEAD + sizes.iter().sum::<u64>();
    let mut start = MIB;
    let mut partitions = vec![];
    for (wanted, mut own) in wanted.into_iter().zip(sizes) {
        if wanted.purpose == Purpose::Root {
            own = match size {
                None => wanted.sized()?,
                Some(size) => {
                    let rest = size.saturating_sub(others);
                    wanted.check(rest, size, others)?;
                    rest
                }
            };
        }
        let room = wanted.room(own);
        let Wanted { purpose, uuid, file_system, nodes, .. } = wanted;
        partitions.push(Partition { purpose, uuid, start, size: own, room, file_system, nodes });
        start += own;
    }
    Ok(partitions)
}

/// The size in bytes of a disk with these partitions.
pub fn disk_size(partitions: &[Partition]) -> u64 {
    OVERHEAD + partitions.iter().map(|partition| partition.size).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Content, HostFile};

    fn wanted(purpose: Purpose, size: Option<u64>, file: u64) -> Wanted {
        let content = Content::File(HostFile { path: "x".into(), size: file });
        let nodes = vec![Node::file("x", content, 0)];
        let file_system = if purpose == Purpose::Esp { FileSystem::Fat(0) } else { FileSystem::Ext4(Uuid::nil()) };
        Wanted { purpose, uuid: Uuid::nil(), size, file_system, nodes, later: Later::default() }
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let disk = |size: Option<u64>, files: [u64; 2]| {
            let [esp, root] = files;
            let parts = vec![wanted(Purpose::Esp, Some(64 * MIB), esp), wanted(Purpose::Root, None, root)];
            lay_out(size.map(|size| size * MIB), parts)
        };
        let places = |size| {
            disk(size, [9, 9]).map(|all| all.iter().map(|one| (one.start / MIB, one.size / MIB)).collect::<Vec<_>>())
        };
        assert_eq!(places(Some(100)), Ok(vec![(1, 64), (65, 34)]));
        assert_eq!(places(None), Ok(vec![(1, 64), (65, 1280)]));
        let said = |files, size| disk(Some(size), files).map(drop).map_err(|error| error.to_string());
        for (size, least) in [(20, 75), (65, 75), (74, 75)] {
            let text = format!(
                "the disk of {size} MiB is too small for what it must hold: {least} MiB would do; choose --size {least} \
                 or more, or leave --size out"
            );
            assert_eq!(said([9, 9], size), Err(text));
        }
        assert_eq!(said([9, 9], 75), Ok(()));
        let said = said([63 * MIB, 9], 100).unwrap_err();
        assert!(
            said.starts_with("the ESP of 64 MiB is too small") && said.contains("choose --esp-size 65 or"),
            "{said}"
        );
    }
}
