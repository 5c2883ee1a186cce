//! What a merge that was planned ahead has read, so that one that is carried out later reads only what has moved since.
//!
//! That a node is as it was read is told by [`crate::sys::stamp`]. A store through a mapping moves an inode's time once for
//! each time that the page is written back: so the file system is synced before anything is read ahead.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::BorrowedFd,
};

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

use super::{
    plan::{SameBytes, Side},
    read::Looked,
    scan::Walker,
    tree::RelPath,
};
use crate::sys::stamp::Mark;

/// One directory, as it was read.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Seen {
    /// The directory itself, in the live and in the new tree.
    dirs: Vec<Mark>,
    /// Everything in it in the live tree, by name.
    current: BTreeMap<Vec<u8>, Mark>,
    /// What was looked at in the new tree.
    new: BTreeMap<Vec<u8>, Mark>,
    /// Names whose leaves are equal in the pristine and the live tree.
    pub same: BTreeSet<Vec<u8>>,
    /// What was found.
    pub looked: Looked,
}

impl Seen {
    /// Marks a directory before it is read: `names` are those that the live and the new tree have.
    ///
    /// # Errors
    ///
    /// Those of statx(2).
    pub fn begin<'a>(
        dirs: [Option<BorrowedFd<'_>>; 2],
        names: impl Iterator<Item = (&'a [u8], [Option<FileType>; 2])>,
        tick: i64,
    ) -> io::Result<Self> {
        let settled = |marks: Vec<Mark>| marks.into_iter().map(|mark| mark.settled(tick)).collect();
        let mut seen = Self { dirs: settled(of_dirs(dirs)?), ..Self::default() };
        for (name, types) in names {
            let [current, new] = dirs;
            if let (Some(dir), Some(_)) = (current, types[0]) {
                seen.current.insert(name.to_vec(), Mark::of(dir, name)?.settled(tick));
            }
            if let (Some(dir), Some(_)) = (new, types[1]) {
                seen.new.insert(name.to_vec(), Mark::of(dir, name)?.settled(tick));
            }
        }
        Ok(seen)
    }

    /// Whether the name was there when the directory was read.
    pub fn knows(&self, name: &[u8]) -> bool {
        self.current.contains_key(name) || self.new.contains_key(name)
    }

    /// The leaf `name` is quiet: what the new tree has there decides nothing.
    pub fn found_quiet(&mut self, name: &[u8]) {
        self.new.remove(name);
        if self.current.contains_key(name) {
            self.same.insert(name.to_vec());
        }
    }

    /// Looks again: whether names may have come or gone, and which of them do not lead to what they led to.
    ///
    /// # Errors
    ///
    /// Those of statx(2).
    pub fn moved(&self, dirs: [Option<BorrowedFd<'_>>; 2]) -> io::Result<Moved> {
        let now = of_dirs(dirs)?;
        let has_moved =
            |side: usize| !self.dirs.get(side).zip(now.get(side)).is_some_and(|(then, now)| then.holds(*now));
        let mut moved = Moved { names: [has_moved(0), has_moved(1)], nodes: BTreeSet::new() };
        for (dir, marks) in dirs.into_iter().zip([&self.current, &self.new]) {
            for (name, then) in marks {
                let now = dir.map_or(Ok(Mark::Absent), |dir| Mark::of(dir, name))?;
                if !then.holds(now) {
                    moved.nodes.insert(name.clone());
                }
            }
        }
        Ok(moved)
    }
}

/// What has moved in a directory.
#[derive(Debug)]
pub struct Moved {
    /// Names may have come or gone in the live tree, in the new one.
    pub names: [bool; 2],
    /// These names do not lead to what they led to.
    pub nodes: BTreeSet<Vec<u8>>,
}

/// What is not what it was.
#[derive(Debug, Default)]
pub struct Since {
    /// Paths that lead to something else in the live or the new tree, or were not there.
    pub nodes: BTreeSet<RelPath>,
    /// Directories of the new tree in which any name may lead to something else.
    pub renamed: BTreeSet<RelPath>,
}

fn of_dirs(dirs: [Option<BorrowedFd<'_>>; 2]) -> io::Result<Vec<Mark>> {
    dirs.into_iter().map(|dir| dir.map_or(Ok(Mark::Absent), |dir| Mark::of(dir, b"."))).collect()
}

/// Everything that was read, by directory; the root is the empty path.
#[derive(Debug, Serialize, Deserialize)]
pub struct Memory {
    /// What changed within so many seconds before it was looked at is not believed.
    pub tick: i64,
    /// The directories.
    pub dirs: BTreeMap<RelPath, Seen>,
    /// Which files have the same bytes.
    pub answers: Known,
}

/// Whether the files of two sides at a path have the same bytes.
type Known = BTreeMap<(Side, Side, RelPath), bool>;

/// The files of the three trees, some of which were compared before.
pub(super) struct Answers<'a> {
    /// All files.
    pub bytes: &'a mut dyn SameBytes,
    /// What is known, but for the paths that have moved since.
    pub known: Option<(&'a Memory, &'a Since)>,
    /// All answers that were given.
    pub given: Known,
}

impl SameBytes for Answers<'_> {
    fn same_bytes(&mut self, one: Side, other: Side, path: &RelPath) -> io::Result<bool> {
        let key = (one, other, path.clone());
        let known = self.known.filter(|(_, since)| !since.nodes.contains(path));
        let known = known.and_then(|(memory, _)| memory.answers.get(&key).copied());
        let answer = known.map_or_else(|| self.bytes.same_bytes(one, other, path), Ok)?;
        self.given.insert(key, answer);
        Ok(answer)
    }

    fn read(&mut self, side: Side, path: &RelPath) -> io::Result<Option<Vec<u8>>> {
        self.bytes.read(side, path)
    }
}

impl Memory {
    /// Nothing was read yet. `tick` is [`TICK`], or less where change times are known to be finer.
    pub fn begin(tick: i64) -> Self {
        Self { tick, dirs: BTreeMap::new(), answers: BTreeMap::new() }
    }

    /// Marks the new tree's nodes again, after a merged tree was made of their names. One that has changed otherwise too is
    /// not believed.
    ///
    /// # Errors
    ///
    /// The path and the error of one that cannot be looked at.
    pub fn mark_links(&mut self, new: BorrowedFd<'_>) -> Result<(), (RelPath, io::Error)> {
        let mut walker = Walker::new(new);
        for (path, seen) in &mut self.dirs {
            if seen.new.is_empty() {
                continue;
            }
            let dir = walker.dir(path).map_err(|error| (path.clone(), error))?;
            for (name, mark) in &mut seen.new {
                let now = Mark::of(dir, name).map_err(|error| (path.clone(), error))?;
                *mark = if mark.holds_but_for_links(now) { now } else { Mark::Fresh };
            }
        }
        Ok(())
    }
}
