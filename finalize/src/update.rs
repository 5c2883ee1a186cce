//! An update under way: what is written and in which order, and how it is taken back.
//!
//! Everything is durable before what depends on it is begun: the merged /etc before it is put in place, that and the
//! staged entries before the exchange, the exchange before anything is deleted.

use anyhow::{Context, Error, Result};

use crate::{
    boot::{
        self, Place,
        swap::{Durable, Failed, Staged, Undo},
    },
    config::Config,
    deployment::{Deployment, Placing},
    digest::DeploymentId,
    etc::Merge,
    host::{Host, place},
    pending,
    record::{Outcome, Progress, Step},
    stop::Stop,
    sys,
};

/// A staged deployment, and where the boot loader will find it.
#[derive(Debug)]
pub struct Update<'a> {
    host: &'a Host,
    /// The settings.
    pub config: Config,
    /// The deployment.
    pub staged: Deployment,
    places: Vec<Place>,
}

/// What a run has done so far, and can take back.
#[derive(Debug, Default)]
struct Done<'a> {
    placing: Option<Placing<'a>>,
    undo: Option<Undo>,
}

impl<'a> Update<'a> {
    /// Finds everything that the update of `host` to deployment `id` takes. Writes nothing.
    ///
    /// What may pass, a device that is busy or slow to appear, is looked for again (`[finalize] retry-attempts`).
    ///
    /// # Errors
    ///
    /// When the deployment is not complete, or a file system with boot entries is not to be had.
    pub fn find(host: &'a Host, id: &DeploymentId, config: Config, stop: &Stop) -> Result<Self> {
        let staged = Deployment::open(&host.sysroot, id)?;
        let places = match config.update_boot {
            true => stop.patiently(config.retry_attempts, || place::find(host, staged.origin.boot_type))?,
            false => vec![],
        };
        Ok(Self { host, config, staged, places })
    }

    /// Where the exchange stands at each place, and that what will boot is there and right. Writes nothing.
    ///
    /// # Errors
    ///
    /// As [`boot::probe`].
    pub fn probe(&self) -> Result<Staged> {
        let probed = boot::probe(&self.places, &self.staged.id, self.staged.origin.boot_digest.as_deref());
        probed.map_err(|error| self.not_finalized(error))
    }

    /// From the first write until the new deployment is what boots, whatever happens. After an error what this run has
    /// done is taken back, if so configured.
    ///
    /// # Errors
    ///
    /// What could not be written, and [`crate::stop::Stopped`] before the exchange has begun; with what boots next.
    pub fn write(
        &self,
        staged: Staged,
        merge: Option<&Merge<'_>>,
        stop: &Stop,
        progress: &mut Progress,
    ) -> Result<Durable> {
        let untouched = staged.is_untouched();
        let mut done = Done::default();
        let written = self
            .write_etc(merge, &mut done.placing, (stop, progress))
            .and_then(|()| {
                stop.check()?;
                progress.step(Step::Exchange);
                Ok(staged.sync()?)
            })
            .and_then(|synced| {
                stop.check()?;
                let exchanged = synced.exchange().map_err(|failed| done.keep(failed))?;
                progress.step(Step::Settle);
                exchanged.settle().map_err(|failed| done.keep(failed))
            });
        written.map_err(|error| {
            if self.config.rollback_on_failure
                && let Err(why) = done.take_back(untouched)
            {
                progress.record.notes.push(format!("taking back what was done: {why:#}"));
            }
            self.not_finalized(error)
        })
    }

    /// Builds the merged /etc and puts it in place, durably.
    fn write_etc<'b>(
        &'b self,
        merge: Option<&Merge<'_>>,
        placing: &mut Option<Placing<'b>>,
        (stop, progress): (&Stop, &mut Progress),
    ) -> Result<()> {
        pending::remember(&self.host.sysroot, &self.staged.id)?;
        let Some(merge) = merge else { return Ok(()) };
        let placing = placing.insert(self.staged.begin_merge()?);
        let (merging, conflicts) = Deployment::MERGE;
        sys::space::check(&self.staged.state, merge.plan.bytes()).context("looking for room for etc.merging")?;
        let applied = merge.write(&self.staged.state, merging, conflicts, stop).context("building etc.merging")?;
        progress.applied(&applied);
        stop.check()?;
        progress.step(Step::Place);
        sys::sync::file_system(self.staged.state.open(".")?).context("syncing the merged /etc")?;
        placing.put(self.host.boot_id.as_deref())
    }

    /// Removes what is no longer needed, and writes the record.
    ///
    /// # Errors
    ///
    /// What could not be written or removed; another run, and the next boot, goes on.
    pub fn clean_up(&self, durable: Durable, progress: &mut Progress) -> Result<()> {
        let sysroot = &self.host.sysroot;
        progress.record.keep_original = self.config.backup_original;
        progress.record.write(sysroot)?;
        durable.clean_up()?;
        pending::forget(sysroot)?;
        self.staged.remove_rubbish().context("removing what the merge has left")?;
        progress.step(Step::Done);
        progress.end(Outcome::Finalized).write(sysroot)
    }

    /// What boots next after `error`, by what the boot entries say.
    pub fn not_finalized(&self, error: Error) -> Error {
        let first = |place: &Place| Ok(place.deployments()?.into_iter().next());
        let next = match self.places.iter().map(first).collect::<Result<Vec<_>>>() {
            Ok(first) if first.iter().flatten().all(|id| *id != self.staged.id) => {
                "the old deployment boots next".into()
            }
            Ok(first) if first.iter().flatten().all(|id| *id == self.staged.id) => "but it boots next".to_owned(),
            Ok(_) => "which deployment boots next depends on the disk that is started".to_owned(),
            Err(why) => format!("which deployment boots next is not known ({why:#})"),
        };
        error.context(format!("{} was not finalized, {next}", self.staged.id.short()))
    }
}

impl Done<'_> {
    /// A transition has failed: what it knows of going back is kept.
    fn keep(&mut self, failed: Failed) -> Error {
        self.undo = Some(failed.undo);
        failed.error
    }

    /// The boot entries first: no entry may name the deployment while its /etc is not in place. Where an earlier run had
    /// exchanged some of them, the merged /etc stays.
    fn take_back(self, untouched: bool) -> Result<()> {
        self.undo.map_or(Ok(()), Undo::take_back)?;
        match self.placing {
            Some(placing) if untouched => placing.take_back(),
            _ => Ok(()),
        }
    }
}
