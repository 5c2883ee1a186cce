//! The live entry of one deployment: what it boots, whether that is there, and how its deployment is staged to be the first.

use std::io;

use anyhow::{Context, Result};

use super::{
    Place, Wanted,
    arrange::arranged,
    bls::{Entry, id_of_uki},
    entries::Entries,
    grub,
    loader::Loader,
    swap::TRANSIT,
    user_cfg,
};
use crate::{
    digest::DeploymentId,
    layout::{ENTRIES, ENTRIES_STAGED, USER_CFG, USER_CFG_STAGED},
    sys,
};

/// An entry of a deployment, as text, and the files that it boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Booting {
    /// A Type #1 entry, or a menuentry of `user.cfg`.
    pub text: String,
    /// The title that is shown, where it has one.
    pub title: Option<String>,
    /// The version, where it has one.
    pub version: Option<String>,
    /// Absolute within the file system of the place.
    pub boots: Vec<String>,
}

impl Booting {
    fn of_entry(loader: Loader, entry: &Entry) -> Self {
        let value = |key| entry.value(key).map(str::to_owned);
        let boots = match loader {
            Loader::Grub => grub::files(entry),
            _ => entry.files().map(str::to_owned).collect(),
        };
        Self { text: entry.to_string(), title: value("title"), version: value("version"), boots }
    }

    fn of_menu(text: &str, id: &DeploymentId) -> Option<Self> {
        let (title, path) =
            grub::chainloaded(text).into_iter().find(|(_, path)| id_of_uki(path).as_ref() == Some(id))?;
        let title = title.strip_suffix(&format!(": ({id})")).unwrap_or(&title).to_owned();
        Some(Self { text: text.to_owned(), title: Some(title), version: None, boots: vec![path] })
    }
}

impl Place {
    /// The entry that boots deployment `id`, among those that are live: the text, and the files that it boots.
    ///
    /// # Errors
    ///
    /// When the entries cannot be read.
    pub fn entry(&self, id: &DeploymentId) -> Result<Option<Booting>> {
        match self {
            Self::Menu { grub, .. } => {
                let menu = user_cfg::read(grub, USER_CFG).context("reading grub2/user.cfg")?.unwrap_or_default();
                Ok(menu.menuentry(id).and_then(|text| Booting::of_menu(&text, id)))
            }
            Self::Entries(place) => {
                let live = match place.loader_dir() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    dir => Entries::read(&dir?, ENTRIES).context("reading loader/entries")?,
                };
                let live = live.unwrap_or_default();
                Ok(live.of_deployment(place.loader, id).map(|(_, entry)| Booting::of_entry(place.loader, &entry)))
            }
        }
    }

    /// The same among those that are staged.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub fn staged_entry(&self, id: &DeploymentId) -> Result<Option<Booting>> {
        match self {
            Self::Menu { grub, .. } => {
                let menu = user_cfg::read(grub, USER_CFG_STAGED).context("reading grub2/user.cfg.staged")?;
                Ok(menu.unwrap_or_default().menuentry(id).and_then(|text| Booting::of_menu(&text, id)))
            }
            Self::Entries(place) => {
                let Ok(loader) = place.loader_dir() else { return Ok(None) };
                let staged = Entries::read(&loader, ENTRIES_STAGED).context("reading loader/entries.staged")?;
                let staged = staged.unwrap_or_default();
                Ok(staged.of_deployment(place.loader, id).map(|(_, entry)| Booting::of_entry(place.loader, &entry)))
            }
        }
    }

    /// Whether the files that `entry` boots are there.
    ///
    /// # Errors
    ///
    /// Names the one that is not.
    pub fn finds(&self, entry: &Booting) -> Result<()> {
        self.marks(&entry.boots).map(drop)
    }

    /// The same of a text that was kept.
    pub fn kept_entry(&self, text: &str, id: &DeploymentId) -> Option<Booting> {
        match self {
            Self::Menu { .. } => Booting::of_menu(text, id),
            Self::Entries(place) => {
                let entry = text.parse::<Entry>().ok().filter(|entry| entry.deployment().as_ref() == Some(id))?;
                Some(Booting::of_entry(place.loader, &entry))
            }
        }
    }

    /// Whether what `entry` boots is there and is what was staged. Writes nothing.
    ///
    /// # Errors
    ///
    /// Names the file that is missing or another one; when it is time to stop.
    pub fn verify(&self, entry: &Booting, wanted: &Wanted<'_>) -> Result<()> {
        self.finds(entry)?;
        self.check(&entry.boots, wanted)
    }

    /// Writes what would boot `first` before all others to the staged place, for an exchange; where no entry boots `first`, by
    /// the text that was `kept`. No boot loader reads that place.
    ///
    /// # Errors
    ///
    /// Those of reading and writing, and when there is no entry for `first`.
    pub fn stage(&self, first: &DeploymentId, kept: Option<&str>) -> Result<()> {
        let none = || format!("no boot entry boots {first}");
        match self {
            Self::Menu { grub, .. } => {
                let menu = user_cfg::read(grub, USER_CFG).context("reading grub2/user.cfg")?.unwrap_or_default();
                let next = menu.arranged(first, kept).with_context(none)?;
                sys::file::write_atomic_like(grub, USER_CFG_STAGED, &next.to_bytes(), USER_CFG)
                    .context("writing grub2/user.cfg.staged")
            }
            Self::Entries(place) => {
                let loader = place.loader_dir().context("opening loader/ on the boot file system")?;
                let live = Entries::read(&loader, ENTRIES).context("reading loader/entries")?;
                let next = arranged(&live.unwrap_or_default(), place.loader, first, kept).with_context(none)?;
                let write = || -> io::Result<()> {
                    sys::file::create_dir_all(&loader, ENTRIES_STAGED)?;
                    let staged = loader.open_dir(ENTRIES_STAGED)?;
                    next.files().try_for_each(|(name, text)| {
                        sys::file::write_new(&staged, name, 0o644, text.as_bytes()).map(drop)
                    })
                };
                write().context("writing loader/entries.staged")
            }
        }
    }
}

impl Place {
    /// Whether anything lies in the staged place: the entries of the next boot, or what an exchange has left.
    pub fn has_staged(&self) -> bool {
        match self {
            Self::Menu { grub, .. } => grub.symlink_metadata(USER_CFG_STAGED).is_ok(),
            Self::Entries(place) => {
                place.loader_dir().is_ok_and(|loader| loader.symlink_metadata(ENTRIES_STAGED).is_ok())
            }
        }
    }

    /// Whether an exchange of the live entries was begun and not brought to its end.
    pub fn is_in_transit(&self) -> bool {
        match self {
            Self::Menu { .. } => false,
            Self::Entries(place) => {
                place.loader_dir().is_ok_and(|loader| loader.symlink_metadata(format!("{ENTRIES}/{TRANSIT}")).is_ok())
            }
        }
    }
}
