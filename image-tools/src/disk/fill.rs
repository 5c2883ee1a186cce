//! Contents of packs, put straight into the files of an ext4 file system that has just been made: a tar archive on its way
//! to mke2fs would be copied several times, and mke2fs knows nothing of fs-verity.
//!
//! mke2fs makes these files empty, each with a number for its owner, by which its inode is found. It gets the blocks, the
//! size and the flags here. fs-verity metadata stand behind the data, where `verity` says. Inodes that will get extended
//! attributes are found in the same way.

use std::{collections::BTreeMap, fs::File, io, ops::Range, os::unix::fs::FileExt};

use anyhow::{Context, Result, ensure};
use rustix::{fs::FallocateFlags, io::Errno};

use super::volume::{Numbers, Volume, checksum, halves};
use crate::{
    node::{Content, Node, Packed},
    progress::Progress,
    verity::{BLOCK, metadata_offset},
};

const EXTENTS: u32 = 0x8_0000;
const VERITY: u32 = 0x10_0000;

/// What an extent says of itself, and how many of them an inode and a block hold.
const MAGIC: u16 = 0xf30a;
const IN_INODE: usize = 4;
const IN_BLOCK: usize = 340;
/// How many blocks an extent has at most.
const LONGEST: u64 = 32768;

/// Nodes that mke2fs does not complete, and how they are told from others: their group is this one, and their owner their
/// place in the list of nodes.
#[derive(Debug, Clone, Copy)]
pub struct Marked<'a> {
    nodes: &'a [Node],
    /// The group that they have until they are complete.
    pub group: u32,
}

/// Some blocks of a file, and where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Extent {
    logical: u64,
    physical: u64,
    count: u64,
}

/// The inodes of nodes that have extended attributes, by their place in the list.
pub type Inodes = BTreeMap<usize, u32>;

/// A file that gets its blocks.
#[derive(Debug, Default)]
struct Filled {
    extents: Vec<Extent>,
    /// Blocks with extents, where the inode does not hold all of them.
    leaves: Vec<u64>,
}

/// A run of blocks that is copied.
#[derive(Debug)]
struct Copy<'a> {
    from: &'a Packed,
    source: u64,
    target: u64,
    count: u64,
}

impl<'a> Marked<'a> {
    /// Those among `nodes` whose content is in packs, or that have extended attributes.
    pub fn of(nodes: &'a [Node]) -> Self {
        let taken: std::collections::HashSet<u32> = nodes.iter().map(|node| node.meta.gid).collect();
        let group = (1 << 31..u32::MAX).find(|group| !taken.contains(group)).unwrap_or_default();
        Self { nodes, group }
    }

    fn packed(node: &Node) -> Option<&Packed> {
        match &node.content {
            Content::Packed(packed) | Content::Sealed(packed) => Some(packed),
            _ => None,
        }
    }

    /// Whether its content is in a pack: mke2fs makes the file empty.
    pub fn is_packed(node: &Node) -> bool {
        Self::packed(node).is_some()
    }

    /// A further name has the attributes of the first one.
    fn has_attributes(node: &Node) -> bool {
        !node.meta.xattrs.is_empty() && !matches!(node.content, Content::HardLink(_))
    }

    /// Whether `node` is one of them.
    pub fn is_marked(node: &Node) -> bool {
        Self::is_packed(node) || Self::has_attributes(node)
    }

    /// Fills the files, gives all of them their owners, and finds the inodes of those that will get attributes: in the file
    /// system that begins at byte `start` of `disk`. Nothing where there is no room.
    ///
    /// # Errors
    ///
    /// When mke2fs has not made them as it was told, and those of reading and writing.
    pub fn fill(self, disk: &File, start: u64) -> Result<Option<Inodes>> {
        let mut volume = Volume::open(disk, start)?;
        let mut files: Vec<_> =
            self.nodes.iter().enumerate().filter_map(|(n, node)| Some((n, Self::packed(node)?))).collect();
        // As they lie in the packs, so that runs are long.
        files.sort_by_key(|(number, packed)| (packed.pack.number, packed.place.start, *number));
        let wanted: u64 =
            files.iter().map(|(n, packed)| self.runs(*n, packed).map(|(_, _, count)| count).sum::<u64>()).sum();
        let Some(free) = volume.allocate(wanted)? else { return Ok(None) };
        let mut filled: BTreeMap<usize, Filled> = BTreeMap::new();
        let mut copies: Vec<Copy<'_>> = vec![];
        let mut free = Free { runs: free.into_iter(), run: 0..0 };
        for (number, packed) in &files {
            let file = filled.entry(*number).or_default();
            for (logical, source, count) in self.runs(*number, packed) {
                free.give(count, |done, target, count| {
                    file.extents.push(Extent { logical: logical + done, physical: target, count });
                    extend(&mut copies, Copy { from: packed, source: source + done, target, count });
                });
            }
            file.extents.sort_by_key(|extent| extent.logical);
            join(&mut file.extents);
        }
        for file in filled.values_mut().filter(|file| file.extents.len() > IN_INODE) {
            let leaves = file.extents.len().div_ceil(IN_BLOCK);
            ensure!(leaves <= IN_INODE, "a file has too many holes, or the file system too many pieces");
            let Some(blocks) = volume.allocate(leaves as u64)? else { return Ok(None) };
            file.leaves = blocks.into_iter().flatten().collect();
        }
        carry(&copies, &volume, disk).context("copying a pack")?;
        self.describe(&volume, disk, filled).context("writing inodes").map(Some)
    }

    /// What of a pack becomes which blocks of a file: logical, in the pack, count. In the order of the pack.
    fn runs(self, number: usize, packed: &Packed) -> impl Iterator<Item = (u64, u64, u64)> {
        let place = &packed.place;
        let is_sealed = matches!(self.nodes[number].content, Content::Sealed(_));
        let metadata = (metadata_offset(place.size) / BLOCK as u64, place.start, place.metadata);
        let mut at = place.start + place.metadata;
        let data = place.data.iter().map(move |(first, count)| {
            at += count;
            (*first, at - count, *count)
        });
        is_sealed.then_some(metadata).into_iter().chain(data)
    }

    /// Writes the inodes, and the blocks with their extents.
    fn describe(self, volume: &Volume<'_>, disk: &File, mut filled: BTreeMap<usize, Filled>) -> Result<Inodes> {
        let mut inodes = Inodes::new();
        volume.each_inode(|number, inode| {
            let id = |low: usize, high: usize| u32::from(inode.get16(low)) | u32::from(inode.get16(high)) << 16;
            if id(0x18, 0x7a) != self.group {
                return Ok(false);
            }
            let place = id(2, 0x78) as usize;
            let Some(node) = self.nodes.get(place).filter(|node| Self::is_marked(node)) else {
                return Err(io::Error::other("mke2fs has made a file that nobody asked for"));
            };
            if Self::has_attributes(node) {
                inodes.insert(place, number);
            }
            for (at, id) in [((2, 0x78), node.meta.uid), ((0x18, 0x7a), node.meta.gid)] {
                let [low, high] = halves(id);
                inode.put16(at.0, low);
                inode.put16(at.1, high);
            }
            let Some(file) = filled.remove(&place) else { return Ok(true) };
            let flags = if matches!(node.content, Content::Sealed(_)) { EXTENTS | VERITY } else { EXTENTS };
            inode.put32(0x20, flags);
            inode.put32(4, (node.size() & 0xffff_ffff) as u32);
            inode.put32(0x6c, (node.size() >> 32) as u32);
            let blocks = file.extents.iter().map(|extent| extent.count).sum::<u64>() + file.leaves.len() as u64;
            let sectors = blocks * (BLOCK as u64 / 512);
            inode.put32(0x1c, (sectors & 0xffff_ffff) as u32);
            inode.put16(0x74, halves((sectors >> 32) as u32)[0]);
            inode[0x28..0x64].fill(0);
            if file.leaves.is_empty() {
                list(&mut inode[0x28..0x64], &file.extents);
                return Ok(true);
            }
            header(&mut inode[0x28..0x64], [file.leaves.len(), IN_INODE, 1]);
            let seed = volume.inode_seed(number, inode);
            for ((index, leaf), extents) in file.leaves.iter().enumerate().zip(file.extents.chunks(IN_BLOCK)) {
                let at = 0x28 + 12 + 12 * index;
                inode.put32(at, extents[0].logical as u32);
                inode.put32(at + 4, (leaf & 0xffff_ffff) as u32);
                inode.put32(at + 8, (leaf >> 32) as u32);
                let mut block = vec![0; BLOCK];
                list(&mut block, extents);
                let sum = checksum(seed, &block[..BLOCK - 4]);
                block.put32(BLOCK - 4, sum);
                disk.write_all_at(&block, volume.at(*leaf))?;
            }
            Ok(true)
        })?;
        let missing = self.nodes.iter().filter(|node| Self::has_attributes(node)).count() - inodes.len() + filled.len();
        ensure!(missing == 0, "mke2fs has not made {missing} files");
        Ok(inodes)
    }
}

/// Free blocks, as they are given away.
struct Free {
    runs: std::vec::IntoIter<Range<u64>>,
    run: Range<u64>,
}

impl Free {
    /// Gives `count` blocks to `take`: how many were before them, the first, and how many.
    fn give(&mut self, count: u64, mut take: impl FnMut(u64, u64, u64)) {
        let mut done = 0;
        while done < count {
            if self.run.is_empty() {
                let Some(run) = self.runs.next() else { return };
                self.run = run;
            }
            let length = (count - done).min(self.run.end - self.run.start).min(LONGEST);
            take(done, self.run.start, length);
            self.run.start += length;
            done += length;
        }
    }
}

/// Makes one of two extents that follow each other on either side.
fn join(extents: &mut Vec<Extent>) {
    extents.dedup_by(|next, last| {
        let follows = last.logical + last.count == next.logical && last.physical + last.count == next.physical;
        let is_one = follows && last.count + next.count <= LONGEST;
        if is_one {
            last.count += next.count;
        }
        is_one
    });
}

fn extend<'a>(copies: &mut Vec<Copy<'a>>, next: Copy<'a>) {
    match copies.last_mut() {
        Some(last)
            if last.from.pack.number == next.from.pack.number
                && last.source + last.count == next.source
                && last.target + last.count == next.target =>
        {
            last.count += next.count;
        }
        _ => copies.push(next),
    }
}

/// Copies runs, which are sorted. What will not be read again gives its memory, or its place on a disk, back.
fn carry(copies: &[Copy<'_>], volume: &Volume<'_>, disk: &File) -> io::Result<()> {
    /// How many blocks are copied before that is done.
    const PIECE: u64 = (16 << 20) / BLOCK as u64;
    let progress = Progress::of_step(copies.iter().map(|copy| copy.count * BLOCK as u64).sum());
    for (index, copy) in copies.iter().enumerate() {
        let pack = &copy.from.pack;
        let next = copies.get(index + 1).filter(|next| next.from.pack.number == pack.number);
        // A content that two files have is there twice.
        let needed = next.map_or(u64::MAX, |next| next.source);
        for done in (0..copy.count).step_by(PIECE as usize) {
            let (source, count) = (copy.source + done, PIECE.min(copy.count - done));
            let [from, length] = [source, count].map(|blocks| blocks * BLOCK as u64);
            copy_range((&pack.file, from), (disk, volume.at(copy.target + done)), length)?;
            progress.add(length);
            if pack.is_scratch && source + count <= needed {
                // Where the file system cannot do that, it is all given back at the end.
                _ = rustix::fs::fallocate(
                    &pack.file,
                    FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                    from,
                    length,
                );
            }
        }
    }
    Ok(())
}

/// The head of a list of extents: how many there are, how many there can be, and how far down the tree it stands.
fn header(bytes: &mut [u8], [count, room, depth]: [usize; 3]) {
    bytes.put16(0, MAGIC);
    for (at, value) in [(2, count), (4, room), (6, depth)] {
        bytes.put16(at, halves(value as u32)[0]);
    }
}

fn list(bytes: &mut [u8], extents: &[Extent]) {
    header(bytes, [extents.len(), (bytes.len() - 12) / 12, 0]);
    for (index, extent) in extents.iter().enumerate() {
        let at = 12 + 12 * index;
        bytes.put32(at, extent.logical as u32);
        bytes.put16(at + 4, halves(extent.count as u32)[0]);
        bytes.put16(at + 6, halves((extent.physical >> 32) as u32)[0]);
        bytes.put32(at + 8, (extent.physical & 0xffff_ffff) as u32);
    }
}

/// Copies bytes from one place to another; without them coming here, where the kernel can do that (copy_file_range(2)).
fn copy_range(from: (&File, u64), to: (&File, u64), mut count: u64) -> io::Result<()> {
    let ((source, mut from), (target, mut to)) = (from, to);
    while count > 0 {
        let length = usize::try_from(count).unwrap_or(usize::MAX).min(1 << 30);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => count -= copied as u64,
            Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let mut buffer = vec![0; if count > 0 { 1 << 20 } else { 0 }];
    while count > 0 {
        let length = buffer.len().min(usize::try_from(count).unwrap_or(usize::MAX));
        source.read_exact_at(&mut buffer[..length], from)?;
        target.write_all_at(&buffer[..length], to)?;
        (from, to, count) = (from + length as u64, to + length as u64, count - length as u64);
    }
    Ok(())
}
