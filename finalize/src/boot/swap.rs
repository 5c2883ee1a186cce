//! The exchange of the boot entries: the one moment at which the next boot changes.
//!
//! `entries.staged` holds exactly the entries that shall exist afterwards. The states consume each other, so that
//! nothing is exchanged that is not on the disk, and nothing is deleted before the exchange is:
//! [`Staged`] → [`Synced`] → [`Exchanged`] → [`Durable`].
//!
//! Two methods, one promise: at every instant `entries` names a deployment that boots.
//!
//! - [`Method::Exchange`], on file systems with a journal: the two directories are exchanged by `RENAME_EXCHANGE`.
//! - [`Method::OneByOne`], on FAT and where exchange is not supported. FAT swaps the start clusters in two directory
//!   entries, which may lie in two sectors; a power cut between them leaves both names on the same clusters, and
//!   `fsck.fat` then empties one of them. So directories are left where they are: an entry that sorts first is put
//!   among the live ones (one directory slot, one sector: either it is there or not), then the others are brought to
//!   their final form, each durable before the next one begins, and the extra one is removed last.

mod dirs;

use anyhow::{Context, Result};

use self::dirs::Dirs;
use super::{
    Place,
    loader::Loader,
    menu::{Menu, Stands},
    uki::Renames,
};
use crate::{digest::DeploymentId, layout::ENTRIES_STAGED};

/// How entries are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Both directories at once, by `RENAME_EXCHANGE`.
    Exchange,
    /// Entry by entry, durably.
    OneByOne,
}

/// What the entry directories say, by content.
#[derive(Debug)]
pub enum Probe {
    /// The staged place names the deployment as the next one to boot.
    Ready(Staged),
    /// The live entries already do, though perhaps not durably; whatever the staged place holds is left over.
    Exchanged(Exchanged),
}

/// The next entries lie beside the live ones, written by somebody else, perhaps not yet on the disk.
#[derive(Debug)]
pub struct Staged(Both);

/// They are on the disk, with the entries that are not ours carried into them.
#[derive(Debug)]
pub struct Synced(Both);

/// The live place names the new deployment; a power cut may still undo it.
#[derive(Debug)]
pub struct Exchanged(Both);

/// A power cut no longer undoes it. Only now may anything be deleted.
#[derive(Debug)]
pub struct Durable(Both);

/// What is exchanged: a directory of entries, GRUB's menu, or UKIs' names.
#[derive(Debug)]
enum Both {
    Entries(Dirs),
    Menu(Menu),
    Ukis(Renames),
}

/// Finds out, by content, where the exchange for deployment `id` stands. Writes nothing.
///
/// # Errors
///
/// When neither side names `id` as the next to boot, when there are no live entries, or when they cannot be read.
pub fn probe(place: &Place, id: &DeploymentId) -> Result<Probe> {
    if let Some(dir) = &place.menu {
        let (menu, stands) = Menu::probe(dir, id)?;
        let menu = Both::Menu(menu);
        return Ok(stands.into_probe(menu));
    }
    let loader = place.loader_dir().context("opening loader/ on the boot file system")?;
    if !loader.is_dir(ENTRIES_STAGED)
        && place.loader == Loader::SystemdBoot
        && let Some((renames, stands)) = Renames::probe(&place.root, id)?
    {
        return Ok(stands.into_probe(Both::Ukis(renames)));
    }
    let (dirs, stands) = Dirs::probe(place, loader, id)?;
    Ok(stands.into_probe(Both::Entries(dirs)))
}

/// Makes the old deployment boot again where the exchange for `id` was made and is not yet cleaned up.
///
/// # Errors
///
/// When that cannot be done: then either may boot.
pub fn take_back(place: &Place, id: &DeploymentId) -> Result<()> {
    let both = match probe(place, id)? {
        // UKIs that have their names are staged as well until the clean-up.
        Probe::Exchanged(Exchanged(both)) | Probe::Ready(Staged(both @ Both::Ukis(_))) => both,
        Probe::Ready(_) => return Ok(()),
    };
    match both {
        Both::Entries(dirs) => dirs.take_back(),
        Both::Menu(menu) => menu.take_back(),
        Both::Ukis(renames) => renames.take_back(),
    }
}

/// [`Synced`], or [`Exchanged`] by an earlier run.
#[derive(Debug)]
pub enum Ready {
    /// To be exchanged.
    Synced(Synced),
    /// To be made durable.
    Exchanged(Exchanged),
}

impl Stands {
    fn into_probe(self, what: Both) -> Probe {
        match self {
            Self::Ready => Probe::Ready(Staged(what)),
            Self::Exchanged => Probe::Exchanged(Exchanged(what)),
        }
    }
}

impl Probe {
    /// [`Staged::sync`], where there is something to exchange.
    ///
    /// # Errors
    ///
    /// As [`Staged::sync`].
    pub fn sync(self) -> Result<Ready> {
        match self {
            Self::Ready(staged) => staged.sync().map(Ready::Synced),
            Self::Exchanged(exchanged) => Ok(Ready::Exchanged(exchanged)),
        }
    }
}

impl Ready {
    /// [`Synced::exchange`], where there is something to exchange.
    ///
    /// # Errors
    ///
    /// As [`Synced::exchange`].
    pub fn exchange(self) -> Result<Exchanged> {
        match self {
            Self::Synced(synced) => synced.exchange(),
            Self::Exchanged(exchanged) => Ok(exchanged),
        }
    }
}

impl Staged {
    /// The files that the new deployment's entry boots, for checks before the first write.
    ///
    /// # Errors
    ///
    /// None that [`probe`] has not reported.
    pub fn boots(&self) -> Result<Vec<String>> {
        match &self.0 {
            Both::Entries(dirs) => Ok(dirs.primary()?.files().map(str::to_owned).collect()),
            Both::Menu(menu) => Ok(menu.uki().into_iter().collect()),
            Both::Ukis(_) => Ok(vec![]),
        }
    }

    /// Brings what is staged to its final form and makes it, and the kernels beside it, durable.
    ///
    /// # Errors
    ///
    /// Those of writing and syncing; what is live is untouched.
    pub fn sync(mut self) -> Result<Synced> {
        match &mut self.0 {
            Both::Entries(dirs) => dirs.sync()?,
            Both::Menu(menu) => menu.sync()?,
            Both::Ukis(renames) => renames.sync()?,
        }
        Ok(Synced(self.0))
    }
}

impl Synced {
    /// The exchange.
    ///
    /// # Errors
    ///
    /// Those of writing; then the old deployment still boots.
    pub fn exchange(mut self) -> Result<Exchanged> {
        match &mut self.0 {
            Both::Entries(dirs) => dirs.exchange()?,
            Both::Menu(menu) => menu.exchange()?,
            Both::Ukis(renames) => renames.exchange()?,
        }
        Ok(Exchanged(self.0))
    }
}

impl Exchanged {
    /// Makes the exchange durable, and reads it back.
    ///
    /// # Errors
    ///
    /// Those of syncing, and when what is read back does not name the new deployment first.
    pub fn settle(mut self) -> Result<Durable> {
        match &mut self.0 {
            Both::Entries(dirs) => dirs.settle()?,
            Both::Menu(menu) => menu.settle()?,
            Both::Ukis(renames) => renames.settle()?,
        }
        Ok(Durable(self.0))
    }
}

impl Durable {
    /// Brings what is live to its final form and removes what is old. Safe to stop and to run again.
    ///
    /// # Errors
    ///
    /// Those of writing; the new deployment boots all the same.
    pub fn clean_up(self) -> Result<()> {
        match self.0 {
            Both::Entries(dirs) => dirs.clean_up(),
            Both::Menu(menu) => menu.clean_up(),
            Both::Ukis(renames) => renames.clean_up(),
        }
    }
}
