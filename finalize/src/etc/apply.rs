//! Writes the merged tree: the new tree's nodes by hard link, local ones by copy. Neither tree is changed.
//!
//! Directories first, top down; then what is in them, a thread a directory; their owners, modes and times last, bottom
//! up. No two threads write in one directory, which the kernel would not let them do at once anyway.

mod correct;
mod flags;
mod writer;

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use rayon::prelude::*;

use self::writer::{Writer, finish};
use super::{
    merge::Take,
    names::Names,
    plan::{Plan, Step, Trees},
    scan::Walker,
    tree::{Kind, Node, RelPath, Tree},
};
use crate::{
    stop::Stop,
    sys::{self, flags::Flags},
};

pub use correct::{Changes, Made, correct};

type Failed = (RelPath, io::Error);

/// What was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of local files.
    pub bytes_copied: u64,
    /// Nodes of the new tree that are copies, for they could not be links.
    pub unshared: u64,
    /// Files that kept changing while they were copied, that vanished, or that became something else.
    pub moved: Vec<RelPath>,
    /// The flags of local nodes, which their copies have too.
    pub flags: Vec<(RelPath, Flags)>,
    /// What else a person should know, one line each.
    pub notes: Vec<String>,
}

impl Applied {
    /// Both.
    pub fn and(mut self, more: Self) -> Self {
        self.bytes_copied += more.bytes_copied;
        self.unshared += more.unshared;
        self.moved.extend(more.moved);
        self.flags.extend(more.flags);
        self.notes.extend(more.notes);
        self
    }

    /// What a person should know, one line each.
    pub fn said(&self) -> Vec<String> {
        let moved = self.moved.iter().map(|path| format!("/etc/{path} changed while it was copied"));
        moved.chain(self.notes.iter().cloned()).collect()
    }
}

/// Where nodes come from and go to.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'a> {
    /// The live tree.
    pub current: BorrowedFd<'a>,
    /// The new tree, on the file system of `output`.
    pub new: BorrowedFd<'a>,
    /// An empty directory: the merged tree.
    pub output: BorrowedFd<'a>,
    /// Asked before each directory, and before each copy of a local node.
    pub stop: &'a Stop,
    /// What becomes of the new tree's files.
    pub links: Links,
}

/// What the merged tree has of the new tree's files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Links {
    /// The same inodes: nothing is copied.
    #[default]
    Share,
    /// Copies (shared blocks where the file system can): whoever changes one later does not change the other.
    Copy,
}

impl Roots<'_> {
    /// Fails when it is time to stop.
    fn check(&self) -> io::Result<()> {
        self.stop.check().map_err(io::Error::other)
    }
}

/// What the merged tree will have, apart into what threads can do without meeting each other.
#[derive(Default)]
struct Work<'a> {
    /// Directories, by depth.
    levels: Vec<Vec<(&'a RelPath, Node)>>,
    /// Everything else, by directory.
    leaves: BTreeMap<RelPath, Leaves<'a>>,
    /// Local names of inodes that have several: one becomes a link to the other.
    shared: Vec<(&'a RelPath, &'a Step)>,
}

#[derive(Default)]
struct Leaves<'a> {
    steps: Vec<(&'a RelPath, &'a Step)>,
    quiet: Option<&'a Names>,
}

impl<'a> Work<'a> {
    fn of(plan: &'a Plan, current: &Tree, new: &Tree) -> Self {
        let mut work = Self::default();
        for (path, step) in &plan.steps {
            match &step.node {
                None => {}
                Some(node) if node.is_dir() => {
                    let depth = path.components().count() - 1;
                    work.levels.resize_with(work.levels.len().max(depth + 1), Vec::new);
                    work.levels[depth].push((path, labelled(node, new.nodes.get(path), current.nodes.get(path))));
                }
                Some(Node { kind: Kind::File { shared: true, .. }, .. }) if step.take == Take::Current => {
                    work.shared.push((path, step));
                }
                Some(_) => work.leaves.entry(path.parent().unwrap_or_default()).or_default().steps.push((path, step)),
            }
        }
        for (dir, names) in &plan.quiet.leaves {
            work.leaves.entry(dir.clone()).or_default().quiet = Some(names);
        }
        work
    }
}

/// The node with the label that the new tree has there; where that is not known, with the local one.
fn labelled(node: &Node, new: Option<&Node>, current: Option<&Node>) -> Node {
    let label = [new, Some(node), current].into_iter().flatten().find_map(|node| node.label.clone());
    Node { label, ..node.clone() }
}

/// Writes the merged tree into `roots.output`, which nobody but its owner can enter before all is in it.
///
/// # Errors
///
/// The path and the error of the first node that could not be written, or before which it was time to stop; then
/// `output` is to be removed.
pub fn apply(plan: &Plan, trees: &Trees, roots: Roots<'_>) -> Result<Applied, Failed> {
    let (current, new) = (&trees.current, &trees.new);
    let work = Work::of(plan, current, new);
    let step = |writer: &mut Writer<'_>, path: &RelPath, step: &Step| {
        writer.step(path, step, new.nodes.get(path)).map_err(|error| (path.clone(), error))
    };
    for level in &work.levels {
        each_dir(level, roots, |parent, name, _| sys::node::mkdir(parent, name))?;
    }
    let fill = |writer: &mut Writer<'_>, (dir, leaves): (&RelPath, &Leaves<'_>)| {
        leaves.steps.iter().try_for_each(|(path, what)| step(writer, path, what))?;
        roots.check().map_err(|error| (dir.clone(), error))?;
        leaves.quiet.map_or(Ok(()), |names| writer.take_all(dir, names))?;
        Ok(std::mem::take(&mut writer.done))
    };
    let done = work.leaves.par_iter().map_init(|| Writer::new(roots), fill);
    let done = done.try_reduce(Applied::default, |one, other| Ok(one.and(other)))?;
    let mut writer = Writer::new(roots);
    work.shared.iter().try_for_each(|(path, what)| step(&mut writer, path, what))?;
    put_beside(plan, current, &mut writer)?;
    for level in work.levels.iter().rev() {
        each_dir(level, roots, finish)?;
    }
    if let Some(root) = &plan.root {
        let root = labelled(root, new.root.as_ref(), current.root.as_ref());
        finish(roots.output, b".", &root).map_err(|error| (RelPath::default(), error))?;
    }
    let mut done = done.and(writer.done);
    done.moved.sort();
    let dirs = work.levels.iter().flatten().map(|(path, _)| *path);
    let dirs = dirs.filter(|path| current.nodes.get(path).is_some_and(Node::is_dir));
    let merged = plan.steps.iter().filter(|(_, step)| step.content.is_some()).map(|(path, _)| path);
    flags::find(dirs.chain(merged), roots, &mut done)?;
    flags::set(roots, &mut done)?;
    Ok(done)
}

/// Calls `what` with each directory's parent in the merged tree, its name and its node.
fn each_dir(
    dirs: &[(&RelPath, Node)],
    roots: Roots<'_>,
    what: impl Fn(BorrowedFd<'_>, &[u8], &Node) -> io::Result<()> + Sync,
) -> Result<(), Failed> {
    let one = |walker: &mut Walker<'_>, (path, node): &(&RelPath, Node)| {
        let done = roots.check().and_then(|()| walker.parent_of(path));
        let done = done.and_then(|parent| what(parent, path.name(), node));
        done.map_err(|error| ((*path).clone(), error))
    };
    dirs.par_iter().map_init(|| Walker::new(roots.output), one).collect()
}

/// Copies the local nodes that are kept beside the image's into the merged tree. The directories above them are not yet
/// what they will be: nobody else can enter them, and they hand nothing down.
fn put_beside(plan: &Plan, current: &Tree, writer: &mut Writer<'_>) -> Result<(), Failed> {
    for (from, to) in &plan.beside {
        let renamed =
            |path: &RelPath| RelPath::from_bytes([to.as_bytes(), &path.as_bytes()[from.as_bytes().len()..]].concat());
        let below = current.nodes.range::<RelPath, _>(from..);
        let below = below.take_while(|(path, _)| *path == from || path.is_below(from));
        let nodes = carried(plan, below);
        for (path, node) in &nodes {
            writer.copy_current(path, &renamed(path), node).map_err(|error| ((*path).clone(), error))?;
        }
        for (path, node) in nodes.iter().rev().filter(|(_, node)| node.is_dir()) {
            writer.finish_dir(&renamed(path), node).map_err(|error| ((*path).clone(), error))?;
        }
    }
    Ok(())
}

/// Copies the local nodes that have no place in the merged tree into `roots.output`, with all below and the
/// directories above them.
///
/// # Errors
///
/// As [`apply`].
pub fn set_aside(plan: &Plan, current: &Tree, roots: Roots<'_>) -> Result<Applied, Failed> {
    let mut writer = Writer::new(roots);
    let holds = |path: &RelPath| plan.aside.range::<RelPath, _>(path..).next().is_some_and(|top| top.is_below(path));
    let is_in =
        |path: &RelPath| std::iter::successors(Some(path.clone()), RelPath::parent).any(|p| plan.aside.contains(&p));
    let wanted = |path: &RelPath| holds(path) || is_in(path);
    let nodes = carried(plan, current.nodes.iter().filter(|(path, _)| wanted(path)));
    for (path, node) in &nodes {
        writer.take_current(path, node).map_err(|error| ((*path).clone(), error))?;
    }
    for (path, node) in nodes.iter().rev().filter(|(_, node)| node.is_dir()) {
        writer.finish_dir(path, node).map_err(|error| ((*path).clone(), error))?;
    }
    Ok(writer.done)
}

/// Local nodes without those that are never carried and what is below these.
fn carried<'a>(plan: &Plan, nodes: impl Iterator<Item = (&'a RelPath, &'a Node)>) -> Vec<(&'a RelPath, &'a Node)> {
    let is_top = |path: &RelPath| plan.skipped.binary_search(path).is_ok();
    let skipped = |path: &RelPath| std::iter::successors(Some(path.clone()), RelPath::parent).any(|path| is_top(&path));
    nodes.filter(|(path, _)| !skipped(path)).collect()
}
