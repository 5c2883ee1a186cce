//! An ext4 file system inside a disk image, by mke2fs and debugfs: with owners, modes, extended attributes and fs-verity,
//! though neither root nor a mount is involved.

use std::{path::Path, process::Command};

use anyhow::{Context, Result};
use uuid::Uuid;

use super::layout::Extent;
use crate::{
    cmd,
    tree::{Node, debugfs_batch, write_tar},
};

/// The names of a file system.
#[derive(Debug, Clone, Copy)]
pub struct Names<'a> {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its label.
    pub label: &'a str,
}

/// Makes the file system at `at` of `disk`, with these nodes, and checks it.
///
/// # Errors
///
/// When they do not fit, and those of the programs.
pub fn create(disk: &Path, at: Extent, names: Names<'_>, nodes: &[Node]) -> Result<()> {
    // Times of the file system itself; zero would mean now.
    let time = std::env::var("SOURCE_DATE_EPOCH").unwrap_or_else(|_| "1".to_owned());
    let mut mke2fs = Command::new("mke2fs");
    mke2fs.env("E2FSPROGS_FAKE_TIME", &time);
    mke2fs.args(["-q", "-F", "-t", "ext4", "-b", "4096", "-O", "verity", "-m", "1", "-L", names.label]);
    mke2fs.args(["-U", &names.uuid.to_string(), "-d", "-"]);
    let extended = format!("offset={},hash_seed={},root_owner=0:0,lazy_itable_init=1", at.start, names.uuid);
    mke2fs.args(["-E", &extended]).arg(disk).arg(format!("{}k", at.size / 1024));
    let label = names.label;
    cmd::run_with(&mut mke2fs, |stdin| write_tar(nodes, stdin))
        .with_context(|| format!("making the {label} file system"))?;
    let scratch = tempfile::tempdir()?;
    let batch = scratch.path().join("batch");
    std::fs::write(&batch, debugfs_batch(nodes, scratch.path())?)?;
    let image = format!("{}?offset={}", disk.display(), at.start);
    cmd::run(Command::new("debugfs").env("E2FSPROGS_FAKE_TIME", &time).arg("-w").arg("-f").arg(&batch).arg(&image))
        .context("sealing the root file system")?;
    cmd::run(Command::new("e2fsck").args(["-f", "-n", &image]))
        .with_context(|| format!("checking the {label} file system"))?;
    Ok(())
}
