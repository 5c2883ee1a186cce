//! Making nodes of a tree: link(2), mkdir(2), symlink(2), a file's bytes, owner, mode and times.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT, Uid, chownat, linkat, mkdirat,
    mknodat, openat, symlinkat, utimensat,
};

use rustix::io::Errno;

use super::fault;

/// A second name `to` in `to_dir` for the node `from` in `from_dir`, which is not followed when it is a symlink.
///
/// # Errors
///
/// Those of linkat(2); `EXDEV` across file systems and mounts, `EMLINK` when the inode has too many names.
pub fn link(from_dir: BorrowedFd<'_>, from: &[u8], to_dir: BorrowedFd<'_>, to: &[u8]) -> io::Result<()> {
    fault::changing("linkat")?;
    Ok(linkat(from_dir, from, to_dir, to, AtFlags::empty())?)
}

/// A directory that only its owner can enter, until its mode is set.
///
/// # Errors
///
/// Those of mkdirat(2).
pub fn mkdir(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fault::changing("mkdirat")?;
    Ok(mkdirat(dir, name, Mode::RWXU)?)
}

/// A symlink.
///
/// # Errors
///
/// Those of symlinkat(2).
pub fn symlink(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fault::changing("symlinkat")?;
    Ok(symlinkat(target, dir, name)?)
}

/// A fifo or a device, with its number as Linux packs it (makedev(3)); only its owner has any rights, until its mode is set.
///
/// # Errors
///
/// Those of mknodat(2).
pub fn special(dir: BorrowedFd<'_>, name: &[u8], kind: FileType, number: u64) -> io::Result<()> {
    fault::changing("mknodat")?;
    Ok(mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, number)?)
}

/// A new, empty file with the permission bits of `mode`, less the umask's; set-id bits only come when the owner is set.
/// Whoever may not read it is kept out by a directory above it, see [`mkdir`].
///
/// # Errors
///
/// Those of openat(2); `EEXIST`.
pub fn create(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<OwnedFd> {
    fault::changing("openat")?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat(dir, name, flags, Mode::from_raw_mode(mode & 0o777))?)
}

/// No bytes, in a file that had some.
///
/// # Errors
///
/// Those of ftruncate(2).
pub fn empty(file: &File) -> io::Result<()> {
    fault::changing("ftruncate")?;
    file.set_len(0)
}

/// All bytes of `from` into the empty file `to`: shared where the file system can (`FICLONE`), else copied, as long as
/// `may_go_on` says so, which is asked every 8 MiB. Returns the number of bytes.
///
/// # Errors
///
/// Those of read(2) and write(2), and of `may_go_on`.
pub fn copy_bytes(from: &File, to: &File, may_go_on: impl Fn() -> io::Result<()>) -> io::Result<u64> {
    // Most files are small, and no file system shares less than a block.
    let mut buffer = [0; 1 << 12];
    let length = read_all(from, &mut buffer)?;
    if length < buffer.len() {
        if length > 0 {
            fault::changing("write")?;
            to.write_all_at(&buffer[..length], 0)?;
        }
        return Ok(length as u64);
    }
    fault::changing("ioctl")?;
    if rustix::fs::ioctl_ficlone(to.as_fd(), from.as_fd()).is_ok() {
        return Ok(to.metadata()?.len());
    }
    let mut at = 0;
    // Only what is data: holes stay holes.
    while let Some((start, end)) = next_data(from, at)? {
        copy_range(from, to, (start, end), &may_go_on)?;
        at = end;
    }
    let length = from.metadata()?.len();
    fault::changing("ftruncate")?;
    to.set_len(length)?;
    Ok(length)
}

/// The bytes of `from` between two offsets to the same place in `to`; fewer where `from` ends before.
fn copy_range(
    from: &File,
    to: &File,
    (mut at, end): (u64, u64),
    may_go_on: impl Fn() -> io::Result<()>,
) -> io::Result<()> {
    const PIECE: u64 = 8 << 20;
    let mut buffer = vec![];
    while at < end {
        may_go_on()?;
        let wanted = usize::try_from((end - at).min(PIECE)).unwrap_or(usize::MAX);
        if buffer.is_empty() {
            fault::changing("copy_file_range")?;
            let (mut read, mut write) = (at, at);
            match rustix::fs::copy_file_range(from, Some(&mut read), to, Some(&mut write), wanted) {
                Ok(0) => return Ok(()),
                Ok(length) => at += length as u64,
                // Not between these two file systems.
                Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                    buffer = vec![0; 1 << 18];
                }
                Err(error) => return Err(error.into()),
            }
            continue;
        }
        let wanted = wanted.min(buffer.len());
        let length = from.read_at(&mut buffer[..wanted], at)?;
        if length == 0 {
            return Ok(());
        }
        fault::changing("write")?;
        to.write_all_at(&buffer[..length], at)?;
        at += length as u64;
    }
    Ok(())
}

/// The file from its beginning, until the buffer is full or the file ends.
fn read_all(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], filled as u64)? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}

/// The next stretch of data at or behind `at`; see lseek(2), `SEEK_DATA`.
fn next_data(file: &File, at: u64) -> io::Result<Option<(u64, u64)>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL) if at > 0 => Ok(None),
        // A file system that knows no holes: all of it is data.
        Err(Errno::INVAL) => Ok(Some((0, file.metadata()?.len())).filter(|(_, end)| *end > 0)),
        start => {
            let start = start?;
            Ok(Some((start, rustix::fs::seek(file, SeekFrom::Hole(start))?)))
        }
    }
}

/// These bytes into an empty file.
///
/// # Errors
///
/// Those of write(2).
pub fn write(to: &File, bytes: &[u8]) -> io::Result<()> {
    if bytes.is_empty() {
        return Ok(());
    }
    fault::changing("write")?;
    let mut to = to;
    to.write_all(bytes)
}

/// Owner and group.
///
/// # Errors
///
/// Those of fchownat(2).
pub fn chown(dir: BorrowedFd<'_>, name: &[u8], uid: u32, gid: u32) -> io::Result<()> {
    fault::changing("fchownat")?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    Ok(chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Permission and set-id bits. A symlink is not followed: it has no mode. Linux got fchmodat2(2) only in 6.6, so the node
/// is reached through a descriptor that opens nothing (`O_PATH`).
///
/// # Errors
///
/// Those of openat(2) and chmod(2); `EOPNOTSUPP` for a symlink.
pub fn chmod(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    fault::changing("fchmodat")?;
    let node = openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::chmod(format!("/proc/self/fd/{}", node.as_raw_fd()), Mode::from_raw_mode(mode))?)
}

/// The modification time; the access time stays.
///
/// # Errors
///
/// Those of utimensat(2).
pub fn set_mtime(dir: BorrowedFd<'_>, name: &[u8], (seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
    fault::changing("utimensat")?;
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT as _ },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ },
    };
    Ok(utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}
