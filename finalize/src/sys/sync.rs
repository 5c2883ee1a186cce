//! What makes changes durable.

use std::{io, os::fd::AsFd};

use super::fault;

/// fsync(2): the file or directory, and a flush of the disk's cache.
///
/// # Errors
///
/// `EIO` when the disk does not take it; then what is on it is unknown.
pub fn fsync(file: impl AsFd) -> io::Result<()> {
    fault::changing("fsync")?;
    Ok(rustix::fs::fsync(file)?)
}

/// Everything of the file system that holds `dir`, and a flush of the disk's cache.
///
/// syncfs(2) alone does not flush on FAT (measured on Linux 6.12: the blocks are written, the disk's cache is not
/// flushed), so an fsync of `dir` follows, which always does.
///
/// # Errors
///
/// As [`fsync`].
pub fn file_system(dir: impl AsFd) -> io::Result<()> {
    fault::changing("syncfs")?;
    rustix::fs::syncfs(&dir)?;
    fsync(dir)
}
