//! Block devices with boot files: what the boot loader came from, on whatever disk, and the partitions of a type on the
//! disks below the root. Found by what udev and sysfs know; a partition table is read only where they do not know.
//!
//! Looking at devices writes nothing. A disk that tells nothing is passed over, with a note.

mod disks;
mod table;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

pub use self::table::Partition;
use self::{disks::Disks, table::Type};
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

/// Sets a variable of the Boot Loader Interface to a text, or removes the variable. The kernel makes such files immutable
/// (`Documentation/filesystems/efivarfs.rst`), and takes attributes and value in one write.
///
/// # Errors
///
/// When there is no efivarfs, and those of write(2) and unlink(2).
pub fn set_efi_variable(sys: &Path, name: &str, value: Option<&str>) -> Result<()> {
    /// Kept without power, seen by the boot loader and by the running system.
    const ATTRIBUTES: u32 = 7;
    let (dir, name) = (super::open(&sys.join("firmware/efi/efivars"))?, format!("{name}-{VENDOR}"));
    let writing = || format!("writing the EFI variable {name}");
    match value {
        None => crate::sys::remove::file(&dir, &name).with_context(writing),
        Some(value) => {
            let units = value.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
            let bytes: Vec<u8> = ATTRIBUTES.to_le_bytes().into_iter().chain(units).collect();
            crate::sys::file::write_variable(&dir, &name, &bytes).with_context(writing)
        }
    }
}

/// The block devices of all ESPs: of the disks below `root_device`, and the one that booted, which may be on another
/// disk, last.
///
/// # Errors
///
/// When there is none: names the disks that were looked at, and what each of them is.
pub fn esps(sys: &Path, root_device: Result<(u32, u32)>) -> Result<Vec<PathBuf>> {
    let disks = Disks::new(sys);
    let mut notes = vec![];
    let mut found = match root_device {
        Ok(root) => partitions(&disks, root, Type::Esp, &mut notes),
        Err(error) => {
            notes.push(format!("{error:#}"));
            vec![]
        }
    };
    match booted(&disks) {
        Ok(Some(device)) => {
            found.retain(|other| *other != device);
            found.push(device);
        }
        Ok(None) => {}
        Err(error) => notes.push(format!("{error:#}")),
    }
    if found.is_empty() {
        let looked = if notes.is_empty() { "no disk below the physical root".to_owned() } else { notes.join("; ") };
        bail!("found no EFI system partition ({looked}): name one with --esp");
    }
    notes.iter().for_each(|note| tracing::debug!("{note}"));
    Ok(found)
}

/// The block devices of all boot partitions (XBOOTLDR) of the disks below `root_device`.
pub fn boot_partitions(sys: &Path, root_device: (u32, u32)) -> Vec<PathBuf> {
    partitions(&Disks::new(sys), root_device, Type::Boot, &mut vec![])
}

/// The device that the boot loader came from, by the firmware's word; nothing where there is none.
fn booted(disks: &Disks) -> Result<Option<PathBuf>> {
    let value = efi_variable(&disks.sys, "LoaderDevicePartUUID").context("reading LoaderDevicePartUUID")?;
    let Some(uuid) = value.as_deref().and_then(utf16).map(|uuid| uuid.to_ascii_lowercase()) else { return Ok(None) };
    let looks_like_one = uuid.len() == 36 && uuid.bytes().all(|c| c.is_ascii_hexdigit() || c == b'-');
    if !looks_like_one {
        bail!("LoaderDevicePartUUID holds {uuid:?}, which is no UUID");
    }
    let device = disks.by_uuid(&uuid)?;
    device.map(Some).with_context(|| format!("no partition has the UUID {uuid}, which LoaderDevicePartUUID names"))
}

/// The block devices of all partitions of a type below `root`.
fn partitions(disks: &Disks, root: (u32, u32), wanted: Type, notes: &mut Vec<String>) -> Vec<PathBuf> {
    let below = match disks.below(root) {
        Ok(below) => below,
        Err(error) => {
            notes.push(format!("{error:#}"));
            return vec![];
        }
    };
    let mut found = vec![];
    for disk in below {
        let name = disks::name_of(&disk).to_owned();
        match disks.partitions(&disk) {
            Ok(partitions) if partitions.is_empty() => notes.push(format!("{name} has no partitions")),
            Ok(partitions) => {
                let all = partitions.len();
                let devices = partitions.into_iter().filter(|partition| partition.is(wanted)).map(|one| one.device);
                let before = found.len();
                devices.for_each(|device| found.extend((!found.contains(&device)).then_some(device)));
                if found.len() == before {
                    notes.push(format!("none of the {all} partitions of {name} is one"));
                }
            }
            Err(error) => notes.push(format!("{name}: {error:#}")),
        }
    }
    found
}
