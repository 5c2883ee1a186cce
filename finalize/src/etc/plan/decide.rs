//! The table's decision on each path, from what differs between sides and from what became of the directory above.

use std::{collections::BTreeSet, io};

use super::{Plan, SameBytes, Side, Step, Trees};
use crate::etc::{
    merge::{Reason, Shape, Sides, Take, resolve},
    tree::{Kind, Node, RelPath},
};

/// Which paths differ between sides.
pub struct Changes<'a> {
    current: BTreeSet<&'a RelPath>,
    new: BTreeSet<&'a RelPath>,
    equal: BTreeSet<&'a RelPath>,
}

impl<'a> Changes<'a> {
    /// Compares the live tree's nodes, and the new tree's where the live one's were changed or hidden.
    ///
    /// # Errors
    ///
    /// The path and the error of a file that could not be read.
    pub fn find(
        trees: &'a Trees,
        paths: &BTreeSet<&'a RelPath>,
        bytes: &mut dyn SameBytes,
    ) -> Result<Self, (RelPath, io::Error)> {
        let mut found = Self { current: BTreeSet::new(), new: BTreeSet::new(), equal: BTreeSet::new() };
        // A directory that went away locally hides what the image changed below it.
        let mut hidden: Option<&RelPath> = None;
        for &path in paths {
            let [p, c, n] = [&trees.pristine, &trees.current, &trees.new].map(|tree| tree.nodes.get(path));
            let mut same = |one, other| same(one, other, path, bytes).map_err(|error| (path.clone(), error));
            hidden = hidden.filter(|top| path.is_below(top));
            let skipped = trees.current.skipped.binary_search(path).is_ok();
            let untouched = !skipped && same((Side::Pristine, p), (Side::Current, c))?;
            if untouched && hidden.is_none() {
                continue;
            }
            if !same((Side::Pristine, p), (Side::New, n))? {
                found.new.insert(path);
            }
            if untouched {
                continue;
            }
            found.current.insert(path);
            if same((Side::Current, c), (Side::New, n))? {
                found.equal.insert(path);
            }
            hidden = hidden.or_else(|| (shape(c) != shape(p)).then_some(path));
        }
        Ok(found)
    }

    fn below(set: &BTreeSet<&'a RelPath>, top: &'a RelPath) -> bool {
        set.range::<RelPath, _>(top..).find(|path| **path != top).is_some_and(|path| path.is_below(top))
    }
}

/// Whether two sides have the same node at a path; files are read only where all else is equal.
///
/// # Errors
///
/// Those of reading.
pub fn same(
    (one_side, one): (Side, Option<&Node>),
    (other_side, other): (Side, Option<&Node>),
    path: &RelPath,
    bytes: &mut dyn SameBytes,
) -> io::Result<bool> {
    match (one, other) {
        (None, None) => Ok(true),
        (Some(one), Some(other)) if one.same_but_bytes(other) => match (&one.kind, &other.kind) {
            (Kind::File { size: 0, .. }, _) => Ok(true),
            (Kind::File { inode: a, .. }, Kind::File { inode: b, .. }) if a == b => Ok(true),
            (Kind::File { .. }, _) => bytes.same_bytes(one_side, other_side, path),
            _ => Ok(true),
        },
        _ => Ok(false),
    }
}

fn shape(node: Option<&Node>) -> Shape {
    match node {
        None => Shape::Absent,
        Some(node) if node.is_dir() => Shape::Dir,
        Some(_) => Shape::Leaf,
    }
}

/// What became of a directory, for all that is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// The merged tree has the directory: each path in it is decided on its own.
    Free,
    /// Above is a node that replaced a local one, which is kept elsewhere as a whole: everything is the image's.
    Replaced,
    /// Above is a local node that won a type conflict: everything is local.
    Pinned,
    /// The image dropped the directory, for this reason: only what is local keeps it.
    Dropped(Reason),
    /// The merged tree has no directory there, by this decision: what was in it went with it.
    Gone(Take, Reason),
}

impl Context {
    /// What the decision on `path`, which `plan` knows but for `step`, says of what is in it.
    pub fn below(plan: &Plan, path: &RelPath, step: &Step) -> Self {
        let is_dir = step.node.as_ref().is_some_and(Node::is_dir);
        match (step.take, step.reason) {
            _ if plan.aside.contains(path) || plan.beside.contains_key(path) => Self::Replaced,
            (Take::Current, Reason::TypeConflict) => Self::Pinned,
            _ if is_dir => Self::Free,
            (Take::New, reason) if step.node.is_none() => Self::Dropped(reason),
            (take, reason) => Self::Gone(take, reason),
        }
    }

    /// The same for what is in a directory whose own context is `self`.
    pub fn inherit(self, below: Self) -> Self {
        if self.is_settled() { self } else { below }
    }

    /// Whether no rule and no policy has a say any more.
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Replaced | Self::Pinned)
    }
}

/// The table's decision on one path.
pub fn decide<'a>(context: Context, trees: &'a Trees, changes: &Changes<'a>, path: &'a RelPath) -> Step {
    let [p, c, n] = [&trees.pristine, &trees.current, &trees.new].map(|tree| tree.nodes.get(path));
    let of = |take, reason, node: Option<&Node>| Step { take, reason, node: node.cloned(), content: None };
    match context {
        Context::Free => {}
        Context::Replaced => return of(Take::New, Reason::Image, n),
        Context::Pinned => return of(Take::Current, Reason::Local, c),
        Context::Dropped(_) if changes.current.contains(path) && c.is_some() => {}
        Context::Dropped(reason) => return of(Take::New, gone(reason, c, n), None),
        Context::Gone(take, reason) => {
            let lost_update = take == Take::Current && changes.new.contains(path) && n.is_some();
            let hidden = if lost_update { Reason::RemovedConflict } else { gone(reason, c, n) };
            return of(take, hidden, None);
        }
    }
    let sides = Sides {
        current: shape(c),
        new: shape(n),
        current_changed: changes.current.contains(path)
            || (shape(c) == Shape::Dir && shape(n) == Shape::Leaf && Changes::below(&changes.current, path)),
        new_changed: changes.new.contains(path)
            || (shape(p) == Shape::Dir && shape(n) == Shape::Leaf)
            || (shape(n) == Shape::Dir && shape(c) == Shape::Leaf && Changes::below(&changes.new, path)),
        equal: changes.equal.contains(path),
    };
    let reason = if is_local_identity(path, c) { Reason::Local } else { resolve(sides) };
    let node = match reason.take() {
        Take::New => n,
        Take::Current => c,
    };
    of(reason.take(), reason, node)
}

/// Why a path is gone with the directory above it, which is gone for this reason.
fn gone(above: Reason, current: Option<&Node>, new: Option<&Node>) -> Reason {
    // Nobody has it any more, whatever became of what was above it.
    let alike = above.is_conflict() && current.is_none() && new.is_none();
    if alike { Reason::Converged } else { above }
}

/// A machine keeps its id, whatever an image ships (machine-id(5)); an empty file, or `uninitialized`, is no id.
fn is_local_identity(path: &RelPath, current: Option<&Node>) -> bool {
    let real = |node: &Node| matches!(node.kind, Kind::File { size: 32..=33, .. });
    path.as_bytes() == b"machine-id" && current.is_some_and(real)
}
