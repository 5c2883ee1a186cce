//! Removing files and trees: one unlinkat(2) a node, each of them a failpoint.
//!
//! A removal that is stopped leaves half a tree. So no tree whose name means something is removed under that name: it is
//! renamed to a name that means rubbish first, and whoever finds rubbish may remove it (see [`discard`]).
//!
//! The flags `i` and `a` (chattr(1)) keep the kernel from removing a name. They are taken off for that moment, and set
//! again on a node that still has other names: those are somebody's files.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use cap_std::fs::Dir;
use rustix::{
    fs::{AtFlags, FileType, OFlags, fstat, openat, unlinkat},
    io::Errno,
};

use super::{fat, fault, flags, rename, sync};

/// Removes the file `name`; it is no error when there is none.
///
/// # Errors
///
/// Those of unlinkat(2).
pub fn file(dir: &Dir, name: &str) -> io::Result<()> {
    absent_is_fine(unlink(dir.as_fd(), name.as_bytes(), AtFlags::empty()))
}

/// Removes the directory `name` and everything in it, or the file or symlink `name`; it is no error when there is none.
/// `name` must mean rubbish: stopped in the middle, half of the tree is left.
///
/// # Errors
///
/// Those of getdents(2) and unlinkat(2), `EBUSY` for a mount point say. What can be removed is removed all the same.
pub fn tree(dir: &Dir, name: &str) -> io::Result<()> {
    absent_is_fine(node(dir.as_fd(), name.as_bytes()))
}

/// Removes the directory `name`, whatever it means: it becomes `rubbish`, durably, and is removed under that name. What
/// was `rubbish` before is removed first.
///
/// # Errors
///
/// Those of renameat2(2), fsync(2) and [`tree`]; `name` is whole or gone.
pub fn discard(dir: &Dir, name: &str, rubbish: &str) -> io::Result<()> {
    tree(dir, rubbish)?;
    if dir.symlink_metadata(name).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    if !fault::lacks("rename") {
        rename::move_to(dir, name, rubbish)?;
        sync::fsync(dir.open(".")?)?;
        return tree(dir, rubbish);
    }
    tree(dir, name)
}

/// The same for any name, as bytes.
///
/// # Errors
///
/// As [`tree`].
pub fn node_at(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    absent_is_fine(node(parent, name))
}

fn node(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    match openat(parent, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0.into()) {
        // Not a directory, a symlink, or something that cannot be opened without meaning to.
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => unlink(parent, name, AtFlags::empty()),
        Err(error) => Err(error.into()),
        Ok(dir) => {
            children(&dir)?;
            unlink(parent, name, AtFlags::REMOVEDIR)?;
            if fat::has(&dir)? {
                // While `dir` is open, its clusters are its own.
                fat::sync_names(parent)?;
            }
            Ok(())
        }
    }
}

/// Everything in a directory; the first error is returned after all that can be removed is.
fn children(dir: &OwnedFd) -> io::Result<()> {
    let mut names = vec![];
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push((entry.file_name().to_owned(), entry.file_type()));
        }
    }
    let mut failed = Ok(());
    for (name, kind) in names {
        let name = name.as_bytes();
        let removed = match kind {
            FileType::Directory | FileType::Unknown => node(dir.as_fd(), name),
            _ => unlink(dir.as_fd(), name, AtFlags::empty()),
        };
        if let Err(error) = absent_is_fine(removed)
            && failed.is_ok()
        {
            failed = Err(error);
        }
    }
    failed
}

fn unlink(parent: BorrowedFd<'_>, name: &[u8], how: AtFlags) -> io::Result<()> {
    fault::changing("unlinkat")?;
    match unlinkat(parent, name, how) {
        // What a flag forbids is EPERM; a directory without the right to write in it is EACCES.
        Err(Errno::PERM) => without_flags(parent, name, how),
        other => Ok(other?),
    }
}

/// The flags of the directory and of the node are what keeps the name: without them it is tried once more.
fn without_flags(parent: BorrowedFd<'_>, name: &[u8], how: AtFlags) -> io::Result<()> {
    let of_parent = flags::get(parent).ok().flatten();
    let options = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let node = openat(parent, name, options, 0.into()).ok();
    let of_node = node.as_ref().and_then(|node| flags::get(node).ok().flatten());
    if of_parent.is_none() && of_node.is_none() {
        return Err(Errno::PERM.into());
    }
    flags::clear(parent)?;
    node.as_ref().map_or(Ok(()), flags::clear)?;
    fault::changing("unlinkat")?;
    let removed = unlinkat(parent, name, how);
    if let (Some(node), Some(of_node)) = (node, of_node)
        && (removed.is_err() || fstat(&node)?.st_nlink > 0)
    {
        flags::set(&node, of_node)?;
    }
    Ok(removed?)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
