//! Finalizes a staged composefs deployment at shutdown: merges /etc, then exchanges the boot entries.
//!
//! The whole story is [`finalize`]; everything below it either reads, decides, or writes one thing.

pub mod arm;
pub mod boot;
pub mod cli;
pub mod cmdline;
pub mod config;
pub mod deployment;
pub mod digest;
pub mod etc;
pub mod host;
pub mod journal;
pub mod layout;
pub mod lock;
pub mod next;
pub mod outcome;
pub mod pending;
pub mod progress;
pub mod record;
pub mod staged;
pub mod status;
pub mod stop;
pub mod sys;
pub mod update;

use std::os::fd::AsFd;

use anyhow::{Result, anyhow, bail};
use cap_std::fs::Dir;

use crate::{
    config::Config,
    deployment::Deployment,
    digest::DeploymentId,
    etc::{Merge, Sources, apply::Links, plan::Plan},
    host::{Access, Ambient, EtcMount, Host, Pristine},
    lock::{Lock, NotLocked},
    next::Next,
    outcome::{Failure, Outcome},
    pending::{Reminder, Waiting},
    progress::Progress,
    record::{Counts, Ending, Record, Step},
    staged::Marker,
    stop::{Limit, Stop},
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
        Err(error) => return fail(error, &mut progress, Next::Unknown(anyhow!("no physical root")), None),
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
    let before = Next::find(&host, progress.record.to.as_ref());
    let host = match host.into_writable() {
        Ok(host) => host,
        Err(error) => return fail(error, &mut progress, before, None),
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
    if let Some(Err(why)) = sysroot.map(|sysroot| progress.record.write(sysroot)) {
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
    let update = Update::find(host, &id, config, stop)?;
    if let Some(other) = update.next().id().filter(|next| **next != id && **next != host.booted.id) {
        let note = format!("the boot entries named {} as the next one: the update replaces this choice", other.short());
        progress.record.notes.push(note);
    }
    let told = run(host, &update, stop, progress);
    if told.is_err() || progress.record.outcome == Ending::Refused {
        let found = update.next();
        progress.record.next = found.id().cloned();
        *next = Some(found);
    }
    told?;
    if progress.record.outcome == Ending::Refused {
        progress.record.write(&host.sysroot)?;
    }
    Ok(Outcome::Recorded(Box::new(progress.record.clone())))
}

/// The story, from the first look to the last deletion.
fn run(host: &Host, update: &Update<'_>, stop: &Stop, progress: &mut Progress) -> Result<()> {
    let probed = update.probe()?;

    progress.step(Step::Merge);
    let trees = EtcTrees::open(host, &update.staged, &update.config, &mut progress.record.notes)?;
    let mut merge = trees.as_ref().map(|trees| Merge::plan(trees.sources(), &update.config.policy)).transpose()?;
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
    let etc::plan::Counts { image, local, converged, merged, conflicts } = plan.counts();
    record.counts = Counts { image, local, converged, merged, conflicts };
    record.conflicts = plan.conflicts().map(|(path, _)| path.to_string()).collect();
    record.notes.extend(plan.notes.iter().cloned());
    record.skipped = plan.skipped.iter().map(ToString::to_string).collect();
    record.metrics.files_processed = plan.steps.len() as u64 + plan.quiet.followed;
    record.metrics.merge_operations = record.metrics.files_processed - image;
    record.error.extend(plan.refusals());
}

/// The three trees of a machine.
#[derive(Debug)]
struct EtcTrees {
    pristine: Pristine,
    current: Dir,
    new: Dir,
}

impl EtcTrees {
    /// The trees to merge; nothing where there is nothing to merge, with a note that says why.
    fn open(host: &Host, staged: &Deployment, config: &Config, notes: &mut Vec<String>) -> Result<Option<Self>> {
        let current = host.etc()?;
        match host.etc_mount(&current)? {
            _ if !config.merge_etc => {
                notes.push("the configuration says not to merge /etc".to_owned());
                return Ok(None);
            }
            EtcMount::Bind => {}
            EtcMount::Transient => {
                notes.push("/etc is transient: local changes vanish, nothing was merged".to_owned());
                return Ok(None);
            }
            EtcMount::Overlay => bail!(
                "/etc is an overlay (mount = \"overlay\" in [etc] of setup-root-conf.toml), which is not supported: \
                 set mount = \"bind\" in the image"
            ),
        }
        Ok(Some(Self { pristine: host.pristine()?, current, new: staged.new_etc()? }))
    }

    fn sources(&self) -> Sources<'_> {
        Sources {
            pristine: self.pristine.etc.as_ref().map(AsFd::as_fd),
            current: self.current.as_fd(),
            new: self.new.as_fd(),
        }
    }
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
