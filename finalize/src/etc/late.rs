//! What became of the live /etc while it was merged: names that came too late, and files that were replaced after they
//! had been compared. Nothing of this fails a merge; a person is told.
//!
//! A directory whose modification time is what it was holds the names that it held. One whose time is another one is
//! listed again. A file that is written in place after it was compared is not found: only reading all of /etc again
//! could, and something could write after that.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    fs::{Mode, openat},
    io::Errno,
};

use super::{
    Sources, bytes,
    names::{Listing, Names},
    plan::{Plan, Trees},
    scan::{DIR, Found, Walker, node},
    tree::{Kind, Node, RelPath},
};

/// A line for each change that the merged tree lacks.
pub fn missed(sources: &Sources<'_>, trees: &Trees, plan: &Plan) -> Vec<String> {
    let mut look = Look { sources, trees, plan, current: Walker::new(sources.current), said: vec![] };
    let dirs = trees.current.nodes.iter().filter(|(_, node)| node.is_dir());
    let root = RelPath::default();
    for (path, node) in trees.current.root.iter().map(|node| (&root, node)).chain(dirs) {
        if plan.is_skipped(path) {
            continue;
        }
        match look.dir(path, node) {
            Ok(()) => {}
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {
                look.said.push(format!("/etc/{path} is no directory any more, since it was read"));
            }
            Err(error) => look.said.push(format!("/etc/{path} could not be looked at again: {error}")),
        }
    }
    look.said
}

struct Look<'a> {
    sources: &'a Sources<'a>,
    trees: &'a Trees,
    plan: &'a Plan,
    current: Walker<'a>,
    said: Vec<String>,
}

impl Look<'_> {
    fn dir(&mut self, path: &RelPath, before: &Node) -> io::Result<()> {
        let dir = self.current.dir(path)?;
        let now = match node(dir, b".")? {
            Found::Node(now) => now,
            _ => return Err(Errno::NOENT.into()),
        };
        if now.mtime == before.mtime {
            return Ok(());
        }
        // A descriptor of its own: a directory is listed from where it was last read to.
        let own = openat(dir, c".", DIR, Mode::empty())?;
        let names = Listing::read(&own)?;
        let mut pristine = self.sources.pristine.map(Walker::new);
        let pristine = pristine.as_mut().and_then(|walker| walker.dir(path).ok());
        let above = Some(path).filter(|path| !path.as_bytes().is_empty());
        for name in self.plan.quiet.leaves.get(path).into_iter().flat_map(Names::iter) {
            let had = pristine.map(|pristine| node(pristine, name)).transpose()?;
            let has = node(own.as_fd(), name)?;
            if let (Some(Found::Node(_)), Found::Vanished) = (had, has) {
                let child = RelPath::child(above, name);
                self.said.push(format!("/etc/{child} was removed after /etc was read: the image's is still there"));
            }
        }
        for name in names.names() {
            let child = RelPath::child(above, name);
            // The plan knows what was found and is not carried.
            if self.trees.current.nodes.contains_key(&child) || self.plan.is_skipped(&child) {
                continue;
            }
            let is_quiet = match pristine {
                Some(pristine) => is_same(pristine, own.as_fd(), name)?,
                None => false,
            };
            if !is_quiet {
                self.said.push(format!("/etc/{child} was made or replaced after /etc was read: it is not carried"));
            }
        }
        Ok(())
    }
}

/// Whether the booted image has the very same leaf.
fn is_same(pristine: BorrowedFd<'_>, current: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    match (node(pristine, name)?, node(current, name)?) {
        // Gone again: a removal that came too late is none of a local file.
        (_, Found::Vanished) => Ok(true),
        (Found::Node(one), Found::Node(other)) => Ok(one.same_but_bytes(&other)
            && (!matches!(one.kind, Kind::File { .. }) || bytes::surely_same(pristine, current, name)?)),
        _ => Ok(false),
    }
}
