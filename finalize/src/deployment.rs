//! A deployment's state directory, and the moment at which the merged /etc takes its place.
//!
//! The new deployment's own /etc is kept as `etc.orig` until that deployment has booted, so a second finalization in
//! the same boot merges the image's files again, not the result of the first one. No entry names the deployment before
//! its /etc is in place, so the moment without an `etc` is harmless; a run that finds `etc.orig` alone goes on there.

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;

use crate::{
    digest::DeploymentId,
    layout::{self, ETC, ETC_CONFLICTS, ETC_MERGING, ETC_ORIG},
    staged::Origin,
    sys,
};

/// A deployment that is complete: its image is in the repository, its state directory has an origin and an /etc.
#[derive(Debug)]
pub struct Deployment {
    /// Its name.
    pub id: DeploymentId,
    /// Its state directory.
    pub state: Dir,
    /// How it boots.
    pub origin: Origin,
}

impl Deployment {
    /// The deployment `id` below the physical root.
    ///
    /// # Errors
    ///
    /// When any part of it is missing or malformed: names the part.
    pub fn open(sysroot: &Dir, id: &DeploymentId) -> Result<Self> {
        let path = layout::deployment(id);
        let again = "stage the deployment again";
        let state = sysroot.open_dir(&path).with_context(|| format!("opening {path}: {again}"))?;
        let file = layout::origin(id);
        let origin = sys::file::read(&state, &file).with_context(|| format!("reading {path}/{file}"))?;
        let origin = origin.with_context(|| format!("{path}/{file} is missing: {again}"))?;
        let origin = origin.parse().with_context(|| format!("reading {path}/{file}: {again}"))?;
        let image = layout::image(id);
        let found = sysroot.try_exists(&image).with_context(|| format!("looking for the image {image}"))?;
        ensure!(found, "the image {image} is missing: {again}");
        let this = Self { id: id.clone(), state, origin };
        ensure!(this.state.is_dir(ETC) || this.state.is_dir(ETC_ORIG), "{path}/{ETC} is missing: {again}");
        Ok(this)
    }

    /// The deployment's /etc as its image ships it.
    ///
    /// # Errors
    ///
    /// Those of openat2(2).
    pub fn new_etc(&self) -> Result<Dir> {
        let name = if self.state.is_dir(ETC_ORIG) { ETC_ORIG } else { ETC };
        self.state.open_dir(name).with_context(|| format!("opening {}/{name}", layout::deployment(&self.id)))
    }

    /// Puts `etc.merging`, which must be on the disk, in the place of `etc`, durably.
    ///
    /// # Errors
    ///
    /// Those of renameat2(2) and fsync(2). What was there is still there, as `etc` or as `etc.orig`.
    pub fn put_merged(&self) -> Result<()> {
        let placed = match (self.state.is_dir(ETC_ORIG), self.state.is_dir(ETC)) {
            (false, _) => sys::rename::move_to(&self.state, ETC, ETC_ORIG)
                .and_then(|()| sys::rename::move_to(&self.state, ETC_MERGING, ETC)),
            (true, false) => sys::rename::move_to(&self.state, ETC_MERGING, ETC),
            (true, true) => sys::rename::exchange(&self.state, ETC_MERGING, ETC),
        };
        placed.context("putting etc.merging in the place of etc")?;
        sys::sync::fsync(self.state.open(".")?).context("syncing the deployment's directory")
    }

    /// Whether a merged /etc has been put in place.
    pub fn is_merged(&self) -> bool {
        self.state.is_dir(ETC_ORIG)
    }

    /// The deployment's /etc as its image ships it, in its place again, and nothing of a merge left. No entry may name the
    /// deployment.
    ///
    /// # Errors
    ///
    /// Those of renameat2(2), unlink(2) and fsync(2). A run that finds `etc.orig` alone goes on there.
    pub fn take_back(&self) -> Result<()> {
        sys::file::remove_tree(&self.state, ETC_MERGING).context("removing etc.merging")?;
        if self.is_merged() {
            if self.state.is_dir(ETC) {
                sys::rename::move_to(&self.state, ETC, ETC_MERGING).context("taking the merged /etc away")?;
            }
            sys::rename::move_to(&self.state, ETC_ORIG, ETC).context("putting etc.orig back")?;
            sys::sync::fsync(self.state.open(".")?).context("syncing the deployment's directory")?;
            sys::file::remove_tree(&self.state, ETC_MERGING).context("removing etc.merging")?;
        }
        sys::file::remove_tree(&self.state, ETC_CONFLICTS).context("removing etc.conflicts")
    }

    /// Removes what a merge needs no longer: `etc.merging`, and for [`Originals::Remove`] `etc.orig`.
    ///
    /// # Errors
    ///
    /// Those of unlink(2).
    pub fn clean_up(&self, originals: Originals) -> Result<()> {
        sys::file::remove_tree(&self.state, ETC_MERGING).context("removing etc.merging")?;
        if originals == Originals::Remove {
            sys::file::remove_tree(&self.state, ETC_ORIG).context("removing etc.orig")?;
        }
        Ok(())
    }

    /// The names under which a merge writes, in [`Deployment::state`].
    pub const MERGE: (&str, &str) = (ETC_MERGING, ETC_CONFLICTS);
}

/// Whether a deployment's /etc as it was before the merge is still needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Originals {
    /// The deployment has not booted, or the configuration says so.
    Keep,
    /// It has booted.
    Remove,
}
