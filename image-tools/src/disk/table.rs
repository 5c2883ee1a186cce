//! The partition table, of sectors of 512 bytes.

use std::path::Path;

use anyhow::{Context, Result};
use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};

use crate::{
    arch::Arch,
    plan::{Plan, Purpose},
};

fn kind(purpose: Purpose, arch: &Arch) -> partition_types::Type {
    match purpose {
        Purpose::Esp | Purpose::EspMirror => partition_types::EFI,
        Purpose::Boot => partition_types::FREEDESK_BOOT,
        Purpose::Root => arch.root.clone(),
    }
}

/// Makes a sparse disk image with the partitions of the plan, all of them empty.
pub fn write(plan: &Plan, path: &Path) -> Result<()> {
    let file = std::fs::File::options().read(true).write(true).create_new(true).open(path);
    let file = file.with_context(|| format!("creating {}", path.display()))?;
    file.set_len(plan.size)?;
    let sectors = u32::try_from(plan.size / 512 - 1).unwrap_or(u32::MAX);
    let mut device: Box<dyn gpt::DiskDevice> = Box::new(file);
    ProtectiveMBR::with_lb_size(sectors).overwrite_lba0(&mut device)?;
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb512);
    let mut table = config.create_from_device(device, Some(plan.uuid))?;
    for partition in &plan.partitions {
        let number = table.find_next_partition_id().context("the partition table is full")?;
        let mut partitions = table.partitions().clone();
        let partition = gpt::partition::Partition {
            part_type_guid: kind(partition.purpose, plan.arch),
            part_guid: partition.uuid,
            first_lba: partition.start / 512,
            last_lba: (partition.start + partition.size) / 512 - 1,
            flags: 0,
            name: partition.purpose.name().to_owned(),
        };
        partitions.insert(number, partition);
        table.update_partitions(partitions)?;
    }
    table.write().context("writing the partition table")?;
    Ok(())
}
