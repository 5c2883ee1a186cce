//! Brings a merged tree that was made ahead of time to what a later plan says, in place: only paths that differ are written.
//! Nobody boots with the tree before it has its place, so it may be half corrected when the power goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::BorrowedFd,
};

use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::{Applied, Failed, Roots, flags, labelled, writer};
use crate::{
    etc::{
        memory::Since,
        merge::{Shape, Take},
        names::Names,
        plan::{Plan, Step, Trees},
        scan::Walker,
        tree::{Kind, Node, RelPath},
    },
    sys,
};

const INHERITED: &[u8] = b"system.posix_acl_default";

/// A merged tree that was made ahead of time: what is in it, and why.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Made {
    /// The inode number of its root.
    inode: u64,
    root: Option<Node>,
    steps: BTreeMap<RelPath, Step>,
    quiet: BTreeMap<RelPath, Names>,
    aside: BTreeSet<RelPath>,
    beside: BTreeMap<RelPath, RelPath>,
    bytes_copied: u64,
    notes: Vec<String>,
    /// Whether a directory has a flag (chattr), so that nothing can be changed in it.
    is_stiff: bool,
}

/// What differs between a tree and a plan.
#[derive(Debug, Default)]
pub struct Changes {
    /// What is there and must not be, or not so.
    old: BTreeSet<RelPath>,
    /// Directories that are to be made.
    dirs: BTreeSet<RelPath>,
    /// Leaves that are to be made.
    leaves: BTreeSet<RelPath>,
    /// Directories that are there afterwards, in which something changes, or that change themselves.
    touched: BTreeSet<RelPath>,
    /// Those of them that hand an access list down to all that is made in them. The root is the empty path.
    bequeathing: BTreeSet<RelPath>,
}

impl Made {
    /// The tree whose root has the inode number `inode`, as it was written.
    pub fn of(plan: &Plan, applied: &Applied, inode: u64) -> Self {
        let is_dir = |path| plan.steps.get(path).and_then(|step| step.node.as_ref()).is_some_and(Node::is_dir);
        Self {
            inode,
            root: plan.root.clone(),
            steps: plan.steps.clone(),
            quiet: plan.quiet.leaves.clone(),
            aside: plan.aside.clone(),
            beside: plan.beside.clone(),
            bytes_copied: applied.bytes_copied,
            notes: applied.notes.clone(),
            is_stiff: applied.flags.iter().any(|(path, _)| is_dir(path)),
        }
    }

    /// Whether it is the directory with this inode number.
    pub fn is_at(&self, inode: u64) -> bool {
        self.inode == inode
    }

    /// What was said and copied when it was made.
    pub fn applied(&self) -> Applied {
        Applied { bytes_copied: self.bytes_copied, notes: self.notes.clone(), ..Applied::default() }
    }

    /// What it lacks to be what `plan` says, where not all is what it was `since`. Nothing where a new tree is
    /// less trouble: files with several names, nodes kept elsewhere, and flags make a path depend on others.
    pub fn differing(&self, plan: &Plan, since: &Since) -> Option<Changes> {
        let moved = &since.nodes;
        let elsewhere = self.aside != plan.aside || self.beside != plan.beside;
        let holds =
            |path: &RelPath| plan.aside.range::<RelPath, _>(path..).next().is_some_and(|top| top.is_below(path));
        if elsewhere || moved.iter().any(|path| plan.is_elsewhere(path) || holds(path)) {
            return None;
        }
        let (was, is) = (&self.quiet, &plan.quiet.leaves);
        let (was_quiet, is_quiet) = (lost(was, is, &since.renamed), lost(is, was, &since.renamed));
        let mut paths: BTreeSet<&RelPath> = was_quiet.iter().chain(&is_quiet).collect();
        for path in self.steps.keys().chain(plan.steps.keys()) {
            let (was, is) = (self.steps.get(path), plan.steps.get(path));
            if !is_same(was, is) || moved.contains(path) && is.is_some_and(|step| step.take == Take::Current) {
                paths.insert(path);
            }
        }
        let mut changes = Changes::default();
        for path in paths {
            let (was, is) = (self.steps.get(path), plan.steps.get(path));
            if [was, is].into_iter().flatten().any(has_other_names) || is_poorer(node(was), node(is)) {
                return None;
            }
            changes.add(path, shape(was, was_quiet.contains(path)), shape(is, is_quiet.contains(path)));
        }
        let of_new = changes.dirs.iter().filter_map(|dir| Some((dir, plan.quiet.leaves.get(dir)?)));
        let of_new: Vec<_> = of_new.flat_map(|(dir, names)| paths_of(dir, names)).collect();
        changes.leaves.extend(of_new);
        if self.root != plan.root {
            changes.touched.insert(RelPath::default());
        }
        if is_poorer(self.root.as_ref(), plan.root.as_ref()) || self.is_stiff && !changes.is_empty() {
            return None;
        }
        let hands_down = |node: Option<&Node>| node.is_some_and(|node| node.xattrs.contains_key(INHERITED));
        let is_root = |path: &RelPath| path.as_bytes().is_empty();
        let before = |path: &RelPath| if is_root(path) { self.root.as_ref() } else { node(self.steps.get(path)) };
        changes.bequeathing = changes.touched.iter().filter(|path| hands_down(before(path))).cloned().collect();
        Some(changes)
    }
}

impl Changes {
    /// Whether the tree is what it shall be.
    pub fn is_empty(&self) -> bool {
        self.old.is_empty() && self.dirs.is_empty() && self.leaves.is_empty() && self.touched.is_empty()
    }

    fn add(&mut self, path: &RelPath, was: Shape, is: Shape) {
        let stays = was == Shape::Dir && is == Shape::Dir;
        if was != Shape::Absent && !stays {
            self.old.insert(path.clone());
        }
        match is {
            Shape::Absent => {}
            Shape::Leaf => _ = self.leaves.insert(path.clone()),
            Shape::Dir if stays => {}
            Shape::Dir => _ = self.dirs.insert(path.clone()),
        }
        if is == Shape::Dir {
            self.touched.insert(path.clone());
        }
        if !stays && (was, is) != (Shape::Absent, Shape::Absent) {
            self.touched.insert(path.parent().unwrap_or_default());
        }
    }
}

/// Makes these changes in `roots.output`.
///
/// # Errors
///
/// The path and the error of the first node that could not be written, or before which it was time to stop; then `output`
/// is to be removed.
pub fn correct(plan: &Plan, trees: &Trees, changes: &Changes, roots: Roots<'_>) -> Result<Applied, Failed> {
    let at = |path: &RelPath| {
        let path = path.clone();
        move |error: io::Error| (path, error)
    };
    let mut walker = Walker::new(roots.output);
    for path in &changes.bequeathing {
        on_node(&mut walker, path, |dir, name| sys::xattr::remove(dir, name, INHERITED)).map_err(at(path))?;
    }
    for path in &changes.old {
        roots.check().map_err(at(path))?;
        on_node(&mut walker, path, sys::remove::node_at).map_err(at(path))?;
    }
    // Nothing that was removed is open any more.
    let mut walker = Walker::new(roots.output);
    for path in &changes.dirs {
        let made = walker.parent_of(path).and_then(|dir| sys::node::mkdir(dir, path.name()));
        made.map_err(at(path))?;
    }
    let mut writer = writer::Writer::new(roots);
    let mut quiet: BTreeMap<RelPath, Names> = BTreeMap::new();
    for path in &changes.leaves {
        roots.check().map_err(at(path))?;
        match plan.steps.get(path) {
            Some(step) => writer.step(path, step, trees.new.nodes.get(path)).map_err(at(path))?,
            None => quiet.entry(path.parent().unwrap_or_default()).or_default().push(path.name()),
        }
    }
    quiet.iter().try_for_each(|(dir, names)| writer.take_all(dir, names))?;
    let mut done = writer.done;
    let mut walker = Walker::new(roots.output);
    let dirs: Vec<_> = changes.touched.iter().filter_map(|path| Some((path, node(plan.steps.get(path))?))).collect();
    let dirs: Vec<_> = dirs.into_iter().filter(|(_, node)| node.is_dir()).collect();
    for (path, node) in dirs.iter().rev() {
        let node = labelled(node, trees.new.nodes.get(path), trees.current.nodes.get(path));
        let finished = walker.parent_of(path).and_then(|dir| writer::finish(dir, path.name(), &node));
        finished.map_err(at(path))?;
    }
    if let Some(root) = plan.root.as_ref().filter(|_| !changes.is_empty()) {
        let root = labelled(root, trees.new.root.as_ref(), trees.current.root.as_ref());
        writer::finish(roots.output, b".", &root).map_err(at(&RelPath::default()))?;
    }
    done.moved.sort();
    let dirs =
        dirs.iter().map(|(path, _)| *path).filter(|path| trees.current.nodes.get(path).is_some_and(Node::is_dir));
    let merged = changes.leaves.iter().filter(|path| plan.steps.get(path).is_some_and(|step| step.content.is_some()));
    flags::find(dirs.chain(merged), roots, &mut done)?;
    flags::set(roots, &mut done)?;
    Ok(done)
}

/// Calls `what` with the parent and the name of a node, unless a directory above it is gone already.
fn on_node(
    walker: &mut Walker<'_>,
    path: &RelPath,
    what: impl FnOnce(BorrowedFd<'_>, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let parent = match walker.parent_of(path) {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR)) => return Ok(()),
        parent => parent?,
    };
    what(parent, if path.as_bytes().is_empty() { b"." } else { path.name() })
}

fn node(step: Option<&Step>) -> Option<&Node> {
    step.and_then(|step| step.node.as_ref())
}

fn shape(step: Option<&Step>, is_quiet: bool) -> Shape {
    match node(step) {
        Some(node) if node.is_dir() => Shape::Dir,
        Some(_) => Shape::Leaf,
        None if is_quiet => Shape::Leaf,
        None => Shape::Absent,
    }
}

/// Whether a tree made by the one step is what the other one says.
fn is_same(was: Option<&Step>, is: Option<&Step>) -> bool {
    match (was, is) {
        (Some(was), Some(is)) => {
            was.take == is.take
                && was.content == is.content
                && is_same_node(was.node.as_ref(), is.node.as_ref(), is.take)
        }
        (one, other) => node(one).is_none() && node(other).is_none(),
    }
}

fn is_same_node(was: Option<&Node>, is: Option<&Node>, take: Take) -> bool {
    match (was, is, take) {
        // The tree that was made has given the image's file another name.
        (Some(was), Some(is), Take::New) => match (&was.kind, &is.kind) {
            (Kind::File { inode: one, .. }, Kind::File { inode: other, .. }) => {
                one == other && Node { kind: is.kind.clone(), ..was.clone() } == *is
            }
            _ => was == is,
        },
        (was, is, _) => was == is,
    }
}

/// Whether the node is a local file with several names, which one of them decides on all.
fn has_other_names(step: &Step) -> bool {
    step.take == Take::Current && matches!(node(Some(step)), Some(Node { kind: Kind::File { shared: true, .. }, .. }))
}

/// Whether a directory has less than before of what is set and never taken away.
fn is_poorer(was: Option<&Node>, is: Option<&Node>) -> bool {
    let (Some(was), Some(is)) = (was, is) else { return false };
    let lost = was.xattrs.keys().any(|name| !is.xattrs.contains_key(name)) || was.label.is_some() && is.label.is_none();
    was.is_dir() && is.is_dir() && lost
}

/// The paths in the one that are not in the other, and all of those in the directories `renamed`.
fn lost(
    one: &BTreeMap<RelPath, Names>,
    other: &BTreeMap<RelPath, Names>,
    renamed: &BTreeSet<RelPath>,
) -> BTreeSet<RelPath> {
    let mut lost = BTreeSet::new();
    for (dir, names) in one.iter().filter(|(dir, names)| renamed.contains(dir) || other.get(dir) != Some(names)) {
        let other = other.get(dir).filter(|_| !renamed.contains(dir));
        let there: BTreeSet<&[u8]> = other.into_iter().flat_map(Names::iter).collect();
        lost.extend(paths_of(dir, names).filter(|path| !there.contains(path.name())));
    }
    lost
}

fn paths_of<'a>(dir: &'a RelPath, names: &'a Names) -> impl Iterator<Item = RelPath> + 'a {
    let above = Some(dir).filter(|dir| !dir.as_bytes().is_empty());
    names.iter().map(move |name| RelPath::child(above, name))
}
