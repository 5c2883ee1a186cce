//! Finalizes a staged composefs deployment at shutdown: merges /etc, then exchanges the boot entries.
//!
//! The whole story is [`finalize`]; everything below it either reads, decides, or writes one thing.

pub mod arm;
pub mod boot;
pub mod cli;
pub mod cmdline;
pub mod deployment;
pub mod digest;
pub mod etc;
pub mod host;
pub mod layout;
pub mod lock;
pub mod record;
pub mod staged;
pub mod status;
pub mod sys;

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};

use crate::{
    boot::place,
    deployment::Deployment,
    digest::DeploymentId,
    etc::{Merge, Sources, plan::Plan},
    host::{Access, Ambient, EtcMount, Host},
    lock::Lock,
    record::{Outcome, Progress, Record, Step},
    staged::Marker,
};

/// How a finalization ended.
#[derive(Debug)]
pub struct Finished {
    /// The record, where there was a machine to record for.
    pub record: Option<Record>,
    /// Whatever the outcome, an error means that the old deployment is what boots.
    pub result: Result<Outcome>,
}

/// Finalizes the staged deployment of the machine behind `ambient`.
///
/// Stopped at any instant, the machine boots: the old deployment with its own /etc, or the new one with the merged one.
/// Run again, it goes on where it was stopped.
pub fn finalize(ambient: &Ambient) -> Finished {
    let opened = Host::open(ambient, Access::Read).and_then(|host| Ok((host.marker()?, host.booted.id)));
    let (marker, booted) = match opened {
        Ok(found) => found,
        Err(error) => return Finished { record: None, result: Err(error) },
    };
    let mut progress = Progress::begin(booted);
    let outcome = match marker {
        None => Outcome::NothingStaged,
        Some(Marker { finalization_locked: true, depl_id }) => {
            progress.record.to = Some(depl_id);
            Outcome::Locked
        }
        Some(marker) => return finalize_staged(ambient, marker.depl_id, progress),
    };
    Finished { record: Some(progress.end(outcome).clone()), result: Ok(outcome) }
}

/// The same, and its record written whatever happens.
fn finalize_staged(ambient: &Ambient, id: DeploymentId, mut progress: Progress) -> Finished {
    progress.record.to = Some(id.clone());
    let host = Host::open(ambient, Access::Write);
    let result = host.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"));
    let result = result.and_then(|host| run(host, &id, &mut progress));
    if let Err(error) = &result {
        progress.record.error = error.chain().map(ToString::to_string).collect();
        progress.end(Outcome::Failed);
        if let Ok(host) = &host
            && let Err(error) = progress.record.write(&host.sysroot)
        {
            tracing::warn!("{error:#}");
        }
    }
    Finished { record: Some(progress.record), result }
}

/// The story, from the first look to the last deletion.
fn run(host: &Host, id: &DeploymentId, progress: &mut Progress) -> Result<Outcome> {
    let _lock = Lock::take(&host.sysroot)?;
    let staged = Deployment::open(&host.sysroot, id)?;
    let probed = place::find(host, staged.origin.boot_type)?.into_iter().map(|place| place.probe(id));
    let probed = probed.collect::<Result<Vec<_>>>()?;
    arm::remember(&host.sysroot, id)?;

    progress.step(Step::Merge);
    if merge_etc(host, &staged, progress)? {
        progress.step(Step::Place);
        sys::sync::file_system(staged.state.open(".")?).context("syncing the merged /etc")?;
        staged.put_merged()?;
    }

    progress.step(Step::Exchange);
    let synced = probed.into_iter().map(boot::swap::Probe::sync).collect::<Result<Vec<_>>>()?;
    let exchanged = synced.into_iter().map(boot::swap::Ready::exchange).collect::<Result<Vec<_>>>()?;

    progress.step(Step::Settle);
    let durable = exchanged.into_iter().map(boot::swap::Exchanged::settle).collect::<Result<Vec<_>>>()?;

    progress.step(Step::CleanUp);
    progress.end(Outcome::Finalized).write(&host.sysroot)?;
    durable.into_iter().try_for_each(boot::swap::Durable::clean_up)?;
    staged.clean_up(deployment::Originals::Keep)?;
    arm::forget(&host.sysroot)?;

    progress.step(Step::Done);
    progress.end(Outcome::Finalized).write(&host.sysroot)?;
    Ok(Outcome::Finalized)
}

/// Builds `etc.merging`; false where local changes are meant to vanish.
fn merge_etc(host: &Host, staged: &Deployment, progress: &mut Progress) -> Result<bool> {
    let current = host.etc()?;
    match host.etc_mount(&current)? {
        EtcMount::Bind => {}
        EtcMount::Transient => {
            progress.record.notes.push("/etc is transient: local changes vanish, nothing was merged".to_owned());
            return Ok(false);
        }
        EtcMount::Overlay => bail!(
            "/etc is an overlay (mount = \"overlay\" in [etc] of setup-root-conf.toml), which is not supported: \
             set mount = \"bind\" in the image"
        ),
    }
    let (pristine, new) = (host.pristine()?, staged.new_etc()?);
    let sources =
        Sources { pristine: pristine.etc.as_ref().map(AsFd::as_fd), current: current.as_fd(), new: new.as_fd() };
    let merge = Merge::plan(sources)?;
    let record = &mut progress.record;
    record.counts = merge.plan.counts();
    record.conflicts = merge.plan.conflicts().map(|(path, _)| path.to_string()).collect();
    record.notes.extend(merge.plan.notes.iter().cloned());
    record.skipped = merge.plan.skipped.iter().map(ToString::to_string).collect();
    record.metrics.files_processed = merge.plan.steps.len() as u64;
    record.metrics.merge_operations = record.metrics.files_processed - record.counts.image;
    let (merging, conflicts) = Deployment::MERGE;
    let applied = merge.write(&staged.state, merging, conflicts).context("building etc.merging")?;
    record.bytes_copied = applied.bytes_copied;
    let moved = applied.moved.iter().map(|path| format!("/etc/{path} changed while it was copied"));
    record.notes.extend(moved);
    Ok(true)
}

/// Hands the plan of the merge into the staged deployment to `show`; writes nothing.
///
/// # Errors
///
/// Those of reading, and those of `show`.
pub fn preview(host: &Host, marker: &Marker, show: &mut dyn FnMut(&Plan) -> Result<()>) -> Result<()> {
    let staged = Deployment::open(&host.sysroot, &marker.depl_id)?;
    let (current, pristine, new) = (host.etc()?, host.pristine()?, staged.new_etc()?);
    let sources =
        Sources { pristine: pristine.etc.as_ref().map(AsFd::as_fd), current: current.as_fd(), new: new.as_fd() };
    show(&Merge::plan(sources)?.plan)
}
