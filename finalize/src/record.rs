//! The record of a finalization: what was done, how far it came, and what became of it at the next boot.
//!
//! `state/finalize/record.json`, replaced atomically, readable by everybody. Unknown keys are ignored, missing ones
//! have defaults, so that an older and a newer version can follow each other.

use std::{collections::BTreeMap, fmt, time::Instant};

use anyhow::{Context, Result};
use cap_std::fs::Dir;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    digest::DeploymentId,
    etc::{
        apply::Applied,
        plan::{Counts, Plan},
    },
    layout::{FINALIZE_STATE, RECORD},
    sys,
};

/// The version of the format.
pub const SCHEMA: u32 = 1;

/// How a finalization ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The staged deployment boots next.
    Finalized,
    /// There was nothing to do.
    NothingStaged,
    /// The staged deployment must not be finalized yet.
    Locked,
    /// The old deployment boots next.
    Failed,
    /// A conflict that is set to `fail`: nothing was written.
    Refused,
}

/// What a finalization does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Finds and checks everything.
    Probe,
    /// Builds the merged /etc aside.
    Merge,
    /// Puts it in place.
    Place,
    /// Exchanges the boot entries.
    Exchange,
    /// Makes the exchange durable, and reads it back.
    Settle,
    /// Removes what is no longer needed.
    CleanUp,
    /// All of it.
    Done,
}

impl Step {
    /// Its name in a record.
    pub fn name(self) -> &'static str {
        match self {
            Self::Probe => "probe",
            Self::Merge => "merge",
            Self::Place => "place",
            Self::Exchange => "exchange",
            Self::Settle => "settle",
            Self::CleanUp => "clean-up",
            Self::Done => "done",
        }
    }
}

/// What the next boot found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextBoot {
    /// The deployment that booted.
    pub booted: DeploymentId,
    /// When this was found out.
    pub at: Timestamp,
}

/// The metrics of the reference guide.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metrics {
    /// From the first look to the end.
    pub execution_time_ms: u64,
    /// Paths of the three trees.
    pub files_processed: u64,
    /// Paths that did not just follow the image.
    pub merge_operations: u64,
}

/// One finalization.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The deployment that was booted.
    pub from: DeploymentId,
    /// The staged one.
    pub to: Option<DeploymentId>,
    /// When it began.
    pub started: Timestamp,
    /// When it ended.
    pub finished: Timestamp,
    /// How it ended.
    pub outcome: Outcome,
    /// The step that was reached.
    pub step: Step,
    /// The chain of errors, the outermost first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub error: Vec<String>,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Paths of /etc, by why they are what they are.
    #[serde(default)]
    pub counts: Counts,
    /// Paths on which both sides had changed, and what is in place.
    #[serde(default)]
    pub conflicts: Vec<String>,
    /// Paths of sockets, fifos, devices and lock files, which are not carried.
    #[serde(default)]
    pub skipped: Vec<String>,
    /// Bytes of local files.
    #[serde(default)]
    pub bytes_copied: u64,
    /// Milliseconds a step.
    #[serde(default)]
    pub phases: BTreeMap<Step, u64>,
    /// The metrics of the reference guide.
    #[serde(default)]
    pub metrics: Metrics,
    /// Whether the deployment's original /etc is to be kept after it has booted.
    #[serde(default)]
    pub keep_original: bool,
    /// What the next boot found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_boot: Option<NextBoot>,
}

impl Record {
    /// The record of the last finalization.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is no record of this schema.
    pub fn read(sysroot: &Dir) -> Result<Option<Self>> {
        let Some(text) = sys::file::read(sysroot, RECORD).with_context(|| format!("reading {RECORD}"))? else {
            return Ok(None);
        };
        serde_json::from_str(&text).map(Some).with_context(|| format!("reading {RECORD}"))
    }

    /// Replaces the record, durably.
    ///
    /// # Errors
    ///
    /// Those of writing; then the old record is still there.
    pub fn write(&self, sysroot: &Dir) -> Result<()> {
        let text = format!("{:#}\n", serde_json::to_value(self)?);
        let write = || {
            sys::file::create_dir_all(sysroot, FINALIZE_STATE)?;
            let (dir, name) = RECORD.rsplit_once('/').unwrap_or((".", RECORD));
            sys::file::write_atomic(&sysroot.open_dir(dir)?, name, text.as_bytes())
        };
        write().with_context(|| format!("writing {RECORD}"))
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.to.as_ref().map(DeploymentId::short).unwrap_or_default();
        match self.outcome {
            Outcome::NothingStaged => return f.write_str("nothing is staged"),
            Outcome::Locked => return write!(f, "{to} is staged but locked: not finalized"),
            Outcome::Finalized => write!(f, "finalized {to}: it boots next")?,
            Outcome::Refused => write!(f, "refused to finalize {to}: nothing was written")?,
            Outcome::Failed => write!(f, "finalizing {to} failed at {:?}", self.step)?,
        }
        write!(f, "\n{}", self.counts)?;
        for line in self.notes.iter().chain(&self.conflicts).chain(&self.error) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

/// A finalization under way: the record so far, and the clock.
#[derive(Debug)]
pub struct Progress {
    /// The record so far.
    pub record: Record,
    began: Instant,
    step_began: Instant,
}

impl Progress {
    /// A finalization that begins now, on a machine booted into `from`.
    pub fn begin(from: DeploymentId) -> Self {
        let now = Timestamp::now();
        let record = Record {
            schema: SCHEMA,
            from,
            to: None,
            started: now,
            finished: now,
            outcome: Outcome::Failed,
            step: Step::Probe,
            error: vec![],
            notes: vec![],
            counts: Counts::default(),
            conflicts: vec![],
            skipped: vec![],
            bytes_copied: 0,
            phases: BTreeMap::new(),
            metrics: Metrics::default(),
            keep_original: false,
            next_boot: None,
        };
        Self { record, began: Instant::now(), step_began: Instant::now() }
    }

    /// The next step begins.
    pub fn step(&mut self, step: Step) {
        let spent = millis(self.step_began);
        *self.record.phases.entry(self.record.step).or_default() += spent;
        self.step_began = Instant::now();
        self.record.step = step;
        sys::fault::step(step.name());
    }

    /// What the merge will do.
    pub fn plan(&mut self, plan: &Plan) {
        let record = &mut self.record;
        record.counts = plan.counts();
        record.conflicts = plan.conflicts().map(|(path, _)| path.to_string()).collect();
        record.notes.extend(plan.notes.iter().cloned());
        record.skipped = plan.skipped.iter().map(ToString::to_string).collect();
        record.metrics.files_processed = plan.steps.len() as u64 + plan.quiet.followed;
        record.metrics.merge_operations = record.metrics.files_processed - record.counts.image;
    }

    /// What the merge did.
    pub fn applied(&mut self, applied: &Applied) {
        self.record.bytes_copied = applied.bytes_copied;
        let moved = applied.said();
        self.record.notes.extend(moved);
    }

    /// How it ended, or how it will have ended once what follows is done.
    pub fn end(&mut self, outcome: Outcome) -> &Record {
        self.record.outcome = outcome;
        self.record.finished = Timestamp::now();
        self.record.metrics.execution_time_ms = millis(self.began);
        &self.record
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
