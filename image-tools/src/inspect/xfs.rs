//! An XFS file system inside a disk image, checked by xfs_repair, and mounted.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result};
use xshell::cmd;

use super::table::Partition;
use crate::{program, sparse};

/// Whether XFS begins at byte `start` of `disk`: by its magic, `XFSB` (`fs/xfs/libxfs/xfs_format.h`).
///
/// # Errors
///
/// Those of reading.
pub fn is_at(disk: &Path, start: u64) -> Result<bool> {
    let mut magic = [0; 4];
    File::open(disk)?.read_exact_at(&mut magic, start)?;
    Ok(magic == *b"XFSB")
}

/// Lets Linux replay the log of the file system in `file`, by mounting it. Not without root, and not where the kernel has
/// no XFS: then nothing is done.
///
/// # Errors
///
/// When it cannot be mounted.
pub fn replay(file: &Path) -> Result<()> {
    let known = std::fs::read_to_string("/proc/filesystems").is_ok_and(|all| all.contains("\txfs\n"));
    if !known || !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let mount_point = tempfile::tempdir()?;
    let script = "mount -t xfs -o loop,nouuid \"$0\" \"$1\" && umount \"$1\"";
    let (shell, mount_point) = (program::shell()?, mount_point.path());
    program::run(cmd!(shell, "unshare --mount sh -c {script} {file} {mount_point}"))
        .map(drop)
        .context("replaying the log")
}

/// What xfs_repair finds wrong.
///
/// # Errors
///
/// When the file system cannot be copied out of the image.
pub fn fsck(disk: &Path, partition: &Partition) -> Result<Vec<String>> {
    let copy = tempfile::NamedTempFile::new()?;
    sparse::part(disk, partition.start..partition.start + partition.size, copy.path())?;
    let (shell, copy) = (program::shell()?, copy.path());
    match program::run(cmd!(shell, "xfs_repair -n -f {copy}")) {
        Ok(_) => Ok(vec![]),
        Err(error) => Ok(vec![format!("the file system of {} is not clean: {error:#}", partition.spoken())]),
    }
}
