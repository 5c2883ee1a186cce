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
pub mod pending;
pub mod record;
pub mod staged;
pub mod status;
pub mod stop;
pub mod sys;
pub mod update;

use std::os::fd::AsFd;

use anyhow::{Result, bail};
use cap_std::fs::Dir;

use crate::{
    config::Config,
    deployment::Deployment,
    digest::DeploymentId,
    etc::{Merge, Sources, apply::Links},
    host::{Access, Ambient, EtcMount, Host, Pristine},
    lock::Lock,
    record::{Outcome, Progress, Record, Step},
    staged::Marker,
    stop::Stop,
    update::Update,
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
pub fn finalize(ambient: &Ambient, stop: &mut Stop) -> Finished {
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
        Some(marker) => return finalize_staged(ambient, marker.depl_id, stop, progress),
    };
    Finished { record: Some(progress.end(outcome).clone()), result: Ok(outcome) }
}

/// The same, and its record written whatever happens.
fn finalize_staged(ambient: &Ambient, id: DeploymentId, stop: &mut Stop, mut progress: Progress) -> Finished {
    progress.record.to = Some(id.clone());
    let host = Host::open(ambient, Access::Write);
    let result = host.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"));
    let result = result.and_then(|host| run(host, &id, stop, &mut progress));
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
fn run(host: &Host, id: &DeploymentId, stop: &mut Stop, progress: &mut Progress) -> Result<Outcome> {
    let config = host.config(&mut progress.record.notes);
    stop.set_deadline(config.timeout_seconds);
    let _lock = Lock::take(&host.sysroot, stop)?;
    let update = Update::find(host, id, config, stop)?;
    let probed = update.probe()?;

    progress.step(Step::Merge);
    let trees = EtcTrees::open(host, &update.staged, &update.config, &mut progress.record.notes)
        .map_err(|error| update.not_finalized(error))?;
    let merge = trees.as_ref().map(|trees| Merge::plan(trees.sources(), &update.config.policy)).transpose();
    let mut merge = merge.map_err(|error| update.not_finalized(error))?;
    if let Some(merge) = merge.as_mut().filter(|_| update.config.backup_original) {
        merge.links = Links::Copy;
    }
    if let Some(merge) = &merge {
        progress.plan(&merge.plan);
        if !merge.plan.refused.is_empty() {
            return refuse(merge, progress, &host.sysroot);
        }
    }
    let durable = update.write(probed, merge.as_ref(), stop, progress)?;

    // From here on the new deployment boots: what fails now is no failure of the finalization.
    progress.step(Step::CleanUp);
    progress.end(Outcome::Finalized);
    if let Err(error) = update.clean_up(durable, progress) {
        progress.record.notes.push(format!("not cleaned up yet, the next boot does it: {error:#}"));
    }
    Ok(Outcome::Finalized)
}

/// A conflict is set to `fail`: only the record is written.
fn refuse(merge: &Merge<'_>, progress: &mut Progress, sysroot: &Dir) -> Result<Outcome> {
    progress.record.error.extend(merge.plan.refusals());
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
