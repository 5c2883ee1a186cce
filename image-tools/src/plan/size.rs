//! How large a partition is: what it holds, what the deployments of its future will need, and what its file system keeps for
//! itself. All of it is known before the first write.

use super::{FileSystem, MIB, NoRoom, Purpose, Wanted};
use crate::{node::Node, verity::metadata_size};

/// The block size of ext4 and XFS here, in bytes.
const BLOCK: u64 = 4096;

/// How many deployments have room: the booted one, the one before it, and the update that is being staged.
const DEPLOYMENTS: u64 = 3;

/// What an ESP or a boot partition has at least, where no size is asked for, in bytes.
const USUAL: u64 = 512 * MIB;

/// What the root file system has for /var and for what people add to /etc, where no size is asked for, in bytes.
const LOCAL: u64 = 1024 * MIB;

/// The least size of XFS that mkfs.xfs makes (xfsprogs 5.19 and later), in bytes.
const XFS_LEAST: u64 = 300 * MIB;

/// The least size of FAT32: 65,525 clusters of a sector, and what is around them, in bytes.
const FAT_LEAST: u64 = 34 * MIB;

/// Bytes of files, each in whole blocks, and the number of their names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Bytes.
    pub bytes: u64,
    /// Files, directories and links.
    pub nodes: u64,
}

/// Deployments that a partition must have room for, though they are not there yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Later {
    /// How many.
    pub deployments: u64,
    /// What each of them brings; no file is taken to be shared.
    pub each: Load,
}

impl Later {
    /// What is missing to three, when `now` of them are there and the heaviest of those weighs `each`.
    pub fn after(now: u64, each: Load) -> Self {
        Self { deployments: DEPLOYMENTS.saturating_sub(now), each }
    }
}

/// What takes up a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of what it holds.
    pub files: u64,
    /// Bytes of the deployments that come later, all together.
    pub later: u64,
    /// How many these are.
    pub deployments: u64,
    /// Bytes of the file system's own: allocation tables, inodes, the journal, what is reserved.
    pub own: u64,
    /// How many inodes ext4 is made with; none elsewhere, where they are made as needed.
    pub inodes: Option<u64>,
}

impl Room {
    /// Bytes of what it holds now.
    fn now(&self) -> u64 {
        self.files + self.own
    }

    /// Bytes of what it will hold.
    fn total(&self) -> u64 {
        self.now() + self.later
    }
}

impl Load {
    /// Of nodes, on a file system with blocks of `block` bytes.
    pub fn of<'a>(nodes: impl Iterator<Item = &'a Node>, block: u64) -> Self {
        let add = |sum: Self, node: &Node| Self {
            bytes: sum.bytes + node.size().next_multiple_of(block) + metadata_size(node.sealed_size(), block),
            nodes: sum.nodes + 1,
        };
        nodes.fold(Self::default(), add)
    }

    /// Of those nodes that have `name` in their path, in blocks of 4096 bytes.
    pub fn named(nodes: &[Node], name: &str) -> Self {
        Self::of(nodes.iter().filter(|node| node.path.to_string_lossy().contains(name)), BLOCK)
    }

    /// Of files of these sizes, with fs-verity by SHA-512.
    pub fn sealed(sizes: impl Iterator<Item = u64>) -> Self {
        let bytes = |size: u64| size.next_multiple_of(BLOCK) + metadata_size(Some(size), BLOCK);
        sizes.fold(Self::default(), |sum, size| sum + Self { bytes: bytes(size), nodes: 1 })
    }

    /// Of a file system's bytes: a name, and what it may need of a directory, takes a block at most.
    fn on_disk(self, block: u64) -> u64 {
        self.bytes.next_multiple_of(block) + self.nodes * block
    }
}

impl std::ops::Add for Load {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, nodes: self.nodes + other.nodes }
    }
}

/// How many bytes a cluster of FAT32 has on a partition of `size` bytes, with sectors of 512: Microsoft's FAT specification
/// ("FAT Volume Initialization", DskTableFAT32) and mkfs.fat agree. FAT32 whatever the size, for a firmware must read no other
/// FAT on a disk that stays in its machine (UEFI specification, 13.3.1.1).
pub fn cluster(size: u64) -> u64 {
    const GIB: u64 = 1024 * MIB;
    match size {
        _ if size <= 260 * MIB => 512,
        _ if size <= 8 * GIB => 4096,
        _ if size <= 16 * GIB => 8192,
        _ if size <= 32 * GIB => 16384,
        _ => 32768,
    }
}

/// What mke2fs takes for the journal of an ext4 of `size` bytes (`ext2fs_default_journal_size` of e2fsprogs), in bytes.
fn journal(size: u64) -> u64 {
    let blocks = match size / BLOCK {
        0..0x8000 => 1 << 10,
        0x8000..0x4_0000 => 1 << 12,
        0x4_0000..0x8_0000 => 1 << 13,
        0x8_0000..0x40_0000 => 1 << 14,
        0x40_0000..0x80_0000 => 1 << 15,
        0x80_0000..0x100_0000 => 1 << 16,
        0x100_0000..0x200_0000 => 1 << 17,
        _ => 1 << 18,
    };
    blocks * BLOCK
}

impl Wanted {
    /// What would take it up, had it `size` bytes.
    pub fn room(&self, size: u64) -> Room {
        let block = if let FileSystem::Fat(_) = self.file_system { cluster(size) } else { BLOCK };
        let (now, Later { deployments, each }) = (Load::of(self.nodes.iter(), block), self.later);
        let mut inodes = None;
        let own = match self.file_system {
            // Two allocation tables of four bytes a cluster, and the sectors before them.
            FileSystem::Fat(_) => 2 * (size / block * 4).next_multiple_of(block) + 64 * 512,
            FileSystem::Ext4(_) => {
                // One for each 16 KiB, as mke2fs has it; for many small files half as many again as there will be.
                let names = now.nodes + deployments * each.nodes;
                let number = (size / 16384).max(names + names / 2);
                inodes = Some(number);
                // A hundredth is reserved for root; descriptors of groups, for growth too, are less than another.
                number * 256 + journal(size) + size / 50 + 4 * MIB
            }
            // The log, and the trees of each allocation group.
            FileSystem::Xfs(_) => 64 * MIB + size / 50,
        };
        Room { files: now.on_disk(block), later: deployments * each.on_disk(block), deployments, own, inodes }
    }

    /// A size that would do, in whole MiB: what counts fits, and little is left.
    fn least(&self, what: fn(&Room) -> u64) -> u64 {
        let mut size = match self.file_system {
            FileSystem::Fat(_) => FAT_LEAST,
            FileSystem::Ext4(_) => 4 * MIB,
            FileSystem::Xfs(_) => XFS_LEAST,
        };
        while what(&self.room(size)) > size {
            size = what(&self.room(size)).next_multiple_of(MIB).max(size + MIB);
        }
        size
    }

    /// The size that it gets where nobody asks for one.
    fn usual(&self) -> u64 {
        match self.purpose {
            Purpose::Root => (self.least(Room::total) + LOCAL).next_multiple_of(256 * MIB),
            _ => (self.least(Room::total) * 9 / 8).next_multiple_of(64 * MIB).max(USUAL),
        }
    }

    /// The size that was asked for, if that does; else the usual one.
    pub(super) fn sized(&self) -> Result<u64, NoRoom> {
        let Some(size) = self.size else { return Ok(self.usual()) };
        self.check(size, size, 0).map(|()| size)
    }

    /// Whether all fits into `size` bytes; the error speaks of the whole that has `has` bytes, `others` of them taken. A disk
    /// that holds what it has, and no update more, is somebody's choice, who is told.
    pub(super) fn check(&self, size: u64, has: u64, others: u64) -> Result<(), NoRoom> {
        let (what, option) = match self.purpose {
            Purpose::Esp | Purpose::EspMirror => ("ESP", "--esp-size"),
            Purpose::Boot => ("boot partition", "--boot-size"),
            Purpose::Root => ("disk", "--size"),
        };
        let floor = if let FileSystem::Xfs(_) = self.file_system { XFS_LEAST } else { 0 };
        let has_room = |of: fn(&Room) -> u64| of(&self.room(size)) <= size && size >= floor;
        let least = |of| (self.least(of) + others) / MIB;
        match self.purpose {
            _ if has_room(Room::total) => Ok(()),
            Purpose::Root if has_room(Room::now) => {
                let least = least(Room::total);
                tracing::warn!(
                    "the disk has no room for a third deployment: updates may fail; --size {least} would do"
                );
                Ok(())
            }
            Purpose::Root => Err(NoRoom::TooSmall { what, has: has / MIB, least: least(Room::now), option }),
            _ => Err(NoRoom::TooSmall { what, has: has / MIB, least: least(Room::total), option }),
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::node::{Content, HostFile};

    fn file(mib: u64) -> Node {
        Node::file("x", Content::File(HostFile { path: "x".into(), size: mib << 20 }), 0)
    }

    fn esp(nodes: Vec<Node>, later: Later) -> Wanted {
        let (purpose, file_system) = (Purpose::Esp, FileSystem::Fat(0));
        Wanted { purpose, uuid: Uuid::nil(), size: None, file_system, nodes, later }
    }

    #[test]
    fn clusters_are_those_of_the_specification_and_there_are_enough_for_fat32() {
        let mib = [34, 260, 261, 512, 8192, 8193, 16384, 16385, 32768, 32769];
        assert_eq!(mib.map(|mib| cluster(mib << 20)), [512, 512, 4096, 4096, 4096, 8192, 8192, 16384, 16384, 32768]);
        for mib in 34..40_000_u64 {
            let (size, empty) = (mib << 20, esp(vec![], Later::default()));
            let clusters = (size - empty.room(size).own) / cluster(size);
            assert!(clusters >= 65525, "{mib} MiB have {clusters} clusters, and would be FAT16");
        }
    }

    #[test]
    fn kernels_of_three_deployments_have_room() {
        let mib = |nodes: Vec<Node>, now| {
            let each = Load::of(nodes.iter().take(1), 4096);
            esp(nodes, Later::after(now, each)).usual() >> 20
        };
        assert_eq!(mib(vec![file(30)], 1), 512);
        assert_eq!(mib(vec![file(280), file(280)], 2), 960);
        assert_eq!(mib(vec![file(280)], 1), 960);
        assert_eq!(mib(vec![file(100), file(100), file(100), file(100)], 4), 512);
    }

    #[test]
    fn the_least_size_is_enough_and_hardly_more() {
        for nodes in [vec![], vec![file(1)], vec![file(240)], vec![file(255)], vec![file(3), file(700)]] {
            for file_system in [FileSystem::Fat(0), FileSystem::Ext4(Uuid::nil()), FileSystem::Xfs(Uuid::nil())] {
                let one =
                    Wanted { file_system, ..esp(nodes.clone(), Later::after(2, Load { bytes: 1 << 20, nodes: 9 })) };
                let least = one.least(Room::total);
                assert!(one.check(least, least, 0).is_ok());
                let less = least - least / 16 - 2 * MIB;
                assert!(less < FAT_LEAST || one.check(less, less, 0).is_err(), "{file_system:?} {}", least / MIB);
            }
        }
    }
}
