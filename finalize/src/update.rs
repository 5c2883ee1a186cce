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
    host::{Host, menu, pins, place},
    next::Next,
    pending,
    progress::Progress,
    record::{Record, Step},
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
        boot::probe(&self.places, &self.staged.id, self.staged.origin.boot_digest.as_deref())
    }

    /// From the first write until the new deployment is what boots, whatever happens. After an error what this run has
    /// done is taken back, if so configured.
    ///
    /// # Errors
    ///
    /// What could not be written, and [`crate::stop::Stopped`] before the exchange has begun.
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
                staged.sync()
            })
            .and_then(|synced| {
                stop.check()?;
                let exchanged = synced.exchange().map_err(|failed| done.keep(failed))?;
                progress.step(Step::Settle);
                exchanged.settle().map_err(|failed| done.keep(failed))
            });
        if written.is_err()
            && self.config.rollback_on_failure
            && let Err(why) = done.take_back(untouched, self)
        {
            progress.record.notes.push(format!("taking back what was done: {why:#}"));
        }
        written
    }

    /// Builds the merged /etc and puts it in place, durably.
    fn write_etc<'b>(
        &'b self,
        merge: Option<&Merge<'_>>,
        placing: &mut Option<Placing<'b>>,
        (stop, progress): (&Stop, &mut Progress),
    ) -> Result<()> {
        pending::remember(self.host, &Marker { depl_id: self.staged.id.clone(), finalization_locked: false })?;
        let Some(merge) = merge else { return Ok(()) };
        let placing = placing.insert(self.staged.begin_merge()?);
        let (merging, conflicts) = Deployment::MERGE;
        sys::space::check(&self.staged.state, merge.plan.bytes()).context("looking for room for etc.merging")?;
        let applied = merge.write(&self.staged.state, merging, conflicts, stop).context("building etc.merging")?;
        progress.record.bytes_copied = applied.bytes_copied;
        progress.record.notes.extend(applied.said());
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
        match self.config.update_boot {
            true => pending::done(self.host)?,
            // Whoever changes the entries may want the marker.
            false => pending::forget(sysroot)?,
        }
        durable.clean_up()?;
        self.look_at_pins(&mut progress.record);
        self.staged.remove_rubbish().context("removing what the merge has left")?;
        progress.step(Step::Done);
        progress.stamp().write(sysroot)
    }

    /// Lets a pin follow to the new deployment, and writes down what starts next where something pins another one.
    fn look_at_pins(&self, record: &mut Record) {
        let unknown =
            |error: anyhow::Error| format!("whether something pins another boot entry is not known: {error:#}");
        match menu::decision(self.host, &self.places) {
            Ok(Some(decision)) => match pins::follow(self.host, &decision, &self.staged.id, self.config.unpin) {
                Ok(followed) => record.notes.extend(followed),
                Err(error) => record.notes.push(format!("{error:#}")),
            },
            Ok(None) => return,
            Err(error) => return record.notes.push(unknown(error)),
        }
        match menu::decision(self.host, &self.places) {
            Ok(Some(decision)) => {
                if let Some(why) = decision.why_not(&self.staged.id) {
                    record.next = decision.deployment().cloned();
                    record.notes.push(why);
                }
            }
            Ok(None) => {}
            Err(error) => record.notes.push(unknown(error)),
        }
    }

    /// What boots next.
    pub fn next(&self) -> Next {
        Next::of(&self.places)
    }
}

impl Done<'_> {
    /// A transition has failed: what it knows of going back is kept.
    fn keep(&mut self, failed: Failed) -> Error {
        self.undo = Some(failed.undo);
        failed.error
    }

    /// The boot entries first: no entry may name the deployment while its /etc is not in place. Where an earlier run had
    /// exchanged some of them, or another program has in the meantime, the merged /etc stays.
    fn take_back(self, untouched: bool, update: &Update<'_>) -> Result<()> {
        self.undo.map_or(Ok(()), Undo::take_back)?;
        let boots = !update.places.is_empty() && update.next().may_be(&update.staged.id);
        match self.placing {
            Some(placing) if untouched && !boots => placing.take_back(),
            _ => Ok(()),
        }
    }
}
