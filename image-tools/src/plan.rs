//! What a disk will be, as a value: its partitions, what each of them holds and why it is there, and the programs that
//! will make it. Nothing is written before there is a plan.

mod print;

use finalize::digest::DeploymentId;
use uuid::Uuid;

use crate::{arch::Arch, node::Node};

const MIB: u64 = 1 << 20;

/// The bytes that a disk has beside its partitions: 1 MiB at either end.
const OVERHEAD: u64 = 2 * MIB;

/// The size of the ESP, and of a boot partition, in bytes, where no more is needed.
const USUAL: u64 = 512 << 20;

/// What file systems of their size need for themselves, in bytes.
const SPARE: u64 = 64 << 20;

const LARGER: &str = "choose a larger --size";

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
    /// Its size in bytes, a multiple of 1 MiB; all that is left where nothing is said.
    pub size: Option<u64>,
    /// What is made in it.
    pub file_system: FileSystem,
    /// What that holds.
    pub nodes: Vec<Node>,
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
#[error("the {what} of {has} MiB is too small{}: {needs} MiB are needed; {remedy}", if *what == "disk" { "" } else { " for its files" })]
pub struct NoRoom {
    what: &'static str,
    has: u64,
    needs: Needs,
    remedy: &'static str,
}

/// How much is needed, in MiB.
#[derive(Debug, PartialEq, Eq)]
enum Needs {
    /// This is enough.
    Exactly(u64),
    /// The files alone; the file system needs more.
    MoreThan(u64),
}

impl std::fmt::Display for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exactly(mib) => write!(f, "{mib}"),
            Self::MoreThan(mib) => write!(f, "more than {mib}"),
        }
    }
}

impl NoRoom {
    /// Of a partition that was full before all files were in it.
    pub fn full(partition: &Partition) -> Self {
        let needs = Needs::MoreThan(partition.needed().div_ceil(MIB));
        Self { what: partition.spoken(), has: partition.size / MIB, needs, remedy: partition.remedy() }
    }
}

/// Puts the partitions one after the other on a disk of `size` bytes.
///
/// # Errors
///
/// When there is no room for them, or in one of them for its files.
pub fn lay_out(size: u64, wanted: Vec<Wanted>) -> Result<Vec<Partition>, NoRoom> {
    let taken = OVERHEAD + wanted.iter().filter_map(|wanted| wanted.size).sum::<u64>();
    let needs = Needs::MoreThan(taken.div_ceil(MIB));
    let no_room = NoRoom { what: "disk", has: size / MIB, needs, remedy: LARGER };
    let rest = size.checked_sub(taken).ok_or(no_room)?;
    let mut start = MIB;
    let mut partitions = vec![];
    for Wanted { purpose, uuid, size, file_system, nodes } in wanted {
        let partition = Partition { purpose, uuid, start, size: size.unwrap_or(rest), file_system, nodes };
        let (has, needs) = (partition.size / MIB, partition.needed().div_ceil(MIB));
        if partition.needed() > partition.size {
            let needs = if purpose == Purpose::Root { Needs::MoreThan(needs) } else { Needs::Exactly(needs) };
            return Err(NoRoom { what: partition.spoken(), has, needs, remedy: partition.remedy() });
        }
        start += partition.size;
        partitions.push(partition);
    }
    Ok(partitions)
}

/// How large a partition with the kernels of the deployments is: so that it can take those of three, for an update comes while
/// there are two.
pub fn roomy(nodes: &[Node], deployments: u64) -> u64 {
    const STEP: u64 = 64 << 20;
    let files: u64 = nodes.iter().map(Node::size).sum();
    (files * 3 / deployments + SPARE).next_multiple_of(STEP).max(USUAL)
}

impl Partition {
    /// The bytes that its files need: more than that on FAT, where nobody can do without; at least that elsewhere, where
    /// the program that makes the file system knows better.
    fn needed(&self) -> u64 {
        let files = self.nodes.iter().map(|node| node.size().next_multiple_of(4096));
        match self.file_system {
            FileSystem::Fat(_) => (4 << 20) + files.map(|size| size + 4096).sum::<u64>(),
            FileSystem::Ext4(_) | FileSystem::Xfs(_) => files.sum(),
        }
    }

    fn remedy(&self) -> &'static str {
        match self.purpose {
            Purpose::Root => LARGER,
            _ => "choose a larger --esp-size or --boot-size",
        }
    }

    fn spoken(&self) -> &'static str {
        match self.purpose {
            Purpose::Esp | Purpose::EspMirror => "ESP",
            Purpose::Boot => "boot partition",
            Purpose::Root => "root partition",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::{Content, HostFile};

    fn wanted(purpose: Purpose, size: Option<u64>, file: u64) -> Wanted {
        let content = Content::File(HostFile { path: "x".into(), size: file });
        let nodes = vec![Node::file("x", content, 0)];
        let file_system = if purpose == Purpose::Esp { FileSystem::Fat(0) } else { FileSystem::Ext4(Uuid::nil()) };
        Wanted { purpose, uuid: Uuid::nil(), size, file_system, nodes }
    }

    #[test]
    fn what_does_not_fit_is_refused_before_it_is_written() {
        let disk = |size: u64, files: [u64; 2]| {
            let [esp, root] = files;
            lay_out(size * MIB, vec![wanted(Purpose::Esp, Some(64 * MIB), esp), wanted(Purpose::Root, None, root)])
        };
        let places = disk(100, [9, 9]).map(|all| all.iter().map(|one| (one.start / MIB, one.size / MIB)).collect());
        assert_eq!(places, Ok(vec![(1, 64), (65, 34)]));
        let said = |files, size| disk(size, files).map(drop).map_err(|error| error.to_string());
        assert_eq!(
            said([9, 9], 65),
            Err("the disk of 65 MiB is too small: more than 66 MiB are needed; choose a larger --size".to_owned())
        );
        let esp = "the ESP of 64 MiB is too small for its files: 65 MiB are needed; choose a larger --esp-size or --boot-size";
        assert_eq!(said([60 * MIB, 9], 100), Err(esp.to_owned()));
        let root = "the root partition of 34 MiB is too small for its files: more than 35 MiB are needed; choose a larger --size";
        assert_eq!(said([9, 35 * MIB], 100), Err(root.to_owned()));
    }

    #[test]
    fn kernels_of_three_deployments_have_room() {
        let uki = |mib: u64| {
            let file = HostFile { path: "x".into(), size: mib << 20 };
            Node::file("x", Content::File(file), 0)
        };
        let mib = |nodes: &[Node], deployments| roomy(nodes, deployments) >> 20;
        assert_eq!(mib(&[uki(30)], 1), 512);
        assert_eq!(mib(&[uki(280), uki(280)], 2), 960);
        assert_eq!(mib(&[uki(280)], 1), 960);
    }
}
