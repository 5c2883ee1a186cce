//! Which leaves need no decision.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::fs::{FileType, Mode, OFlags, openat};

use crate::{
    etc::{
        bytes,
        names::Types,
        scan::{Found, node},
        tree::Kind,
    },
    sys,
};

/// Whether a local file that the booted image has too may not be changed (`chattr`). One that cannot be opened is not
/// known to be so.
pub fn is_flagged(dirs: &[Option<OwnedFd>; 3], name: &[u8], types: Types) -> bool {
    let [Some(FileType::RegularFile), Some(FileType::RegularFile), _] = types else { return false };
    let options = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = dirs[1].as_ref().and_then(|dir| openat(dir, name, options, Mode::empty()).ok());
    file.is_some_and(|file| sys::flags::get(file).ok().flatten().is_some())
}

/// Whether the new tree has no more than a leaf there.
pub fn is_leaf_or_none(kind: Option<FileType>) -> bool {
    matches!(kind, None | Some(FileType::RegularFile | FileType::Symlink))
}

/// Whether the leaf `name` is surely equal in the pristine and the live tree, and no more than a leaf in the new one.
///
/// # Errors
///
/// Those of reading.
pub fn is_quiet(dirs: &[Option<OwnedFd>; 3], name: &[u8], types: Types) -> io::Result<bool> {
    let [pristine, Some(current), Some(_)] = dirs else { return Ok(false) };
    if !is_leaf_or_none(types[2]) {
        return Ok(false);
    }
    match (pristine, types[0], types[1]) {
        (_, None, None) => Ok(true),
        (Some(pristine), Some(FileType::RegularFile), Some(FileType::RegularFile)) => {
            bytes::surely_same(pristine.as_fd(), current.as_fd(), name)
        }
        (Some(pristine), Some(FileType::Symlink), Some(FileType::Symlink)) => {
            let link = |dir: BorrowedFd<'_>| match node(dir, name)? {
                Found::Node(node) if matches!(node.kind, Kind::Link(_)) => Ok::<_, io::Error>(Some(node)),
                _ => Ok(None),
            };
            Ok(match (link(pristine.as_fd())?, link(current.as_fd())?) {
                (Some(one), Some(other)) => one.same_but_bytes(&other),
                _ => false,
            })
        }
        _ => Ok(false),
    }
}
