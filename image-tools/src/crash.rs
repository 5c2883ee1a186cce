//! Power cuts: a machine is watched while it finalizes and shuts down, every write and flush of its disk is logged, and
//! then each disk that a power cut could have left behind is made and judged.
//!
//! A recording is a directory: `base.raw`, the disk when the shutdown began; `writes.log`; `final.raw`, the disk when it
//! was over; `recording.json`. Nothing else is needed to try any power cut again.

pub mod case;
pub mod crowd;
pub mod etc;
pub mod eyes;
pub mod judge;
pub mod log;
pub mod scratch;

use std::{
    collections::BTreeMap,
    fmt, fs,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use indicatif::ProgressBar;
use serde::{Deserialize, Serialize};

use self::{
    case::Case,
    judge::{Judge, Memory, Verdict},
    log::Log,
    scratch::{ForGrub, Scratch},
};
use crate::{
    inspect::table,
    sparse,
    vm::{Changes, Machine, Show, Vm, accel::Wanted},
};

/// How many power cuts a thread tries in a row: what it has seen of one serves the next, which differs by a write.
const STRETCH: usize = 16;

/// How a machine is recorded.
#[derive(Debug)]
pub struct Session {
    /// A disk with a booted and a staged deployment; it is not changed.
    pub disk: PathBuf,
    /// The machine that was saved on it, which has booted already.
    pub resume: Option<PathBuf>,
    /// Whether its ESP is made awkward first, see [`crowd`]; for machines that have not booted.
    pub crowded: bool,
    /// The port of the loopback address that leads to the guest's ssh.
    pub ssh: Option<u16>,
    /// The public key that may log in as root.
    pub authorized_key: Option<PathBuf>,
    /// What edits the running machine; it must leave everything on the disk (sync). Then the power button is pressed.
    pub program: Vec<String>,
    /// What runs the machine.
    pub accel: Wanted,
    /// How long each of its lives may take.
    pub timeout: Option<Duration>,
}

/// A machine that was watched.
#[derive(Debug)]
pub struct Recording {
    dir: PathBuf,
    log: Log,
    /// How many entries of the log came before the power button was pressed.
    mark: usize,
}

#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    mark: usize,
}

/// Which power cuts to try.
#[derive(Debug, Clone, Copy)]
pub struct Cuts {
    /// How many random subsets of unflushed writes, besides every moment.
    pub random: usize,
    /// What they are made from.
    pub seed: u64,
    /// Of the moments every so many.
    pub every: usize,
}

/// What was tried, and what it came to.
#[derive(Debug)]
pub struct Proof {
    /// Every power cut.
    pub tried: Vec<(Case, Verdict)>,
    /// Writes and flushes of the shutdown.
    pub entries: (usize, usize),
}

impl Recording {
    /// Boots a copy of the disk, or goes on with the machine that was saved on it; runs the program, presses the power
    /// button, and keeps what happened in `dir`.
    ///
    /// # Errors
    ///
    /// When the machine does not boot, the program fails, or `dir` cannot be written.
    pub fn make(dir: &Path, session: &Session) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let [base, last, writes] = ["base.raw", "final.raw", "writes.log"].map(|name| dir.join(name));
        sparse::copy(&session.disk, &base)?;
        if session.crowded {
            crowd::crowd(&base)?;
        }
        sparse::copy(&base, &last)?;
        let resume = session.resume.clone();
        let machine = Machine { write_log: Some(writes.clone()), resume, ..machine(&last, dir, session) };
        let mut vm = Vm::start(&machine)?;
        if machine.resume.is_none() {
            vm.wait_for("The machine is ready.")?;
        }
        if let Some((program, arguments)) = session.program.split_first() {
            let status = vm.run(program.as_ref(), arguments, &machine)?;
            ensure!(status.success(), "{program} failed ({status})");
        }
        let size = fs::metadata(&writes)?.len();
        vm.power_down()?;
        let log = Log::open(&writes)?;
        let mark = log.within(size);
        repeat(&log, 0, &Case { moment: mark, chance: None }, &base)?;
        fs::write(dir.join("recording.json"), serde_json::to_string(&Notes { mark })?)?;
        Ok(Self { dir: dir.to_owned(), log, mark })
    }

    /// A recording that was made before.
    ///
    /// # Errors
    ///
    /// When it is not complete.
    pub fn open(dir: &Path) -> Result<Self> {
        let notes = dir.join("recording.json");
        let text = fs::read_to_string(&notes).with_context(|| format!("reading {}", notes.display()))?;
        let Notes { mark } = serde_json::from_str(&text).with_context(|| format!("reading {}", notes.display()))?;
        let log = Log::open(&dir.join("writes.log"))?;
        ensure!(mark <= log.entries.len(), "{} does not belong to its log", notes.display());
        Ok(Self { dir: dir.to_owned(), log, mark })
    }

    fn judge(&self) -> Result<Judge> {
        let base = self.dir.join("base.raw");
        let judge = Judge::learn(&base, &self.dir.join("final.raw"))?;
        let (name, kernels) = judge.kernels();
        let mut kernels = kernels.cloned().collect::<Vec<_>>().into_iter();
        let start = table::read(&base)?.into_iter().find(|partition| partition.name == name).map(|found| found.start);
        let start = start.with_context(|| format!("the disk has no partition {name}"))?;
        let writes = |kernel: Range<u64>| {
            let overlaps =
                |entry: &log::Entry| entry.at < start + kernel.end && start + kernel.start < entry.at + entry.length;
            self.log.entries[self.mark..].iter().any(overlaps)
        };
        ensure!(!kernels.any(writes), "something has written to a kernel while the machine shut down");
        Ok(judge)
    }

    /// Partitions to try power cuts on, in the directory `dir`.
    fn scratch(&self, judge: &Judge, dir: &Path) -> Result<Scratch> {
        Scratch::copy(&self.dir.join("base.raw"), dir, &judge.for_grub)
    }

    /// The disk after a power cut, in a file.
    fn disk(&self, case: &Case, path: &Path) -> Result<()> {
        sparse::copy(&self.dir.join("base.raw"), path)?;
        repeat(&self.log, self.mark, case, path)
    }

    /// Tries every power cut of `cuts`, with as many threads as there are processors. Each has a disk of its own among the
    /// temporary files (`TMPDIR`), which are best in memory.
    ///
    /// # Errors
    ///
    /// When the machine did not finalize, or a disk cannot be made or looked at.
    pub fn prove(&self, cuts: Cuts) -> Result<Proof> {
        let judge = self.judge()?;
        let mut cases = Case::all(&self.log.entries, self.mark, cuts.random, cuts.seed);
        cases.retain(|case| case.chance.is_some() || case.moment % cuts.every.max(1) == 0);
        let (next, bar) = (AtomicUsize::new(0), ProgressBar::new(cases.len() as u64));
        let tried = Mutex::new(vec![]);
        let work = &|| -> Result<()> {
            let dir = tempfile::tempdir()?;
            let (mut disk, mut memory) = (self.scratch(&judge, dir.path())?, Memory::default());
            while let Some(cases) = cases.chunks(STRETCH).nth(next.fetch_add(1, Ordering::Relaxed)) {
                for case in cases {
                    disk.apply(&self.log, self.mark, case)?;
                    let verdict = judge.judge(&disk, &mut memory)?;
                    disk.undo()?;
                    tried.lock().unwrap_or_else(PoisonError::into_inner).push((*case, verdict));
                    bar.inc(1);
                }
            }
            Ok(())
        };
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let running: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            running
                .into_iter()
                .try_for_each(|thread| thread.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?)
        })?;
        bar.finish_and_clear();
        let mut tried = tried.into_inner().unwrap_or_else(PoisonError::into_inner);
        tried.sort_by_key(|(case, _)| (case.chance.is_some(), case.moment, case.chance));
        let later = &self.log.entries[self.mark..];
        let flushes = later.iter().filter(|entry| entry.kind == log::Kind::Flush).count();
        Ok(Proof { tried, entries: (later.len() - flushes, flushes) })
    }

    /// Tries one power cut; the disk can be kept in `output`.
    ///
    /// # Errors
    ///
    /// As [`Recording::prove`].
    pub fn try_one(&self, case: &Case, output: Option<&Path>) -> Result<Verdict> {
        ensure!(case.moment <= self.log.entries.len(), "{case} is behind the end of the log");
        let judge = self.judge()?;
        let dir = tempfile::tempdir()?;
        let mut disk = self.scratch(&judge, dir.path())?;
        disk.apply(&self.log, self.mark, case)?;
        let verdict = judge.judge(&disk, &mut Memory::default())?;
        if let Some(output) = output {
            self.disk(case, output)?;
        }
        Ok(verdict)
    }

    /// Really boots the machine after a power cut, and lets it shut down again: what boots is what was judged, as
    /// `look` finds out (in the guest whose port is in `GUEST_PORT`; the deployment is in `EXPECTED`), and afterwards the
    /// new deployment is what boots.
    ///
    /// # Errors
    ///
    /// When anything of that is not so.
    pub fn boot(&self, case: &Case, session: &Session, look: &Path) -> Result<Verdict> {
        let judge = self.judge()?;
        let dir = tempfile::tempdir()?;
        let mut disk = self.scratch(&judge, dir.path())?;
        disk.apply(&self.log, self.mark, case)?;
        let verdict = judge.judge(&disk, &mut Memory::default())?;
        let expected = judge.deployment(&verdict).with_context(|| format!("{case} is {verdict}"))?;
        let path = dir.path().join("disk.raw");
        self.disk(case, &path)?;
        let machine = machine(&path, &self.dir, session);
        let mut vm = Vm::start(&machine)?;
        vm.wait_for("The machine is ready.").with_context(|| format!("booting after the power cut {case}"))?;
        let status = vm.run(look, &[expected.to_string()], &machine)?;
        ensure!(
            status.success(),
            "after the power cut {case}, which is {verdict}, {} failed ({status})",
            look.display()
        );
        vm.power_down()?;
        let after = judge.boots_first(&Scratch::copy(&path, dir.path(), &ForGrub::default())?)?;
        ensure!(after == Verdict::New, "after the power cut {case}, a boot and a shutdown, {after} boots");
        Ok(verdict)
    }
}

/// Repeats the writes of a power cut, behind the first `mark` entries of the log, on a disk.
fn repeat(log: &Log, mark: usize, case: &Case, disk: &Path) -> Result<()> {
    let file = fs::File::options().write(true).open(disk).with_context(|| format!("opening {}", disk.display()))?;
    scratch::writes(log, mark, case, &mut |_, at, bytes| Ok(file.write_all_at(bytes, at)?))
}

fn machine(disk: &Path, dir: &Path, session: &Session) -> Machine {
    Machine {
        disk: disk.to_owned(),
        changes: Changes::Keep,
        write_log: None,
        vars: None,
        log: dir.join("console.log"),
        show: Show::Nothing,
        ssh: session.ssh,
        authorized_key: session.authorized_key.clone(),
        resume: None,
        accel: session.accel,
        timeout: session.timeout,
        monitor: None,
        memory: 1024,
        processors: 1,
    }
}

impl Proof {
    /// The power cuts after which nothing boots, or not all of it.
    pub fn broken(&self) -> impl Iterator<Item = (&Case, &Verdict)> {
        self.tried.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Broken(_))).map(|(case, v)| (case, v))
    }

    /// So many power cuts, evenly from both outcomes.
    pub fn sample(&self, count: usize) -> Vec<Case> {
        let step = (self.tried.len() / count.max(1)).max(1);
        self.tried.iter().skip(step / 2).step_by(step).map(|(case, _)| *case).take(count).collect()
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = BTreeMap::from([("old", 0), ("new", 0), ("broken", 0)]);
        let mut random = 0;
        for (case, verdict) in &self.tried {
            random += usize::from(case.chance.is_some());
            let name = match verdict {
                Verdict::Old => "old",
                Verdict::New => "new",
                Verdict::Broken(_) => "broken",
            };
            *counts.entry(name).or_default() += 1;
        }
        let (writes, flushes) = self.entries;
        let moments = self.tried.len() - random;
        write!(f, "{writes} writes, {flushes} flushes; {moments} moments and {random} random subsets: ")?;
        write!(f, "{} old, {} new, {} broken", counts["old"], counts["new"], counts["broken"])
    }
}
