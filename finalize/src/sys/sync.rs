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
    syncfs(&dir)?;
    fsync(dir)
}

/// The same for the physical root. On ext4 syncfs(2) flushes: it commits the journal, or flushes where nothing is to be
/// committed (`ext4_sync_fs`). Not for FAT, which reads all of its table to say what it is (`fat_statfs`).
///
/// # Errors
///
/// As [`fsync`].
pub fn root(dir: impl AsFd) -> io::Result<()> {
    syncfs(&dir)?;
    match rustix::fs::fstatfs(&dir)?.f_type {
        EXT4 => Ok(()),
        _ => fsync(dir),
    }
}

fn syncfs(dir: impl AsFd) -> io::Result<()> {
    fault::changing("syncfs")?;
    if fault::is_sabotaged() {
        return Ok(());
    }
    Ok(rustix::fs::syncfs(dir)?)
}

const EXT4: rustix::fs::FsWord = 0xef53;

/// Has ext4 find a place for the content of a new file now, not when the content is written back: what is renamed or removed
/// later is then not on the disk without the content (ext4(5), `data=ordered`, as it is mounted unless told otherwise;
/// `EXT4_IOC_ALLOC_DA_BLK` in the kernel's `Documentation/admin-guide/ext4.rst`). False on a file system that keeps no such order:
/// the file has to be synced.
///
/// # Errors
///
/// `ENOSPC`, `EDQUOT` and `EIO`.
pub fn keeps_order(file: impl AsFd) -> io::Result<bool> {
    /// `_IO('f', 12)`
    const EXT4_IOC_ALLOC_DA_BLKS: libc::c_ulong = 0x660c;
    if rustix::fs::fstatfs(&file)?.f_type != EXT4 {
        return Ok(false);
    }
    fault::changing("ioctl")?;
    #[allow(unsafe_code, reason = "an ioctl that no library knows")]
    // SAFETY: the request has no argument.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), EXT4_IOC_ALLOC_DA_BLKS, 0) };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOTTY | libc::EPERM)) => Ok(false),
        error => Err(error),
    }
}

/// Writes the journal of a file system back to where it belongs, for a boot loader that does not replay it (GRUB). What
/// is to be written back was synced by [`file_system`].
///
/// XFS is frozen and thawed ([`freeze::cycle`]). For ext4 there is `EXT4_IOC_CHECKPOINT` (Linux 5.15,
/// `Documentation/filesystems/ext4/journal.rst`), which stops nobody; syncfs(2) has done as much, but promises less. FAT
/// has no journal, and syncfs(2) leaves nothing in that of btrfs.
///
/// # Errors
///
/// As [`freeze::cycle`]. An ext4 without a journal, a kernel without the call, and a process without the right to it, is
/// no error: the exchange is in the journal.
pub fn checkpoint(dir: &cap_std::fs::Dir) -> io::Result<()> {
    const XFS: rustix::fs::FsWord = 0x5846_5342;
    let kind = rustix::fs::fstatfs(dir)?.f_type;
    if fault::is_sabotaged() || fault::lacks("checkpoint") {
        return Ok(());
    }
    let written = match kind {
        EXT4 => ext4_checkpoint(dir.open(".")?),
        XFS => freeze::cycle(dir.open(".")?),
        _ => Ok(()),
    };
    match written.as_ref().map_err(io::Error::raw_os_error) {
        Err(Some(libc::EPERM)) => Ok(()),
        Err(Some(libc::ENODEV | libc::ENOTTY | libc::EOPNOTSUPP)) if kind == EXT4 => Ok(()),
        _ => written,
    }
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
