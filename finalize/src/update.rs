//! An update under way: what is written and in which order, and how it is taken back.
//!
//! Everything is durable before what depends on it is begun: the merged /etc before it is put in place, that and the
//! staged entries before the exchange, the exchange before anything is deleted.

use anyhow::{Context, Result};

use crate::{
    boot::{
        Place,
        swap::{self, Durable, Exchanged, Probe, Ready},
    },
    config::Config,
    deployment::{Deployment, Originals},
    digest::DeploymentId,
    etc::Merge,
    host::{Host, place},
    next::Next,
    pending,
    progress::Progress,
    record::Step,
    staged::Marker,
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
    /// Whether an earlier run had put a merged /etc in place already.
    was_merged: bool,
}

/// A place, and where the exchange stood when this run began.
#[derive(Debug)]
pub struct Probed(Vec<Probe>);

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
        let was_merged = staged.is_merged();
        Ok(Self { host, config, staged, places, was_merged })
    }

    /// Where the exchange stands at each place, and that what will boot is there and right. Writes nothing.
    ///
    /// # Errors
    ///
    /// As [`Place::probe`].
    pub fn probe(&self) -> Result<Probed> {
        let digest = self.staged.origin.boot_digest.as_deref();
        let probed = self.places.iter().map(|place| place.probe(&self.staged.id, digest));
        probed.collect::<Result<_>>().map(Probed)
    }

    /// From the first write until the new deployment is what boots, whatever happens.
    ///
    /// # Errors
    ///
    /// Those of writing, and [`crate::stop::Stopped`] before the exchange has begun.
    pub fn write(
        &self,
        Probed(probed): Probed,
        merge: Option<&Merge<'_>>,
        stop: &Stop,
        progress: &mut Progress,
    ) -> Result<Vec<Durable>> {
        pending::remember(self.host, &Marker { depl_id: self.staged.id.clone(), finalization_locked: false })?;
        if let Some(merge) = merge {
            let (merging, conflicts) = Deployment::MERGE;
            sys::space::check(&self.staged.state, merge.plan.bytes()).context("looking for room for etc.merging")?;
            let applied = merge.write(&self.staged.state, merging, conflicts, stop).context("building etc.merging")?;
            progress.record.bytes_copied = applied.bytes_copied;
            let moved = applied.moved.iter().map(|path| format!("/etc/{path} changed while it was copied"));
            progress.record.notes.extend(moved);
            stop.check()?;
            progress.step(Step::Place);
            sys::sync::file_system(self.staged.state.open(".")?).context("syncing the merged /etc")?;
            self.staged.put_merged()?;
        }
        stop.check()?;

        progress.step(Step::Exchange);
        let synced = probed.into_iter().map(Probe::sync).collect::<Result<Vec<_>>>()?;
        stop.check()?;
        let exchanged = synced.into_iter().map(Ready::exchange).collect::<Result<Vec<_>>>()?;

        progress.step(Step::Settle);
        exchanged.into_iter().map(Exchanged::settle).collect()
    }

    /// Removes what is no longer needed, and writes the record.
    ///
    /// # Errors
    ///
    /// Those of writing; another run, and the next boot, goes on.
    pub fn clean_up(&self, durable: Vec<Durable>, progress: &mut Progress) -> Result<()> {
        let sysroot = &self.host.sysroot;
        progress.record.keep_original = self.config.backup_original;
        progress.record.write(sysroot)?;
        match self.config.update_boot {
            true => pending::done(self.host)?,
            // Whoever changes the entries may want the marker.
            false => pending::forget(sysroot)?,
        }
        durable.into_iter().try_for_each(Durable::clean_up)?;
        self.staged.clean_up(Originals::Keep)?;
        progress.step(Step::Done);
        progress.stamp().write(sysroot)
    }

    /// Takes back what this run has done, if so configured.
    pub fn give_up(&self, progress: &mut Progress) {
        if self.config.rollback_on_failure
            && let Err(why) = self.take_back()
        {
            progress.record.notes.push(format!("taking back what was done: {why:#}"));
        }
    }

    /// What boots next.
    pub fn next(&self) -> Next {
        Next::of(&self.places)
    }

    /// The boot entries first: no entry may name the deployment while its /etc is not in place.
    fn take_back(&self) -> Result<()> {
        if self.was_merged {
            // An earlier run had come as far, or farther: what is there is whole.
            return Ok(());
        }
        self.places.iter().try_for_each(|place| swap::take_back(place, &self.staged.id))?;
        self.staged.take_back()
    }
}
