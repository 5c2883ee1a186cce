//! Reads the three trees side by side, directory by directory, with as many threads as there are cores.
//!
//! Most of /etc is what nobody has touched: a leaf that is equal in the pristine and the live tree, or in neither. Such
//! a path follows the image whatever else the trees hold, as long as its directory is one in the live tree and in the
//! new one, and no rule names it: it is *quiet*. Of a quiet path nothing but its name is kept, and of the new tree's
//! node nothing is read at all. Everything else becomes nodes, for [`super::plan`] to decide on.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::{
    fs::{FileType, Mode, OFlags, openat},
    io::Errno,
};

use super::{
    Sources, bytes,
    names::{Listing, Names, Types, zip},
    plan::{Quiet, Trees, store},
    policy::{Policy, is_special},
    scan::{DIR, Found, node},
    tree::{Kind, Node, RelPath, Tree},
};
use crate::sys;

/// Reads the three trees.
///
/// # Errors
///
/// The path and the error of the first node that could not be read, and had not vanished.
pub fn read(sources: &Sources<'_>, policy: &Policy) -> Result<Trees, (RelPath, io::Error)> {
    let roots = [sources.pristine, Some(sources.current), Some(sources.new)];
    let reader = Reader { policy, found: Mutex::default() };
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
    Ok(trees)
}

/// Nodes of one tree, and what is never carried.
#[derive(Default)]
struct Side {
    nodes: Vec<(RelPath, Node)>,
    skipped: Vec<RelPath>,
}

/// What the threads have found so far.
#[derive(Default)]
struct Everything {
    sides: [Side; 3],
    quiet: Quiet,
    flagged: BTreeSet<RelPath>,
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
    found: Mutex<Everything>,
}

/// A directory that is one in at least one tree.
struct Visit {
    path: Option<RelPath>,
    dirs: [Option<OwnedFd>; 3],
    /// Whether a rule names it, or a directory above it.
    ruled: bool,
}

impl Reader<'_> {
    fn visit<'s>(&'s self, scope: &rayon::Scope<'s>, visit: Visit) {
        let visit = Arc::new(visit);
        match self.look(&visit) {
            Ok(below) => {
                for (child, ruled) in below {
                    let above = Arc::clone(&visit);
                    // The descriptors are opened when it is the child's turn: only those on the way down are open.
                    scope.spawn(move |scope| match enter(&above, child, ruled) {
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

    /// Reads one directory of the three; returns the directories in it, and whether a rule names them.
    fn look(&self, visit: &Visit) -> Result<Vec<(RelPath, bool)>, (RelPath, io::Error)> {
        let here = || visit.path.clone().unwrap_or_default();
        let lists = visit.list().map_err(|error| (here(), error))?;
        let mut all = Everything::default();
        let (mut quiet, mut below) = (Names::default(), vec![]);
        for (name, types) in zip(&lists) {
            let path = || RelPath::child(visit.path.as_ref(), name);
            let at = |error: io::Error| (path(), error);
            let rules = self.rules(visit, name);
            if rules == Rules::None && is_quiet(&visit.dirs, name, types).map_err(at)? {
                all.quiet.followed += 1;
                if types[2].is_some() {
                    quiet.push(name);
                }
                continue;
            }
            let mut is_dir = false;
            if matches!(rules, Rules::None | Rules::Special) && is_flagged(&visit.dirs, name, types) {
                all.flagged.insert(path());
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
                below.push((path(), rules == Rules::Named));
            }
        }
        if !quiet.is_empty() {
            all.quiet.leaves.insert(here(), quiet);
        }
        self.found.lock().unwrap_or_else(PoisonError::into_inner).add(all);
        Ok(below)
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

impl Everything {
    fn add(&mut self, more: Self) {
        for (side, more) in self.sides.iter_mut().zip(more.sides) {
            side.nodes.extend(more.nodes);
            side.skipped.extend(more.skipped);
        }
        self.flagged.extend(more.flagged);
        self.quiet.followed += more.quiet.followed;
        self.quiet.leaves.extend(more.quiet.leaves);
    }
}

impl Visit {
    fn list(&self) -> io::Result<[Listing; 3]> {
        let list = |dir: &Option<OwnedFd>| dir.as_ref().map(Listing::read).transpose().map(Option::unwrap_or_default);
        let [pristine, current, new] = &self.dirs;
        Ok([list(pristine)?, list(current)?, list(new)?])
    }
}

/// Opens the directory `path` wherever it is one.
fn enter(above: &Visit, path: RelPath, ruled: bool) -> Result<Visit, (RelPath, io::Error)> {
    let open = |dir: &Option<OwnedFd>| match dir.as_ref().map(|dir| openat(dir, path.name(), DIR, Mode::empty())) {
        None | Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => Ok(None),
        Some(opened) => opened.map(Some).map_err(|error| (path.clone(), error.into())),
    };
    let [pristine, current, new] = &above.dirs;
    let dirs = [open(pristine)?, open(current)?, open(new)?];
    Ok(Visit { path: Some(path), dirs, ruled })
}

/// Whether a local file that the booted image has too may not be changed (`chattr`). One that cannot be opened is not
/// known to be so.
fn is_flagged(dirs: &[Option<OwnedFd>; 3], name: &[u8], types: Types) -> bool {
    let [Some(FileType::RegularFile), Some(FileType::RegularFile), _] = types else { return false };
    let options = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = dirs[1].as_ref().and_then(|dir| openat(dir, name, options, Mode::empty()).ok());
    file.is_some_and(|file| sys::flags::get(file).ok().flatten().is_some())
}

/// Whether the leaf `name` is surely equal in the pristine and the live tree, and no more than a leaf in the new one.
fn is_quiet(dirs: &[Option<OwnedFd>; 3], name: &[u8], types: Types) -> io::Result<bool> {
    let [pristine, Some(current), Some(_)] = dirs else { return Ok(false) };
    if !matches!(types[2], None | Some(FileType::RegularFile | FileType::Symlink)) {
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

impl Trees {
    fn each(&mut self) -> [&mut Tree; 3] {
        [&mut self.pristine, &mut self.current, &mut self.new]
    }
}
