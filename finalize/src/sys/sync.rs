//! What makes changes durable.

use std::{
    io,
    os::fd::{AsFd, AsRawFd},
};

use super::{fault, freeze};

/// fsync(2): the file or directory, and a flush of the disk's cache.
///
/// # Errors
///
/// `EIO` when the disk does not take it; then what is on it is unknown.
pub fn fsync(file: impl AsFd) -> io::Result<()> {
    fault::changing("fsync")?;
    if fault::is_sabotaged() {
        return Ok(());
    }
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
    if !fault::is_sabotaged() {
        rustix::fs::syncfs(&dir)?;
    }
    fsync(dir)
}

/// Writes the journal of a file system back to where it belongs, for a boot loader that does not replay it (GRUB).
///
/// ext4 does it without stopping anybody (`EXT4_IOC_CHECKPOINT`, Linux 5.15,
/// `Documentation/filesystems/ext4/journal.rst`). XFS, and an older ext4, is frozen and thawed ([`freeze::cycle`]).
/// FAT has no journal, and syncfs(2) leaves nothing in that of btrfs.
///
/// # Errors
///
/// As [`freeze::cycle`]. That this process may not do it is no error: the journal is on the disk.
pub fn checkpoint(dir: &cap_std::fs::Dir) -> io::Result<()> {
    const EXT4: rustix::fs::FsWord = 0xef53;
    const XFS: rustix::fs::FsWord = 0x5846_5342;
    let kind = rustix::fs::fstatfs(dir)?.f_type;
    if ![EXT4, XFS].contains(&kind) || fault::is_sabotaged() || fault::lacks("checkpoint") {
        return Ok(());
    }
    let file = dir.open(".")?;
    let mut written = if kind == EXT4 { ext4_checkpoint(&file) } else { freeze::cycle(&file) };
    if kind == EXT4 && is(&written, &[libc::ENOTTY, libc::EOPNOTSUPP]) {
        written = freeze::cycle(&file);
    }
    // A process without the right to do it, and a file system without a journal.
    if is(&written, &[libc::EPERM, libc::ENODEV]) { Ok(()) } else { written }
}

fn is(result: &io::Result<()>, errors: &[i32]) -> bool {
    result.as_ref().is_err_and(|error| error.raw_os_error().is_some_and(|number| errors.contains(&number)))
}

fn ext4_checkpoint(file: impl AsFd) -> io::Result<()> {
    /// `_IOW('f', 43, __u32)`
    const EXT4_IOC_CHECKPOINT: libc::c_ulong = 0x4004_662b;
    fault::changing("ioctl")?;
    let flags: u32 = 0;
    #[allow(unsafe_code, reason = "an ioctl that no library knows")]
    // SAFETY: the kernel reads four bytes from the pointer, which outlives the call.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), EXT4_IOC_CHECKPOINT, &raw const flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
