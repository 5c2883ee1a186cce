//! The partition table of a disk image.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use gpt::{GptConfig, disk::LogicalBlockSize};
use serde::Serialize;

use super::kind::{Content, Role, probe};

/// A partition.
#[derive(Debug, Clone, Serialize)]
pub struct Partition {
    /// Its place in the table, counted from 1.
    pub number: u32,
    /// Its name in the table.
    pub name: String,
    /// Its type GUID.
    pub kind: String,
    /// What that says it is for.
    pub role: Role,
    /// What is in it.
    pub content: Content,
    /// Its first byte.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

impl Partition {
    /// What it is called in what is said to people: `partition 3 (root x86-64, "root")`.
    pub fn spoken(&self) -> String {
        format!("partition {} ({}, {:?})", self.number, self.role, self.name)
    }
}

/// The partitions in their order on the disk, which has sectors of 512 or 4096 bytes.
///
/// # Errors
///
/// When there is no valid table: says what there is instead.
pub fn read(disk: &Path) -> Result<Vec<Partition>> {
    Ok(read_both(disk)?.0)
}

/// The same, and what is wrong with one of both copies of the table (UEFI specification, 5.3.2).
///
/// # Errors
///
/// The same.
pub fn read_both(disk: &Path) -> Result<(Vec<Partition>, Option<String>)> {
    read_until(disk, end(disk)?)
}

/// The partitions of a disk of which only the beginning is there; what is in them is not known.
///
/// # Errors
///
/// The same.
pub fn read_head(head: &Path) -> Result<Vec<Partition>> {
    Ok(read_until(head, u64::MAX)?.0)
}

fn read_until(disk: &Path, end: u64) -> Result<(Vec<Partition>, Option<String>)> {
    let sectors = sectors(disk)?;
    let config = GptConfig::new().writable(false).logical_block_size(sectors);
    let table = config.open(disk).context("reading the partition table")?;
    let bytes = if sectors == LogicalBlockSize::Lb512 { 512 } else { 4096 };
    let mut all = vec![];
    for (number, partition) in table.partitions().iter().filter(|(_, partition)| partition.is_used()) {
        let whole = || {
            let count = partition.last_lba.checked_sub(partition.first_lba)?.checked_add(1)?;
            let (start, size) = (partition.first_lba.checked_mul(bytes)?, count.checked_mul(bytes)?);
            start.checked_add(size).map(|_| (start, size))
        };
        let (start, size) = whole().with_context(|| format!("partition {number} ends before it begins"))?;
        let is_there = start + size <= end;
        ensure!(
            is_there,
            "partition {number} ends {} bytes behind the end of the image: is it cut off?",
            start + size - end
        );
        let kind = partition.part_type_guid.guid.to_string();
        all.push(Partition {
            number: *number,
            name: partition.name.clone(),
            role: Role::of(&kind),
            kind,
            content: probe(disk, start, size)?,
            start,
            size,
        });
    }
    all.sort_by_key(|partition| partition.start);
    let valid = match (table.primary_header(), table.backup_header()) {
        (Ok(_), Ok(_)) => None,
        (Ok(_), Err(_)) => Some("first"),
        (Err(_), _) => Some("second"),
    };
    let said = |which| {
        format!("only the {which} of both copies of the partition table is valid: was the image cut off, or enlarged?")
    };
    Ok((all, valid.map(said)))
}

/// The size of a disk image, or of a disk.
fn end(disk: &Path) -> Result<u64> {
    let found = File::open(disk).and_then(|mut file| file.seek(SeekFrom::End(0)));
    found.with_context(|| format!("looking for the end of {}", disk.display()))
}

/// How large the sectors are that the table counts in: its header is in the second one.
fn sectors(disk: &Path) -> Result<LogicalBlockSize> {
    let file = File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
    let is_at = |at: u64, magic: &[u8]| {
        let mut bytes = vec![0; magic.len()];
        file.read_exact_at(&mut bytes, at).is_ok() && bytes == magic
    };
    match () {
        () if is_at(512, b"EFI PART") => Ok(LogicalBlockSize::Lb512),
        () if is_at(4096, b"EFI PART") => Ok(LogicalBlockSize::Lb4096),
        // The other copy may be there still.
        () if is_at(450, &[0xee]) => Ok(LogicalBlockSize::Lb512),
        () if is_at(510, &[0x55, 0xaa]) => bail!(
            "there is no GPT: the first sector has an MBR's signature, so this is an older partition table, or one file system"
        ),
        () => bail!("there is no partition table: neither the first nor the second sector has a signature"),
    }
}
