//! Partition types, and partition tables (UEFI specification, 5.3), for machines whose udev does not know them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use gpt::{GptConfig, disk::LogicalBlockSize};

/// A partition with boot files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// The EFI system partition.
    Esp,
    /// The boot partition of the Discoverable Partitions Specification, XBOOTLDR.
    Boot,
}

/// A partition that has a device.
#[derive(Debug, Clone)]
pub struct Partition {
    /// The device that can be mounted.
    pub device: PathBuf,
    /// Its unique UUID, in lower case.
    pub(super) uuid: Option<String>,
    /// Its type as udev writes it, in lower case: a UUID, of an MBR `0x` and a number.
    pub(super) kind: String,
}

impl Partition {
    /// Whether it is of this type.
    pub(super) fn is(&self, wanted: Type) -> bool {
        match wanted {
            Type::Esp => ["c12a7328-f81f-11d2-ba4b-00a0c93ec93b", "0xef"].contains(&self.kind.as_str()),
            Type::Boot => ["bc13c2ff-59e6-4262-a352-b275fd6f7172", "0xea"].contains(&self.kind.as_str()),
        }
    }
}

/// The unique UUID and the type of each partition, by its number.
///
/// # Errors
///
/// When there is no GPT: an MBR says nothing that could be trusted.
pub fn read(device: &Path, block_size: u64) -> Result<BTreeMap<u32, (String, String)>> {
    let block_size = match block_size {
        512 => LogicalBlockSize::Lb512,
        4096 => LogicalBlockSize::Lb4096,
        other => bail!("{} has sectors of {other} bytes, for which there is no GPT", device.display()),
    };
    let table = GptConfig::new().writable(false).logical_block_size(block_size).open(device);
    let table = table.with_context(|| format!("reading the partition table of {}", device.display()))?;
    let entry = |(number, partition): (&u32, &gpt::partition::Partition)| {
        let text = |uuid: &dyn ToString| uuid.to_string().to_ascii_lowercase();
        (*number, (text(&partition.part_guid), text(&partition.part_type_guid.guid)))
    };
    Ok(table.partitions().iter().map(entry).collect())
}
