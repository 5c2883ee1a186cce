//! Flags of local nodes, set again on their copies: last, for nothing can be done with a node that has them.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};

use super::{Applied, Failed, Roots};
use crate::{
    etc::{scan::Walker, tree::RelPath},
    sys,
};

/// Looks for flags of the local directories and files `paths`.
///
/// # Errors
///
/// The path and the error of one that cannot be opened; one that is gone has none.
pub fn find<'a>(paths: impl Iterator<Item = &'a RelPath>, roots: Roots<'_>, done: &mut Applied) -> Result<(), Failed> {
    let mut walker = Walker::new(roots.current);
    for path in paths {
        let node = walker.parent_of(path).and_then(|dir| open(dir, path.name()));
        let flags = match node.and_then(sys::flags::get) {
            Err(error) if is_gone(&error) => None,
            other => other.map_err(|error| (path.clone(), error))?,
        };
        done.flags.extend(flags.map(|flags| (path.clone(), flags)));
    }
    if sys::flags::get(roots.current).ok().flatten().is_some() {
        done.notes.push("/etc itself has a flag (chattr), which the merged one has not".to_owned());
    }
    Ok(())
}

/// Sets the flags that `done` lists. A file system that cannot, or a missing right, is a note.
///
/// # Errors
///
/// The path and the error of a node that cannot be opened.
pub fn set(roots: Roots<'_>, done: &mut Applied) -> Result<(), Failed> {
    let mut walker = Walker::new(roots.output);
    let mut kept = vec![];
    for (path, flags) in std::mem::take(&mut done.flags) {
        let node = walker.parent_of(&path).and_then(|dir| open(dir, path.name()));
        let node = node.map_err(|error| (path.clone(), error))?;
        match sys::flags::set(&node, flags) {
            Ok(()) => kept.push((path, flags)),
            Err(error) if is_refused(&error) => {
                done.notes
                    .push(format!("/etc/{path} has chattr {} here; the merged one has not: {error}", flags.name()));
            }
            Err(error) => return Err((path, error)),
        }
    }
    kept.sort_by(|(one, _), (other, _)| one.cmp(other));
    done.flags = kept;
    Ok(())
}

fn open(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let options = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(openat(dir, name, options, Mode::empty())?)
}

fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

fn is_refused(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::PERM | Errno::NOTTY | Errno::OPNOTSUPP | Errno::INVAL | Errno::ROFS)
    )
}
