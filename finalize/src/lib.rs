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
pub mod layout;
pub mod lock;
pub mod record;
pub mod staged;
pub mod status;
pub mod sys;

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};
use cap_std::fs::Dir;

use crate::{
    boot::place,
    config::Config,
    deployment::Deployment,
    digest::DeploymentId,
    etc::{Merge, Sources},
    host::{Access, Ambient, EtcMount, Host, Pristine},
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
    let config = host.config(&mut progress.record.notes);
    let staged = Deployment::open(&host.sysroot, id)?;
    let places = if config.update_boot { place::find(host, staged.origin.boot_type)? } else { vec![] };
    let probed = places.into_iter().map(|place| place.probe(id)).collect::<Result<Vec<_>>>()?;

    progress.step(Step::Merge);
    let trees = EtcTrees::open(host, &staged, &config, &mut progress.record.notes)?;
    let merge = trees.as_ref().map(|trees| Merge::plan(trees.sources(), &config.policy)).transpose()?;
    if let Some(merge) = &merge {
        progress.plan(&merge.plan);
        if !merge.plan.refused.is_empty() {
            return refuse(merge, progress, &host.sysroot);
        }
    }
    arm::remember(&host.sysroot, id)?;
    if let Some(merge) = &merge {
        let (merging, conflicts) = Deployment::MERGE;
        let applied = merge.write(&staged.state, merging, conflicts).context("building etc.merging")?;
        progress.applied(&applied);
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
    progress.record.keep_original = config.backup_original;
    progress.end(Outcome::Finalized).write(&host.sysroot)?;
    durable.into_iter().try_for_each(boot::swap::Durable::clean_up)?;
    staged.clean_up(deployment::Originals::Keep)?;
    arm::forget(&host.sysroot)?;

    progress.step(Step::Done);
    progress.end(Outcome::Finalized).write(&host.sysroot)?;
    Ok(Outcome::Finalized)
}

/// A conflict is set to `fail`: only the record is written.
fn refuse(merge: &Merge<'_>, progress: &mut Progress, sysroot: &Dir) -> Result<Outcome> {
    let refused = merge.plan.refused.iter().map(|path| format!("/etc/{path} is in conflict, and set to fail"));
    progress.record.error.extend(refused);
    progress.end(Outcome::Refused).write(sysroot)?;
    Ok(Outcome::Refused)
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

/// Hands the merge into the staged deployment to `show`; writes nothing. Without a merge, `show` is not called.
///
/// # Errors
///
/// Those of reading, and those of `show`.
pub fn preview(host: &Host, marker: &Marker, show: &mut dyn FnMut(&Merge<'_>) -> Result<()>) -> Result<()> {
    let staged = Deployment::open(&host.sysroot, &marker.depl_id)?;
    let mut notes = vec![];
    let config = host.config(&mut notes);
    match EtcTrees::open(host, &staged, &config, &mut notes)? {
        Some(trees) => show(&Merge::plan(trees.sources(), &config.policy)?),
        None => Ok(()),
    }
}
