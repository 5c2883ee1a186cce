//! Finalizes a staged composefs deployment at shutdown: merges /etc, then exchanges the boot entries.
//!
//! The whole story is [`finalize`]; everything below it either reads, decides, or writes one thing.

pub(crate) mod arm;
pub mod boot;
pub mod cli;
pub mod cmdline;
pub mod config;
pub(crate) mod counts;
pub(crate) mod deployment;
pub mod digest;
pub mod etc;
pub mod failed;
pub(crate) mod gc;
pub mod host;
pub mod journal;
pub mod layout;
pub(crate) mod lock;
pub(crate) mod next;
pub(crate) mod outcome;
pub(crate) mod outlook;
pub(crate) mod pending;
pub(crate) mod pin;
pub(crate) mod prepare;
pub(crate) mod progress;
pub(crate) mod record;
pub mod rollback;
pub(crate) mod soft;
pub mod staged;
pub mod staging;
pub(crate) mod status;
pub mod stop;
pub mod sys;
pub(crate) mod trees;
pub(crate) mod trial;
pub mod unstage;
pub(crate) mod update;

use std::{panic::resume_unwind, thread};

use anyhow::Result;
use cap_std::fs::Dir;

use crate::{
    deployment::Deployment,
    digest::DeploymentId,
    etc::{Merge, apply::Links, plan::Plan},
    host::{Access, Ambient, Host},
    lock::{Lock, NotLocked},
    next::Next,
    outcome::{Failure, Outcome},
    pending::{Reminder, Waiting},
    prepare::Prepared,
    progress::Progress,
    record::{Durably, Ending, Record, Step},
    staged::Marker,
    stop::{Limit, Stop},
    trees::EtcTrees,
    update::Update,
};

/// Finalizes the staged deployment of the machine behind `ambient`.
///
/// Stopped at any instant, the machine boots: the old deployment with its own /etc, or the new one with the merged one.
/// Run again, it goes on where it was stopped.
pub fn finalize(ambient: &Ambient, stop: &mut Stop) -> Outcome {
    let booted = match host::booted_id(ambient) {
        Ok(booted) => booted,
        Err(error) => return Outcome::Failed(Failure { record: None, error: error.context(UNCHANGED) }),
    };
    let mut progress = Progress::begin(booted);
    let host = match Host::open(ambient, Access::Read) {
        Ok(host) => host,
        Err(error) => return fail(error, &mut progress, Next::Unknown(anyhow::anyhow!("no physical root")), None),
    };
    let waiting = match Waiting::find(&host) {
        // Somebody may look without leaving a trace.
        Ok(Waiting::Nothing) => return Outcome::NothingStaged,
        Ok(Waiting::Staged(Marker { finalization_locked: true, depl_id })) if !is_reminded(&host, &depl_id) => {
            return Outcome::Locked(depl_id);
        }
        other => other,
    };
    let mut next = None;
    if let Ok(Waiting::Staged(Marker { depl_id: id, .. }) | Waiting::Again(Marker { depl_id: id, .. })) = &waiting {
        progress.record.to = Some(id.clone());
    }
    let host = match host.into_writable() {
        Ok(host) => host,
        Err(error) => {
            let looked = Host::open(ambient, Access::Read).map(|host| Next::find(&host, progress.record.to.as_ref()));
            return fail(error, &mut progress, looked.unwrap_or_else(Next::Unknown), None);
        }
    };
    match waiting.and_then(|_| locked(&host, stop, &mut progress, &mut next)) {
        Ok(outcome) => outcome,
        Err(error) => {
            let next = next.unwrap_or_else(|| Next::find(&host, progress.record.to.as_ref()));
            fail(error, &mut progress, next, Some(&host.sysroot))
        }
    }
}

/// Says, and where there is a `sysroot` writes down, that a finalization failed, and what boots next.
fn fail(error: anyhow::Error, progress: &mut Progress, next: Next, sysroot: Option<&Dir>) -> Outcome {
    let error = error.context(next.after_failure(&progress.record));
    progress.record.next = next.id().cloned();
    progress.record.error = error.chain().map(ToString::to_string).collect();
    progress.end(Ending::Failed);
    // The record on the disk is that of the run that has the lock.
    let sysroot = sysroot.filter(|_| !matches!(next, Next::Undecided));
    if let Some(Err(why)) = sysroot.map(|sysroot| progress.record.write(sysroot, Durably::Name)) {
        tracing::warn!("{why:#}");
    }
    Outcome::Failed(Failure { record: Some(Box::new(progress.record.clone())), error })
}

const UNCHANGED: &str = "no update was finalized, what boots next is unchanged";

/// Whether the disk remembers the deployment as staged.
fn is_reminded(host: &Host, id: &DeploymentId) -> bool {
    pending::remembered(&host.sysroot).is_ok_and(|marker| marker.is_some_and(|marker| marker.depl_id == *id))
}

/// The same with the lock: what is waiting now is what counts.
fn locked(host: &Host, stop: &mut Stop, progress: &mut Progress, next: &mut Option<Next>) -> Result<Outcome> {
    let config = host.config(&mut progress.record.notes);
    stop.set_deadline(Limit::Configured(config.timeout_seconds));
    let lock = Lock::take(&host.sysroot, stop);
    if matches!(lock, Err(NotLocked::Busy(_))) {
        *next = Some(Next::Undecided);
    }
    let _lock = lock?;
    let id = match Waiting::find(host)? {
        Waiting::Nothing => return Ok(Outcome::NothingStaged),
        Waiting::Cancelled(id) => return pending::drop_all(host).map(|()| Outcome::Cancelled(id)),
        Waiting::Staged(marker) if marker.finalization_locked => {
            pending::remember(host, &marker)?;
            return Ok(Outcome::Locked(marker.depl_id));
        }
        Waiting::Staged(marker) => marker.depl_id,
        Waiting::Again(marker) => match Reminder::judge(host, marker.clone(), &config, stop) {
            // Finalized by this boot, and undone by somebody since.
            Reminder::Gone(..) => return Ok(Outcome::NothingStaged),
            _ => marker.depl_id,
        },
    };
    progress.record.to = Some(id.clone());
    if let Some(failed) = failed::of_or_warn(&host.sysroot, &id) {
        progress.record.error.push(failed.to_string());
        progress.record.next = Next::find(host, Some(&id)).id().cloned();
        progress.end(Ending::Refused);
        progress.record.write(&host.sysroot, Durably::Name)?;
        return Ok(Outcome::Recorded(Box::new(progress.record.clone())));
    }
    let staged = Deployment::open(&host.sysroot, &id)?;
    // What was done ahead is used once: from here on it may be changed.
    let prepared = Prepared::take(host, &id, &config).unwrap_or_default();
    let trees = EtcTrees::open(host, &staged, &config, &mut progress.record.notes)?;
    let plan = || trees.as_ref().map(|trees| Merge::plan_after(trees.sources(), &config.policy, prepared.etc, stop));
    // What needs the boot file system and what needs /etc do not wait for each other.
    let (update, merge) = thread::scope(|scope| {
        let merge = scope.spawn(|| plan().transpose());
        let update = Update::find(host, staged, config.clone(), stop);
        (update, merge.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    let update = update?.knowing(prepared.boots);
    if let Some(other) = update.first().id().filter(|next| **next != id && **next != host.booted.id) {
        let note = format!("the boot entries named {} as the next one: the update replaces this choice", other.short());
        progress.record.notes.push(note);
    }
    let told = run(&update, merge, stop, progress);
    if told.is_err() || progress.record.outcome == Ending::Refused {
        let found = update.next();
        progress.record.next = found.id().cloned();
        *next = Some(found);
    }
    told?;
    if progress.record.outcome == Ending::Refused {
        progress.record.write(&host.sysroot, Durably::Name)?;
    }
    Ok(Outcome::Recorded(Box::new(progress.record.clone())))
}

/// The story, from the first look to the last deletion.
fn run(update: &Update<'_>, planned: Result<Option<Merge<'_>>>, stop: &Stop, progress: &mut Progress) -> Result<()> {
    let probed = update.probe(stop)?;

    progress.step(Step::Merge);
    let mut merge = planned?;
    if let Some(merge) = merge.as_mut().filter(|_| update.config.backup_original) {
        merge.links = Links::Copy;
    }
    if let Some(merge) = &merge {
        take_down(&merge.plan, &mut progress.record);
        if !merge.plan.refused.is_empty() {
            progress.end(Ending::Refused);
            return Ok(());
        }
    }
    let durable = update.write(probed, merge.as_ref(), stop, progress)?;

    // From here on the new deployment boots: what fails now is no failure of the finalization.
    progress.step(Step::CleanUp);
    progress.record.next = update.config.update_boot.then(|| update.staged.id.clone());
    progress.end(if update.config.update_boot { Ending::Finalized } else { Ending::Merged });
    if let Err(error) = update.clean_up(durable, progress) {
        progress.record.notes.push(format!("clean-up did not complete; the next boot completes it: {error:#}"));
    }
    Ok(())
}

/// Writes into `record` what `plan` will do.
fn take_down(plan: &Plan, record: &mut Record) {
    record.counts = plan.counts();
    record.conflicts = plan.conflicts().map(|(path, _)| path.to_string()).collect();
    record.notes.extend(plan.notes.iter().cloned());
    record.skipped = plan.skipped.iter().map(ToString::to_string).collect();
    record.metrics.files_processed = plan.steps.len() as u64 + plan.quiet.followed;
    record.metrics.merge_operations = record.metrics.files_processed - record.counts.image;
    record.error.extend(plan.refusals());
}

/// What a finalization would do to /etc.
#[derive(Debug)]
pub enum Preview<'a> {
    /// The merge, planned.
    Merge(&'a Merge<'a>),
    /// Nothing: a word for programs, and a line for people.
    Nothing(&'static str, String),
}

/// Hands what a finalization would do to /etc to `show`, once; writes nothing.
///
/// # Errors
///
/// Those of reading, and those of `show`.
pub fn preview(host: &Host, marker: &Marker, show: &mut dyn FnMut(Preview<'_>) -> Result<()>) -> Result<()> {
    let staged = Deployment::open(&host.sysroot, &marker.depl_id)?;
    let config = host.config(&mut vec![]);
    let mut notes = vec![];
    let Some(trees) = EtcTrees::open(host, &staged, &config, &mut notes)? else {
        let reason = if config.merge_etc { "transient-etc" } else { "merge-disabled" };
        return show(Preview::Nothing(reason, notes.join("; ")));
    };
    show(Preview::Merge(&Merge::plan(trees.sources(), &config.policy)?))
}
