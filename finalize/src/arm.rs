//! What happens at boot: an update that a crash interrupted is resumed, and the last finalization is judged by what booted.

use std::fmt;

use anyhow::Result;
use jiff::Timestamp;

use crate::{
    boot::swap,
    config::Config,
    deployment::{Deployment, Originals},
    digest::DeploymentId,
    failed::{self, Failed},
    host::{Host, place},
    layout::MARKER,
    lock::Lock,
    pending::{self, Reminder, Waiting},
    record::{Durably, Ending, NextBoot, Record},
    staged::Marker,
    stop::Stop,
    trial,
};

/// What [`arm`] found.
#[derive(Debug)]
pub enum Armed {
    /// No update is waiting.
    Nothing,
    /// The marker is there, or was restored with its lock.
    Marked(Marker),
    /// The marker was restored.
    Resumed(DeploymentId),
    /// Somebody has removed the marker in this boot: the update is forgotten.
    Cancelled(DeploymentId),
    /// The deployment or the entries that staged it are gone, and how; the update is forgotten.
    Forgotten(DeploymentId, anyhow::Error),
    /// The boot loader has given the deployment up; the update is forgotten.
    Failed(Failed),
    /// Nobody can tell whether the deployment is still staged, and why.
    Unknown(DeploymentId, anyhow::Error),
}

impl fmt::Display for Armed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing is staged"),
            Self::Marked(marker) => f.write_str(&staged(marker)),
            Self::Resumed(id) => write!(f, "resumed update {}, staged before the last restart", id.short()),
            Self::Cancelled(id) => write!(f, "forgot update {}: its marker was removed", id.short()),
            Self::Forgotten(id, why) => {
                write!(f, "forgot update {}, staged before the last restart: no longer staged: {why:#}", id.short())
            }
            Self::Failed(failed) => write!(f, "forgot update {}: {failed}", failed.deployment.short()),
            Self::Unknown(id, why) => {
                write!(f, "did not resume update {}, staged before the last restart: {why:#}; ", id.short())?;
                f.write_str("the next boot tries again")
            }
        }
    }
}

impl Armed {
    /// Whether a person should look.
    pub fn is_warning(&self) -> bool {
        matches!(self, Self::Forgotten(..) | Self::Failed(_) | Self::Unknown(..))
    }
}

/// Restores the marker from `state/finalize/staged.json` where there is no marker, the deployment is complete and not the
/// booted one, and entries stage it. Writes down the marker where there is one, with its lock.
///
/// # Errors
///
/// Those of reading and writing; a malformed file names itself.
pub fn arm(host: &Host, stop: &Stop) -> Result<Armed> {
    // A boot must not fail because of what counts boots.
    if let Err(error) = trial::begin(host) {
        tracing::warn!("whether this boot is counted is not known: {error:#}");
    }
    if host.marker()?.is_none() && pending::remembered(&host.sysroot)?.is_none() {
        return pending::remove(host, MARKER).map(|()| Armed::Nothing);
    }
    let _lock = Lock::take(&host.sysroot, stop)?;
    match Waiting::find(host)? {
        Waiting::Staged(marker) => {
            pending::remember(host, &marker)?;
            return Ok(Armed::Marked(marker));
        }
        Waiting::Cancelled(id) => return pending::drop_all(host).map(|()| Armed::Cancelled(id)),
        // A marker of the booted deployment is left over from a soft reboot.
        Waiting::Nothing | Waiting::Again(_) => pending::remove(host, MARKER)?,
    }
    let reminded = pending::remembered(&host.sysroot)?.map(|marker| marker.depl_id);
    if let Some(failed) = reminded.and_then(|id| failed::of_or_warn(&host.sysroot, &id)) {
        pending::drop_all(host)?;
        return Ok(Armed::Failed(failed));
    }
    Ok(match Reminder::find(host, &host.config(&mut vec![]), stop)? {
        // `report` does what is left to do for the booted deployment.
        Reminder::Nothing | Reminder::Booted => Armed::Nothing,
        Reminder::Staged(marker) => {
            pending::resume(host, &marker)?;
            if marker.finalization_locked { Armed::Marked(marker) } else { Armed::Resumed(marker.depl_id) }
        }
        Reminder::Gone(id, why) => {
            pending::drop_all(host)?;
            Armed::Forgotten(id, why)
        }
        Reminder::Unknown(id, why) => Armed::Unknown(id, why),
    })
}

/// A sentence about a deployment that waits for a shutdown.
fn staged(marker: &Marker) -> String {
    let id = marker.depl_id.short();
    match marker.finalization_locked {
        true => format!("update {id} is staged but locked; it waits until it is unlocked"),
        false => format!("update {id} is staged; the next shutdown finalizes it"),
    }
}

/// What became of the last finalization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There was none, or it was judged before.
    Nothing,
    /// The deployment that was finalized has booted.
    Booted(DeploymentId),
    /// Another deployment than the finalized one has booted.
    NotBooted(DeploymentId),
    /// The deployment was finalized, and a rollback has chosen another one, which has booted.
    RolledBack(DeploymentId),
    /// The boot loader has given the finalized deployment up.
    FellBack(Failed),
    /// The deployment was finalized, and the machine has not been started by its boot loader since.
    NotRestarted(DeploymentId),
    /// The deployment has its merged /etc, and the boot entries are not ours to change.
    Merged(DeploymentId),
    /// A deployment is staged.
    Waiting(Marker),
    /// The finalization of the deployment did not come to its end.
    Unfinished {
        /// The deployment.
        id: DeploymentId,
        /// The step that was reached, and why no further.
        how: String,
        /// The marker, where the deployment is still staged.
        marker: Option<Marker>,
    },
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no finalization to report on"),
            Self::Booted(id) => write!(f, "the finalized deployment {} has booted", id.short()),
            Self::NotBooted(id) => {
                write!(f, "{} was finalized, but another deployment has booted: ", id.short())?;
                f.write_str("chosen in the menu, or the boot loader fell back")
            }
            Self::RolledBack(id) => {
                write!(
                    f,
                    "{} was finalized and then rolled back: the deployment that was chosen has booted",
                    id.short()
                )
            }
            Self::FellBack(failed) => write!(f, "the boot loader has gone back to the deployment before: {failed}"),
            Self::NotRestarted(id) => {
                write!(f, "{} was finalized and boots at the next full reboot; a soft reboot ", id.short())?;
                f.write_str("does not start the boot loader")
            }
            Self::Merged(id) => {
                write!(f, "{} has its merged /etc, and another deployment has booted: ", id.short())?;
                f.write_str("the boot entries are left alone ([boot] update = false in config.toml)")
            }
            Self::Waiting(marker) => f.write_str(&staged(marker)),
            Self::Unfinished { id, how, marker } => {
                write!(f, "the finalization of {} {how}; ", id.short())?;
                f.write_str(match marker {
                    Some(marker) if marker.finalization_locked => {
                        "the update is locked, and waits until it is unlocked"
                    }
                    Some(_) => "it is tried again at the next shutdown",
                    None => "the update is no longer staged: stage it again",
                })
            }
        }
    }
}

/// What [`report`] found, and what it could not do.
#[derive(Debug)]
pub struct Report {
    /// What became of the last finalization.
    pub verdict: Verdict,
    /// What the next boot tries again.
    pub left: Vec<anyhow::Error>,
}

/// Compares the record with what booted, and writes into it what was found. Once the finalized deployment has booted, what a
/// power cut has left undone is done, and its original /etc is no longer needed.
///
/// # Errors
///
/// Those of reading and writing. Then the next boot reports again.
pub fn report(host: &Host, stop: &Stop) -> Result<Report> {
    let _lock = Lock::take(&host.sysroot, stop)?;
    let booted = &host.booted.id;
    let mut left = vec![];
    // What could not be found out when this boot began perhaps can now: a boot that is good must be found good.
    if let Err(error) = trial::begin(host) {
        left.push(error.context("looking whether this boot is counted"));
    }
    let mut record = Record::read(&host.sysroot).unwrap_or_else(|error| {
        left.push(error);
        None
    });
    let reminded = pending::remembered(&host.sysroot)?.is_some_and(|marker| marker.depl_id == *booted);
    let is_of_booted = record.as_ref().is_some_and(|record| record.to.as_ref() == Some(booted));
    let told = record.as_ref().and_then(|record| record.next_boot.as_ref()).map(|next| next.booted.clone());
    let fallen = trial::fallen(host).unwrap_or_else(|error| {
        left.push(error.context("looking whether the boot loader has given a deployment up"));
        None
    });
    if let Some(fallen) = fallen {
        fall_back(host, record, &fallen)?;
        if let Err(error) = finish(host, false, false) {
            left.push(error);
        }
        return Ok(Report { verdict: Verdict::FellBack(fallen), left });
    }
    let verdict = match &record {
        _ if reminded || is_of_booted && told.as_ref() != Some(booted) => Verdict::Booted(booted.clone()),
        Some(record) if told.is_none() => judge(host, record)?,
        _ => host.marker()?.map_or(Verdict::Nothing, Verdict::Waiting),
    };
    let keeps = record.as_ref().is_some_and(|record| is_of_booted && record.keep_original);
    if let Err(error) = finish(host, keeps, reminded || matches!(verdict, Verdict::Booted(_))) {
        left.push(error.context(format!("cleaning up after the update to {}", booted.short())));
    }
    // The boot loader has not been asked yet, so this is not what became of it.
    if let Some(record) = record.as_mut().filter(|_| !matches!(verdict, Verdict::NotRestarted(_)))
        && told.as_ref() != Some(booted)
        && (told.is_none() || is_of_booted)
    {
        if is_of_booted {
            record.outcome = Ending::Finalized;
        }
        record.next_boot = Some(NextBoot { booted: booted.clone(), at: Timestamp::now() });
        record.write(&host.sysroot, Durably::Name)?;
    }
    Ok(Report { verdict, left })
}

/// Writes down, durably and in this order: the deployment is not taken again, what became of the finalization, and that nothing
/// is counted any more.
fn fall_back(host: &Host, record: Option<Record>, fallen: &Failed) -> Result<()> {
    failed::add(&host.sysroot, fallen)?;
    if let Some(mut record) = record.filter(|record| record.to.as_ref() == Some(&fallen.deployment)) {
        record.outcome = Ending::FellBack;
        record.next_boot = Some(NextBoot { booted: host.booted.id.clone(), at: Timestamp::now() });
        record.notes.push(fallen.to_string());
        record.write(&host.sysroot, Durably::Name)?;
    }
    trial::forget(&host.sysroot)
}

/// What `record`, which is of another deployment than the booted one and was not judged yet, came to.
fn judge(host: &Host, record: &Record) -> Result<Verdict> {
    let waiting = host.marker()?;
    let Some(to) = record.to.clone() else {
        return Ok(waiting.map_or(Verdict::Nothing, Verdict::Waiting));
    };
    Ok(match (&record.outcome, waiting) {
        (_, Some(marker)) if marker.depl_id != to => Verdict::Waiting(marker),
        (Ending::Finalized | Ending::Merged, None) if pending::met(host)?.as_ref() == Some(&to) => {
            Verdict::NotRestarted(to)
        }
        (Ending::Finalized, None) if record.next.as_ref() == Some(&host.booted.id) => Verdict::RolledBack(to),
        (Ending::Finalized, None) => Verdict::NotBooted(to),
        (Ending::Merged, None) => Verdict::Merged(to),
        (_, marker) => {
            let (step, why) = (record.step.name(), record.error.join(": "));
            let how =
                if why.is_empty() { format!("ended at step {step}") } else { format!("ended at step {step}: {why}") };
            Verdict::Unfinished { id: to, how, marker }
        }
    })
}

/// What is left to do for the booted deployment. Its reminder goes first: no later boot begins again with a directory that is
/// half deleted.
fn finish(host: &Host, keep: bool, entries_too: bool) -> Result<()> {
    let deployment = Deployment::open(&host.sysroot, &host.booted.id)?;
    let config: Config = host.config(&mut vec![]);
    let originals = if keep || config.backup_original { Originals::Keep } else { Originals::Remove };
    if entries_too {
        for place in place::find(host, deployment.origin.boot_type)? {
            // It may have been chosen in the menu while the entries are not exchanged yet: then nothing is left over.
            if let Ok(staged) = swap::probe(&[place], &host.booted.id) {
                staged.finish()?;
            }
        }
        pending::drop_all(host)?;
    }
    if entries_too || deployment.has_leftovers()? { deployment.has_booted(originals) } else { Ok(()) }
}
