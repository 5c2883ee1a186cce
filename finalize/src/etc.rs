//! Merging /etc: three trees in, one out. Scan, plan, apply: reading yields values, deciding is pure, writing is dumb.

pub mod accounts;
pub mod apply;
pub(crate) mod bytes;
pub(crate) mod diff;
pub(crate) mod drift;
mod labels;
mod late;
pub mod memory;
pub mod merge;
pub(crate) mod names;
pub mod plan;
pub mod policy;
pub(crate) mod read;
pub(crate) mod reset;
pub(crate) mod scan;
pub mod tree;
pub(crate) mod view;

use std::{collections::BTreeMap, io, os::fd::BorrowedFd};

use anyhow::{Context, Result, anyhow};
use cap_std::fs::{Dir, MetadataExt};
use serde::{Deserialize, Serialize};

use self::{
    apply::{Applied, Links, Made, Roots},
    memory::{Answers, Memory, Since},
    plan::{Plan, Trees},
    policy::Policy,
    read::{How, Read},
    tree::RelPath,
};
use crate::{stop::Stop, sys};

/// The three trees on the disk.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The booted image's own /etc; none when it ships none.
    pub pristine: Option<BorrowedFd<'a>>,
    /// The live /etc.
    pub current: BorrowedFd<'a>,
    /// The staged deployment's /etc.
    pub new: BorrowedFd<'a>,
}

/// A merge that is decided, and has written nothing.
#[derive(Debug)]
pub struct Merge<'a> {
    sources: Sources<'a>,
    trees: Trees,
    /// What will be done.
    pub plan: Plan,
    /// What becomes of the new tree's files.
    pub links: Links,
    /// A merged tree that was made ahead, and what has moved since.
    made: Option<(Made, Since)>,
}

/// What a merge that is planned ahead leaves for the one that is carried out.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ahead {
    memory: Memory,
    /// The merged tree, where one was made.
    pub made: Option<Made>,
}

impl<'a> Merge<'a> {
    /// Reads the three trees and decides, however long that takes.
    ///
    /// # Errors
    ///
    /// When something cannot be read: names side and path.
    pub fn plan(sources: Sources<'a>, policy: &Policy) -> Result<Self> {
        Self::plan_in_time(sources, policy, &Stop::never())
    }

    /// The same; `stop` is asked between directories, files, and blocks of files that are compared.
    ///
    /// # Errors
    ///
    /// As [`Merge::plan`], and when it is time to stop.
    pub fn plan_in_time(sources: Sources<'a>, policy: &Policy, stop: &Stop) -> Result<Self> {
        Self::read(sources, policy, How::Once, stop).map(|(merge, _)| merge)
    }

    /// The same, to be carried out later: by [`Merge::plan_after`]. What has changed within `tick` seconds before it is
    /// read is read again then; see [`memory::TICK`].
    ///
    /// # Errors
    ///
    /// As [`Merge::plan_in_time`].
    pub fn plan_ahead(sources: Sources<'a>, policy: &Policy, tick: i64, stop: &Stop) -> Result<(Self, Ahead)> {
        let (merge, memory) = Self::read(sources, policy, How::Remembering(tick), stop)?;
        let memory = memory.unwrap_or_else(|| Memory::begin(tick));
        Ok((merge, Ahead { memory, made: None }))
    }

    /// What [`Merge::plan`] decides now; reads only what has moved where it was planned `ahead`, with the same pristine tree
    /// and the same policy, by a clock that was not set back since ([`sys::stamp::Clock`]).
    ///
    /// # Errors
    ///
    /// As [`Merge::plan_in_time`].
    pub fn plan_after(sources: Sources<'a>, policy: &Policy, ahead: Option<Ahead>, stop: &Stop) -> Result<Self> {
        let Some(ahead) = ahead else { return Self::plan_in_time(sources, policy, stop) };
        let (mut merge, _) = Self::read(sources, policy, How::Recalling(&ahead.memory), stop)?;
        merge.made = merge.made.take().and_then(|(_, since)| ahead.made.map(|made| (made, since)));
        Ok(merge)
    }

    fn read(sources: Sources<'a>, policy: &Policy, how: How<'_>, stop: &Stop) -> Result<(Self, Option<Memory>)> {
        let known = match how {
            How::Recalling(memory) => Some(memory),
            _ => None,
        };
        let Read { mut trees, mut memory, since } = read::read(&sources, policy, how, stop).map_err(at("reading"))?;
        let mut files = bytes::Files::new(&sources, stop);
        let known = known.map(|memory| (memory, &since));
        let mut answers = Answers { bytes: &mut files, known, given: BTreeMap::new() };
        let plan = plan::plan(&mut trees, &mut answers, policy).map_err(at("comparing"))?;
        if let Some(memory) = &mut memory {
            memory.answers = answers.given;
        }
        let is_known = |path: &RelPath| known.is_some() && !since.nodes.contains(path);
        files.check_readable(&plan, &trees.current, is_known).map_err(at("reading"))?;
        let made = known.is_some().then(|| (Made::default(), since));
        Ok((Self { sources, trees, plan, links: Links::Share, made }, memory))
    }

    /// Writes the merged tree into the new directory `output` of `parent`, and, where local nodes have no place in it,
    /// those into the new directory `conflicts`. Leftovers of these names are removed first. Nothing is synced.
    ///
    /// # Errors
    ///
    /// When something cannot be written, or it is time to stop: names the path. Then what was written is incomplete.
    pub fn write(&self, parent: &Dir, output: &str, conflicts: &str, stop: &Stop) -> Result<Applied> {
        sys::remove::tree(parent, conflicts).with_context(|| format!("removing {conflicts}"))?;
        self.write_to((parent, output), (parent, conflicts), stop)
    }

    /// The same, with the conflicts elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Merge::write`].
    pub fn write_to(&self, output: (&Dir, &str), conflicts: (&Dir, &str), stop: &Stop) -> Result<Applied> {
        let merged = fresh(output.0, output.1).with_context(|| format!("creating {}", output.1))?;
        let roots = self.roots(fd(&merged), stop);
        let mut applied = apply::apply(&self.plan, &self.trees, roots).map_err(at("merging"))?;
        if !self.plan.aside.is_empty() {
            let aside = fresh(conflicts.0, conflicts.1).with_context(|| format!("creating {}", conflicts.1))?;
            let roots = self.roots(fd(&aside), stop);
            apply::set_aside(&self.plan, &self.trees.current, roots).map_err(at("setting aside"))?;
        }
        applied.notes.extend(late::missed(&self.sources, &self.trees, &self.plan));
        applied.notes.extend(labels::missing(&self.sources, fd(&merged), &self.plan));
        Ok(applied)
    }

    /// Writes the merged tree as [`Merge::write`] does, ahead of time, and keeps in `ahead` what it takes to correct it later.
    /// Nothing is kept where the tree does not follow what becomes of the new one.
    ///
    /// # Errors
    ///
    /// As [`Merge::write`].
    pub fn make(&self, ahead: &mut Ahead, parent: &Dir, names: (&str, &str), stop: &Stop) -> Result<Applied> {
        let applied = self.write(parent, names.0, names.1, stop)?;
        ahead.memory.mark_links(self.sources.new).map_err(at("looking at"))?;
        let root = parent.symlink_metadata(names.0).with_context(|| format!("looking at {}", names.0))?.ino();
        ahead.made = (applied.unshared == 0).then(|| Made::of(&self.plan, &applied, root));
        Ok(applied)
    }

    /// Brings the tree that was made ahead to what this plan says, in place. Nothing where there is none under the name
    /// `output`, or where more has changed than that: then nothing is written, and [`Merge::write`] makes a new one.
    ///
    /// # Errors
    ///
    /// As [`Merge::write`].
    pub fn correct(&self, parent: &Dir, output: &str, stop: &Stop) -> Result<Option<Applied>> {
        let Some((made, since)) = &self.made else { return Ok(None) };
        if self.links == Links::Copy || !parent.symlink_metadata(output).is_ok_and(|found| made.is_at(found.ino())) {
            return Ok(None);
        }
        let Some(changes) = made.differing(&self.plan, since) else { return Ok(None) };
        let merged = parent.open_dir(output).with_context(|| format!("opening {output}"))?;
        let corrected = apply::correct(&self.plan, &self.trees, &changes, self.roots(fd(&merged), stop));
        let mut applied = corrected.map_err(at("correcting"))?.and(made.applied());
        applied.notes.extend(late::missed(&self.sources, &self.trees, &self.plan));
        applied.notes.extend(labels::missing(&self.sources, fd(&merged), &self.plan));
        Ok(Some(applied))
    }

    fn roots<'b>(&'b self, output: BorrowedFd<'b>, stop: &'b Stop) -> Roots<'b> {
        Roots { current: self.sources.current, new: self.sources.new, output, stop, links: self.links }
    }
}

fn fd(dir: &Dir) -> BorrowedFd<'_> {
    std::os::fd::AsFd::as_fd(dir)
}

fn fresh(parent: &Dir, name: &str) -> io::Result<Dir> {
    sys::remove::tree(parent, name)?;
    sys::node::mkdir(fd(parent), name.as_bytes())?;
    // A directory may want an access list on all that is made in it; here the three trees say what there is.
    for inherited in ["system.posix_acl_default", "system.posix_acl_access"] {
        sys::xattr::remove(fd(parent), name.as_bytes(), inherited.as_bytes())?;
    }
    parent.open_dir(name)
}

fn at(what: &str) -> impl Fn((RelPath, io::Error)) -> anyhow::Error {
    move |(path, error)| anyhow!(error).context(format!("{what} /etc/{path}"))
}
