//! A finalization under way: the clock, and the record that grows with it.
//!
//! The record is a value that is told what happened; the time that steps take, and the failpoints that count by steps, are
//! this module's.

use std::time::Instant;

use jiff::Timestamp;

use crate::{
    digest::DeploymentId,
    record::{Ending, Record, Step},
    sys,
};

/// A finalization under way.
#[derive(Debug)]
pub struct Progress {
    /// The record so far.
    pub record: Record,
    began: Instant,
    step: Step,
    step_began: Instant,
}

impl Progress {
    /// A finalization that begins now, on a machine booted into `from`.
    pub fn begin(from: DeploymentId) -> Self {
        let now = Instant::now();
        Self { record: Record::begin(from, Timestamp::now()), began: now, step: Step::Probe, step_began: now }
    }

    /// The next step begins.
    pub fn step(&mut self, step: Step) {
        *self.record.phases.entry(self.step.name().to_owned()).or_default() += millis(self.step_began);
        self.step_began = Instant::now();
        self.record.step = step.clone();
        sys::fault::step(step.name());
        self.step = step;
    }

    /// The finalization ends like this, or will have once the steps that are left are done.
    pub fn end(&mut self, ending: Ending) -> &Record {
        self.record.outcome = ending;
        self.stamp()
    }

    /// The record as of now.
    pub fn stamp(&mut self) -> &Record {
        self.record.finished = Timestamp::now();
        self.record.metrics.execution_time_ms = millis(self.began);
        &self.record
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
