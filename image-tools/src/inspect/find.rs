//! Which partitions of a disk a machine boots from. Who made the disk is not asked: what a partition is for says its type, and
//! what is in it; among several, what is in them.

use std::path::Path;

use anyhow::Result;
use finalize::layout;

use super::{
    Boot,
    ext4::Ext4,
    fat::Fat,
    grub::GrubFs,
    kind::{Content, Role},
    table::Partition,
};

/// What was found, and what people should know of the search.
#[derive(Debug)]
pub struct Found {
    /// The ESPs, the one that is booted from first.
    pub esps: Vec<(Partition, Fat)>,
    /// The physical root.
    pub root: Option<(Partition, Ext4)>,
    /// Where GRUB's files, or further entries, are.
    pub boot: Option<Boot>,
    /// What was not understood.
    pub notes: Vec<String>,
}

/// Looks for all of them.
///
/// # Errors
///
/// When a file system cannot be read.
pub fn find(disk: &Path, partitions: &[Partition]) -> Result<Found> {
    let mut notes = vec![];
    let esps = esps(disk, partitions, &mut notes)?;
    let root = root(disk, partitions, &mut notes)?;
    let boot = boot(disk, partitions, root.as_ref())?;
    Ok(Found { esps, root, boot, notes })
}

fn esps(disk: &Path, partitions: &[Partition], notes: &mut Vec<String>) -> Result<Vec<(Partition, Fat)>> {
    let mut all = vec![];
    for partition in partitions.iter().filter(|partition| partition.role == Role::Esp) {
        if partition.content != Content::Fat {
            notes.push(format!("{} holds {}: an ESP is FAT", partition.spoken(), partition.content));
            continue;
        }
        let fat = Fat::at(disk, partition.start);
        let has = |path: &str| fat.has_dir(path);
        // Entries before kernels before programs.
        let rank = match () {
            () if has(&format!("{}/{}", layout::LOADER, layout::ENTRIES))? => 0,
            () if has(layout::EFI_LINUX)? => 1,
            () if has("EFI")? => 2,
            () => 3,
        };
        all.push((rank, partition.clone(), fat));
    }
    all.sort_by_key(|(rank, _, _)| *rank);
    if all.is_empty() {
        notes.push("the disk has no ESP that can be read: no firmware for UEFI boots from it".to_owned());
    }
    Ok(all.into_iter().map(|(_, partition, fat)| (partition, fat)).collect())
}

fn root(disk: &Path, partitions: &[Partition], notes: &mut Vec<String>) -> Result<Option<(Partition, Ext4)>> {
    let mut candidates = vec![];
    for partition in partitions {
        let is_root = matches!(partition.role, Role::Root(_));
        if is_root && partition.content != Content::Ext4 {
            let (spoken, content) = (partition.spoken(), partition.content);
            notes
                .push(format!("{spoken} holds {content}, which is not looked into: of root file systems only ext4 is"));
        }
        if partition.content == Content::Ext4 && (is_root || partition.role == Role::Linux) {
            let ext4 = Ext4::at(disk, partition.start);
            let names = match ext4.list("/") {
                Ok(names) => names,
                Err(why) => {
                    notes.push(format!("{} cannot be read: {why:#}", partition.spoken()));
                    continue;
                }
            };
            let has = |name: &str| names.iter().any(|node| node.name == name && node.is_dir());
            let is_ours = has("composefs") || (has("state") && ext4.exists(&format!("/{}", layout::DEPLOYMENTS))?);
            if is_root || is_ours {
                candidates.push(((!is_ours, !is_root), partition.clone(), ext4));
            }
        }
    }
    candidates.sort_by_key(|(rank, ..)| *rank);
    let mut candidates = candidates.into_iter();
    let first = candidates.next();
    let others = candidates.filter(|((is_not_ours, _), ..)| !is_not_ours);
    notes.extend(others.map(|(_, other, _)| format!("{} has deployments too: they are not looked at", other.spoken())));
    Ok(first.map(|(_, partition, ext4)| (partition, ext4)))
}

/// A boot partition, by its type or by what is in it; else the directory of the root file system.
fn boot(disk: &Path, partitions: &[Partition], root: Option<&(Partition, Ext4)>) -> Result<Option<Boot>> {
    let is_root = |partition: &Partition| root.is_some_and(|(root, _)| root.number == partition.number);
    let is_read = |partition: &Partition| [Content::Ext4, Content::Xfs, Content::Fat].contains(&partition.content);
    let all = || partitions.iter().filter(|partition| !is_root(partition) && is_read(partition));
    let boot = |partition: &Partition, prefix| Boot {
        grub: GrubFs::partition(disk, partition.number),
        partition: partition.clone(),
        prefix,
    };
    for partition in all().filter(|partition| matches!(partition.role, Role::Boot | Role::Linux)) {
        let boot = boot(partition, "");
        // GRUB's tools are asked last, for they may not be there.
        let has_grub = match partition.content {
            Content::Ext4 => Ext4::at(disk, partition.start).exists(&format!("/{}", layout::GRUB))?,
            Content::Xfs if partition.role == Role::Boot => true,
            Content::Xfs => boot.grub.exists(layout::GRUB)?,
            _ => Fat::at(disk, partition.start).has_dir(layout::GRUB)?,
        };
        if partition.role == Role::Boot || has_grub {
            return Ok(Some(boot));
        }
    }
    Ok(root.map(|(root, _)| boot(root, "/boot")))
}
