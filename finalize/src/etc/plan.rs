//! The plan of a merge: for every path of the three trees, whose node the merged tree has there, and why.
//!
//! Deciding is pure but for one question, whether two files have the same bytes, which is asked only where everything
//! else is equal, and of the new tree only where the live one was changed.

mod choose;
mod flagged;
mod generated;
mod print;
mod records;
mod ruled;
mod space;
pub mod store;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use serde::Serialize;

use super::{
    merge::{Reason, Shape, Sides, Take, resolve},
    names::Names,
    policy::Policy,
    tree::{Kind, Node, RelPath, Tree},
};

pub use print::Colour;

/// A tree of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The booted image's own /etc.
    Pristine,
    /// The live /etc.
    Current,
    /// The staged deployment's /etc.
    New,
}

/// Answers whether the regular files of two sides at a path have the same bytes.
pub trait SameBytes {
    /// Both are regular files of one size.
    ///
    /// # Errors
    ///
    /// Those of reading; a file that vanished is not the same.
    fn same_bytes(&mut self, one: Side, other: Side, path: &RelPath) -> io::Result<bool>;

    /// The bytes of a small file; nothing where there is none.
    ///
    /// # Errors
    ///
    /// Those of reading.
    fn read(&mut self, side: Side, path: &RelPath) -> io::Result<Option<Vec<u8>>>;
}

/// The three trees, scanned.
#[derive(Debug, Default)]
pub struct Trees {
    /// The booted image's own /etc.
    pub pristine: Tree,
    /// The live /etc.
    pub current: Tree,
    /// The staged deployment's /etc.
    pub new: Tree,
    /// What is in none of the three, because it needs no decision.
    pub quiet: Quiet,
    /// Local files that may not be changed (`chattr`), where the booted image has a file too.
    pub flagged: BTreeSet<RelPath>,
}

/// Leaves that nobody changed locally, in directories that the live and the new tree have: they follow the image.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Quiet {
    /// How many there are, also those that the image dropped.
    pub followed: u64,
    /// The names of those that the new tree has, by directory; the root is the empty path.
    pub leaves: BTreeMap<RelPath, Names>,
}

/// One path of the merged tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Whose node is in place.
    pub take: Take,
    /// Why.
    pub reason: Reason,
    /// The node, or none where nothing is.
    pub node: Option<Node>,
    /// The bytes of a file that neither side has so.
    pub content: Option<Vec<u8>>,
}

/// What a merge will do; [`super::apply::apply`] does just that.
#[derive(Debug, Default)]
pub struct Plan {
    /// The root's node.
    pub root: Option<Node>,
    /// Every path of the three trees that is not quiet.
    pub steps: BTreeMap<RelPath, Step>,
    /// What follows the image without a decision.
    pub quiet: Quiet,
    /// Local nodes that the merged tree has no place for: each, with all below it, is kept in `etc.conflicts`.
    pub aside: BTreeSet<RelPath>,
    /// Local nodes that are kept beside the image's, by the path that each gets.
    pub beside: BTreeMap<RelPath, RelPath>,
    /// Bytes of the local nodes that are kept elsewhere than in their place.
    elsewhere: u64,
    /// Local nodes that won a type conflict: everything below them is local.
    kept: BTreeSet<RelPath>,
    /// Conflicts that are set to `fail`: the merge must not be carried out.
    pub refused: Vec<RelPath>,
    /// What is never carried: sockets, fifos, devices, lock files.
    pub skipped: Vec<RelPath>,
    /// What a person should know of account records.
    pub notes: Vec<String>,
}

/// How many paths each reason decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Counts {
    /// The image's node, or its absence.
    pub image: u64,
    /// The local node, or its absence.
    pub local: u64,
    /// Equal changes on both sides.
    pub converged: u64,
    /// Account files merged by record.
    #[serde(default)]
    pub merged: u64,
    /// Conflicts.
    pub conflicts: u64,
}

/// Plans the merge.
///
/// # Errors
///
/// The path and the error of a file that could not be read.
pub fn plan(trees: &mut Trees, bytes: &mut dyn SameBytes, policy: &Policy) -> Result<Plan, (RelPath, io::Error)> {
    let bytes = &mut ruled::Ruled { bytes, policy };
    let quiet = std::mem::take(&mut trees.quiet);
    let mut paths: BTreeSet<&RelPath> = BTreeSet::new();
    for tree in [&trees.pristine, &trees.current, &trees.new] {
        paths.extend(tree.nodes.keys());
    }
    let (ignored, paths): (BTreeSet<_>, BTreeSet<_>) = paths.into_iter().partition(|path| policy.ignores(path));
    let changes = Changes::find(trees, &paths, bytes)?;
    let mut plan = Plan { root: root_node(trees), quiet, skipped: trees.current.skipped.clone(), ..Plan::default() };
    // With all below them.
    let is_top = |path: &&RelPath| path.parent().is_none_or(|above| !policy.ignores(&above));
    plan.skipped.extend(ignored.into_iter().filter(is_top).cloned());
    for path in paths {
        let mut step = decide(&plan, trees, &changes, path);
        plan.choose(policy, path, &mut step, trees);
        plan.follow_if_generated(policy, path, &mut step, trees);
        if step.node.is_some() {
            plan.keep_parents(trees, path, step.take);
        }
        plan.steps.insert(path.clone(), step);
    }
    plan.skipped.sort();
    plan.skipped.dedup();
    flagged::keep(&mut plan, trees, bytes)?;
    store::decide(&mut plan, trees, bytes, policy)?;
    records::decide(&mut plan, trees, bytes, policy)?;
    plan.elsewhere = space::elsewhere(&plan, &trees.current);
    Ok(plan)
}

fn root_node(trees: &Trees) -> Option<Node> {
    let [pristine, current, new] = [&trees.pristine, &trees.current, &trees.new].map(|tree| tree.root.as_ref());
    match (pristine, current) {
        (Some(pristine), Some(current)) if pristine.same_but_bytes(current) => new.or(Some(current)).cloned(),
        _ => current.or(new).cloned(),
    }
}

/// Which paths differ between sides.
struct Changes<'a> {
    current: BTreeSet<&'a RelPath>,
    new: BTreeSet<&'a RelPath>,
    equal: BTreeSet<&'a RelPath>,
}

impl<'a> Changes<'a> {
    fn find(
        trees: &'a Trees,
        paths: &BTreeSet<&'a RelPath>,
        bytes: &mut dyn SameBytes,
    ) -> Result<Self, (RelPath, io::Error)> {
        let mut found = Self { current: BTreeSet::new(), new: BTreeSet::new(), equal: BTreeSet::new() };
        let mut shapes_differ = Vec::new();
        for &path in paths {
            let [p, c, n] = [&trees.pristine, &trees.current, &trees.new].map(|tree| tree.nodes.get(path));
            let mut same = |one, other| same(one, other, path, bytes).map_err(|error| (path.clone(), error));
            let skipped = trees.current.skipped.binary_search(path).is_ok();
            if !skipped && same((Side::Pristine, p), (Side::Current, c))? {
                continue;
            }
            found.current.insert(path);
            if !same((Side::Pristine, p), (Side::New, n))? {
                found.new.insert(path);
            }
            if same((Side::Current, c), (Side::New, n))? {
                found.equal.insert(path);
            }
            shapes_differ.extend((shape(c) != shape(p)).then_some(path));
        }
        // A directory that went away locally hides what the image changed below it: those paths were not compared.
        for top in shapes_differ {
            for &path in paths.range::<RelPath, _>(top..).skip(1).take_while(|path| path.is_below(top)) {
                let [p, n] = [&trees.pristine, &trees.new].map(|tree| tree.nodes.get(path));
                let equal = same((Side::Pristine, p), (Side::New, n), path, bytes);
                if !equal.map_err(|error| (path.clone(), error))? {
                    found.new.insert(path);
                }
            }
        }
        Ok(found)
    }

    fn below(set: &BTreeSet<&'a RelPath>, top: &'a RelPath) -> bool {
        set.range::<RelPath, _>(top..).find(|path| **path != top).is_some_and(|path| path.is_below(top))
    }
}

fn same(
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

fn decide<'a>(plan: &Plan, trees: &'a Trees, changes: &Changes<'a>, path: &'a RelPath) -> Step {
    let [p, c, n] = [&trees.pristine, &trees.current, &trees.new].map(|tree| tree.nodes.get(path));
    let is_below = |top: &RelPath| path.is_below(top);
    if plan.moved().any(is_below) {
        // Below a type conflict everything is the image's; what was local is set aside as a whole.
        return Step { take: Take::New, reason: Reason::Image, node: n.cloned(), content: None };
    }
    if plan.kept.iter().any(|top| path.is_below(top)) {
        return Step { take: Take::Current, reason: Reason::Local, node: c.cloned(), content: None };
    }
    let parent = path.parent().and_then(|parent| plan.steps.get(&parent));
    if let Some(parent) = parent.filter(|step| !step.node.as_ref().is_some_and(Node::is_dir)) {
        // Nothing can be below what is no directory; what was, went with it.
        let hidden = match parent.take {
            Take::Current if parent.reason != Reason::TypeConflict && changes.new.contains(path) && n.is_some() => {
                Reason::RemovedConflict
            }
            // Nobody has it any more, whatever became of what was above it.
            _ if parent.reason.is_conflict() && c.is_none() && n.is_none() => Reason::Converged,
            _ => parent.reason,
        };
        let dropped = parent.take == Take::New && parent.node.is_none();
        let kept_for_children = dropped && changes.current.contains(path) && c.is_some();
        if !kept_for_children {
            return Step { take: parent.take, reason: hidden, node: None, content: None };
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
    Step { take: reason.take(), reason, node: node.cloned(), content: None }
}

/// A machine keeps its id, whatever an image ships (machine-id(5)); an empty file, or `uninitialized`, is no id.
fn is_local_identity(path: &RelPath, current: Option<&Node>) -> bool {
    let real = |node: &Node| matches!(node.kind, Kind::File { size: 32..=33, .. });
    path.as_bytes() == b"machine-id" && current.is_some_and(real)
}

impl Plan {
    /// The paths that a person has to be told about, with the reason.
    pub fn conflicts(&self) -> impl Iterator<Item = (&RelPath, Reason)> {
        self.steps.iter().filter(|(_, step)| step.reason.is_conflict()).map(|(path, step)| (path, step.reason))
    }

    /// Local nodes that are kept elsewhere than in their place, each with all below it.
    fn moved(&self) -> impl Iterator<Item = &RelPath> {
        self.aside.iter().chain(self.beside.keys())
    }

    /// The local files whose bytes are carried over, wherever to.
    pub fn copied<'a>(&'a self, current: &'a Tree) -> impl Iterator<Item = &'a RelPath> {
        let in_place = |path: &RelPath| {
            let step = self.steps.get(path);
            step.is_some_and(|step| step.take == Take::Current && step.node.is_some() && step.content.is_none())
        };
        let elsewhere = |path: &RelPath| self.moved().any(|top| path == top || path.is_below(top));
        let files = current.nodes.iter().filter(|(_, node)| matches!(node.kind, Kind::File { .. }));
        files.map(|(path, _)| path).filter(move |path| in_place(path) || elsewhere(path))
    }

    /// How many bytes have to be written: local files, in place or elsewhere, merged ones, and a block a directory.
    pub fn bytes(&self) -> u64 {
        let size = |step: &Step| match (step.take, step.node.as_ref().map(|node| &node.kind), &step.content) {
            (_, _, Some(content)) => content.len() as u64,
            (_, Some(Kind::Dir), _) => 4096,
            (Take::Current, Some(Kind::File { size, .. }), _) => *size,
            _ => 0,
        };
        self.elsewhere + self.steps.values().map(size).sum::<u64>()
    }

    /// How many paths each reason decided.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts { image: self.quiet.followed, ..Counts::default() };
        for step in self.steps.values() {
            *match step.reason {
                Reason::Image => &mut counts.image,
                Reason::Local => &mut counts.local,
                Reason::Converged => &mut counts.converged,
                Reason::Records => &mut counts.merged,
                _ => &mut counts.conflicts,
            } += 1;
        }
        counts
    }
}

impl Step {
    /// `keep`, `remove`, `merge`, or `take` the image's.
    pub fn action(&self) -> &'static str {
        match (self.take, &self.node) {
            (_, None) => "remove",
            _ if self.content.is_some() => "merge",
            (Take::New, _) => "take",
            (Take::Current, _) => "keep",
        }
    }
}
