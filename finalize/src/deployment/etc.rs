//! The states of a deployment's /etc. Nothing else knows which names there are, and what they mean.
//!
//! | `etc` | `etc.orig` | state |
//! |---|---|---|
//! | there | | [`State::Image`]: as staged, or the one that the deployment has booted with |
//! | there | there | [`State::Merged`]: the merged one, and the one from before the merge |
//! | merged, by `etc.placed` | as `etc.merging` | [`State::Merged`] but for a name: the power went between two renames |
//! | | there | [`State::Placing`]: an older version was stopped between two renames |
//!
//! No name in this table is ever a directory that is half written or half deleted: a merge is built as `etc.merging` and
//! synced before it gets its name, and what is removed becomes `etc.trash` first. So a name that exists says what it says.
//!
//! `etc.orig` stays until the deployment has booted, so that a second finalization merges the image's files again, not
//! the result of the first one. An /etc that may have been booted with is never deleted here: it becomes `etc.previous`
//! until the deployment has booted once more. Whether it may have been is told by `etc.placed`, which names the boot in
//! which the merged /etc got its place: as long as that boot lasts, nobody has booted with it. (A soft reboot does not
//! change the boot's id; then the next report, which removes `etc.orig`, is what tells.)

use std::io;

use anyhow::{Context, Result};
use cap_std::fs::{Dir, MetadataExt};

use super::Deployment;
use crate::{
    layout::{
        self, ETC, ETC_BACKUP, ETC_CONFLICTS, ETC_CONFLICTS_MERGING, ETC_MERGING, ETC_ORIG, ETC_PLACED, ETC_PREVIOUS,
        ETC_TRASH,
    },
    sys,
};

/// What there is of a deployment's /etc.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// One /etc: the image's, or the one that the deployment has booted with.
    Image,
    /// The merged /etc is in place, and the one from before is kept.
    Merged,
    /// The one from before is kept, and nothing is in place.
    Placing,
    /// No /etc.
    Missing,
}

/// What becomes of a deployment's /etc from before the merge once the deployment has booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Originals {
    /// It is kept, as `etc.backup` (`[finalize] backup-original`).
    Keep,
    /// It is removed.
    Remove,
}

/// A merged /etc on its way into its place.
#[derive(Debug)]
#[must_use]
pub struct Placing<'a> {
    deployment: &'a Deployment,
    /// What there was before.
    before: State,
    /// Whether the conflicts of this merge have their name.
    conflicts: bool,
}

impl State {
    /// The state of the /etc in a deployment's state directory.
    ///
    /// # Errors
    ///
    /// Those of statx(2), and of reading `etc.placed`.
    pub fn of(state: &Dir) -> io::Result<Self> {
        Ok(match (is_dir(state, ETC)?, is_dir(state, ETC_ORIG)?) {
            (true, true) => Self::Merged,
            (true, false) if original_is_aside(state)? => Self::Merged,
            (true, false) => Self::Image,
            (false, true) => Self::Placing,
            (false, false) => Self::Missing,
        })
    }
}

impl Deployment {
    /// The deployment's /etc as its image ships it, or as it was when the deployment was staged again. Writes nothing.
    ///
    /// # Errors
    ///
    /// Those of openat2(2).
    pub fn new_etc(&self) -> Result<Dir> {
        let named = |name: &str| format!("opening {}/{name}", layout::deployment(&self.id));
        let name = match State::of(&self.state).with_context(|| named(ETC))? {
            State::Image | State::Missing => ETC,
            State::Merged if original_is_aside(&self.state)? => ETC_MERGING,
            State::Merged | State::Placing => ETC_ORIG,
        };
        self.state.open_dir(name).with_context(|| named(name))
    }

    /// Makes the names in the state directory ready for a new merge: what an earlier run could not finish is finished,
    /// and rubbish is removed, unless a merge under way is to be `kept`. The names under which the merge is to be built are
    /// those of [`Deployment::MERGE`].
    ///
    /// # Errors
    ///
    /// Those of renameat2(2), fsync(2) and unlinkat(2).
    pub fn begin_merge(&self, kept: bool) -> Result<Placing<'_>> {
        let begin = || {
            if original_is_aside(&self.state)? {
                sys::rename::move_to(&self.state, ETC_MERGING, ETC_ORIG)?;
                self.sync()?;
            }
            // What it says of an /etc that is long in place is no longer true of the next one.
            if State::of(&self.state)? != State::Merged && self.state.try_exists(ETC_PLACED)? {
                sys::remove::file(&self.state, ETC_PLACED)?;
                self.sync()?;
            }
            if !kept {
                self.remove_rubbish()?;
            }
            State::of(&self.state)
        };
        let before = begin().with_context(|| format!("preparing {}", layout::deployment(&self.id)))?;
        Ok(Placing { deployment: self, before, conflicts: false })
    }

    /// A merged /etc that may have been booted with makes room, and is kept.
    fn put_over_booted(&self) -> io::Result<()> {
        let previous = free_name(&self.state, ETC_PREVIOUS)?;
        tracing::info!("the /etc that {} had is kept as {previous} until it boots", self.id.short());
        sys::rename::move_to(&self.state, ETC_MERGING, &previous)?;
        sys::rename::exchange(&self.state, &previous, ETC)
    }

    /// Whether anything is left of a finalization that the deployment needs only until it has booted.
    ///
    /// # Errors
    ///
    /// Those of statx(2).
    pub fn has_leftovers(&self) -> Result<bool> {
        let looking = || format!("looking at {}", layout::deployment(&self.id));
        let left = || -> io::Result<bool> {
            let rubbish = [ETC_TRASH, ETC_MERGING, ETC_CONFLICTS_MERGING, ETC_PLACED];
            let rubbish = rubbish.iter().any(|name| self.state.symlink_metadata(name).is_ok());
            Ok(rubbish || is_dir(&self.state, ETC_ORIG)? || !names(&self.state, ETC_PREVIOUS)?.is_empty())
        };
        left().with_context(looking)
    }

    /// The deployment has booted: what a finalization of it has left is removed, or kept as `originals` says.
    ///
    /// # Errors
    ///
    /// Those of renameat2(2), fsync(2) and unlinkat(2). Called again, it goes on.
    pub fn has_booted(&self, originals: Originals) -> Result<()> {
        let finish = || {
            if original_is_aside(&self.state)? {
                sys::rename::move_to(&self.state, ETC_MERGING, ETC_ORIG)?;
            }
            // First of all: with it and without `etc.orig`, the next merge under way would be taken for an original.
            sys::remove::file(&self.state, ETC_PLACED)?;
            self.sync()?;
            if originals == Originals::Keep && is_dir(&self.state, ETC_ORIG)? {
                sys::remove::discard(&self.state, ETC_BACKUP, ETC_TRASH)?;
                sys::rename::move_to(&self.state, ETC_ORIG, ETC_BACKUP)?;
            }
            sys::remove::discard(&self.state, ETC_ORIG, ETC_TRASH)?;
            for previous in names(&self.state, ETC_PREVIOUS)? {
                sys::remove::discard(&self.state, &previous, ETC_TRASH)?;
            }
            self.remove_rubbish()
        };
        finish().with_context(|| format!("cleaning up {}", layout::deployment(&self.id)))
    }

    /// Removes what a merge under way has left, and what was to be removed. `etc.merging` must be rubbish.
    ///
    /// # Errors
    ///
    /// Those of unlinkat(2).
    pub fn remove_rubbish(&self) -> io::Result<()> {
        [ETC_MERGING, ETC_CONFLICTS_MERGING, ETC_TRASH].iter().try_for_each(|name| sys::remove::tree(&self.state, name))
    }

    fn sync(&self) -> io::Result<()> {
        sys::sync::fsync(self.state.open(".")?)
    }

    /// The names under which a merge writes the tree and its conflicts, in [`Deployment::state`].
    pub const MERGE: (&str, &str) = (ETC_MERGING, ETC_CONFLICTS_MERGING);
}

impl Placing<'_> {
    /// Makes the merge durable, and puts it in the place of `etc`, durably. At no moment is there no `etc` where there was
    /// one. `boot` is the id of the running boot, where it is known.
    ///
    /// # Errors
    ///
    /// Those of renameat2(2), write(2), syncfs(2) and fsync(2). What was there is still there.
    pub fn put(&mut self, boot: Option<&str>) -> Result<()> {
        let mut put = || -> io::Result<()> {
            let deployment = self.deployment;
            let state = &deployment.state;
            let unbooted = boot.is_some() && boot == placed_in(state)?.as_deref();
            let merged = state.symlink_metadata(ETC_MERGING)?.ino();
            let over_booted = self.before == State::Merged && !unbooted;
            let text = format!("{merged} {}\n", boot.unwrap_or("unknown"));
            if over_booted {
                sys::sync::root(state.open(".")?)?;
                deployment.put_over_booted()?;
            }
            sys::file::write_aside(state, ETC_PLACED, 0o644, text.as_bytes())?;
            // The merge, and what will be told of it. As long as `etc` is another directory, the file says nothing of it.
            sys::sync::root(state.open(".")?)?;
            sys::file::put_aside(state, ETC_PLACED)?;
            if self.before == State::Merged {
                deployment.sync()?;
            }
            self.put_conflicts(unbooted)?;
            match self.before {
                State::Image => {
                    sys::rename::exchange(state, ETC_MERGING, ETC)?;
                    sys::rename::move_to(state, ETC_MERGING, ETC_ORIG)?;
                }
                State::Merged if over_booted => {}
                State::Merged => sys::rename::exchange(state, ETC_MERGING, ETC)?,
                State::Placing | State::Missing => sys::rename::move_to(state, ETC_MERGING, ETC)?,
            }
            deployment.sync()
        };
        put().context("putting etc.merging in the place of etc")
    }

    /// Gives the conflicts of the merge their name. Those of an earlier merge are kept, unless nobody has booted since.
    fn put_conflicts(&mut self, unbooted: bool) -> io::Result<()> {
        let state = &self.deployment.state;
        let (old, new) = (is_dir(state, ETC_CONFLICTS)?, is_dir(state, ETC_CONFLICTS_MERGING)?);
        match (old, unbooted) {
            (true, true) => sys::remove::discard(state, ETC_CONFLICTS, ETC_TRASH)?,
            (true, false) if new => {
                let previous = free_name(state, &format!("{ETC_CONFLICTS}.previous"))?;
                sys::rename::move_to(state, ETC_CONFLICTS, &previous)?;
            }
            _ => {}
        }
        if new {
            self.conflicts = true;
            sys::rename::move_to(state, ETC_CONFLICTS_MERGING, ETC_CONFLICTS)?;
        }
        Ok(())
    }

    /// The /etc from before this run is in its place again. No entry may name the deployment. Where an earlier run had put
    /// a merged /etc in place, the newer one stays: both are whole.
    ///
    /// # Errors
    ///
    /// Those of renameat2(2), fsync(2) and unlinkat(2). A run that finds `etc.orig` alone goes on there.
    pub fn take_back(self) -> Result<()> {
        let deployment = self.deployment;
        let state = &deployment.state;
        let take_back = || {
            if self.before == State::Merged {
                return deployment.remove_rubbish();
            }
            if original_is_aside(state)? {
                sys::rename::exchange(state, ETC_MERGING, ETC)?;
            } else if is_dir(state, ETC_ORIG)? && is_dir(state, ETC)? {
                sys::remove::tree(state, ETC_TRASH)?;
                sys::rename::move_to(state, ETC, ETC_TRASH)?;
            }
            if is_dir(state, ETC_ORIG)? {
                sys::rename::move_to(state, ETC_ORIG, ETC)?;
            }
            deployment.sync()?;
            sys::remove::file(state, ETC_PLACED)?;
            if self.conflicts {
                sys::remove::discard(state, ETC_CONFLICTS, ETC_TRASH)?;
            }
            deployment.remove_rubbish()
        };
        take_back().with_context(|| format!("taking back the merged /etc of {}", deployment.id.short()))
    }
}

/// Whether the power went after the exchange and before the original had its name.
fn original_is_aside(state: &Dir) -> io::Result<bool> {
    if is_dir(state, ETC_ORIG)? || !is_dir(state, ETC_MERGING)? || !is_dir(state, ETC)? {
        return Ok(false);
    }
    let placed = placed(state)?;
    let merged = state.symlink_metadata(ETC)?.ino();
    Ok(placed.is_some_and(|(inode, _)| inode == merged))
}

/// The boot in which the merged /etc got its place, where that is known.
fn placed_in(state: &Dir) -> io::Result<Option<String>> {
    Ok(placed(state)?.map(|(_, boot)| boot))
}

/// `etc.placed`: the inode number of the merged /etc, and the id of the boot.
fn placed(state: &Dir) -> io::Result<Option<(u64, String)>> {
    let text = sys::file::read(state, ETC_PLACED)?.unwrap_or_default();
    let mut words = text.split_whitespace();
    Ok(words.next().and_then(|inode| inode.parse().ok()).zip(words.next().map(str::to_owned)))
}

/// `stem`, or with the first number behind it that makes it free.
fn free_name(state: &Dir, stem: &str) -> io::Result<String> {
    let taken = names(state, stem)?;
    let numbered = (1..).map(|number| format!("{stem}.{number}"));
    let mut candidates = [stem.to_owned()].into_iter().chain(numbered);
    candidates.find(|name| !taken.contains(name)).ok_or_else(|| io::ErrorKind::AlreadyExists.into())
}

fn names(state: &Dir, stem: &str) -> io::Result<Vec<String>> {
    let mut found = vec![];
    for entry in state.entries()? {
        found.extend(entry?.file_name().into_string().ok().filter(|name| name.starts_with(stem)));
    }
    Ok(found)
}

/// Whether there is a directory of this name. A symlink is none.
fn is_dir(state: &Dir, name: &str) -> io::Result<bool> {
    match state.symlink_metadata(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        found => found.map(|metadata| metadata.is_dir()),
    }
}
