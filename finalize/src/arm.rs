//! What happens at boot: an update that a crash interrupted is taken up again, and the last finalization is judged by
//! what booted.
//!
//! `state/finalize/staged.json` names the staged deployment from staging (in an image that ships one) or from the
//! beginning of a finalization until its end. The marker in /run is gone after a crash, and restored from it.

use std::fmt;

use anyhow::{Context, Result};
use jiff::Timestamp;

use crate::{
    boot::swap,
    deployment::{Deployment, Originals},
    digest::DeploymentId,
    host::{Host, open, place},
    layout::{MARKER, MARKER_DIR, name_of},
    lock::Lock,
    pending,
    record::{NextBoot, Outcome, Record},
    stop::Stop,
    sys,
};

/// What [`arm`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Armed {
    /// No update is waiting.
    Nothing,
    /// The marker is there already.
    Staged(DeploymentId),
    /// The marker was restored.
    Restored(DeploymentId),
    /// What was staged cannot be finalized, and why.
    Unusable(DeploymentId, String),
}

impl fmt::Display for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("armed: nothing is staged"),
            Self::Staged(id) => write!(f, "armed: {} is staged", id.short()),
            Self::Restored(id) => write!(f, "armed: {} was staged before a restart, and is again", id.short()),
            Self::Unusable(id, why) => write!(f, "armed: {} was staged but cannot be finalized: {why}", id.short()),
        }
    }
}

/// Restores the marker from `state/finalize/staged.json` when there is none, and the deployment named there is
/// complete and not the booted one.
///
/// # Errors
///
/// Those of reading and writing; a malformed file names itself.
pub fn arm(host: &Host) -> Result<Armed> {
    if let Some(marker) = host.marker()? {
        return Ok(Armed::Staged(marker.depl_id));
    }
    let Some(marker) = pending::remembered(&host.sysroot)? else { return Ok(Armed::Nothing) };
    let id = marker.depl_id.clone();
    if id == host.booted.id {
        return Ok(Armed::Nothing);
    }
    if let Err(error) = Deployment::open(&host.sysroot, &id) {
        return Ok(Armed::Unusable(id, format!("{error:#}")));
    }
    let run = open(&host.ambient.run)?;
    let write = || {
        sys::file::create_dir_all(&run, MARKER_DIR)?;
        sys::file::write_atomic(&run.open_dir(MARKER_DIR)?, name_of(MARKER), marker.to_string().as_bytes())
    };
    write().with_context(|| format!("writing {}/{MARKER}", host.ambient.run.display()))?;
    Ok(Armed::Restored(id))
}

/// What became of the last finalization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There was none, or it was judged before.
    Nothing,
    /// The deployment that was finalized has booted.
    Booted(DeploymentId),
    /// It was finalized, but another one has booted.
    NotBooted(DeploymentId),
    /// It did not come to its end; how far it came, and why.
    Unfinished(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no finalization to report on"),
            Self::Booted(id) => write!(f, "the finalized deployment {} has booted", id.short()),
            Self::NotBooted(id) => {
                write!(
                    f,
                    "{} was finalized, but another deployment has booted: chosen in the menu, or the loader fell back",
                    id.short()
                )
            }
            Self::Unfinished(why) => f.write_str(why),
        }
    }
}

/// Compares the record with what booted, and writes into it what was found. Once the finalized deployment has booted,
/// what a power cut has left undone is done, and its original /etc is no longer needed.
///
/// # Errors
///
/// Those of reading and writing. Then the next boot reports again.
pub fn report(host: &Host, stop: &Stop) -> Result<Verdict> {
    let _lock = Lock::take(&host.sysroot, stop)?;
    let (left, waiting): (Vec<_>, Vec<_>) =
        pending::remembered(&host.sysroot)?.into_iter().partition(|marker| marker.depl_id == host.booted.id);
    let waiting = waiting.into_iter().next();
    let record = Record::read(&host.sysroot)?;
    let is_of_booted = |record: &Record| record.to.as_ref() == Some(&host.booted.id) && record.next_boot.is_none();
    if !left.is_empty() && !record.as_ref().is_some_and(is_of_booted) {
        // The power went between the exchange and the record.
        finish(host, &host.booted.id, Originals::Remove)?;
        return Ok(Verdict::Booted(host.booted.id.clone()));
    }
    let Some(mut record) = record else {
        return Ok(waiting.map_or(Verdict::Nothing, |marker| waiting_for_shutdown(&marker.depl_id)));
    };
    let to = record.to.clone();
    let verdict = match (record.outcome, to) {
        _ if record.next_boot.is_some() => return Ok(Verdict::Nothing),
        (_, Some(to)) if to == host.booted.id => Verdict::Booted(to),
        (Outcome::Finalized, Some(to)) if waiting.is_none() => Verdict::NotBooted(to),
        (_, Some(to)) => match waiting {
            Some(marker) if marker.depl_id != to => waiting_for_shutdown(&marker.depl_id),
            _ => unfinished(&to, &format!("ended at step {}: {}", record.step.name(), record.error.join(": "))),
        },
        (_, None) => Verdict::Nothing,
    };
    if let Verdict::Booted(id) = &verdict {
        let originals = if record.keep_original { Originals::Keep } else { Originals::Remove };
        finish(host, id, originals)?;
        record.outcome = Outcome::Finalized;
    }
    record.next_boot = Some(NextBoot { booted: host.booted.id.clone(), at: Timestamp::now() });
    record.write(&host.sysroot)?;
    Ok(verdict)
}

/// What is left to do for the deployment `id`, which has booted.
fn finish(host: &Host, id: &DeploymentId, originals: Originals) -> Result<()> {
    let deployment = Deployment::open(&host.sysroot, id)?;
    for place in place::find(host, deployment.origin.boot_type)? {
        // It may have been chosen in the menu while the entries are not exchanged yet: then nothing is left over.
        if let Ok(staged) = swap::probe(&[place], id) {
            staged.finish()?;
        }
    }
    // Nobody may take it up again while it is being removed.
    pending::forget(&host.sysroot)?;
    deployment.has_booted(originals)
}

fn waiting_for_shutdown(id: &DeploymentId) -> Verdict {
    Verdict::Unfinished(format!("{} was staged before this boot, and is finalized at the next shutdown", id.short()))
}

fn unfinished(id: &DeploymentId, how: &str) -> Verdict {
    Verdict::Unfinished(format!("the finalization of {} {how}; it is tried again at the next shutdown", id.short()))
}
