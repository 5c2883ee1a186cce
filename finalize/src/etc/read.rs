//! Reads the three trees side by side, directory by directory, with as many threads as there are cores.
//!
//! Most of /etc is what nobody has touched: a leaf that is equal in the pristine and the live tree, or in neither. Such
//! a path follows the image whatever else the trees hold, as long as its directory is one in the live tree and in the
//! new one, and no rule names it: it is *quiet*. Of a quiet path nothing but its name is kept, and of the new tree's
//! node nothing is read at all. Everything else becomes nodes, for [`super::plan`] to decide on.
//!
//! What was read can be remembered ([`super::memory`]). Then a second look asks of each node whether it has moved, and only
//! directories in which something has are read again.

mod quiet;

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{Mode, openat},
    io::Errno,
};
use serde::{Deserialize, Serialize};

use super::{
    Sources,
    memory::{Memory, Seen, Since},
    names::{Listing, Names, zip},
    plan::{Trees, store},
    policy::{Policy, is_special},
    scan::{DIR, Found, Walker, node},
    tree::{Node, RelPath, Tree},
};
use crate::stop::Stop;
use quiet::{is_flagged, is_leaf_or_none, is_quiet};

/// What becomes of what is read, and what is known already.
#[derive(Debug)]
pub enum How<'a> {
    /// Everything is read, and nothing else.
    Once,
    /// Everything is read, and put into a memory; what has changed within so many seconds is not to be believed.
    Remembering(i64),
    /// Only what has moved since is read.
    Recalling(&'a Memory),
}

/// What was read.
#[derive(Debug)]
pub struct Read {
    /// The three trees.
    pub trees: Trees,
    /// All that a later look needs ([`How::Remembering`]).
    pub memory: Option<Memory>,
    /// What is not what it was ([`How::Recalling`]).
    pub since: Since,
}

/// How many files of a directory are read before it is asked whether to stop: asking takes as long as a small file.
const FILES: usize = 64;

/// Reads the three trees.
///
/// # Errors
///
/// The path and the error of the first node that could not be read, and had not vanished; or before which `stop` said that
/// it is time to stop.
pub fn read(sources: &Sources<'_>, policy: &Policy, how: How<'_>, stop: &Stop) -> Result<Read, (RelPath, io::Error)> {
    let (known, memory) = match how {
        How::Once => (None, None),
        How::Remembering(tick) => (None, Some(Memory::begin(tick))),
        How::Recalling(memory) => (Some(memory), None),
    };
    let roots = [sources.pristine, Some(sources.current), Some(sources.new)];
    let tick = memory.as_ref().map(|memory| memory.tick);
    let reader = Reader { policy, pristine: sources.pristine, known, tick, stop, found: Mutex::default() };
    let mut top = Visit { path: None, dirs: [None, None, None], ruled: false };
    let mut trees = Trees::default();
    for ((tree, dir), root) in trees.each().into_iter().zip(&mut top.dirs).zip(roots) {
        let Some(root) = root else { continue };
        let at_root = |error: io::Error| (RelPath::default(), error);
        *dir = Some(openat(root, c".", DIR, Mode::empty()).map_err(|error| at_root(error.into()))?);
        if let Found::Node(found) = node(root, b".").map_err(at_root)? {
            tree.root = Some(found);
        }
    }
    rayon::scope(|scope| reader.visit(scope, top));
    let found = reader.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(failed) = found.failed {
        return Err(failed);
    }
    for (tree, side) in trees.each().into_iter().zip(found.sides) {
        tree.nodes = side.nodes.into_iter().collect();
        tree.skipped = side.skipped;
        tree.skipped.sort();
    }
    trees.quiet = found.quiet;
    trees.flagged = found.flagged;
    let memory = memory.map(|mut memory| {
        memory.dirs.extend(found.seen);
        memory
    });
    Ok(Read { trees, memory, since: found.since })
}

/// Nodes of one tree, and what is never carried.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Side {
    nodes: Vec<(RelPath, Node)>,
    skipped: Vec<RelPath>,
}

/// What was found in one directory.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Looked {
    sides: [Side; 3],
    /// The quiet leaves that the new tree has.
    quiet: Names,
    /// How many quiet leaves there are.
    followed: u64,
    flagged: Vec<RelPath>,
    /// The directories in it, and whether a rule names them.
    below: Vec<(RelPath, bool)>,
}

/// What the threads have found so far.
#[derive(Default)]
struct Everything {
    sides: [Side; 3],
    quiet: super::plan::Quiet,
    flagged: BTreeSet<RelPath>,
    seen: Vec<(RelPath, Seen)>,
    since: Since,
    failed: Option<(RelPath, io::Error)>,
}

/// What else than the table decides on a path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rules {
    /// Nothing.
    None,
    /// It is an account file or the machine's id.
    Special,
    /// It is never carried, and what is below it is not looked at.
    Ignored,
    /// A rule, of it or of a directory above it.
    Named,
}

struct Reader<'a> {
    policy: &'a Policy,
    pristine: Option<BorrowedFd<'a>>,
    known: Option<&'a Memory>,
    /// Where what is read shall be remembered: what [`Memory::tick`] is.
    tick: Option<i64>,
    stop: &'a Stop,
    found: Mutex<Everything>,
}

/// A directory that is one in at least one tree.
struct Visit {
    path: Option<RelPath>,
    /// The pristine one is not opened before it is needed where there is a memory.
    dirs: [Option<OwnedFd>; 3],
    /// Whether a rule names it, or a directory above it.
    ruled: bool,
}

/// A directory that was looked at, or looked at again.
#[derive(Default)]
struct Look {
    looked: Looked,
    seen: Option<Seen>,
    since: Since,
}

impl Reader<'_> {
    fn visit<'s>(&'s self, scope: &rayon::Scope<'s>, mut visit: Visit) {
        match self.again(&mut visit).and_then(|known| known.map_or_else(|| self.look(&visit, None), Ok)) {
            Ok(look) => {
                let below = look.looked.below.clone();
                self.found.lock().unwrap_or_else(PoisonError::into_inner).add(visit.here(), look);
                let visit = Arc::new(visit);
                for (child, ruled) in below {
                    let above = Arc::clone(&visit);
                    // The descriptors are opened when it is the child's turn: only those on the way down are open.
                    scope.spawn(move |scope| match enter(&above, child, (ruled, self.known.is_none())) {
                        Ok(visit) => {
                            drop(above);
                            self.visit(scope, visit);
                        }
                        Err(failed) => self.fail(failed),
                    });
                }
            }
            Err(failed) => self.fail(failed),
        }
    }

    fn fail(&self, failed: (RelPath, io::Error)) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        found.failed.get_or_insert(failed);
    }

    /// A directory that is known: what was found in it then, if nothing in it has moved, else what is found now. Nothing
    /// where it is to be read as if it were not known.
    fn again(&self, visit: &mut Visit) -> Result<Option<Look>, (RelPath, io::Error)> {
        let Some(known) = self.known else { return Ok(None) };
        let here = visit.here();
        let failed = |error: io::Error| (here.clone(), error);
        let seen = known.dirs.get(&here);
        let moved =
            seen.map(|seen| seen.moved([&visit.dirs[1], &visit.dirs[2]].map(|dir| dir.as_ref().map(AsFd::as_fd))));
        let moved = moved.transpose().map_err(failed)?;
        if let (Some(seen), Some(moved)) = (seen, &moved)
            && moved.names == [false, false]
            && moved.nodes.is_empty()
        {
            return Ok(Some(Look { looked: seen.looked.clone(), ..Look::default() }));
        }
        visit.dirs[0] = self.pristine(&here).map_err(failed)?;
        let unmoved = seen.zip(moved.as_ref());
        let mut look = self.look(visit, unmoved.map(|(seen, moved)| Same { seen, moved: &moved.nodes }))?;
        let child = |name: &Vec<u8>| RelPath::child(visit.path.as_ref(), name);
        look.since.nodes.extend(moved.iter().flat_map(|moved| moved.nodes.iter().map(child)));
        look.since.renamed.extend(moved.is_none_or(|moved| moved.names[1]).then_some(here));
        Ok(Some(look))
    }

    /// The pristine directory `path`, where it is one.
    fn pristine(&self, path: &RelPath) -> io::Result<Option<OwnedFd>> {
        let Some(root) = self.pristine else { return Ok(None) };
        match Walker::new(root).dir(path).and_then(|dir| Ok(openat(dir, c".", DIR, Mode::empty())?)) {
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {
                Ok(None)
            }
            opened => opened.map(Some),
        }
    }

    /// Reads one directory of the three; leaves that are known to be `same` are not compared again.
    fn look(&self, visit: &Visit, same: Option<Same<'_>>) -> Result<Look, (RelPath, io::Error)> {
        self.stop.check().map_err(|stopped| (visit.here(), stopped.into()))?;
        let lists = visit.list().map_err(|error| (visit.here(), error))?;
        // Before anything is read: what changes while it is read has moved.
        let names = zip(&lists).map(|(name, types)| (name, [types[1], types[2]]));
        let dirs = [&visit.dirs[1], &visit.dirs[2]].map(|dir| dir.as_ref().map(AsFd::as_fd));
        let seen = self.tick.map(|tick| Seen::begin(dirs, names, tick)).transpose();
        let mut look = Look { seen: seen.map_err(|error| (visit.here(), error))?, ..Look::default() };
        let all = &mut look.looked;
        for (number, (name, types)) in zip(&lists).enumerate() {
            if number % FILES == FILES - 1 {
                self.stop.check().map_err(|stopped| (visit.here(), stopped.into()))?;
            }
            let path = || RelPath::child(visit.path.as_ref(), name);
            let at = |error: io::Error| (path(), error);
            let rules = self.rules(visit, name);
            if rules == Rules::None {
                let is_same = same.as_ref().is_some_and(|same| same.is_leaf(name))
                    && visit.dirs[2].is_some()
                    && is_leaf_or_none(types[2]);
                if is_same || is_quiet(&visit.dirs, name, types).map_err(at)? {
                    all.followed += 1;
                    if types[2].is_some() {
                        all.quiet.push(name);
                    }
                    if let Some(seen) = &mut look.seen {
                        seen.found_quiet(name);
                    }
                    continue;
                }
            }
            if same.as_ref().is_some_and(|same| !same.seen.knows(name)) {
                look.since.nodes.insert(path());
            }
            let mut is_dir = false;
            if matches!(rules, Rules::None | Rules::Special) && is_flagged(&visit.dirs, name, types) {
                all.flagged.push(path());
            }
            for (side, dir) in all.sides.iter_mut().zip(&visit.dirs) {
                let Some(dir) = dir else { continue };
                match node(dir.as_fd(), name).map_err(at)? {
                    Found::Vanished => {}
                    Found::Special => side.skipped.push(path()),
                    Found::Node(node) => {
                        is_dir |= node.is_dir();
                        side.nodes.push((path(), node));
                    }
                }
            }
            if is_dir && rules != Rules::Ignored {
                all.below.push((path(), rules == Rules::Named));
            }
        }
        if let Some(seen) = &mut look.seen {
            seen.looked = look.looked.clone();
        }
        Ok(look)
    }

    /// What else than the table decides on the path `name` of a directory.
    fn rules(&self, visit: &Visit, name: &[u8]) -> Rules {
        let in_selinux = visit.path.as_ref().is_some_and(|path| path.as_bytes().starts_with(b"selinux/"));
        if visit.path.is_some() && self.policy.is_silent_below_the_root() && !in_selinux {
            // Most of /etc: not even the path has to be put together.
            return Rules::None;
        }
        let path = RelPath::child(visit.path.as_ref(), name);
        if self.policy.ignores(&path) {
            return Rules::Ignored;
        }
        match self.policy.rule(&path) {
            Some(_) => Rules::Named,
            None if visit.ruled => Rules::Named,
            // What is decided as one has to be known as a whole.
            None if store::is_part(&path) => Rules::Named,
            None if is_special(&path) => Rules::Special,
            None => Rules::None,
        }
    }
}

/// A directory as it is known, and the names in it that have moved since.
struct Same<'a> {
    seen: &'a Seen,
    moved: &'a BTreeSet<Vec<u8>>,
}

impl Same<'_> {
    /// Whether the leaf `name` was equal in the pristine and the live tree, and has not moved.
    fn is_leaf(&self, name: &[u8]) -> bool {
        self.seen.same.contains(name) && !self.moved.contains(name)
    }
}

impl Everything {
    fn add(&mut self, here: RelPath, more: Look) {
        let Looked { sides, quiet, followed, flagged, .. } = more.looked;
        for (side, more) in self.sides.iter_mut().zip(sides) {
            side.nodes.extend(more.nodes);
            side.skipped.extend(more.skipped);
        }
        self.flagged.extend(flagged);
        self.quiet.followed += followed;
        self.since.nodes.extend(more.since.nodes);
        self.since.renamed.extend(more.since.renamed);
        if !quiet.is_empty() {
            self.quiet.leaves.insert(here.clone(), quiet);
        }
        self.seen.extend(more.seen.map(|seen| (here, seen)));
    }
}

impl Visit {
    fn here(&self) -> RelPath {
        self.path.clone().unwrap_or_default()
    }

    fn list(&self) -> io::Result<[Listing; 3]> {
        let list = |dir: &Option<OwnedFd>| dir.as_ref().map(Listing::read).transpose().map(Option::unwrap_or_default);
        let [pristine, current, new] = &self.dirs;
        Ok([list(pristine)?, list(current)?, list(new)?])
    }
}

/// Opens the directory `path` wherever it is one.
fn enter(above: &Visit, path: RelPath, (ruled, pristine_too): (bool, bool)) -> Result<Visit, (RelPath, io::Error)> {
    let open = |dir: &Option<OwnedFd>| match dir.as_ref().map(|dir| openat(dir, path.name(), DIR, Mode::empty())) {
        None | Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => Ok(None),
        Some(opened) => opened.map(Some).map_err(|error| (path.clone(), error.into())),
    };
    let [pristine, current, new] = &above.dirs;
    let dirs = [if pristine_too { open(pristine)? } else { None }, open(current)?, open(new)?];
    Ok(Visit { path: Some(path), dirs, ruled })
}

impl Trees {
    fn each(&mut self) -> [&mut Tree; 3] {
        [&mut self.pristine, &mut self.current, &mut self.new]
    }
}
