//! A FAT32 file system inside a disk image, by mkfs.vfat and mtools.

use std::path::Path;

use anyhow::{Context, Result, bail};
use xshell::{Cmd, Shell, cmd};

use super::Place;
use crate::{node::Content, plan::size::cluster, program};

/// 1980-01-01, in seconds since 1970.
const FIRST: u64 = 315_532_800;

fn mkfs<'a>(shell: &'a Shell, place: Place<'_>, serial: u32) -> Cmd<'a> {
    let (disk, serial) = (place.disk, format!("{serial:08x}"));
    let (sector, blocks) = ((place.partition.start / 512).to_string(), (place.partition.size / 1024).to_string());
    let sectors = (cluster(place.partition.size) / 512).to_string();
    // The sectors before the partition are BPB_HiddSec too.
    let place = ["-s", &sectors, "-h", &sector, "--offset", &sector];
    cmd!(shell, "mkfs.vfat -F 32 -n ESP --invariant -i {serial}").args(place).arg(disk).arg(blocks)
}

fn mmd<'a>(shell: &'a Shell, image: &str, target: &str) -> Cmd<'a> {
    cmd!(shell, "mmd -i {image} {target}")
}

fn mcopy<'a>(shell: &'a Shell, image: &str, from: &Path, target: &str) -> Cmd<'a> {
    cmd!(shell, "mcopy -i {image} -D overwrite {from} {target}")
}

/// The partition, as mtools name it.
fn image(place: Place<'_>) -> String {
    format!("{}@@{}", place.disk.display(), place.partition.start)
}

/// The programs of [`create`].
pub fn programs(shell: &Shell, place: Place<'_>, serial: u32) -> Vec<String> {
    let image = image(place);
    let from = Path::new("FILE");
    let mut programs = vec![mkfs(shell, place, serial).to_string()];
    programs.extend(place.partition.nodes.iter().map(|node| {
        let target = format!("::/{}", node.path.display());
        match node.content {
            Content::Dir => mmd(shell, &image, &target).to_string(),
            _ => mcopy(shell, &image, from, &target).to_string(),
        }
    }));
    programs
}

/// Makes the file system.
pub fn create(place: Place<'_>, serial: u32, time: u64) -> Result<()> {
    let shell = program::shell()?;
    // What mtools (4.0.29) takes for now; FAT begins in 1980, and knows no time zones.
    shell.set_var("SOURCE_DATE_EPOCH", time.max(FIRST).to_string());
    shell.set_var("TZ", "UTC");
    program::run(mkfs(&shell, place, serial)).context("making the ESP")?;
    let image = image(place);
    let scratch = tempfile::tempdir()?;
    for node in &place.partition.nodes {
        let target = format!("::/{}", node.path.display());
        let copied = match &node.content {
            Content::Dir => program::run(mmd(&shell, &image, &target)),
            Content::Bytes(bytes) => {
                let file = scratch.path().join("file");
                std::fs::write(&file, bytes)?;
                program::run(mcopy(&shell, &image, &file, &target))
            }
            Content::File(from) => program::run(mcopy(&shell, &image, &from.path, &target)),
            _ => bail!("{} cannot be on a FAT file system", node.path.display()),
        };
        copied.with_context(|| format!("writing {} on the ESP", node.path.display()))?;
    }
    Ok(())
}
