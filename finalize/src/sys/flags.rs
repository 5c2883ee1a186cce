//! Inode flags that `chattr` sets and that keep a file from being changed: `i` (immutable) and `a` (append only), see
//! FS_IOC_GETFLAGS(2const). Only these two: every other flag is about how a file system stores a file.

use std::{io, os::fd::AsFd};

use rustix::{
    fs::{IFlags, ioctl_getflags, ioctl_setflags},
    io::Errno,
};

use super::fault;

const BOTH: IFlags = IFlags::IMMUTABLE.union(IFlags::APPEND);

/// Which of the two flags a file or a directory has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(IFlags);

impl Flags {
    /// As `chattr` writes them.
    pub fn name(self) -> &'static str {
        match (self.0.contains(IFlags::IMMUTABLE), self.0.contains(IFlags::APPEND)) {
            (true, true) => "+ia",
            (false, true) => "+a",
            _ => "+i",
        }
    }
}

/// The flags of an open file or directory; nothing where neither is set, or the file system has no flags.
///
/// # Errors
///
/// Those of ioctl(2), but for those that say that there are no flags.
pub fn get(fd: impl AsFd) -> io::Result<Option<Flags>> {
    match ioctl_getflags(fd) {
        Ok(flags) => Ok(Some(Flags(flags & BOTH)).filter(|flags| !flags.0.is_empty())),
        Err(Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sets `flags`; others stay. From then on the file cannot be written, renamed or removed before [`clear`].
///
/// # Errors
///
/// `EPERM` without `CAP_LINUX_IMMUTABLE`, `ENOTTY` or `EOPNOTSUPP` where the file system has no flags.
pub fn set(fd: impl AsFd, flags: Flags) -> io::Result<()> {
    fault::changing("ioctl")?;
    Ok(ioctl_setflags(&fd, ioctl_getflags(&fd)? | flags.0)?)
}

/// Takes both flags away, before a file is removed. It is no error when there are none.
///
/// # Errors
///
/// As [`set`], where there is one.
pub fn clear(fd: impl AsFd) -> io::Result<()> {
    if get(&fd)?.is_none() {
        return Ok(());
    }
    fault::changing("ioctl")?;
    Ok(ioctl_setflags(&fd, ioctl_getflags(&fd)? - BOTH)?)
}
