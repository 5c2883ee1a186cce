//! An update under way: what is written and in which order, and how it is taken back.
//!
//! Everything is durable before what depends on it is begun: the merged /etc before it is put in place, that and the
//! staged entries before the exchange, the exchange before anything is deleted.

use anyhow::{Context, Error, Result};

use crate::{
    boot::{
        self, Checked, Place, Probed,
        order::Pinned,
        swap::{Durable, Failed, Staged, Undo},
    },
    config::Config,
    deployment::{Deployment, Placing},
    etc::{Merge, apply::Applied},
    host::{Host, menu, pins, place},
    next::Next,
    pending,
    progress::Progress,
    record::{Durably, Record, Step},
    staged::Marker,
    stop::Stop,
    sys, trial,
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
    /// Files that will boot, and were checked before.
    known: Vec<Checked>,
}

/// What a run has done so far, and can take back.
#[derive(Debug, Default)]
struct Done<'a> {
    placing: Option<Placing<'a>>,
    undo: Option<Undo>,
}

impl<'a> Update<'a> {
    /// Finds everything that the update of `host` to the deployment `staged` takes. Writes nothing.
    ///
    /// What may pass, a device that is busy or slow to appear, is looked for again (`[finalize] retry-attempts`).
    ///
    /// # Errors
    ///
    /// When a file system with boot entries is not to be had.
    pub fn find(host: &'a Host, staged: Deployment, config: Config, stop: &Stop) -> Result<Self> {
        let places = match config.update_boot {
            true => stop.patiently(config.retry_attempts, || place::find(host, staged.origin.boot_type))?,
            false => vec![],
        };
        Ok(Self { host, config, staged, places, known: vec![] })
    }

    /// The same, with files that need no second check.
    pub fn knowing(self, known: Vec<Checked>) -> Self {
        Self { known, ..self }
    }

    /// Where the exchange stands at each place, and that what will boot is there and right. Writes nothing.
    ///
    /// # Errors
    ///
    /// As [`boot::probe`].
    pub fn probe(&self, stop: &Stop) -> Result<Staged> {
        self.look(stop).map(|probed| probed.staged)
    }

    fn look(&self, stop: &Stop) -> Result<Probed> {
        let digest = self.staged.origin.boot_digest.as_deref();
        boot::probe(&self.places, &boot::Wanted { id: &self.staged.id, digest, stop }, &self.known)
    }

    /// The same ahead of time: what somebody else has staged is on the disk before it is looked at.
    ///
    /// # Errors
    ///
    /// As [`boot::probe`], and those of syncfs(2).
    pub fn probe_ahead(&self, stop: &Stop) -> Result<Vec<Checked>> {
        for place in &self.places {
            sys::sync::file_system(place.root().open(".")?).context("syncing the boot file system")?;
        }
        Ok(self.look(stop)?.checked)
    }

    /// What pins another entry than the first one, and stays when the update is finalized.
    ///
    /// # Errors
    ///
    /// As [`menu::decision`].
    pub fn pinned(&self) -> Result<Option<Pinned>> {
        let pinned = menu::decision(self.host, &self.places)?.and_then(|decision| decision.pinned);
        Ok(pinned.filter(|pinned| !pinned.names_ours && !self.config.unpin))
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
        let mut staged = staged;
        let mut done = Done::default();
        let written = self
            .write_etc(merge, &mut done.placing, stop, progress)
            .and_then(|()| {
                stop.check()?;
                progress.step(Step::Exchange);
                progress.record.notes.extend(trial::arm(self.host, &self.staged.id, &self.config, &mut staged)?);
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
        stop: &Stop,
        progress: &mut Progress,
    ) -> Result<()> {
        pending::remember(self.host, &Marker { depl_id: self.staged.id.clone(), finalization_locked: false })?;
        let Some(merge) = merge else { return Ok(()) };
        let placing = placing.insert(self.staged.begin_merge(true)?);
        let applied = self.build(merge, stop, &mut progress.record)?;
        progress.record.bytes_copied = applied.bytes_copied;
        progress.record.notes.extend(applied.said());
        stop.check()?;
        progress.step(Step::Place);
        placing.put(self.host.boot_id.as_deref())
    }

    /// Builds `etc.merging`: corrects the one that was made ahead, where there is one and that can be done, or makes a new one.
    fn build(&self, merge: &Merge<'_>, stop: &Stop, record: &mut Record) -> Result<Applied> {
        let state = &self.staged.state;
        let (merging, conflicts) = Deployment::MERGE;
        match merge.correct(state, merging, stop) {
            Ok(Some(applied)) => return Ok(applied),
            Ok(None) => {}
            Err(error) => {
                stop.check()?;
                record.notes.push(format!("what was merged ahead could not be used: {error:#}"));
            }
        }
        self.staged.remove_rubbish().context("removing an earlier etc.merging")?;
        sys::space::check(state, merge.plan.bytes()).context("looking for room for etc.merging")?;
        merge.write(state, merging, conflicts, stop).context("building etc.merging")
    }

    /// Removes what is no longer needed, and writes the record.
    ///
    /// # Errors
    ///
    /// What could not be written or removed; another run, and the next boot, goes on.
    pub fn clean_up(&self, durable: Durable, progress: &mut Progress) -> Result<()> {
        let sysroot = &self.host.sysroot;
        progress.record.keep_original = self.config.backup_original;
        progress.record.write(sysroot, Durably::Content)?;
        match self.config.update_boot {
            true => pending::done(self.host)?,
            // Whoever changes the entries may want the marker.
            false => pending::forget(sysroot)?,
        }
        durable.clean_up()?;
        self.look_at_pins(&mut progress.record);
        self.staged.remove_rubbish().context("removing what the merge has left")?;
        progress.step(Step::Done);
        progress.stamp().write(sysroot, Durably::Content)
    }

    /// Lets a pin follow to the new deployment, and writes down what starts next where something pins another one.
    fn look_at_pins(&self, record: &mut Record) {
        if let Err(error) = self.follow_pins(record) {
            record.notes.push(format!("whether something pins another boot entry is not known: {error:#}"));
        }
    }

    fn follow_pins(&self, record: &mut Record) -> Result<()> {
        let Some(mut decision) = menu::decision(self.host, &self.places)? else { return Ok(()) };
        match pins::follow(self.host, &decision, &self.staged.id, self.config.unpin) {
            Ok(None) => {}
            Ok(Some(followed)) => {
                record.notes.push(followed);
                let Some(after) = menu::decision(self.host, &self.places)? else { return Ok(()) };
                decision = after;
            }
            Err(error) => record.notes.push(format!("{error:#}")),
        }
        if let Some(why) = decision.why_not(&self.staged.id) {
            record.next = decision.deployment().cloned();
            record.notes.push(why);
        }
        Ok(())
    }

    /// What boots next.
    pub fn next(&self) -> Next {
        Next::of(self.host, &self.places)
    }

    /// What would boot next if nothing pinned another entry.
    pub fn first(&self) -> Next {
        Next::by_entries(&self.places)
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
        let boots = !update.places.is_empty() && update.first().may_be(&update.staged.id);
        match self.placing {
            Some(placing) if untouched && !boots => placing.take_back(),
            _ => Ok(()),
        }
    }
}
