//! Reads a tree: one statx(2) a node, the extended attributes, the targets of symlinks; no file's content.
//!
//! Nothing is followed: every component is opened with `O_NOFOLLOW`, from its parent's descriptor. What vanishes while
//! it is read was never there.

use std::{
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
};

use rustix::{
    fs::{AtFlags, Dir as Stream, FileType, Mode, OFlags, Statx, StatxFlags, openat, readlinkat, statx},
    io::Errno,
};

use super::tree::{Kind, Node, RelPath, Tree, Xattrs};
use crate::sys;

/// What opening a directory without following anything takes.
pub const DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// Reads the tree at `root`.
///
/// # Errors
///
/// The path and the error of the first node that could not be read, and had not vanished.
pub fn scan(root: BorrowedFd<'_>) -> Result<Tree, (RelPath, io::Error)> {
    let at_root = |error: io::Error| (RelPath::default(), error);
    let top = openat(root, c".", DIR, Mode::empty()).map_err(|e| at_root(e.into()))?;
    let mut tree = Tree { root: node(root, b".").map_err(at_root)?.into_node(), ..Tree::default() };
    let mut todo: Vec<(Option<RelPath>, OwnedFd)> = vec![(None, top)];
    while let Some((path, dir)) = todo.pop() {
        let here = |error: io::Error| (path.clone().unwrap_or_default(), error);
        for name in names(&dir).map_err(here)? {
            let child = RelPath::child(path.as_ref(), &name);
            match node(dir.as_fd(), &name).map_err(|e| (child.clone(), e))? {
                Found::Vanished => {}
                Found::Special => tree.skipped.push(child),
                Found::Node(node) => {
                    if node.is_dir() {
                        match openat(&dir, &*name, DIR, Mode::empty()) {
                            Ok(fd) => todo.push((Some(child.clone()), fd)),
                            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                            Err(error) => return Err((child, error.into())),
                        }
                    }
                    tree.nodes.insert(child, node);
                }
            }
        }
    }
    tree.skipped.sort();
    Ok(tree)
}

enum Found {
    Node(Node),
    Special,
    Vanished,
}

impl Found {
    fn into_node(self) -> Option<Node> {
        match self {
            Self::Node(node) => Some(node),
            _ => None,
        }
    }
}

fn names(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Stream::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// The node `name` of `dir`.
fn node(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Found> {
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

fn with_xattrs(kind: Kind, stat: &Statx, mut xattrs: Xattrs) -> Node {
    let label = xattrs.remove(&b"security.selinux"[..]);
    let not_carried = |name: &[u8]| {
        name == b"security.ima" || name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
    };
    xattrs.retain(|name, _| !not_carried(name));
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
pub struct Walker {
    root: OwnedFd,
    open: Vec<(Vec<u8>, OwnedFd)>,
}

impl Walker {
    /// Begins at `root`.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub fn new(root: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { root: root.try_clone_to_owned()?, open: Vec::new() })
    }

    /// The directory that holds `path`.
    ///
    /// # Errors
    ///
    /// `ENOENT`, and `ENOTDIR` or `ELOOP` when a component is no directory (any more).
    pub fn parent_of(&mut self, path: &RelPath) -> io::Result<BorrowedFd<'_>> {
        let parent = path.parent();
        let wanted: Vec<&[u8]> = parent.as_ref().map(|p| p.components().collect()).unwrap_or_default();
        let shared = self.open.iter().zip(&wanted).take_while(|((name, _), want)| name == *want).count();
        self.open.truncate(shared);
        for name in &wanted[shared..] {
            let above = self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd());
            let fd = openat(above, *name, DIR, Mode::empty())?;
            self.open.push((name.to_vec(), fd));
        }
        Ok(self.open.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd()))
    }
}

/// The bytes of a name, for messages.
pub fn lossy(name: &[u8]) -> String {
    std::ffi::OsStr::from_bytes(name).to_string_lossy().into_owned()
}
