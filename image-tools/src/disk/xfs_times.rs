//! The times in an XFS that was just made: mkfs.xfs before 6.17 takes the clock's, whatever it is told. All else that it writes
//! follows from its arguments.

use std::{collections::BTreeSet, fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};
use crc::{CRC_32_ISCSI, Crc};
use xshell::{Cmd, Shell, cmd};

use crate::program;

/// The four times of an inode, its flags, among them the one for times beyond 2038, and its checksum (`struct xfs_dinode` in
/// `fs/xfs/libxfs/xfs_format.h`).
const TIMES: [usize; 4] = [32, 40, 48, 144];
const FLAGS2: usize = 120;
const BIGTIME: u8 = 1 << 3;
const SUM: usize = 100;

/// What says which inodes there are.
pub fn list<'a>(shell: &'a Shell, image: &Path) -> Cmd<'a> {
    cmd!(shell, "xfs_db -r -c 'blockget -n' -c ncheck {image}")
}

/// Sets all times of all inodes of the file system in the file `image` to `time`, seconds since 1970.
///
/// # Errors
///
/// Those of xfs_db, of reading and writing, and when the file system is not as XFS of version 5 is.
pub fn settle(image: &Path, time: u64) -> Result<()> {
    let shell = program::shell()?;
    let listed = program::run(list(&shell, image)).context("listing the inodes")?;
    let file = File::options().read(true).write(true).open(image)?;
    let xfs = Superblock::read(&file)?;
    let mut inodes: BTreeSet<u64> = xfs.own.into();
    inodes.extend(listed.lines().filter_map(|line| line.split_whitespace().next()?.parse::<u64>().ok()));
    for inode in inodes {
        let at = xfs.offset(inode);
        let mut bytes = vec![0; xfs.inode_size];
        file.read_exact_at(&mut bytes, at).with_context(|| format!("reading the inode {inode}"))?;
        ensure!(bytes.starts_with(b"IN"), "{inode} is no inode");
        // Nanoseconds since 1901, or seconds and nanoseconds, 32 bits each.
        let raw = match bytes[FLAGS2 + 7] & BIGTIME {
            0 => time << 32,
            _ => (time + (1 << 31)).saturating_mul(1_000_000_000),
        };
        for place in TIMES {
            bytes[place..place + 8].copy_from_slice(&raw.to_be_bytes());
        }
        bytes[SUM..SUM + 4].fill(0);
        let sum = Crc::<u32>::new(&CRC_32_ISCSI).checksum(&bytes);
        bytes[SUM..SUM + 4].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(&bytes, at).with_context(|| format!("writing the inode {inode}"))?;
    }
    Ok(())
}

/// What leads from the number of an inode to its place (`struct xfs_dsb`).
struct Superblock {
    block_size: u64,
    group_blocks: u64,
    inode_size: usize,
    /// The base-2 logarithms of inodes in a block, and of blocks in a group, rounded up.
    logs: [u8; 2],
    /// The root directory, and two that have no name.
    own: [u64; 3],
}

impl Superblock {
    fn read(file: &File) -> Result<Self> {
        let mut bytes = [0; 512];
        file.read_exact_at(&mut bytes, 0).context("reading the superblock")?;
        let wide = |at: usize| u64::from_be_bytes(std::array::from_fn(|n| bytes[at + n]));
        let word = |at: usize| u32::from_be_bytes(std::array::from_fn(|n| bytes[at + n]));
        let version = bytes[101] & 0xf;
        ensure!(bytes.starts_with(b"XFSB") && version == 5, "it is no XFS of version 5");
        let inode_size = usize::from(u16::from_be_bytes([bytes[104], bytes[105]]));
        let logs = [bytes[123], bytes[124]];
        ensure!((256..=2048).contains(&inode_size) && logs[0] < 16 && logs[1] < 32, "its superblock is odd");
        let own = [56, 64, 72].map(wide);
        Ok(Self { block_size: word(4).into(), group_blocks: word(84).into(), inode_size, logs, own })
    }

    fn offset(&self, inode: u64) -> u64 {
        let [in_block, in_group] = self.logs;
        let block = (inode >> in_block) & ((1 << in_group) - 1);
        let group = inode >> (in_block + in_group);
        let slot = inode & ((1 << in_block) - 1);
        (group * self.group_blocks + block) * self.block_size + slot * self.inode_size as u64
    }
}
