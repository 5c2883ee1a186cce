//! Renames: rename(2), "RENAME_EXCHANGE" and "RENAME_NOREPLACE".

use std::{
    ffi::OsStr,
    io,
    os::fd::{AsFd, BorrowedFd},
};

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

/// Renames from one directory into another of the same mount, over what is there.
///
/// # Errors
///
/// Those of rename(2).
pub fn replace_from((from, name): (&Dir, &str), (to, new_name): (&Dir, &str)) -> io::Result<()> {
    fault::changing("renameat")?;
    Ok(renameat(from, name, to, new_name)?)
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

/// A name in a directory.
type At<'a> = (BorrowedFd<'a>, &'a [u8]);

/// Exchanges the names of two directories of one mount in one step.
///
/// # Errors
///
/// `ENOENT` when one is missing, `EPERM` when a flag (chattr(1)) forbids it, `EXDEV` across mounts.
pub fn exchange_between((one, name): At<'_>, (other, other_name): At<'_>) -> io::Result<()> {
    fault::changing("renameat2")?;
    Ok(renameat_with(one, name, other, other_name, RenameFlags::EXCHANGE)?)
}

/// Renames from one directory into another of the same mount, whatever bytes the names have; never over anything.
///
/// # Errors
///
/// As [`exchange_between`], and `EEXIST` when there is such a name already.
pub fn move_node((from, name): At<'_>, (to, new_name): At<'_>) -> io::Result<()> {
    fault::changing("renameat2")?;
    Ok(renameat_with(from, name, to, new_name, RenameFlags::NOREPLACE)?)
}
