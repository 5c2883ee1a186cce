//! Disks and partitions as the kernel and udev show them.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::table::{self, Partition};

/// Where disks are looked at.
#[derive(Debug)]
pub struct Disks {
    pub sys: PathBuf,
    dev: PathBuf,
    udev: PathBuf,
}

/// The last component of a path in sysfs: the kernel's name of a device.
pub fn name_of(node: &Path) -> &str {
    node.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

impl Disks {
    /// The machine's; with another sysfs, what `nodes` and `udev` in it show.
    pub fn new(sys: &Path) -> Self {
        let (dev, udev) = match sys == Path::new("/sys") {
            true => ("/dev".into(), "/run/udev/data".into()),
            false => (sys.join("nodes"), sys.join("udev")),
        };
        Self { sys: sys.to_owned(), dev, udev }
    }

    /// The device of the partition with a UUID, in lower case, on whatever disk.
    pub fn by_uuid(&self, uuid: &str) -> Result<Option<PathBuf>> {
        if let Ok(device) = self.dev.join("disk/by-partuuid").join(uuid).canonicalize() {
            return Ok(Some(device));
        }
        let mut disks = vec![];
        for node in self.all()? {
            let known = self.known(&node);
            let is_it = |key: &str| known.get(key).is_some_and(|value| value.eq_ignore_ascii_case(uuid));
            if is_it("ID_PART_ENTRY_UUID") || is_it("PARTUUID") {
                return self.device_of(&node).map(Some);
            }
            if !node.join("partition").exists() {
                disks.push(node);
            }
        }
        // A machine without udev: the tables themselves. What cannot be read is not it.
        let partitions = disks.iter().filter_map(|disk| self.partitions(disk).ok()).flatten();
        Ok(partitions.into_iter().find(|partition| partition.uuid.as_deref() == Some(uuid)).map(|found| found.device))
    }

    /// All block devices, by their real place in sysfs.
    fn all(&self) -> Result<Vec<PathBuf>> {
        let dir = self.sys.join("class/block");
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            other => other.with_context(|| format!("reading {}", dir.display()))?,
        };
        let mut all: Vec<_> = entries.filter_map(|entry| entry.ok()?.path().canonicalize().ok()).collect();
        all.sort();
        Ok(all)
    }

    /// The disks below a block device: through partitions, and through `slaves` (LUKS, LVM, RAID). A multipath map is a
    /// disk, its paths are not.
    pub fn below(&self, number: (u32, u32)) -> Result<Vec<PathBuf>> {
        let node = self.sys.join(format!("dev/block/{}:{}", number.0, number.1));
        let node = node.canonicalize().with_context(|| format!("looking for {}", node.display()))?;
        let (mut disks, mut todo, mut seen) = (vec![], vec![node], vec![]);
        while let Some(node) = todo.pop() {
            if seen.contains(&node) {
                continue;
            }
            seen.push(node.clone());
            let disk = node.parent().filter(|_| node.join("partition").exists()).map(Path::to_path_buf);
            let is_map = dm_uuid(&node).is_some_and(|uuid| uuid.starts_with("mpath-"));
            let below = if is_map { vec![] } else { linked(&node.join("slaves"))? };
            if below.is_empty() && disk.is_none() {
                disks.push(node);
            } else if let Some(disk) = disk {
                // A disk with partitions may itself be made of others, as with firmware RAID.
                let made_of = linked(&disk.join("slaves"))?;
                let is_map = dm_uuid(&disk).is_some_and(|uuid| uuid.starts_with("mpath-"));
                todo.extend(made_of.into_iter().filter(|_| !is_map));
                if !seen.contains(&disk) {
                    seen.push(disk.clone());
                    disks.push(disk);
                }
            }
            todo.extend(below);
        }
        Ok(disks)
    }

    /// The partitions of a disk that have a device.
    ///
    /// # Errors
    ///
    /// When neither udev nor the partition table says what they are.
    pub fn partitions(&self, disk: &Path) -> Result<Vec<Partition>> {
        let nodes = numbered(disk)?;
        let mut found = vec![];
        let mut unknown = vec![];
        for (number, node) in nodes {
            let known = self.known(&node);
            let device = self.device_of(&self.in_use_as(&node)?)?;
            let value = |key: &str| known.get(key).map(|value| value.to_ascii_lowercase());
            match value("ID_PART_ENTRY_TYPE") {
                Some(kind) => found.push(Partition { device, uuid: value("ID_PART_ENTRY_UUID"), kind }),
                None => unknown.push((number, device)),
            }
        }
        if !unknown.is_empty() {
            let size = fs::read_to_string(disk.join("queue/logical_block_size")).unwrap_or_default();
            let table = table::read(&self.device_of(disk)?, size.trim().parse().unwrap_or(512))?;
            for (number, device) in unknown {
                let Some((uuid, kind)) = table.get(&number) else { continue };
                found.push(Partition { device, uuid: Some(uuid.clone()), kind: kind.clone() });
            }
        }
        Ok(found)
    }

    /// What is mounted where a partition is a member of a RAID: the array.
    fn in_use_as(&self, node: &Path) -> io::Result<PathBuf> {
        let arrays = linked(&node.join("holders"))?.into_iter().filter(|holder| holder.join("md").exists());
        Ok(arrays.into_iter().next().unwrap_or_else(|| node.to_owned()))
    }

    /// What kernel and udev say of a device.
    fn known(&self, node: &Path) -> BTreeMap<String, String> {
        let mut known = BTreeMap::new();
        let number = fs::read_to_string(node.join("dev")).unwrap_or_default();
        let udev = fs::read_to_string(self.udev.join(format!("b{}", number.trim()))).unwrap_or_default();
        let uevent = fs::read_to_string(node.join("uevent")).unwrap_or_default();
        let lines = udev.lines().filter_map(|line| line.strip_prefix("E:")).chain(uevent.lines());
        known.extend(lines.filter_map(|line| line.split_once('=')).map(|(key, value)| (key.into(), value.into())));
        known
    }

    /// The device node that the kernel names in `uevent`.
    fn device_of(&self, node: &Path) -> Result<PathBuf> {
        let uevent = node.join("uevent");
        let text = fs::read_to_string(&uevent).with_context(|| format!("reading {}", uevent.display()))?;
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        Ok(Path::new("/dev").join(name.with_context(|| format!("{} names no device", uevent.display()))?))
    }
}

/// What the links of a directory lead to; nothing where there is no such directory.
fn linked(dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        entries => entries?.map(|entry| entry?.path().canonicalize()).collect(),
    }
}

/// The device mapper's name of a device, by which one knows who made it.
fn dm_uuid(node: &Path) -> Option<String> {
    fs::read_to_string(node.join("dm/uuid")).ok()
}

/// The partitions of a disk with their numbers: its children, or, of a multipath map, what kpartx(8) laid over it.
fn numbered(disk: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let mut found = vec![];
    for child in fs::read_dir(disk).with_context(|| format!("reading {}", disk.display()))? {
        let child = child?.path();
        if let Ok(text) = fs::read_to_string(child.join("partition"))
            && let Ok(number) = text.trim().parse()
        {
            found.push((number, child));
        }
    }
    for holder in linked(&disk.join("holders"))? {
        let uuid = dm_uuid(&holder).unwrap_or_default();
        let number = uuid.strip_prefix("part").and_then(|rest| rest.split_once('-')).map(|(number, _)| number.parse());
        found.extend(number.and_then(Result::ok).map(|number| (number, holder)));
    }
    found.sort();
    Ok(found)
}
