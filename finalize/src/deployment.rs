//! A deployment: its state directory, its origin, its image. The states of its /etc are told in [`etc`].

mod etc;

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;

use crate::{digest::DeploymentId, layout, staged::Origin, sys};

pub use etc::{Originals, Placing, State};

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
        let state = State::of(&this.state).with_context(|| format!("looking at {path}"))?;
        ensure!(state != State::Missing, "{path}/{} is missing: {again}", layout::ETC);
        Ok(this)
    }
}
