//! What an ext4 file system has written down of itself, as mke2fs leaves it: where its inodes are and which blocks are free.
//! Changes are made in memory, and written with their checksums.
//!
//! Source of the facts: the kernel's `Documentation/filesystems/ext4` (`super.rst`, `group_descr.rst`, `bitmaps.rst`,
//! `inodes.rst`, `checksums.rst`).

use std::{fs::File, io, ops::Range, os::unix::fs::FileExt};

use crate::verity::BLOCK;

const SUPERBLOCK: u64 = 1024;
const INODE_UNINIT: u16 = 1;
const BLOCK_UNINIT: u16 = 2;

/// An open file system in a file, and how it is laid out.
#[derive(Debug)]
pub struct Volume<'a> {
    file: &'a File,
    /// The first byte in the file.
    start: u64,
    superblock: Vec<u8>,
    descriptors: Vec<u8>,
    blocks_per_group: u64,
    inodes_per_group: u64,
    /// The bytes of a group descriptor, and of an inode.
    descriptor: usize,
    inode: usize,
    seed: u32,
}

/// Numbers in bytes, little endian. Offsets are those of the structures.
pub trait Numbers {
    /// 16 bits.
    fn get16(&self, at: usize) -> u16;
    /// 32 bits.
    fn get32(&self, at: usize) -> u32;
    /// The same, changed.
    fn put16(&mut self, at: usize, value: u16);
    /// The same, changed.
    fn put32(&mut self, at: usize, value: u32);
}

impl Numbers for [u8] {
    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self[at], self[at + 1]])
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from_le_bytes([self[at], self[at + 1], self[at + 2], self[at + 3]])
    }

    fn put16(&mut self, at: usize, value: u16) {
        self[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn put32(&mut self, at: usize, value: u32) {
        self[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The lower half, and the upper one.
pub fn halves(value: u32) -> [u16; 2] {
    [(value & 0xffff) as u16, (value >> 16) as u16]
}

/// The checksum of ext4: CRC-32C without the inversions at its ends.
pub fn checksum(seed: u32, bytes: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, bytes)
}

fn unlike(what: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the ext4 file system of mke2fs is unlike what is expected: {what}"),
    )
}

impl<'a> Volume<'a> {
    /// Reads the file system that begins at byte `start`.
    ///
    /// # Errors
    ///
    /// When it is none of those that this program makes.
    pub fn open(file: &'a File, start: u64) -> io::Result<Self> {
        let mut superblock = vec![0; 1024];
        file.read_exact_at(&mut superblock, start + SUPERBLOCK)?;
        let sb = &superblock[..];
        let [descriptor, inode] = [0xfe, 0x58].map(|at| usize::from(sb.get16(at)));
        let (blocks_per_group, inodes_per_group) = (u64::from(sb.get32(0x20)), u64::from(sb.get32(0x28)));
        // Blocks of 4096 bytes; extents and 64bit, neither meta_bg nor metadata_csum_seed; metadata_csum.
        let is_known = sb.get16(0x38) == 0xef53 && sb.get32(0x18) == 2 && sb.get32(0x60) & 0x20d0 == 0xc0;
        if !is_known || sb.get32(0x64) & 0x400 == 0 || descriptor != 64 || inode < 160 || blocks_per_group != 32768 {
            return Err(unlike("its superblock"));
        }
        let seed = checksum(!0, &superblock[0x68..0x78]);
        let mut volume = Self {
            file,
            start,
            superblock,
            descriptors: vec![],
            blocks_per_group,
            inodes_per_group,
            descriptor,
            inode,
            seed,
        };
        volume.descriptors =
            volume.read(1, usize::try_from(volume.groups()).map_err(io::Error::other)? * descriptor)?;
        Ok(volume)
    }

    /// How many blocks it has.
    fn blocks(&self) -> u64 {
        u64::from(self.superblock.get32(4)) | u64::from(self.superblock.get32(0x150)) << 32
    }

    fn groups(&self) -> u64 {
        self.blocks().div_ceil(self.blocks_per_group)
    }

    fn read(&self, block: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, self.start + block * BLOCK as u64)?;
        Ok(bytes)
    }

    /// Where a block is in the file.
    pub fn at(&self, block: u64) -> u64 {
        self.start + block * BLOCK as u64
    }

    fn group(&self, group: u64) -> &[u8] {
        let at = group as usize * self.descriptor;
        &self.descriptors[at..at + self.descriptor]
    }

    /// A block number in a group descriptor, by the offset of its lower half.
    fn block_in(&self, group: u64, at: usize) -> u64 {
        u64::from(self.group(group).get32(at)) | u64::from(self.group(group).get32(at + 0x20)) << 32
    }

    /// The blocks of a group.
    fn range(&self, group: u64) -> Range<u64> {
        let first = group * self.blocks_per_group;
        first..(first + self.blocks_per_group).min(self.blocks())
    }

    /// Lets `change` see each inode that is in use, by its number; where it says so, that is written.
    ///
    /// # Errors
    ///
    /// Those of `change`, of reading and of writing.
    pub fn each_inode(&self, mut change: impl FnMut(u32, &mut [u8]) -> io::Result<bool>) -> io::Result<()> {
        for group in 0..self.groups() {
            let descriptor = self.group(group);
            if descriptor.get16(0x12) & INODE_UNINIT != 0 {
                continue;
            }
            let unused = u64::from(descriptor.get16(0x1c)) | u64::from(descriptor.get16(0x32)) << 16;
            let (count, at) = (self.inodes_per_group.saturating_sub(unused), self.block_in(group, 8));
            let mut table = self.read(at, count as usize * self.inode)?;
            let mut is_changed = false;
            for (index, inode) in table.chunks_exact_mut(self.inode).enumerate() {
                let number =
                    u32::try_from(group * self.inodes_per_group + index as u64 + 1).map_err(io::Error::other)?;
                if change(number, inode)? {
                    self.seal_inode(number, inode);
                    is_changed = true;
                }
            }
            if is_changed {
                self.file.write_all_at(&table, self.at(at))?;
            }
        }
        Ok(())
    }

    /// What the checksums of an inode and of its blocks begin with.
    pub fn inode_seed(&self, number: u32, inode: &[u8]) -> u32 {
        checksum(checksum(self.seed, &number.to_le_bytes()), &inode[0x64..0x68])
    }

    fn seal_inode(&self, number: u32, inode: &mut [u8]) {
        inode.put16(0x7c, 0);
        inode.put16(0x82, 0);
        let [low, high] = halves(checksum(self.inode_seed(number, inode), inode));
        inode.put16(0x7c, low);
        inode.put16(0x82, high);
    }

    /// Takes `count` free blocks: the first ones that there are, as few runs as that gives. Nothing where there are not so many.
    ///
    /// # Errors
    ///
    /// Those of reading and writing.
    pub fn allocate(&mut self, count: u64) -> io::Result<Option<Vec<Range<u64>>>> {
        let (mut runs, mut rest): (Vec<Range<u64>>, _) = (vec![], count);
        let mut changed = vec![];
        for group in 0..self.groups() {
            if rest == 0 {
                break;
            }
            let (mut bitmap, first) = (self.bitmap(group)?, self.range(group).start);
            let before = rest;
            for block in self.range(group) {
                if rest == 0 {
                    break;
                }
                let (byte, bit) = (((block - first) / 8) as usize, 1 << ((block - first) % 8));
                if bitmap[byte] & bit != 0 {
                    continue;
                }
                bitmap[byte] |= bit;
                rest -= 1;
                match runs.last_mut() {
                    Some(run) if run.end == block => run.end += 1,
                    _ => runs.push(block..block + 1),
                }
            }
            changed.push((group, bitmap, before - rest));
        }
        if rest > 0 {
            return Ok(None);
        }
        for (group, bitmap, taken) in changed.into_iter().filter(|(_, _, taken)| *taken > 0) {
            self.take(group, &bitmap, taken)?;
        }
        self.write_counts(count)?;
        Ok(Some(runs))
    }

    /// Which blocks of a group are in use, a bit each. Where nothing but mke2fs's own is, that is not written down.
    fn bitmap(&self, group: u64) -> io::Result<Vec<u8>> {
        if self.group(group).get16(0x12) & BLOCK_UNINIT == 0 {
            return self.read(self.block_in(group, 0), BLOCK);
        }
        let mut bitmap = vec![0; BLOCK];
        let range = self.range(group);
        let mut mark = |blocks: Range<u64>| {
            for block in blocks.filter(|block| range.contains(block)) {
                bitmap[((block - range.start) / 8) as usize] |= 1 << ((block - range.start) % 8);
            }
        };
        if has_backup(group) {
            let descriptors = (self.groups() * self.descriptor as u64).div_ceil(BLOCK as u64);
            let reserved = u64::from(self.superblock.get16(0xce));
            mark(range.start..range.start + 1 + descriptors + reserved);
        }
        let table = (self.inodes_per_group * self.inode as u64).div_ceil(BLOCK as u64);
        for other in 0..self.groups() {
            for (at, count) in [(0, 1), (4, 1), (8, table)] {
                let first = self.block_in(other, at);
                mark(first..first + count);
            }
        }
        // Blocks behind the end.
        for bit in range.end - range.start..self.blocks_per_group {
            bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
        }
        Ok(bitmap)
    }

    /// Writes the bitmap of a group, in which `taken` more blocks are in use, and changes its descriptor.
    fn take(&mut self, group: u64, bitmap: &[u8], taken: u64) -> io::Result<()> {
        self.file.write_all_at(bitmap, self.at(self.block_in(group, 0)))?;
        let [low, high] = halves(checksum(self.seed, bitmap));
        let seed = checksum(self.seed, &u32::try_from(group).map_err(io::Error::other)?.to_le_bytes());
        let at = group as usize * self.descriptor;
        let descriptor = &mut self.descriptors[at..at + self.descriptor];
        let free = u32::from(descriptor.get16(0xc)) | u32::from(descriptor.get16(0x2c)) << 16;
        let free = free.checked_sub(u32::try_from(taken).map_err(io::Error::other)?);
        let [free_low, free_high] = halves(free.ok_or_else(|| unlike("a group has more free blocks than it says"))?);
        for (at, value) in [(0xc, free_low), (0x2c, free_high), (0x18, low), (0x38, high), (0x1e, 0)] {
            descriptor.put16(at, value);
        }
        descriptor.put16(0x12, descriptor.get16(0x12) & !BLOCK_UNINIT);
        let [sum, _] = halves(checksum(seed, descriptor));
        descriptor.put16(0x1e, sum);
        Ok(())
    }

    fn write_counts(&mut self, taken: u64) -> io::Result<()> {
        let free = u64::from(self.superblock.get32(0xc)) | u64::from(self.superblock.get32(0x158)) << 32;
        let free = free.checked_sub(taken).ok_or_else(|| unlike("it has more free blocks than it says"))?;
        self.superblock.put32(0xc, (free & 0xffff_ffff) as u32);
        self.superblock.put32(0x158, (free >> 32) as u32);
        let sum = checksum(!0, &self.superblock[..0x3fc]);
        self.superblock.put32(0x3fc, sum);
        self.file.write_all_at(&self.descriptors, self.at(1))?;
        self.file.write_all_at(&self.superblock, self.start + SUPERBLOCK)
    }
}

/// Whether a group begins with copies of superblock and descriptors (`sparse_super`).
fn has_backup(group: u64) -> bool {
    let is_power = |base: u64| {
        let mut power = base;
        while power < group {
            power *= base;
        }
        power == group
    };
    group <= 1 || [3, 5, 7].into_iter().any(is_power)
}
