//! `run`: an image as a machine, for as long as one looks at it.

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use anyhow::Result;
use clap::Args;

use super::{boot::say, own::Typed};
use crate::{
    own::containerfile::Source,
    vm::{Show, Vm},
    workshop::Workshop,
};

/// The machine as typed.
#[derive(Debug, Args)]
pub struct Run {
    /// The image, as `build` takes it, or a directory with a Containerfile
    image: Source,
    #[command(flatten)]
    machine: Typed,
}

impl Run {
    /// Runs it until it is off; nothing of it is left then.
    ///
    /// # Errors
    ///
    /// Those of building the disk, and of QEMU.
    pub fn run(self, workshop: &Workshop) -> Result<ExitCode> {
        let is_terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let show = if is_terminal { Show::Interactive } else { Show::Terminal };
        let own = self.machine.make(self.image, None, (show, workshop))?;
        let mut vm = Vm::start(&own.machine)?;
        say(&vm.accel);
        let mut notes = std::io::stderr();
        if is_terminal {
            _ = writeln!(notes, "the console is here, and root is logged in on it; Ctrl-A X ends the machine");
        }
        if let Some(ready) = vm.wait_ready(own.machine.ssh, |_| true)? {
            _ = write!(notes, "\r\n{ready}\r\n{}\r\n", own.ssh());
            vm.wait_off()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
