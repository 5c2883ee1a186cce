//! The update that waits for a shutdown: the marker, what is remembered of it on the disk, and what this boot has seen.
//!
//! Three files, each with the content of a [`Marker`]:
//!
//! - `/run/composefs/staged-deployment`, the marker: shared with bootc, written by whoever stages, gone after a crash.
//! - `state/finalize/staged.json`, *ours*: from staging (in an image that ships one) or from the beginning of a finalization
//!   until its end, so that a crash loses no update. The file is a reminder, never a reason by itself: the deployment and the
//!   entries that stage the deployment must be there as well.
//! - `/run/composefs/met-deployment`, *ours*: the staged deployment that this boot has armed or begun to finalize. The file
//!   tells a cancelled update (marker gone, reminder left) from a finished one (both gone), and, because /run outlives a soft
//!   reboot, a soft reboot from a full one.

use std::io;

use anyhow::{Context, Result};
use cap_std::fs::Dir;

use crate::{
    boot::swap,
    config::Config,
    deployment::Deployment,
    digest::DeploymentId,
    host::{Host, open, place},
    layout::{FINALIZE_STATE, MARKER, MARKER_DIR, MET, STAGED, name_of},
    staged::Marker,
    stop::Stop,
    sys,
};

/// What is waiting for a shutdown of this boot.
#[derive(Debug)]
pub enum Waiting {
    /// Nothing.
    Nothing,
    /// A marker names this deployment.
    Staged(Marker),
    /// This boot has finalized this deployment; a further run carries what has changed in /etc since.
    Again(Marker),
    /// This boot has met this deployment, and its marker has been removed since: somebody has cancelled the update.
    Cancelled(DeploymentId),
}

impl Waiting {
    /// Looks; writes nothing.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or is malformed.
    pub fn find(host: &Host) -> Result<Self> {
        if let Some(marker) = host.marker()? {
            return Ok(Self::Staged(marker));
        }
        let Some(id) = met(host)?.filter(|id| *id != host.booted.id) else { return Ok(Self::Nothing) };
        // A reminder that nobody can read is `arm`'s to report.
        let reminded = remembered(&host.sysroot).ok().flatten().is_some_and(|reminder| reminder.depl_id == id);
        let again = |depl_id| Self::Again(Marker { depl_id, finalization_locked: false });
        Ok(if reminded { Self::Cancelled(id) } else { again(id) })
    }
}

/// The deployment in `staged.json`, judged by what is on the disk.
#[derive(Debug)]
pub enum Reminder {
    /// There is none.
    Nothing,
    /// The deployment is booted: its update has come to its end.
    Booted,
    /// The deployment is complete, and entries stage it.
    Staged(Marker),
    /// The deployment or the entries that staged it are gone, and how.
    Gone(DeploymentId, anyhow::Error),
    /// Something could not be read, so nobody knows.
    Unknown(DeploymentId, anyhow::Error),
}

impl Reminder {
    /// Looks; writes nothing.
    ///
    /// # Errors
    ///
    /// When `staged.json` cannot be read or is malformed.
    pub fn find(host: &Host, config: &Config, stop: &Stop) -> Result<Self> {
        let Some(marker) = remembered(&host.sysroot)? else { return Ok(Self::Nothing) };
        let id = marker.depl_id.clone();
        if id == host.booted.id {
            return Ok(Self::Booted);
        }
        Ok(Self::judge(host, marker, config, stop))
    }

    /// Whether the deployment that `marker` names is complete, and entries stage it or boot it first; writes nothing.
    pub fn judge(host: &Host, marker: Marker, config: &Config, stop: &Stop) -> Self {
        let id = marker.depl_id.clone();
        let deployment = match Deployment::open(&host.sysroot, &id) {
            Ok(deployment) => deployment,
            Err(error) => return Self::without(id, error),
        };
        if !config.update_boot {
            return Self::Staged(marker);
        }
        // Devices that are not there, not yet perhaps, say nothing of what is staged on them.
        let find = || place::find(host, deployment.origin.boot_type);
        let places = match stop.patiently(config.retry_attempts, find) {
            Ok(places) => places,
            Err(error) => return Self::Unknown(id, error),
        };
        let probed = places.into_iter().map(|place| swap::probe(&[place], &id).map(drop)).reduce(Result::or);
        match probed {
            Some(Err(error)) => Self::without(id, error),
            _ => Self::Staged(marker),
        }
    }

    /// Something is missing or malformed, or could not be read.
    fn without(id: DeploymentId, error: anyhow::Error) -> Self {
        let failed = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
        match failed.is_none_or(|error| error.kind() == io::ErrorKind::NotFound) {
            true => Self::Gone(id, error),
            false => Self::Unknown(id, error),
        }
    }
}

/// The content of `state/finalize/staged.json`.
///
/// # Errors
///
/// When the file cannot be read or is malformed.
pub fn remembered(sysroot: &Dir) -> Result<Option<Marker>> {
    let text = sys::file::read(sysroot, STAGED).with_context(|| format!("reading {STAGED}"))?;
    text.map(|text| text.parse().with_context(|| format!("reading {STAGED}: remove the file"))).transpose()
}

/// Writes down, on the disk and for this boot, that `marker` was met: a crash loses no update and no lock.
///
/// # Errors
///
/// Those of writing.
pub fn remember(host: &Host, marker: &Marker) -> Result<()> {
    write_down(host, marker)?;
    meet(host, marker)
}

/// Writes `state/finalize/staged.json`, durably.
///
/// # Errors
///
/// Those of writing; then the old file is still there.
pub fn write_down(host: &Host, marker: &Marker) -> Result<()> {
    if remembered(&host.sysroot).ok().flatten().as_ref() != Some(marker) {
        let write = || {
            sys::file::create_dir_all(&host.sysroot, FINALIZE_STATE)?;
            let dir = host.sysroot.open_dir(FINALIZE_STATE)?;
            sys::file::write_atomic(&dir, name_of(STAGED), marker.to_string().as_bytes())
        };
        write().with_context(|| format!("writing {STAGED}"))?;
    }
    Ok(())
}

/// Puts the marker back that a crash has taken.
///
/// # Errors
///
/// Those of writing.
pub fn resume(host: &Host, marker: &Marker) -> Result<()> {
    put(host, MARKER, marker)?;
    meet(host, marker)
}

/// The update has come to its end: the exchange is durable. Nobody shall begin again with it, another finalizer least of all,
/// so the reminder goes, then the marker. Safe to stop and to run again.
///
/// # Errors
///
/// Those of unlink(2).
pub fn done(host: &Host) -> Result<()> {
    forget(&host.sysroot)?;
    remove(host, MARKER)
}

/// The update is not wanted any more, or is booted: nothing of it is remembered.
///
/// # Errors
///
/// Those of unlink(2).
pub fn drop_all(host: &Host) -> Result<()> {
    forget(&host.sysroot)?;
    remove(host, MET)
}

/// No update is remembered on the disk.
///
/// # Errors
///
/// Those of unlink(2).
pub fn forget(sysroot: &Dir) -> Result<()> {
    if sysroot.symlink_metadata(STAGED).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    sys::remove::file(sysroot, STAGED).with_context(|| format!("removing {STAGED}"))
}

/// The deployment that this boot has met.
///
/// # Errors
///
/// When the file cannot be read; a malformed one says nothing.
pub fn met(host: &Host) -> Result<Option<DeploymentId>> {
    let named = || format!("reading {}/{MET}", host.ambient.run.display());
    let text = sys::file::read(&open(&host.ambient.run)?, MET).with_context(named)?;
    Ok(text.and_then(|text| text.parse::<Marker>().ok()).map(|marker| marker.depl_id))
}

fn meet(host: &Host, marker: &Marker) -> Result<()> {
    if met(host)?.as_ref() == Some(&marker.depl_id) {
        return Ok(());
    }
    put(host, MET, marker)
}

fn put(host: &Host, path: &str, marker: &Marker) -> Result<()> {
    let run = open(&host.ambient.run)?;
    let write = || {
        sys::file::create_dir_all(&run, MARKER_DIR)?;
        sys::file::write_atomic(&run.open_dir(MARKER_DIR)?, name_of(path), marker.to_string().as_bytes())
    };
    write().with_context(|| format!("writing {}/{path}", host.ambient.run.display()))
}

/// Removes a file of `/run`.
///
/// # Errors
///
/// Those of unlink(2).
pub fn remove(host: &Host, path: &str) -> Result<()> {
    let run = open(&host.ambient.run)?;
    if run.symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        return Ok(());
    }
    sys::remove::file(&run, path).with_context(|| format!("removing {}/{path}", host.ambient.run.display()))
}
