//! `state/finalize/staged.json`: the update that waits for a shutdown, written down so that a crash does not lose it.
//!
//! The file names the staged deployment from staging (in an image that ships one) or from the beginning of a finalization
//! until its end. It is a reminder, never a reason by itself: the staged entries must be there as well.

use anyhow::{Context, Result};
use cap_std::fs::Dir;

use crate::{
    digest::DeploymentId,
    layout::{FINALIZE_STATE, STAGED, name_of},
    staged::Marker,
    sys,
};

/// What is staged according to `state/finalize/staged.json`.
///
/// # Errors
///
/// When it cannot be read or is malformed.
pub fn remembered(sysroot: &Dir) -> Result<Option<Marker>> {
    let text = sys::file::read(sysroot, STAGED).with_context(|| format!("reading {STAGED}"))?;
    text.map(|text| text.parse().with_context(|| format!("reading {STAGED}: remove it"))).transpose()
}

/// Writes down that `id` is staged, so that a crash loses no update.
///
/// # Errors
///
/// Those of writing.
pub fn remember(sysroot: &Dir, id: &DeploymentId) -> Result<()> {
    let marker = Marker { depl_id: id.clone(), finalization_locked: false };
    if remembered(sysroot).ok().flatten().as_ref() == Some(&marker) {
        return Ok(());
    }
    let write = || {
        let dir = sysroot.open_dir(FINALIZE_STATE)?;
        sys::file::write_atomic(&dir, name_of(STAGED), marker.to_string().as_bytes())
    };
    write().with_context(|| format!("writing {STAGED}"))
}

/// The update is no longer waiting.
///
/// # Errors
///
/// Those of unlink(2).
pub fn forget(sysroot: &Dir) -> Result<()> {
    sys::remove::file(sysroot, STAGED).with_context(|| format!("removing {STAGED}"))
}
