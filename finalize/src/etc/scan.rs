//! Reads a node: one statx(2), the extended attributes, the target of a symlink; no file's content.
//!
//! Nothing is followed: every component is opened with `O_NOFOLLOW`, from its parent's descriptor. What vanishes while
//! it is read was never there.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, openat, readlinkat, statx},
    io::Errno,
};

use super::tree::{Kind, Node, RelPath, Xattrs};
use crate::sys;

/// What opening a directory without following anything takes.
pub const DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// What a name leads to.
#[derive(Debug)]
pub enum Found {
    /// A file, a directory or a symlink.
    Node(Node),
    /// A socket, a fifo or a device: never carried.
    Special,
    /// Nothing (any more), or a whiteout.
    Vanished,
}

/// The node `name` of `dir`.
///
/// # Errors
///
/// Those of statx(2), readlinkat(2) and llistxattr(2); that there is none is no error.
pub fn node(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Found> {
    let stat = match statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
        Err(Errno::NOENT) => return Ok(Found::Vanished),
        other => other?,
    };
    let kind = match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => Kind::Dir,
        FileType::RegularFile => Kind::File {
            size: stat.stx_size,
            inode: (rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino),
            shared: stat.stx_nlink > 1,
        },
        FileType::Symlink => match readlinkat(dir, name, Vec::new()) {
            Err(Errno::NOENT | Errno::INVAL) => return Ok(Found::Vanished),
            target => Kind::Link(target?.into_bytes()),
        },
        // A whiteout says that there is nothing.
        FileType::CharacterDevice if (stat.stx_rdev_major, stat.stx_rdev_minor) == (0, 0) => {
            return Ok(Found::Vanished);
        }
        _ => return Ok(Found::Special),
    };
    match sys::xattr::list(dir, name) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Found::Vanished),
        all => Ok(Found::Node(with_xattrs(kind, &stat, all?))),
    }
}

/// Whether an extended attribute is part of what a node is.
pub fn counts(name: &[u8]) -> bool {
    // The last two are signatures; one of them is of the inode's number too, and so holds for no copy.
    let never = matches!(name, sys::xattr::LABEL | b"security.ima" | b"security.evm");
    !never && !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.")
}

fn with_xattrs(kind: Kind, stat: &Statx, mut xattrs: Xattrs) -> Node {
    let label = xattrs.remove(sys::xattr::LABEL).filter(|label| sys::xattr::is_label(label));
    xattrs.retain(|name, _| counts(name));
    Node {
        kind,
        mode: u32::from(stat.stx_mode) & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        xattrs,
        label,
        mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec.into()),
    }
}

/// Directories of a tree, opened component by component; neighbours share what is already open.
#[derive(Debug)]
pub struct Walker<'a> {
    root: BorrowedFd<'a>,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl<'a> Walker<'a> {
    /// Begins at `root`.
    pub fn new(root: BorrowedFd<'a>) -> Self {
        Self { root, open: Vec::new() }
    }

    /// The directory that holds `path`.
    ///
    /// # Errors
    ///
    /// `ENOENT`, and `ENOTDIR` or `ELOOP` when a component is no directory (any more).
    pub fn parent_of(&mut self, path: &RelPath) -> io::Result<BorrowedFd<'_>> {
        let parent = path.parent();
        self.dir(&parent.unwrap_or_default())
    }

    /// The directory `path`; the root when it is empty.
    ///
    /// # Errors
    ///
    /// As [`Walker::parent_of`].
    pub fn dir(&mut self, path: &RelPath) -> io::Result<BorrowedFd<'_>> {
        let wanted: Vec<&[u8]> = path.components().filter(|name| !name.is_empty()).collect();
        let shared = self.open.iter().zip(&wanted).take_while(|((name, _), want)| name == *want).count();
        self.open.truncate(shared);
        for name in &wanted[shared..] {
            let above = self.open.last().map_or(self.root, |(_, fd)| fd.as_fd());
            let fd = openat(above, *name, DIR, Mode::empty())?;
            self.open.push((name.to_vec(), fd));
        }
        Ok(self.open.last().map_or(self.root, |(_, fd)| fd.as_fd()))
    }
}
