//! Renames: rename(2), "RENAME_EXCHANGE" and "RENAME_NOREPLACE".

use std::{ffi::OsStr, io, os::fd::AsFd};

use cap_std::fs::Dir;

use rustix::fs::{RenameFlags, renameat, renameat_with};

use super::fault;

/// Exchanges two names of `dir` in one step. Durable only after a sync; on FAT see `boot::swap`.
///
/// # Errors
///
/// `EINVAL` where the file system cannot, `ENOENT` when one of the names is missing.
pub fn exchange(dir: impl AsFd, one: &str, other: &str) -> io::Result<()> {
    fault::changing("renameat2")?;
    Ok(renameat_with(&dir, one, &dir, other, RenameFlags::EXCHANGE)?)
}

/// Renames within `dir`, over what is there.
///
/// # Errors
///
/// Those of rename(2).
pub fn replace(dir: impl AsFd, from: &str, to: &str) -> io::Result<()> {
    fault::changing("renameat")?;
    Ok(renameat(&dir, from, &dir, to)?)
}

/// Renames within `dir`, never over anything.
///
/// # Errors
///
/// `EEXIST` when `to` exists.
pub fn move_to(dir: impl AsFd, from: &str, to: &str) -> io::Result<()> {
    fault::changing("renameat2")?;
    Ok(renameat_with(&dir, from, &dir, to, RenameFlags::NOREPLACE)?)
}

/// Renames from one directory into another, never over anything.
///
/// # Errors
///
/// `EEXIST` when there is such a name already.
pub fn move_between((from, name): (&Dir, &OsStr), (to, new_name): (&Dir, &OsStr)) -> io::Result<()> {
    fault::changing("renameat2")?;
    Ok(renameat_with(from, name, to, new_name, RenameFlags::NOREPLACE)?)
}
