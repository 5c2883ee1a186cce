//! A FAT32 file system inside a disk image, by mkfs.vfat and mtools.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail, ensure};

use super::layout::Extent;
use crate::{
    cmd,
    tree::{Content, Node},
};

/// Makes the file system at `at` of `disk`, with these nodes.
///
/// # Errors
///
/// When they do not fit, and those of the programs.
pub fn create(disk: &Path, at: Extent, volume_id: u32, nodes: &[Node]) -> Result<()> {
    ensure!(needed(nodes)? <= at.size, "the ESP of {} MiB is too small for its files", at.size >> 20);
    let mut mkfs = Command::new("mkfs.vfat");
    mkfs.args(["-F", "32", "-s", "1", "-n", "ESP", "--invariant", "-i", &format!("{volume_id:08x}")]);
    mkfs.args(["--offset", &(at.start / 512).to_string()]).arg(disk).arg((at.size / 1024).to_string());
    cmd::run(&mut mkfs).context("making the ESP")?;
    let image = format!("{}@@{}", disk.display(), at.start);
    let scratch = tempfile::tempdir()?;
    for node in nodes {
        let target = format!("::/{}", node.path.display());
        let copied = match &node.content {
            Content::Dir => cmd::run(Command::new("mmd").args(["-i", &image, &target])),
            Content::Bytes(bytes) => {
                let file = scratch.path().join("file");
                std::fs::write(&file, bytes)?;
                mcopy(&image, &file, &target)
            }
            Content::File(from) => mcopy(&image, from, &target),
            _ => bail!("{} cannot be on a FAT file system", node.path.display()),
        };
        copied.with_context(|| format!("writing {} on the ESP", node.path.display()))?;
    }
    Ok(())
}

fn mcopy(image: &str, from: &Path, target: &str) -> Result<String> {
    cmd::run(Command::new("mcopy").args(["-i", image, "-D", "overwrite"]).arg(from).arg(target))
}

/// A generous estimate of the bytes that the nodes take.
fn needed(nodes: &[Node]) -> Result<u64> {
    let mut sum = 4 << 20;
    for node in nodes {
        sum += match &node.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(path) => path.metadata().with_context(|| format!("reading {}", path.display()))?.len(),
            _ => 0,
        }
        .next_multiple_of(4096)
            + 4096;
    }
    Ok(sum)
}
