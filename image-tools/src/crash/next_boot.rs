//! The recording of a first boot: the machine lost its power in the middle of the finalization, and loses it again.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail};

use super::{
    Recording, Session,
    case::Case,
    judge::{Memory, Verdict},
    log, machine,
};
use crate::{
    sparse,
    vm::{Machine, Vm},
};

/// Where the recording of the shutdown is, in the directory of that of the boot.
pub const SHUTDOWN: &str = "shutdown";

impl Recording {
    /// Records the shutdown, and then the boot after the earliest power cut that leaves the new deployment to boot.
    pub(super) fn of_next_boot(dir: &Path, session: &Session) -> Result<Self> {
        let shutdown = Self::of_shutdown(&dir.join(SHUTDOWN), session, None)?;
        let cut = shutdown.first_new().context("looking for the earliest power cut after which the update boots")?;
        let [base, last, writes] = ["base.raw", "final.raw", "writes.log"].map(|name| dir.join(name));
        shutdown.disk(&cut, &base)?;
        sparse::copy(&base, &last)?;
        _ = fs::remove_file(&writes);
        let mut vm = Vm::start(&Machine { write_log: Some(writes.clone()), ..machine(&last, dir, session) })?;
        vm.wait_for("The machine is ready.").with_context(|| format!("booting after the power cut {cut}"))?;
        vm.power_down()?;
        let shutdown = Some(Box::new(shutdown));
        Self { dir: dir.to_owned(), log: log(dir)?, mark: 0, shutdown, end: None }.noted()
    }

    /// The earliest moment after which the new deployment boots; before it, the old one does.
    fn first_new(&self) -> Result<Case> {
        let judge = self.judge()?;
        let dir = tempfile::tempdir()?;
        let (mut disk, mut memory) = (self.scratch(&judge, dir.path())?, Memory::default());
        let at = |moment| Case { moment, chance: None };
        let (mut old, mut new) = (self.mark, self.log.entries.len());
        while new - old > 1 {
            let middle = old + (new - old) / 2;
            disk.apply(&self.log, self.mark, &at(middle))?;
            match judge.judge(&disk, &mut memory)? {
                Verdict::Old => old = middle,
                Verdict::New => new = middle,
                Verdict::Broken(why) => bail!("the power cut {middle} breaks the machine already: {why}"),
            }
            disk.undo()?;
        }
        Ok(at(new))
    }
}
