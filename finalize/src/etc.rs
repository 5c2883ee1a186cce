//! Merging /etc: three trees in, one out. Scan, plan, apply: reading yields values, deciding is pure, writing is dumb.

pub mod accounts;
pub mod apply;
pub mod bytes;
pub mod diff;
pub mod drift;
mod late;
pub mod merge;
pub mod names;
pub mod plan;
pub mod policy;
pub mod read;
pub mod reset;
pub mod scan;
pub mod tree;
pub mod view;

use std::{io, os::fd::BorrowedFd};

use anyhow::{Context, Result, anyhow};
use cap_std::fs::Dir;

use self::{
    apply::{Applied, Links, Roots},
    plan::{Plan, Trees},
    policy::Policy,
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
}

impl<'a> Merge<'a> {
    /// Reads the three trees and decides.
    ///
    /// # Errors
    ///
    /// When something cannot be read: names side and path.
    pub fn plan(sources: Sources<'a>, policy: &Policy) -> Result<Self> {
        let mut trees = read::read(&sources, policy).map_err(at("reading"))?;
        let mut bytes = bytes::Files::new(&sources);
        let plan = plan::plan(&mut trees, &mut bytes, policy).map_err(at("comparing"))?;
        bytes.check_readable(&plan, &trees.current).map_err(at("reading"))?;
        Ok(Self { sources, trees, plan, links: Links::Share })
    }

    /// Writes the merged tree into the new directory `output` of `parent`, and, where local nodes have no place in it,
    /// those into the new directory `conflicts`. Leftovers of these names are removed first. Nothing is synced.
    ///
    /// # Errors
    ///
    /// When something cannot be written, or it is time to stop: names the path. Then what was written is incomplete.
    pub fn write(&self, parent: &Dir, output: &str, conflicts: &str, stop: &Stop) -> Result<Applied> {
        self.write_to((parent, output), (parent, conflicts), stop)
    }

    /// The same, with the conflicts elsewhere.
    ///
    /// # Errors
    ///
    /// As [`Merge::write`].
    pub fn write_to(&self, output: (&Dir, &str), conflicts: (&Dir, &str), stop: &Stop) -> Result<Applied> {
        let roots = |target| Roots {
            current: self.sources.current,
            new: self.sources.new,
            output: target,
            stop,
            links: self.links,
        };
        let merged = fresh(output.0, output.1).with_context(|| format!("creating {}", output.1))?;
        let mut applied = apply::apply(&self.plan, &self.trees, roots(fd(&merged))).map_err(at("merging"))?;
        if !self.plan.aside.is_empty() {
            let aside = fresh(conflicts.0, conflicts.1).with_context(|| format!("creating {}", conflicts.1))?;
            apply::set_aside(&self.plan, &self.trees.current, roots(fd(&aside))).map_err(at("setting aside"))?;
        }
        applied.notes.extend(late::missed(&self.sources, &self.trees, &self.plan));
        Ok(applied)
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
