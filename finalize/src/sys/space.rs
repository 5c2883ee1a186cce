//! Whether there is room.

use std::{io, os::fd::AsFd};

use rustix::{fs::fstatvfs, io::Errno};

/// Fails when the file system of `dir` has not so many bytes for whoever asks (fstatvfs(3)).
///
/// # Errors
///
/// `ENOSPC`.
pub fn check(dir: impl AsFd, bytes: u64) -> io::Result<()> {
    let stat = fstatvfs(dir)?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if free < bytes { Err(Errno::NOSPC.into()) } else { Ok(()) }
}
