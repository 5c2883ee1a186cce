//! Writes the merged tree: the new tree's nodes by hard link, local ones by copy. Neither tree is changed.
//!
//! Directories first, top down; then what is in them, a thread a directory; their owners, modes and times last, bottom
//! up. No two threads write in one directory, which the kernel would not let them do at once anyway.

mod writer;

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use rayon::prelude::*;

use self::writer::{Writer, finish};
use super::{
    merge::Take,
    names::Names,
    plan::{Plan, Step},
    scan::Walker,
    tree::{Kind, Node, RelPath, Tree},
};
use crate::{stop::Stop, sys};

type Failed = (RelPath, io::Error);

/// What was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of local files.
    pub bytes_copied: u64,
    /// Files that kept changing while they were copied, or that vanished.
    pub moved: Vec<RelPath>,
}

impl Applied {
    /// Both.
    pub fn and(mut self, more: Self) -> Self {
        self.bytes_copied += more.bytes_copied;
        self.moved.extend(more.moved);
        self
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
    levels: Vec<Vec<(&'a RelPath, &'a Node)>>,
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
    fn of(plan: &'a Plan) -> Self {
        let mut work = Self::default();
        for (path, step) in &plan.steps {
            match &step.node {
                None => {}
                Some(node) if node.is_dir() => {
                    let depth = path.components().count() - 1;
                    work.levels.resize_with(work.levels.len().max(depth + 1), Vec::new);
                    work.levels[depth].push((path, node));
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

/// Writes the merged tree into `roots.output`.
///
/// # Errors
///
/// The path and the error of the first node that could not be written, or before which it was time to stop; then
/// `output` is to be removed.
pub fn apply(plan: &Plan, new: &Tree, roots: Roots<'_>) -> Result<Applied, Failed> {
    let work = Work::of(plan);
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
    for level in work.levels.iter().rev() {
        each_dir(level, roots, finish)?;
    }
    if let Some(root) = &plan.root {
        finish(roots.output, b".", root).map_err(|error| (RelPath::default(), error))?;
    }
    let mut done = done.and(writer.done);
    done.moved.sort();
    Ok(done)
}

/// Calls `what` with each directory's parent in the merged tree, its name and its node.
fn each_dir(
    dirs: &[(&RelPath, &Node)],
    roots: Roots<'_>,
    what: impl Fn(BorrowedFd<'_>, &[u8], &Node) -> io::Result<()> + Sync,
) -> Result<(), Failed> {
    let one = |walker: &mut Walker<'_>, (path, node): &(&RelPath, &Node)| {
        let done = roots.check().and_then(|()| walker.parent_of(path));
        let done = done.and_then(|parent| what(parent, path.name(), node));
        done.map_err(|error| ((*path).clone(), error))
    };
    dirs.par_iter().map_init(|| Walker::new(roots.output), one).collect()
}

/// Copies the local nodes that are kept beside the image's into the merged tree.
///
/// # Errors
///
/// As [`apply`].
pub fn put_beside(plan: &Plan, current: &Tree, roots: Roots<'_>) -> Result<Applied, Failed> {
    let mut writer = Writer::new(roots);
    for (from, to) in &plan.beside {
        let renamed =
            |path: &RelPath| RelPath::from_bytes([to.as_bytes(), &path.as_bytes()[from.as_bytes().len()..]].concat());
        let nodes = local_nodes(plan, current, |path| path == from || path.is_below(from));
        for (path, node) in &nodes {
            writer.copy_current(path, &renamed(path), node).map_err(|error| ((*path).clone(), error))?;
        }
        for (path, node) in nodes.iter().rev().filter(|(_, node)| node.is_dir()) {
            writer.finish_dir(&renamed(path), node).map_err(|error| ((*path).clone(), error))?;
        }
    }
    Ok(writer.done)
}

/// Copies the local nodes that have no place in the merged tree into `roots.output`, with all below and the
/// directories above them.
///
/// # Errors
///
/// As [`apply`].
pub fn set_aside(plan: &Plan, current: &Tree, roots: Roots<'_>) -> Result<Applied, Failed> {
    let mut writer = Writer::new(roots);
    let wanted = |path: &RelPath| plan.aside.iter().any(|top| path == top || path.is_below(top) || top.is_below(path));
    let nodes = local_nodes(plan, current, wanted);
    for (path, node) in &nodes {
        writer.take_current(path, node).map_err(|error| ((*path).clone(), error))?;
    }
    for (path, node) in nodes.iter().rev().filter(|(_, node)| node.is_dir()) {
        writer.finish_dir(path, node).map_err(|error| ((*path).clone(), error))?;
    }
    Ok(writer.done)
}

/// Local nodes that are wanted, without those that are never carried and what is below these.
fn local_nodes<'a>(plan: &Plan, current: &'a Tree, wanted: impl Fn(&RelPath) -> bool) -> Vec<(&'a RelPath, &'a Node)> {
    let skipped = |path: &RelPath| plan.skipped.iter().any(|top| path == top || path.is_below(top));
    current.nodes.iter().filter(|(path, _)| wanted(path) && !skipped(path)).collect()
}
