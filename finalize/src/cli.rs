//! The command line as typed.

mod etc;
mod life;
mod report;

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::host::{Access, Ambient, Host};

/// Finalizes a staged composefs deployment: merges /etc, then makes the boot loader start it.
#[derive(Debug, Parser)]
#[command(version, about, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, or nothing to do; 1 failed, the message says what boots next; 2 usage; 3 refused, and nothing was changed";

#[derive(Debug, Subcommand)]
enum Command {
    /// Finalize the staged deployment; the main job, run at shutdown
    #[command(alias = "composefs-finalize-staged")]
    Staged {
        /// Print what would be done; write nothing
        #[arg(long)]
        dry_run: bool,
        /// Print the record as JSON
        #[arg(long)]
        json: bool,
        /// Start the staged deployment without the firmware and the kernel, which stays; finalize on the way
        #[arg(long)]
        soft_reboot: bool,
        #[command(flatten)]
        ambient: Ambient,
    },
    /// Mount what a soft reboot starts; run when its unit is stopped, after the finalization
    NextRoot(Ambient),
    /// Preview the merge of /etc into the staged deployment; write nothing
    Plan {
        #[command(flatten)]
        form: etc::Form,
        #[command(flatten)]
        ambient: Ambient,
    },
    /// What is booted, what is staged, and what became of the last finalization
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Print numbers for Prometheus, as the textfile collector of node_exporter reads them
        #[arg(long, conflicts_with = "json")]
        prometheus: bool,
        #[command(flatten)]
        ambient: Ambient,
    },
    /// Make another deployment boot next, with its own /etc; a staged update is cancelled
    Rollback(life::To),
    /// Cancel the staged update
    Unstage(life::Form),
    /// Keep a deployment: gc removes nothing of it, and rollback can bring it back when no entry boots it any more
    Pin(life::Which),
    /// Remove deployments, kernels and objects that no boot entry and no pin needs
    Gc(life::Form),
    /// Resume an update that a crash has interrupted; run when the unit is started
    Arm(Ambient),
    /// Plan and make ahead what the next shutdown finalizes, and say what is wrong with it; run when an update is staged
    Prepare(Ambient),
    /// Say what became of the last finalization; run at boot
    Report(Ambient),
    /// End the count of boots: the booted deployment is good; run when boot-complete.target is reached
    Bless {
        /// Only tell, by the exit code, whether systemd-boot has counted what it has started
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        ambient: Ambient,
    },
    /// Forget that the boot loader has given a deployment up; it may be staged again
    TryAgain {
        /// The deployment, or the beginning of its name
        deployment: String,
        #[command(flatten)]
        ambient: Ambient,
    },
    /// What changed in /etc here, and the merge engine on any three directories
    #[command(subcommand)]
    Etc(etc::Etc),
}

impl Cli {
    /// Runs the command, and writes its output to `out`.
    ///
    /// # Errors
    ///
    /// Everything that keeps the command from its end. An error of `staged` says what boots next.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        match self.command {
            Command::Staged { soft_reboot: true, dry_run, json, ambient } => {
                return life::soft_reboot(&life::Form { dry_run, json, ambient }, out);
            }
            Command::NextRoot(ambient) => life::next_root(&Host::open(&ambient, Access::Read)?, out)?,
            Command::Staged { dry_run: false, json, ambient, .. } => return report::staged(&ambient, json, out),
            Command::Staged { dry_run: true, json, ambient, .. } => {
                return report::dry_run(&Host::open(&ambient, Access::Read)?, json, out);
            }
            Command::Plan { form, ambient } => return report::plan(&Host::open(&ambient, Access::Read)?, form, out),
            Command::Status { prometheus: true, ambient, .. } => {
                report::metrics(&Host::open(&ambient, Access::Read)?, out)?;
            }
            Command::Status { json, ambient, .. } => report::status(&Host::open(&ambient, Access::Read)?, json, out)?,
            Command::Rollback(to) => return life::rollback(&to, out),
            Command::Unstage(form) => return life::unstage(&form, out),
            Command::Pin(which) => return life::pin(&which, out),
            Command::Gc(form) => return life::gc(&form, out),
            Command::Arm(ambient) => report::arm(&Host::open(&ambient, Access::Write)?, out)?,
            Command::Prepare(ambient) => report::prepare(&Host::open(&ambient, Access::Write)?, out)?,
            Command::Report(ambient) => report::report(&Host::open(&ambient, Access::Write)?, out)?,
            Command::Bless { check: true, ambient } => {
                return Ok(report::is_counted(&ambient, out));
            }
            Command::Bless { check: false, ambient } => report::bless(&Host::open(&ambient, Access::Write)?, out)?,
            Command::TryAgain { deployment, ambient } => {
                report::try_again(&Host::open(&ambient, Access::Write)?, &deployment, out)?;
            }
            Command::Etc(command) => return command.run(out),
        }
        Ok(ExitCode::SUCCESS)
    }
}
