//! The partition table: an ESP, perhaps a boot partition, the root file system; aligned to 1 MiB.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};
use uuid::Uuid;

/// A partition's place on the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Its first byte.
    pub start: u64,
    /// Its size.
    pub size: u64,
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
    fn name(self) -> &'static str {
        match self {
            Self::Esp => "esp",
            Self::EspMirror => "esp-mirror",
            Self::Boot => "boot",
            Self::Root => "root",
        }
    }

    fn kind(self) -> partition_types::Type {
        match self {
            Self::Esp | Self::EspMirror => partition_types::EFI,
            Self::Boot => partition_types::FREEDESK_BOOT,
            Self::Root => partition_types::LINUX_ROOT_X64,
        }
    }
}

/// The bytes that a disk has beside its partitions: 1 MiB at either end.
pub const OVERHEAD: u64 = 2 << 20;

/// Makes a sparse disk image with these partitions, one after the other. Sizes are rounded up to 1 MiB.
///
/// # Errors
///
/// When there is no room for them, and those of writing.
pub fn create(path: &Path, disk: u64, parts: &[(Purpose, u64)], uuid: &dyn Fn(&str) -> Uuid) -> Result<Vec<Extent>> {
    const MIB: u64 = 1 << 20;
    let sizes = || parts.iter().map(|(_, size)| size.next_multiple_of(MIB));
    let needed = sizes().sum::<u64>() + OVERHEAD;
    ensure!(disk >= needed, "the disk of {} MiB is too small: {} MiB are needed", disk / MIB, needed.div_ceil(MIB));
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("creating {}", path.display()))?;
    file.set_len(disk)?;
    let sectors = u32::try_from(disk / 512 - 1).unwrap_or(u32::MAX);
    let mut device: Box<dyn gpt::DiskDevice> = Box::new(file);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut device)?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(device, Some(uuid("disk")))?;
    let mut extents = vec![];
    let mut start = MIB;
    for ((purpose, _), size) in parts.iter().zip(sizes()) {
        let number = table.find_next_partition_id().context("the partition table is full")?;
        let mut partitions = table.partitions().clone();
        let partition = gpt::partition::Partition {
            part_type_guid: purpose.kind(),
            part_guid: uuid(purpose.name()),
            first_lba: start / 512,
            last_lba: (start + size) / 512 - 1,
            flags: 0,
            name: purpose.name().to_owned(),
        };
        partitions.insert(number, partition);
        table.update_partitions(partitions)?;
        extents.push(Extent { start, size });
        start += size;
    }
    table.write().context("writing the partition table")?;
    Ok(extents)
}
