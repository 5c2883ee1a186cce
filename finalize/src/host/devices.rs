//! The ESP: found by what the firmware says and by the partition tables of the disks under the root, and mounted
//! privately. Never through somebody's mount point: an automount may be gone at shutdown.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use gpt::partition_types::Type;

use crate::boot::loader::utf16;

/// Variables of systemd's Boot Loader Interface.
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// The value of a variable of the Boot Loader Interface, as efivarfs shows it; nothing where it is not set.
///
/// # Errors
///
/// Those of read(2).
pub fn efi_variable(sys: &Path, name: &str) -> io::Result<Option<Vec<u8>>> {
    match fs::read(sys.join(format!("firmware/efi/efivars/{name}-{VENDOR}"))) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The block devices of all ESPs of the disks under `root_device`, the one that booted last.
///
/// # Errors
///
/// When there is none: names the disks that were looked at.
pub fn esps(sys: &Path, root_device: (u32, u32)) -> Result<Vec<PathBuf>> {
    let found = partitions(sys, root_device, gpt::partition_types::EFI)?;
    ensure!(!found.is_empty(), "no EFI system partition on the disks of the physical root; name one with --esp");
    Ok(found)
}

/// The block devices of all boot partitions (XBOOTLDR) of the disks under `root_device`.
///
/// # Errors
///
/// Those of reading sysfs and partition tables.
pub fn boot_partitions(sys: &Path, root_device: (u32, u32)) -> Result<Vec<PathBuf>> {
    partitions(sys, root_device, gpt::partition_types::FREEDESK_BOOT)
}

/// The block devices of all partitions of a type, the one that the boot loader came from last.
fn partitions(sys: &Path, root_device: (u32, u32), wanted: Type) -> Result<Vec<PathBuf>> {
    let booted = efi_variable(sys, "LoaderDevicePartUUID").context("reading LoaderDevicePartUUID")?;
    let booted = booted.as_deref().and_then(utf16).map(|uuid| uuid.to_ascii_lowercase());
    let node = sys.join(format!("dev/block/{}:{}", root_device.0, root_device.1));
    let mut disks = Vec::new();
    collect_disks(&node.canonicalize().with_context(|| format!("reading {}", node.display()))?, &mut disks)?;
    let mut found = Vec::new();
    for disk in &disks {
        found.extend(
            partitions_of(disk, &wanted)
                .with_context(|| format!("reading the partition table of {}", disk.display()))?,
        );
    }
    found.sort_by_key(|(uuid, _)| Some(uuid) == booted.as_ref());
    Ok(found.into_iter().map(|(_, device)| device).collect())
}

/// The whole disks below a block device in sysfs: through partitions, and through `slaves` (LUKS, LVM, RAID).
fn collect_disks(node: &Path, disks: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut below = Vec::new();
    if let Ok(slaves) = fs::read_dir(node.join("slaves")) {
        for slave in slaves {
            below.push(slave?.path().canonicalize()?);
        }
    }
    match (below.is_empty(), node.join("partition").exists(), node.parent()) {
        (false, ..) => below.iter().try_for_each(|slave| collect_disks(slave, disks)),
        (true, true, Some(disk)) => collect_disks(disk, disks),
        _ => {
            let disk = node.to_path_buf();
            if !disks.contains(&disk) {
                disks.push(disk);
            }
            Ok(())
        }
    }
}

/// Unique partition GUID and device of each partition of a type (UEFI specification, 5.3.3).
fn partitions_of(disk: &Path, wanted: &Type) -> Result<Vec<(String, PathBuf)>> {
    let table = gpt::GptConfig::new().writable(false).open(device_of(disk)?)?;
    let mut found = Vec::new();
    for (number, partition) in table.partitions() {
        if partition.part_type_guid != *wanted {
            continue;
        }
        if let Some(node) = partition_node(disk, *number)? {
            found.push((partition.part_guid.to_string(), device_of(&node)?));
        }
    }
    Ok(found)
}

fn partition_node(disk: &Path, number: u32) -> io::Result<Option<PathBuf>> {
    for child in fs::read_dir(disk)? {
        let child = child?.path();
        if fs::read_to_string(child.join("partition")).is_ok_and(|n| n.trim() == number.to_string()) {
            return Ok(Some(child));
        }
    }
    Ok(None)
}

/// The device node that the kernel names in `uevent`.
fn device_of(node: &Path) -> Result<PathBuf> {
    let uevent = fs::read_to_string(node.join("uevent"))?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    Ok(Path::new("/dev").join(name.with_context(|| format!("no DEVNAME in {}/uevent", node.display()))?))
}
