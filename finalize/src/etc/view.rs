//! Every path on which two of the three trees differ: for people, who want to see what an update brings. A merge needs
//! less, and reads less: whether the image changed a path that nobody touched here makes no difference to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use anyhow::Result;
use rustix::{
    fs::{Mode, openat},
    io::Errno,
};
use serde::Serialize;

use super::{
    Merge, at, bytes,
    merge::{Reason, Take},
    names::{Listing, Names},
    plan::{Colour, SameBytes, Side, Step, kind, same},
    scan::{DIR, Found, Walker, node},
    tree::{Kind, Node, RelPath},
};
use crate::stop::Stop;

/// What became of a path, beside the booted image's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Change {
    /// The booted image has nothing there.
    Added,
    /// Content, target, kind, mode, owner or attributes are other ones.
    Changed,
    /// There is nothing any more.
    Removed,
}

/// A path that is not the same in all three trees.
#[derive(Debug)]
pub struct Row {
    /// What the merge does with it.
    pub step: Step,
    /// The nodes of the booted image, of the live /etc and of the staged deployment.
    pub sides: [Option<Node>; 3],
    /// What became of it here.
    pub local: Option<Change>,
    /// What became of it in the staged image.
    pub image: Option<Change>,
}

/// All paths that differ between any two of the three trees.
#[derive(Debug)]
pub struct View<'a> {
    /// The merge.
    pub merge: &'a Merge<'a>,
    /// The paths, in order.
    pub rows: BTreeMap<RelPath, Row>,
}

impl<'a> View<'a> {
    /// Compares what the merge did not have to.
    ///
    /// # Errors
    ///
    /// The path of what could not be read.
    pub fn of(merge: &'a Merge<'a>) -> Result<Self> {
        let never = Stop::never();
        let mut files = bytes::Files::new(&merge.sources, &never);
        let mut view = Self { merge, rows: BTreeMap::new() };
        let trees = &merge.trees;
        for (path, step) in &merge.plan.steps {
            let sides = [&trees.pristine, &trees.current, &trees.new].map(|tree| tree.nodes.get(path).cloned());
            view.add(path, step.clone(), sides, &mut files);
        }
        view.add_quiet(&mut files).map_err(at("reading"))?;
        Ok(view)
    }

    fn add(&mut self, path: &RelPath, step: Step, sides: [Option<Node>; 3], files: &mut dyn SameBytes) {
        let [pristine, current, new] = &sides;
        // A file that cannot be compared is one that a rule gives up: the plan would not be there otherwise.
        let mut change = |side, now: &Option<Node>| match (pristine, now) {
            (None, None) => None,
            (None, Some(_)) => Some(Change::Added),
            (Some(_), None) => Some(Change::Removed),
            (Some(one), Some(other)) => {
                let same = same((Side::Pristine, Some(one)), (side, Some(other)), path, files);
                (!same.unwrap_or(false)).then_some(Change::Changed)
            }
        };
        let (local, image) = (change(Side::Current, current), change(Side::New, new));
        if local.is_some() || image.is_some() || step.content.is_some() {
            self.rows.insert(path.clone(), Row { step, sides, local, image });
        }
    }

    /// The paths that nobody has touched here.
    fn add_quiet(&mut self, files: &mut dyn SameBytes) -> Result<(), (RelPath, io::Error)> {
        let Merge { sources, trees, plan, .. } = self.merge;
        let root = RelPath::default();
        let dirs = trees.pristine.nodes.iter().filter(|(_, node)| node.is_dir()).map(|(path, _)| path);
        let dirs: BTreeSet<_> = dirs.chain(plan.quiet.leaves.keys()).chain([&root]).collect();
        for dir in dirs.into_iter().filter(|dir| !plan.is_skipped(dir)) {
            let failed = |error: io::Error| (dir.clone(), error);
            let pristine = sources.pristine.map(|root| open(root, dir)).transpose().map_err(failed)?.flatten();
            let new = open(sources.new, dir).map_err(failed)?;
            let mut names: BTreeSet<Vec<u8>> = BTreeSet::new();
            names.extend(plan.quiet.leaves.get(dir).into_iter().flat_map(Names::iter).map(<[u8]>::to_vec));
            if let Some(pristine) = &pristine {
                names.extend(Listing::read(pristine).map_err(failed)?.names().map(<[u8]>::to_vec));
            }
            let above = Some(dir).filter(|dir| !dir.as_bytes().is_empty());
            for name in names {
                let path = RelPath::child(above, &name);
                if plan.steps.contains_key(&path) || plan.is_skipped(&path) {
                    continue;
                }
                let look = |dir: &Option<OwnedFd>| match dir.as_ref().map(|dir| node(dir.as_fd(), &name)) {
                    Some(Ok(Found::Node(node))) => Ok(Some(node)),
                    None | Some(Ok(_)) => Ok(None),
                    Some(Err(error)) => Err((path.clone(), error)),
                };
                let (p, n) = (look(&pristine)?, look(&new)?);
                let step = Step { take: Take::New, reason: Reason::Image, node: n.clone(), content: None };
                self.add(&path, step, [p.clone(), p, n], files);
            }
        }
        Ok(())
    }

    /// Writes a line per path that does not just follow the image; what the image brings, by directory or, with `all`, by
    /// path; and a summary.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn print(&self, out: &mut dyn io::Write, colour: Colour, all: bool) -> io::Result<()> {
        let plan = &self.merge.plan;
        let mut groups: BTreeMap<&[u8], Vec<(&RelPath, Change)>> = BTreeMap::new();
        for (path, row) in &self.rows {
            match row.image {
                _ if row.step.reason != Reason::Image => plan.line(out, colour, path, &row.step)?,
                Some(change) => {
                    let top = path.components().next().filter(|top| top.len() < path.as_bytes().len());
                    groups.entry(top.unwrap_or(path.as_bytes())).or_default().push((path, change));
                }
                // What is kept elsewhere goes with the directory that has its line.
                None if !plan.is_elsewhere(path) => plan.line(out, colour, path, &row.step)?,
                None => {}
            }
        }
        for (top, group) in groups {
            if all || group.len() == 1 {
                for (path, change) in group {
                    let action = self.rows[path].step.action();
                    writeln!(out, "{action:6} /etc/{path}  ({change} in the image)")?;
                }
                continue;
            }
            let count = |wanted| (group.iter().filter(|(_, change)| *change == wanted).count(), wanted);
            let counts = [Change::Added, Change::Changed, Change::Removed].map(count);
            let counts = counts.iter().filter(|(n, _)| *n > 0).map(|(n, change)| format!("{n} {change}"));
            let top = RelPath::from_bytes(top.to_vec());
            writeln!(out, "take   /etc/{top}/  ({} in the image)", counts.collect::<Vec<_>>().join(", "))?;
        }
        plan.end(out)
    }

    /// The plan as JSON, as [`super::plan::Plan::to_json`] has it, but with every path that differs between any two
    /// sides. Each has also `local` and `image`, what became of it here and in the staged image since the booted one
    /// (`added`, `changed`, `removed` or null); and `pristine`, `current` and `new`, the nodes: `kind`, `mode` (octal),
    /// `uid`, `gid`, and `size` or `target`, or null where there is none.
    pub fn to_json(&self) -> serde_json::Value {
        let rows = self.rows.iter().map(|(path, row)| {
            let [pristine, current, new] = row.sides.each_ref().map(|node| node.as_ref().map(details));
            serde_json::json!({
                "path": path, "action": row.step.action(), "reason": row.step.reason,
                "kind": row.step.node.as_ref().map(kind), "local": row.local, "image": row.image,
                "pristine": pristine, "current": current, "new": new,
            })
        });
        let mut plan = self.merge.plan.to_json();
        plan["paths"] = rows.collect();
        plan
    }
}

/// The directory `dir` below `root`, with a position of its own; nothing where it is none.
fn open(root: BorrowedFd<'_>, dir: &RelPath) -> io::Result<Option<OwnedFd>> {
    let found = Walker::new(root).dir(dir).and_then(|dir| Ok(openat(dir, c".", DIR, Mode::empty())?));
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// A node as JSON.
pub(crate) fn details(node: &Node) -> serde_json::Value {
    let mut details = serde_json::json!({
        "kind": kind(node), "mode": format!("{:04o}", node.mode), "uid": node.uid, "gid": node.gid,
    });
    match &node.kind {
        Kind::Dir => {}
        Kind::File { size, .. } => details["size"] = (*size).into(),
        Kind::Link(target) => details["target"] = RelPath::from_bytes(target.clone()).to_string().into(),
    }
    details
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Removed => "removed",
        })
    }
}
