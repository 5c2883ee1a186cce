//! The record of a finalization: what was done, how far it came, and what became of it at the next boot.
//!
//! Two files, each replaced atomically. `state/finalize/record.json` is root's: it names files of /etc, and some of these lie
//! in directories that only root may list. `state/finalize/summary.json` is the same record without names, for everybody.
//!
//! An older and a newer version of the program can follow each other: unknown keys are kept, missing ones have defaults, and
//! an unknown word for the outcome or the step is kept as it is.

use std::{collections::BTreeMap, fmt, io};

use anyhow::{Context, Result};
use cap_std::fs::Dir;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    counts::Counts,
    digest::DeploymentId,
    layout::{FINALIZE_STATE, RECORD, SUMMARY, name_of},
    sys,
};

/// The version of the format.
pub const SCHEMA: u32 = 1;

/// How a finalization ended, as the record says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The staged deployment boots next.
    Finalized,
    /// The staged deployment has the merged /etc; the boot entries are left to somebody else (`[boot] update = false`).
    Merged,
    /// Something failed; [`Record::error`] says what.
    Failed,
    /// A conflict is set to `fail`: this run has written nothing.
    Refused,
    /// The staged deployment was made to boot, and the boot loader has given it up since (`[boot] tries`).
    FellBack,
    /// The word of a newer version.
    #[serde(untagged)]
    Unknown(String),
}

/// The steps of a finalization, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Step {
    /// Find and check everything.
    Probe,
    /// Build the merged /etc aside.
    Merge,
    /// Put the merged /etc in place.
    Place,
    /// Exchange the boot entries.
    Exchange,
    /// Make the exchange durable, and read it back.
    Settle,
    /// Remove everything that is no longer needed.
    CleanUp,
    /// All steps are done.
    Done,
    /// The word of a newer version.
    #[serde(untagged)]
    Unknown(String),
}

impl Step {
    /// The step's name in a record.
    pub fn name(&self) -> &str {
        match self {
            Self::Probe => "probe",
            Self::Merge => "merge",
            Self::Place => "place",
            Self::Exchange => "exchange",
            Self::Settle => "settle",
            Self::CleanUp => "clean-up",
            Self::Done => "done",
            Self::Unknown(name) => name,
        }
    }

    /// Whether a finalization that ended at this step had perhaps changed the boot entries. An unknown step might.
    pub fn may_have_exchanged(&self) -> bool {
        !matches!(self, Self::Probe | Self::Merge | Self::Place)
    }
}

/// What the next boot found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextBoot {
    /// The deployment that booted.
    pub booted: DeploymentId,
    /// When `report` saw this.
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
    /// When the finalization began.
    pub started: Timestamp,
    /// When the finalization ended.
    pub finished: Timestamp,
    /// How the finalization ended.
    pub outcome: Ending,
    /// The step that was reached.
    pub step: Step,
    /// What the boot entries said would boot next when the finalization had ended, where they could be read and agreed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<DeploymentId>,
    /// The chain of errors, the outermost first; for [`Ending::Refused`] a line a conflict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub error: Vec<String>,
    /// What a person should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Paths of /etc, by why they are as they are.
    #[serde(default)]
    pub counts: Counts,
    /// Paths that both sides had changed in different ways.
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
    pub phases: BTreeMap<String, u64>,
    /// The metrics of the reference guide.
    #[serde(default)]
    pub metrics: Metrics,
    /// Whether the deployment's original /etc is to be kept after the deployment has booted.
    #[serde(default)]
    pub keep_original: bool,
    /// What the next boot found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_boot: Option<NextBoot>,
    /// The keys of a newer version, kept.
    #[serde(flatten)]
    pub other: BTreeMap<String, serde_json::Value>,
}

impl Record {
    /// A record of a finalization that began at `now`, on a machine booted into `from`.
    pub fn begin(from: DeploymentId, now: Timestamp) -> Self {
        Self {
            schema: SCHEMA,
            from,
            to: None,
            started: now,
            finished: now,
            outcome: Ending::Failed,
            step: Step::Probe,
            next: None,
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
            other: BTreeMap::new(),
        }
    }

    /// The record of the last finalization; for those who may not read it, the same without names.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is no record.
    pub fn read(sysroot: &Dir) -> Result<Option<Self>> {
        let (name, text) = match sys::file::read(sysroot, RECORD) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                (SUMMARY, sys::file::read(sysroot, SUMMARY))
            }
            other => (RECORD, other),
        };
        let Some(text) = text.with_context(|| format!("reading {name}"))? else { return Ok(None) };
        let record = serde_json::from_str(&text);
        record.map(Some).with_context(|| format!("reading {name}: not a record of a finalization: remove the file"))
    }

    /// Replaces the record and its summary, durably.
    ///
    /// # Errors
    ///
    /// Those of writing; then the old record is still there.
    pub fn write(&self, sysroot: &Dir, durably: Durably) -> Result<()> {
        let both = [(RECORD, 0o600, self), (SUMMARY, 0o644, &self.without_names())];
        let texts: Vec<_> = both
            .map(|(file, mode, record)| Ok((name_of(file), mode, format!("{:#}\n", serde_json::to_value(record)?))))
            .into_iter()
            .collect::<Result<_>>()?;
        let write = || {
            sys::file::create_dir_all(sysroot, FINALIZE_STATE)?;
            replace(&sysroot.open_dir(FINALIZE_STATE)?, &texts, durably)
        };
        write().with_context(|| format!("writing {RECORD}"))
    }

    /// The record for everybody: numbers, times and digests.
    fn without_names(&self) -> Self {
        let mut public = self.clone();
        let names = [&mut public.error, &mut public.notes, &mut public.conflicts, &mut public.skipped];
        if names.into_iter().flat_map(std::mem::take).count() > 0 {
            public.notes.push(format!("details: {RECORD}, readable by root"));
        }
        // Nobody knows what a newer version keeps there.
        public.other.clear();
        public
    }
}

/// How much of a record has to be on the disk before anything else is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durably {
    /// All of it: nothing comes after.
    Name,
    /// The content, before whatever is renamed or removed later: by the order of ext4's journal, on other file systems because
    /// it is synced.
    Content,
}

/// Writes files of these names in `dir`, each as a whole, with these permission bits from the beginning.
fn replace(dir: &Dir, texts: &[(&str, u32, String)], durably: Durably) -> io::Result<()> {
    let put = || -> io::Result<()> {
        let mut in_order = durably == Durably::Content;
        for (name, mode, text) in texts {
            let file = sys::file::write_aside(dir, name, *mode, text.as_bytes())?;
            in_order = in_order && sys::sync::keeps_order(file)?;
        }
        if !in_order {
            sys::sync::root(dir.open(".")?)?;
        }
        texts.iter().try_for_each(|(name, ..)| sys::file::put_aside(dir, name))
    };
    let done = put();
    if done.is_err() {
        texts.iter().for_each(|(name, ..)| sys::file::drop_aside(dir, name));
    }
    done?;
    if durably == Durably::Name { sys::sync::fsync(dir.open(".")?) } else { Ok(()) }
}

impl fmt::Display for Record {
    /// For people: the first line says how it ended and what boots next, the others give details.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = self.to.as_ref().map_or("the update", DeploymentId::short);
        match &self.outcome {
            Ending::Finalized => match &self.next {
                Some(next) if Some(next) == self.to.as_ref() => write!(f, "finalized {to}: it boots next")?,
                Some(next) => write!(f, "finalized {to}, but {} boots next", next.short())?,
                None => write!(f, "finalized {to}, but another boot entry starts next")?,
            },
            Ending::Merged => {
                write!(f, "merged /etc of {to}; boot entries left alone ([boot] update = false in config.toml)")?;
            }
            Ending::Refused => {
                let next = match &self.next {
                    Some(next) if Some(next) == self.to.as_ref() => "boots next as an earlier run left it",
                    Some(next) if *next == self.from => "not applied; the booted deployment boots next",
                    _ => "not applied; the boot entries are unchanged",
                };
                write!(f, "update {to}: {next}")?;
            }
            Ending::FellBack => {
                write!(f, "finalized {to}, but its boots failed: the deployment before it boots again")?
            }
            Ending::Failed => write!(f, "finalizing {to} failed at step {}", self.step.name())?,
            Ending::Unknown(word) => write!(f, "finalizing {to} ended with {word}, a word of a newer version")?,
        }
        if self.counts != Counts::default() {
            write!(f, "\n{}", self.counts)?;
        }
        let line = |path: &str| format!("/etc/{path}: conflict");
        for line in self.conflicts.iter().map(|path| line(path)) {
            // A conflict that refuses the update says so in its own line.
            if !self.error.iter().any(|error| error.starts_with(&line)) {
                write!(f, "\n  {line}")?;
            }
        }
        self.notes.iter().chain(&self.error).try_for_each(|line| write!(f, "\n  {line}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(change: impl Fn(&mut serde_json::Value)) -> Result<Record, serde_json::Error> {
        let from = "a".repeat(64).parse().unwrap();
        let mut json = serde_json::to_value(Record::begin(from, Timestamp::UNIX_EPOCH)).unwrap();
        change(&mut json);
        serde_json::from_value(json)
    }

    #[test]
    fn words_and_keys_of_a_newer_version_survive_the_round_trip() {
        let newer = |json: &mut serde_json::Value| {
            json["schema"] = 2.into();
            json["outcome"] = "postponed".into();
            json["step"] = "seal".into();
            json["phases"] = serde_json::json!({ "seal": 7, "probe": 1 });
            json["sealed_by"] = serde_json::json!({ "key": [1, 2] });
        };
        let read = record(newer).unwrap();
        assert_eq!(read.outcome, Ending::Unknown("postponed".to_owned()));
        assert_eq!((read.step.name(), read.phases["seal"]), ("seal", 7));
        let mut want = serde_json::to_value(record(|_| {}).unwrap()).unwrap();
        newer(&mut want);
        assert_eq!(serde_json::to_value(&read).unwrap(), want);
        assert!(read.to_string().contains("postponed"));
    }

    #[test]
    fn a_record_with_few_keys_is_a_record() {
        let bare = |json: &mut serde_json::Value| {
            let keep = ["schema", "from", "to", "started", "finished", "outcome", "step"];
            json.as_object_mut().unwrap().retain(|key, _| keep.contains(&key.as_str()));
        };
        assert_eq!(record(bare).unwrap(), record(|_| {}).unwrap());
    }

    #[test]
    fn the_summary_names_no_file() {
        let mut record = record(|_| {}).unwrap();
        record.conflicts = vec!["ssl/private/secret".to_owned()];
        record.skipped = vec!["secret.sock".to_owned()];
        record.error = vec!["reading /etc/secret".to_owned()];
        record.notes = vec!["/etc/secret changed".to_owned()];
        record.other.insert("new".to_owned(), "secret".into());
        let public = serde_json::to_string(&record.without_names()).unwrap();
        assert!(!public.contains("secret") && public.contains("readable by root"), "{public}");
    }
}
