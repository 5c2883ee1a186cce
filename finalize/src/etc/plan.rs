//! The plan of a merge: for every path of the three trees, whose node the merged tree has there, and why.
//!
//! Deciding is pure but for one question, whether two files have the same bytes, which is asked only where everything
//! else is equal, and of the new tree only where the live one was changed.

mod acl;
mod choose;
mod decide;
mod flagged;
mod follow;
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

use serde::{Deserialize, Serialize};

use super::{
    merge::{Reason, Take},
    names::Names,
    policy::Policy,
    tree::{Kind, Node, RelPath, Tree},
};
use crate::counts::Counts;

use decide::{Changes, Context};

pub use decide::same;
pub use print::Colour;
pub(crate) use print::kind;

/// A tree of the three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

impl Trees {
    /// One of the three.
    pub fn side(&self, side: Side) -> &Tree {
        match side {
            Side::Pristine => &self.pristine,
            Side::Current => &self.current,
            Side::New => &self.new,
        }
    }
}

/// Leaves that nobody changed locally, in directories that the live and the new tree have: they follow the image.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quiet {
    /// How many there are, also those that the image dropped.
    pub followed: u64,
    /// The names of those that the new tree has, by directory; the root is the empty path.
    pub leaves: BTreeMap<RelPath, Names>,
}

/// One path of the merged tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Conflicts that are set to `fail`, with the setting that says so: the merge must not be carried out.
    pub refused: BTreeMap<RelPath, &'static str>,
    /// What is never carried: sockets, fifos, devices, lock files.
    pub skipped: Vec<RelPath>,
    /// What a person should know of account records.
    pub notes: Vec<String>,
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
    let mut taken = choose::Taken::default();
    // The directories on the way down to the path whose turn it is, each with what it says of what is in it.
    let mut above: Vec<(&RelPath, Context)> = vec![];
    // With all below them.
    let is_top = |path: &&RelPath| path.parent().is_none_or(|above| !policy.ignores(&above));
    plan.skipped.extend(ignored.into_iter().filter(is_top).cloned());
    for path in paths {
        while above.pop_if(|(dir, _)| !path.is_below(dir)).is_some() {}
        let context = above.last().map_or(Context::Free, |(_, context)| *context);
        let mut step = decide::decide(context, trees, &changes, path);
        if !context.is_settled() {
            plan.choose(&mut taken, (policy, trees), path, &mut step);
        }
        plan.follow_if_generated(policy, path, &mut step, trees);
        above.push((path, context.inherit(Context::below(&plan, path, &step))));
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

impl Plan {
    /// The paths that a person has to be told about, with the reason.
    pub fn conflicts(&self) -> impl Iterator<Item = (&RelPath, Reason)> {
        self.steps.iter().filter(|(_, step)| step.reason.is_conflict()).map(|(path, step)| (path, step.reason))
    }

    /// A plan that does nothing but keep the local nodes `aside`, without what is never carried.
    pub fn keeping(aside: BTreeSet<RelPath>, skipped: Vec<RelPath>) -> Self {
        Self { aside, skipped, ..Self::default() }
    }

    /// Why the merge must not be carried out, a line a path.
    pub fn refusals(&self) -> impl Iterator<Item = String> {
        self.refused.iter().map(|(path, setting)| format!("/etc/{path}: conflict, and {setting}: update not applied"))
    }

    /// Whether a path, or one above it, is never carried.
    pub fn is_skipped(&self, path: &RelPath) -> bool {
        let is_top = |path: &RelPath| self.skipped.binary_search(path).is_ok();
        !self.skipped.is_empty() && std::iter::successors(Some(path.clone()), RelPath::parent).any(|path| is_top(&path))
    }

    /// Whether a local node, or one above it, is kept elsewhere than in its place.
    pub fn is_elsewhere(&self, path: &RelPath) -> bool {
        let is_top = |path: &RelPath| self.aside.contains(path) || self.beside.contains_key(path);
        std::iter::successors(Some(path.clone()), RelPath::parent).any(|path| is_top(&path))
    }

    /// The local files whose bytes are carried over, wherever to.
    pub fn copied<'a>(&'a self, current: &'a Tree) -> impl Iterator<Item = &'a RelPath> {
        let in_place = |path: &RelPath| {
            let step = self.steps.get(path);
            step.is_some_and(|step| step.take == Take::Current && step.node.is_some() && step.content.is_none())
        };
        let files = current.nodes.iter().filter(|(_, node)| matches!(node.kind, Kind::File { .. }));
        files.map(|(path, _)| path).filter(move |path| in_place(path) || self.is_elsewhere(path))
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
                Reason::Local | Reason::Held => &mut counts.local,
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
