//! Power cuts: a machine is watched while it finalizes and shuts down, or while a program changes its deployments; every write
//! and flush of its disk is logged, and then each disk that a power cut could have left behind is made and judged.
//!
//! A recording is a directory: `base.raw`, the disk when that began; `writes.log`; `final.raw`, the disk when it was over; `recording.json`. Nothing else is needed to try any power cut again. The recording of a next boot
//! ([`Watched::NextBoot`]) has the recording of the shutdown before that boot in its directory `shutdown`.

pub mod case;
pub mod crowd;
mod deployed;
pub mod etc;
pub mod eyes;
pub mod judge;
pub mod log;
mod next_boot;
pub mod proof;
pub mod scratch;
mod staged;

use std::{
    fs,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tracing::info_span;
use tracing_indicatif::{span_ext::IndicatifSpanExt, style::ProgressStyle};

use self::{
    case::Case,
    judge::{Judge, Memory, Verdict},
    log::Log,
    proof::{Cuts, Enough, Proof},
    scratch::{ForGrub, Scratch},
};
use crate::{
    arch::Arch,
    inspect::{self, table},
    sparse,
    vm::{Asks, Changes, Firmware, Machine, Network, Panic, Show, Vm, accel::Asked},
};

/// The disk when the recording began, in its directory.
pub const BASE: &str = "base.raw";

/// How many power cuts a thread tries in a row: what it has seen of one serves the next, which differs by a write.
const STRETCH: usize = 16;

/// Which part of a machine's life is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// The finalization, and the shutdown that it is a part of.
    Shutdown,
    /// The first boot of the new deployment, with its report, and the shutdown after it. The disk is the one that the
    /// earliest power cut during the finalization leaves behind with which the new deployment boots: the report has all of
    /// the clean-up to do.
    NextBoot,
    /// A program of the host that has the running machine stage an update, or change the order of its entries. When it ends, all
    /// that it has done must be on the disk.
    Program(PathBuf),
}

/// How a machine is recorded.
#[derive(Debug)]
pub struct Session {
    /// What is recorded of it.
    pub watched: Watched,
    /// The kind of machine.
    pub arch: &'static Arch,
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
    /// A port that the guest reaches, see [`Machine::reach`].
    pub reach: Option<u16>,
    /// What edits the running machine; it must leave everything on the disk (sync). Then the power button is pressed.
    pub program: Vec<String>,
    /// What runs the machine.
    pub accel: Asked,
    /// How long each of its lives may take.
    pub timeout: Option<Duration>,
}

/// A machine that was watched.
#[derive(Debug)]
pub struct Recording {
    dir: PathBuf,
    log: Log,
    /// How many entries of the log came before the power button was pressed; none where the log begins with a boot.
    mark: usize,
    /// For a recording of a next boot: that of the shutdown before it.
    shutdown: Option<Box<Recording>>,
    /// For that of a program: how many entries of the log there were when it had ended. There are no others.
    end: Option<usize>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Notes {
    mark: usize,
    end: Option<usize>,
}

impl Recording {
    /// Boots a copy of the disk, or goes on with the machine that was saved on it; runs the program, presses the power
    /// button, and keeps what happened in `dir`. Then, if so wanted, the same of the next boot.
    ///
    /// # Errors
    ///
    /// When the machine does not boot, the program fails, or `dir` cannot be written.
    pub fn make(dir: &Path, session: &Session) -> Result<Self> {
        match &session.watched {
            Watched::Shutdown => Self::of_shutdown(dir, session, None),
            Watched::NextBoot => Self::of_next_boot(dir, session),
            Watched::Program(program) => Self::of_shutdown(dir, session, Some(program)),
        }
    }

    /// Records the shutdown, or the program before it.
    fn of_shutdown(dir: &Path, session: &Session, watched: Option<&Path>) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
        let [base, last, writes] = [BASE, "final.raw", "writes.log"].map(|name| dir.join(name));
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
        let run = |vm: &mut Vm, program: &Path, arguments: &[String]| -> Result<u64> {
            let status = vm.run(program, arguments, &machine, &[])?;
            ensure!(status.success(), "{} failed ({status})", program.display());
            Ok(fs::metadata(&writes)?.len())
        };
        let mut began = fs::metadata(&writes)?.len();
        if let Some((program, arguments)) = session.program.split_first() {
            began = run(&mut vm, program.as_ref(), arguments)?;
        }
        let ended = watched.map(|program| run(&mut vm, program, &[])).transpose()?;
        vm.power_down()?;
        let mut log = log(dir)?;
        let mark = log.within(began);
        let end = ended.map(|size| log.within(size));
        log.entries.truncate(end.unwrap_or(usize::MAX));
        ensure!(mark < log.entries.len(), "the machine has written nothing while it was watched: see its console");
        repeat(&log, 0, &Case { moment: mark, chance: None }, &base)?;
        if end.is_some() {
            sparse::copy(&base, &last)?;
            repeat(&log, mark, &Case { moment: log.entries.len(), chance: None }, &last)?;
        }
        Self { dir: dir.to_owned(), log, mark, shutdown: None, end }.noted()
    }

    /// Writes down what `open` needs to know besides the log.
    fn noted(self) -> Result<Self> {
        let notes = self.dir.join("recording.json");
        let text = serde_json::to_string(&Notes { mark: self.mark, end: self.end })?;
        fs::write(&notes, text).with_context(|| format!("writing {}", notes.display()))?;
        Ok(self)
    }

    /// A recording that was made before.
    ///
    /// # Errors
    ///
    /// When it is not complete.
    pub fn open(dir: &Path) -> Result<Self> {
        let notes = dir.join("recording.json");
        let text = fs::read_to_string(&notes).with_context(|| format!("reading {}", notes.display()))?;
        let Notes { mark, end } =
            serde_json::from_str(&text).with_context(|| format!("reading {}", notes.display()))?;
        let mut log = log(dir)?;
        log.entries.truncate(end.unwrap_or(usize::MAX));
        ensure!(mark <= log.entries.len(), "{} does not belong to its log", notes.display());
        let shutdown = dir.join(next_boot::SHUTDOWN);
        let shutdown = shutdown.exists().then(|| Self::open(&shutdown).map(Box::new)).transpose()?;
        Ok(Self { dir: dir.to_owned(), log, mark, shutdown, end })
    }

    fn judge(&self) -> Result<Judge> {
        let [base, last] = [BASE, "final.raw"].map(|name| self.dir.join(name));
        let judge = match &self.shutdown {
            None if self.end.is_some() => Judge::of_program(&base, &last)?,
            None => Judge::learn(&base, &last)?,
            Some(shutdown) => shutdown.judge()?.at_next_boot(&base, &last)?,
        };
        let (name, kernels) = judge.kernels();
        let mut kernels = kernels.cloned().collect::<Vec<_>>().into_iter();
        let start = table::read(&base)?.into_iter().find(|partition| partition.name == name).map(|found| found.start);
        let start = start.with_context(|| format!("the disk has no partition {name}"))?;
        let writes = |kernel: Range<u64>| {
            let overlaps =
                |entry: &log::Entry| entry.at < start + kernel.end && start + kernel.start < entry.at + entry.length;
            self.log.entries[self.mark..].iter().any(overlaps)
        };
        ensure!(!kernels.any(writes), "something has written to a kernel while the machine was watched");
        Ok(judge)
    }

    /// Partitions to try power cuts on, in the directory `dir`.
    fn scratch(&self, judge: &Judge, dir: &Path) -> Result<Scratch> {
        Scratch::copy(&self.dir.join(BASE), dir, &judge.for_grub)
    }

    /// The disk after a power cut, in a file.
    fn disk(&self, case: &Case, path: &Path) -> Result<()> {
        sparse::copy(&self.dir.join(BASE), path)?;
        repeat(&self.log, self.mark, case, path)
    }

    /// Tries the power cuts of `cuts`, with as many threads as there are processors, until there are no more or they are
    /// enough. Each thread has a disk of its own among the temporary files (`TMPDIR`), which are best in memory.
    ///
    /// # Errors
    ///
    /// When the machine did not finalize, or a disk cannot be made or looked at.
    pub fn prove(&self, cuts: Cuts) -> Result<Proof> {
        let judge = self.judge()?;
        let mut cases = Case::draw(&self.log.entries, self.mark, cuts);
        if let Some(moment) = self.end {
            // What has ended is on the disk, whatever was not flushed.
            cases.extend((0..3).map(|n| Case { moment, chance: Some(cuts.seed.wrapping_add(n)) }));
        }
        let is_enough = AtomicBool::new(false);
        let (next, step) = (AtomicUsize::new(0), info_span!(target: "image_tools::step", "power cuts"));
        step.pb_set_style(&ProgressStyle::with_template("{span_name} {wide_bar} {pos}/{len}")?);
        step.pb_set_length(cases.len() as u64);
        let _step = step.enter();
        let tried = Mutex::new(vec![]);
        let work = &|| -> Result<()> {
            let dir = tempfile::tempdir()?;
            let (mut disk, mut memory) = (self.scratch(&judge, dir.path())?, Memory::default());
            while let Some(cases) = cases.chunks(STRETCH).nth(next.fetch_add(1, Ordering::Relaxed)) {
                for case in cases {
                    if is_enough.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    disk.apply(&self.log, self.mark, case)?;
                    let verdict = self.verdict(&judge, &disk, case, &mut memory)?;
                    disk.undo()?;
                    if cuts.enough == Enough::OneBroken && matches!(verdict, Verdict::Broken(_)) {
                        is_enough.store(true, Ordering::Relaxed);
                    }
                    tried.lock().unwrap_or_else(PoisonError::into_inner).push((*case, verdict));
                    step.pb_inc(1);
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
        let mut tried = tried.into_inner().unwrap_or_else(PoisonError::into_inner);
        tried.sort_by_key(|(case, _)| (case.chance.is_some(), case.moment, case.chance));
        let later = &self.log.entries[self.mark..];
        let flushes = later.iter().filter(|entry| entry.kind == log::Kind::Flush).count();
        Ok(Proof { tried, entries: (later.len() - flushes, flushes), seed: cuts.seed })
    }

    /// What the disk is after a power cut.
    fn verdict(&self, judge: &Judge, disk: &Scratch, case: &Case, memory: &mut Memory) -> Result<Verdict> {
        Ok(match judge.judge(disk, memory)? {
            Verdict::Old if self.end == Some(case.moment) => {
                Verdict::Broken("the program had ended, and what it has done is not on the disk".to_owned())
            }
            verdict => verdict,
        })
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
        let verdict = self.verdict(&judge, &disk, case, &mut Memory::default())?;
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
        let status = vm.run(look, &[expected.to_string()], &machine, &[])?;
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

/// What was written to the disk of a recording.
fn log(dir: &Path) -> Result<Log> {
    let base = dir.join(BASE);
    let all = table::read(&base)?.into_iter().map(|partition| inspect::ext4::superblock(&base, partition.start));
    let superblocks: Vec<_> = all.filter_map(Result::transpose).collect::<Result<_>>()?;
    Log::open(&dir.join("writes.log"), &superblocks)
}

/// Repeats the writes of a power cut, behind the first `mark` entries of the log, on a disk.
fn repeat(log: &Log, mark: usize, case: &Case, disk: &Path) -> Result<()> {
    let file = fs::File::options().write(true).open(disk).with_context(|| format!("opening {}", disk.display()))?;
    scratch::writes(log, mark, case, &mut |_, at, bytes| Ok(file.write_all_at(bytes, at)?))
}

fn machine(disk: &Path, dir: &Path, session: &Session) -> Machine {
    Machine {
        arch: session.arch,
        disk: disk.to_owned(),
        changes: Changes::Keep,
        write_log: None,
        vars: None,
        firmware: Firmware::Open,
        log: dir.join("console.log"),
        show: Show::Nothing,
        ssh: session.ssh,
        authorized_key: session.authorized_key.clone(),
        reach: session.reach,
        network: Network::Restricted,
        asks: Asks::Nothing,
        panic: Panic::Ends,
        resume: None,
        accel: session.accel.clone(),
        timeout: session.timeout,
        monitor: None,
        memory: 1024,
        processors: 1,
    }
}
