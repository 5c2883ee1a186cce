//! A staged update is cancelled: nothing of it is remembered, and no entries stage it.
//!
//! The order: what is remembered on the disk, what this boot has met, the marker; then the staged entries. Stopped anywhere
//! before the marker is gone, the update is still staged, and the next shutdown finalizes it; from there on it is not, and what
//! is left of it means nothing to anybody. What only the staged deployment has is left to `gc`.

use anyhow::{Context, Result};
use cap_std::fs::Dir;

use crate::{
    boot::{Loader, Place, swap},
    deployment::Deployment,
    digest::DeploymentId,
    host::{Host, place},
    layout::{EFI_LINUX, EFI_LINUX_BOOTC, FINALIZE_STATE, MARKER, MET, PREPARED},
    lock::Lock,
    outlook::Outlook,
    pending::{self, Waiting},
    stop::Stop,
    sys,
};

/// What there is to cancel, or what was cancelled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unstaged {
    /// Nothing is staged.
    Nothing,
    /// An update to this deployment.
    Update(DeploymentId),
    /// What is left of an update: a marker that is none, or staged entries that nobody waits for.
    Leftovers,
    /// Nothing, for the update to this deployment is finalized, at least in part: a rollback is what undoes it.
    Finalized(DeploymentId),
}

/// Cancels the staged update of `host`, which is open for writing. Safe to stop and to run again.
///
/// # Errors
///
/// When another finalization keeps the lock, when entries cannot be read, and those of unlink(2) and fsync(2).
pub fn unstage(host: &Host, stop: &Stop) -> Result<Unstaged> {
    let _lock = Lock::take(&host.sysroot, stop)?;
    cancel(host)
}

/// The same for whoever has the lock.
///
/// # Errors
///
/// As [`unstage`].
pub fn cancel(host: &Host) -> Result<Unstaged> {
    let found = look(host)?;
    if matches!(found, Unstaged::Update(_) | Unstaged::Leftovers) {
        forget(host)?;
        drop_entries(host)?;
    }
    Ok(found)
}

/// What [`unstage`] would cancel. Writes nothing.
///
/// # Errors
///
/// When entries cannot be read.
pub fn look(host: &Host) -> Result<Unstaged> {
    let (staged, is_odd) = waiting(host);
    let places = places(host)?;
    let met = pending::met(host)?.filter(|id| *id != host.booted.id);
    for place in &places {
        let live = place.deployments()?.into_iter().next();
        if let Some(id) = live.filter(|first| staged.as_ref().or(met.as_ref()) == Some(first)) {
            return Ok(Unstaged::Finalized(id));
        }
    }
    if let Some(id) = staged {
        return Ok(Unstaged::Update(id));
    }
    let mut left = is_odd;
    for place in &places {
        left |= place.has_staged() || !waiting_ukis(place)?.is_empty();
    }
    Ok(if left { Unstaged::Leftovers } else { Unstaged::Nothing })
}

/// The deployment that waits for a shutdown, and whether something waits that names none.
pub(crate) fn waiting(host: &Host) -> (Option<DeploymentId>, bool) {
    let (found, mut is_odd) = match Waiting::find(host) {
        Ok(Waiting::Staged(marker)) => (Some(marker.depl_id), false),
        Ok(Waiting::Cancelled(id)) => (Some(id), false),
        Ok(Waiting::Nothing | Waiting::Again(_)) => (None, false),
        Err(_) => (None, true),
    };
    let reminded = || match pending::remembered(&host.sysroot) {
        Ok(marker) => marker.map(|marker| marker.depl_id).filter(|id| *id != host.booted.id),
        Err(_) => {
            is_odd = true;
            None
        }
    };
    let found = found.or_else(reminded);
    (found, is_odd)
}

/// Nothing is remembered of a staged update, durably; its entries may still be there.
///
/// # Errors
///
/// Those of unlink(2) and fsync(2).
pub(crate) fn forget(host: &Host) -> Result<()> {
    if sys::fault::lacks("unstage-order") {
        drop_entries(host)?;
    }
    let sysroot = &host.sysroot;
    pending::forget(sysroot)?;
    if sysroot.is_dir(FINALIZE_STATE) {
        let dir = sysroot.open_dir(FINALIZE_STATE).and_then(|dir| dir.open("."));
        sys::sync::fsync(dir?).with_context(|| format!("syncing {FINALIZE_STATE}"))?;
    }
    // Before the marker: with it and without the marker, the update would be one that this boot has finalized.
    pending::remove(host, MET)?;
    pending::remove(host, MARKER)?;
    pending::remove(host, PREPARED)?;
    Outlook::remove(host)
}

/// No entries are staged anywhere.
///
/// # Errors
///
/// As [`swap::settle_live`], and those of unlink(2).
pub(crate) fn drop_entries(host: &Host) -> Result<()> {
    for place in places(host)? {
        if place.has_staged() && !swap::settle_live(&place)? {
            tracing::warn!("no live entry boots a deployment: the staged ones are left where they are");
        }
        for (dir, name) in waiting_ukis(&place)? {
            sys::remove::file(&dir, &name).with_context(|| format!("removing {name}"))?;
        }
    }
    Ok(())
}

/// Where entries may be staged: of the kind that the staged deployment has, else the booted one.
fn places(host: &Host) -> Result<Vec<Place>> {
    let (staged, _) = waiting(host);
    let boot_type = |id: &DeploymentId| Deployment::open(&host.sysroot, id).ok().map(|it| it.origin.boot_type);
    let kind = staged.as_ref().and_then(boot_type).or_else(|| boot_type(&host.booted.id));
    place::find(host, kind.unwrap_or_else(|| place::likely_kind(host)))
}

/// UKIs that wait for their names, the older way of staging.
fn waiting_ukis(place: &Place) -> Result<Vec<(Dir, String)>> {
    let Place::Entries(entries) = place else { return Ok(vec![]) };
    let mut found = vec![];
    if entries.loader != Loader::SystemdBoot {
        return Ok(found);
    }
    for path in [EFI_LINUX, EFI_LINUX_BOOTC] {
        let Ok(dir) = entries.root.open_dir(path) else { continue };
        for entry in dir.entries().with_context(|| format!("reading {path}"))? {
            let name = entry.with_context(|| format!("reading {path}"))?.file_name().into_string();
            let waits = |name: &String| name.to_ascii_lowercase().ends_with(".efi.staged");
            if let Some(name) = name.ok().filter(waits) {
                found.push((dir.try_clone()?, name));
            }
        }
    }
    Ok(found)
}
