//! The exchange of the boot entries: the one moment at which the next boot changes.
//!
//! What is staged holds exactly the entries that shall exist afterwards. The states consume each other, so that nothing is
//! exchanged that is not on the disk, and nothing is deleted before the exchange is:
//! [`Staged`] → [`Synced`] → [`Exchanged`] → [`Durable`]. Each is about all places of a machine. A transition that fails
//! hands over an [`Undo`], which takes back what this run has exchanged, and nothing else.
//!
//! One promise: at every instant the live entries name a deployment that boots. How it is kept depends on what is
//! exchanged: directories of Type #1 entries (`dirs`), GRUB's menu of UKIs (`menu`), names of UKIs (`ukis`).

mod dirs;
mod foreign;
mod menu;
mod ukis;

use std::{fmt, slice};

pub use self::dirs::TRANSIT;

use anyhow::{Context, Error, Result, anyhow};

use self::{dirs::Dirs, menu::Menu, ukis::Ukis};
use super::{Loader, Place, count::Trial};
use crate::{digest::DeploymentId, layout::ENTRIES_STAGED};

/// How the two directories of Type #1 entries are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Both at once, by `RENAME_EXCHANGE`, on file systems with a journal.
    Exchange,
    /// Entry by entry, durably, on FAT and where exchange is not supported. FAT swaps the start clusters in two directory
    /// entries, which may lie in two sectors; a power cut between them leaves both names on the same clusters, and
    /// `fsck.fat` then empties one of them. So directories are left where they are: an entry that sorts first is put
    /// among the live ones (one directory slot, one sector: either it is there or not), then the others are brought to
    /// their final form, each durable before the next one begins, and the extra one is removed last.
    OneByOne,
}

/// Where an exchange stands, by content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// What is staged boots the deployment.
    Ready,
    /// What is live does already, though perhaps not durably; whatever is staged is left over.
    Exchanged,
}

/// One thing that can be exchanged. The functions are called in the order in which they stand here, `take_back` after
/// `exchange` has begun and instead of what follows.
trait Exchange: fmt::Debug {
    /// The files that the new deployment's entry boots, absolute within the file system that holds them.
    fn boots(&self) -> Vec<String>;

    /// Has the boot loader count the boots of the new deployment from the exchange on, or not; said before `sync`.
    ///
    /// # Errors
    ///
    /// Why it cannot, for a person; then it does not.
    fn count(&mut self, trial: Option<&Trial>) -> Result<(), String>;

    /// Brings what is staged to its final form and makes it, and the kernels beside it, durable; what is live is untouched.
    fn sync(&mut self) -> Result<()>;

    /// The exchange. When it fails, what boots is what booted before, or either.
    fn exchange(&mut self) -> Result<()>;

    /// Makes the exchange durable, also for a boot loader that replays no journal, and reads it back.
    fn settle(&mut self) -> Result<()>;

    /// Makes the old deployment boot again, durably, by undoing what `exchange` has done since this value was made.
    fn take_back(&mut self) -> Result<()>;

    /// Brings what is live to its final form and removes what is old. Safe to stop and to run again.
    fn clean_up(&mut self) -> Result<()>;
}

/// One place under way.
#[derive(Debug)]
struct Part {
    what: Box<dyn Exchange>,
    stands: Stands,
    /// Whether this run has begun to exchange it.
    begun: bool,
}

/// The next entries lie beside the live ones, written by somebody else, perhaps not yet on the disk. Or an earlier run has
/// exchanged them already, at some places or at all of them.
#[derive(Debug)]
pub struct Staged(Vec<Part>);

/// They are on the disk, with the entries that are not ours carried into them.
#[derive(Debug)]
pub struct Synced(Vec<Part>);

/// The live entries name the new deployment; a power cut may still undo it.
#[derive(Debug)]
pub struct Exchanged(Vec<Part>);

/// A power cut no longer undoes it. Only now may anything be deleted.
#[derive(Debug)]
pub struct Durable(Vec<Part>);

/// A transition that failed.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: Error,
    /// How to go back.
    pub undo: Undo,
}

impl From<Failed> for Error {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

/// Takes back what this run has exchanged.
#[derive(Debug)]
#[must_use]
pub struct Undo(Vec<Part>);

/// Finds out, by content, where the exchange for deployment `id` stands at each place. Writes nothing.
///
/// # Errors
///
/// When neither side of a place names `id` as the next to boot, when there are no live entries, or when they cannot be
/// read.
pub fn probe(places: &[Place], id: &DeploymentId) -> Result<Staged> {
    places.iter().map(|place| probe_place(place, id)).collect::<Result<_>>().map(Staged)
}

/// Removes what is staged at a place, or left over from an exchange; what is live is first made durable, stays what it is, and
/// gets what is not ours. False where nothing live boots a deployment: then what is staged may be all that there is, and stays.
///
/// # Errors
///
/// As [`Staged::finish`].
pub fn settle_live(place: &Place) -> Result<bool> {
    let Some(first) = place.deployments()?.into_iter().next() else { return Ok(false) };
    probe(slice::from_ref(place), &first)?.finish()?;
    Ok(true)
}

fn probe_place(place: &Place, id: &DeploymentId) -> Result<Part> {
    fn part(what: impl Exchange + 'static, stands: Stands) -> Part {
        Part { what: Box::new(what), stands, begun: false }
    }
    match place {
        Place::Menu { grub, .. } => Menu::probe(grub, id).map(|(menu, stands)| part(menu, stands)),
        Place::Entries(entries) => {
            let loader = entries.loader_dir().context("opening loader/ on the boot file system")?;
            if !loader.is_dir(ENTRIES_STAGED)
                && entries.loader == Loader::SystemdBoot
                && let Some((ukis, stands)) = Ukis::probe(&entries.root, id)?
            {
                return Ok(part(ukis, stands));
            }
            Dirs::probe(entries, loader, id).map(|(dirs, stands)| part(dirs, stands))
        }
    }
}

impl Staged {
    /// Whether an earlier run has exchanged everything.
    pub fn is_exchanged(&self) -> bool {
        self.0.iter().all(|part| part.stands == Stands::Exchanged)
    }

    /// Whether an earlier run has exchanged nothing.
    pub fn is_untouched(&self) -> bool {
        self.0.iter().all(|part| part.stands == Stands::Ready)
    }

    /// For each place that is still to be exchanged, by its number: the files that the new deployment's entry boots.
    pub fn boots(&self) -> impl Iterator<Item = (usize, Vec<String>)> {
        let ready = self.0.iter().enumerate().filter(|(_, part)| part.stands == Stands::Ready);
        ready.map(|(number, part)| (number, part.what.boots()))
    }

    /// Has the boot loader count the boots of the new deployment from the exchange on: at all places that are still to be
    /// exchanged, or at none.
    ///
    /// # Errors
    ///
    /// Why one of them cannot, for a person.
    pub fn count(&mut self, trial: &Trial) -> Result<(), String> {
        let ready = |part: &&mut Part| part.stands == Stands::Ready;
        let counts = self.0.iter_mut().filter(ready).try_for_each(|part| part.what.count(Some(trial)));
        if counts.is_err() {
            self.0.iter_mut().filter(ready).for_each(|part| _ = part.what.count(None));
        }
        counts
    }

    /// Brings what is staged to its final form and makes it, and the kernels beside it, durable.
    ///
    /// # Errors
    ///
    /// When something cannot be written; what is live is untouched.
    pub fn sync(mut self) -> Result<Synced> {
        self.0.iter_mut().filter(|part| part.stands == Stands::Ready).try_for_each(|part| part.what.sync())?;
        Ok(Synced(self.0))
    }

    /// What an earlier run has exchanged at some places is made durable and cleaned up; the others stay as they are.
    ///
    /// # Errors
    ///
    /// As [`Exchanged::settle`] and [`Durable::clean_up`].
    pub fn finish(self) -> Result<()> {
        let exchanged = self.0.into_iter().filter(|part| part.stands == Stands::Exchanged).collect();
        Exchanged(exchanged).settle()?.clean_up()
    }
}

impl Synced {
    /// The exchange, at one place after the other.
    ///
    /// # Errors
    ///
    /// When a place cannot be exchanged; those before it have been, and are taken back by the [`Undo`].
    pub fn exchange(mut self) -> Result<Exchanged, Failed> {
        for part in self.0.iter_mut().filter(|part| part.stands == Stands::Ready) {
            part.begun = true;
            if let Err(error) = part.what.exchange() {
                return Err(Failed { error, undo: Undo(self.0) });
            }
        }
        Ok(Exchanged(self.0))
    }
}

impl Exchanged {
    /// Makes the exchange durable, and reads it back.
    ///
    /// # Errors
    ///
    /// When a place cannot be synced, and when what is read back does not name the new deployment first.
    pub fn settle(mut self) -> Result<Durable, Failed> {
        match self.0.iter_mut().try_for_each(|part| part.what.settle()) {
            Ok(()) => Ok(Durable(self.0)),
            Err(error) => Err(Failed { error, undo: Undo(self.0) }),
        }
    }
}

impl Undo {
    /// Makes the old deployment boot again wherever this run has begun to exchange it. All places are tried.
    ///
    /// # Errors
    ///
    /// When it cannot be done at a place: then either may boot there.
    pub fn take_back(mut self) -> Result<()> {
        let begun = self.0.iter_mut().rev().filter(|part| part.begun);
        let failed: Vec<_> = begun.filter_map(|part| part.what.take_back().err()).collect();
        match failed.is_empty() {
            true => Ok(()),
            false => Err(anyhow!(failed.iter().map(|error| format!("{error:#}")).collect::<Vec<_>>().join("; "))),
        }
    }
}

impl Durable {
    /// Brings what is live to its final form and removes what is old. Safe to stop and to run again.
    ///
    /// # Errors
    ///
    /// When something cannot be written or removed; the new deployment boots all the same.
    pub fn clean_up(mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(|part| part.what.clean_up())
    }
}
