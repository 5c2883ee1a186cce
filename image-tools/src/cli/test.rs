//! `test`: an image is booted, updated if there is an update, and judged by a program.

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;

use super::{boot::say, own::Typed};
use crate::{own::containerfile::Source, vm::Show, workshop::Workshop};

/// The test as typed.
#[derive(Debug, Args)]
pub struct Test {
    /// The image, as `build` takes it, or a directory with a Containerfile
    image: Source,
    /// An update: staged from the first, finalized at a shutdown, and booted before PROGRAM is run
    #[arg(long, value_name = "IMAGE")]
    stage: Option<Source>,
    /// Show the console
    #[arg(long)]
    show: bool,
    #[command(flatten)]
    machine: Typed,
    /// What judges the machine: it finds the guest's ssh in GUEST_PORT, root's key in GUEST_KEY, and both in a command line,
    /// GUEST_SSH
    #[arg(last = true, required = true)]
    program: Vec<String>,
}

impl Test {
    /// Tests it; says what it has seen.
    ///
    /// # Errors
    ///
    /// What failed, with the console's last words.
    pub fn run(self, workshop: &Workshop, out: &mut dyn Write) -> Result<ExitCode> {
        let show = if self.show { Show::Terminal } else { Show::Nothing };
        let own = self.machine.make(self.image, self.stage, (show, workshop))?;
        let (mut vm, ready) = own.boot(&own.built.booted).context("the first boot")?;
        say(&vm.accel);
        writeln!(out, "booted {}: {ready}", own.built.booted.short())?;
        if let Some(update) = &own.built.staged {
            own.update(vm, update)?;
            let (second, ready) = own.boot(update).context("the boot after the update")?;
            writeln!(out, "updated to {}: {ready}", update.short())?;
            vm = second;
        }
        let (program, arguments) = self.program.split_first().context("there is no program")?;
        let status = vm.run(program.as_ref(), arguments, &own.machine, &own.environment())?;
        if !status.success() {
            return Err(vm.last_words(&format!("{program} failed ({status})")));
        }
        vm.power_down().context("shutting down after the test")?;
        writeln!(out, "passed: {program}")?;
        Ok(ExitCode::SUCCESS)
    }
}
