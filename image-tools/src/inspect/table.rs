//! The partition table of a disk image.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// A partition.
#[derive(Debug, Clone, Serialize)]
pub struct Partition {
    /// Its place in the table, counted from 1.
    pub number: u32,
    /// Its name in the table.
    pub name: String,
    /// Its type GUID.
    pub kind: String,
    /// Its first byte.
    pub start: u64,
    /// Its size in bytes.
    pub size: u64,
}

/// The partitions in their order on the disk. Both copies of the table are checked (UEFI specification, 5.3.2).
///
/// # Errors
///
/// When there is no valid table.
pub fn read(disk: &Path) -> Result<Vec<Partition>> {
    let table = gpt::GptConfig::new().writable(false).open(disk).context("reading the partition table")?;
    let size = *table.logical_block_size();
    let bytes = u64::from(size);
    let mut all = vec![];
    for (number, partition) in table.partitions().iter().filter(|(_, partition)| partition.is_used()) {
        all.push(Partition {
            number: *number,
            name: partition.name.clone(),
            kind: partition.part_type_guid.guid.to_string(),
            start: partition.bytes_start(size)?,
            size: (partition.last_lba + 1 - partition.first_lba) * bytes,
        });
    }
    all.sort_by_key(|partition| partition.start);
    Ok(all)
}
