//! The command line as typed.

mod boot;
mod boots;
mod build;
mod check;
mod crash;
mod init;
mod inspect;
mod log;
mod own;
mod run;
mod seal;
mod stage;
mod test;

use std::{io::Write, process::ExitCode};

use anyhow::{Error, Result};
use clap::{Parser, Subcommand};
use finalize::cmdline::Format;

use crate::{
    arch::{self, Arch},
    check::Unfit,
    oci::{Corrupt, Rejected},
    plan::NoRoom,
    stage::Failing,
    store::NoSpace,
    system::{CannotBoot, Incomplete},
    workshop::Workshop,
};

/// From OCI images to bootable composefs disk images.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Show every step and every program that is run; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a disk image from an OCI image, and stage a second one on it
    Build(build::Build),
    /// Boot a disk image in QEMU, its console on the terminal, until it is off
    Boot(boot::Boot),
    /// Say everything that an image lacks to boot and to be updated, and what to write in its Containerfile
    Check(check::Check),
    /// Try every power cut during a finalization, on copies of a disk image
    Crash(crash::Crash),
    /// Write a Containerfile to begin with
    Init(init::Init),
    /// Say what is on a disk image, without mounting it
    Inspect(inspect::Inspect),
    /// Give an image the UKI that boots it
    Seal(seal::Seal),
    /// Say what the deployment of an image will be called
    Digest(seal::Digest),
    /// Run an image as a machine, its console on the terminal, and leave nothing behind
    Run(run::Run),
    /// Boot an image, update it, and have a program judge the machine
    Test(test::Test),
    /// Stage an update on this machine: the next shutdown finalizes it
    Stage(stage::Stage),
}

impl Cli {
    /// Steps and programs are shown as `-v` and `RUST_LOG` say.
    pub fn start_logging(&self) {
        log::start(self.verbose);
    }

    /// Does what was asked, and writes what there is to say to `out`.
    pub fn run(self, workshop: &Workshop, out: &mut dyn Write) -> Result<ExitCode> {
        match self.command {
            Command::Boot(typed) => typed.run(out),
            Command::Build(typed) => typed.run(workshop, out),
            Command::Check(typed) => typed.run(workshop, out),
            Command::Crash(typed) => typed.run(out),
            Command::Digest(typed) => typed.run(workshop, out),
            Command::Init(typed) => typed.run(out),
            Command::Inspect(typed) => typed.run(out),
            Command::Run(typed) => typed.run(workshop),
            Command::Seal(typed) => typed.run(workshop, out),
            Command::Stage(typed) => typed.run(workshop, out),
            Command::Test(typed) => typed.run(workshop, out),
        }
    }
}

/// An architecture as typed.
fn arch(text: &str) -> Result<&'static Arch, arch::Unsupported> {
    Arch::named(text)
}

/// The format of the EROFS image that a deployment is, and so its digest, which names it.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum ErofsFormat {
    /// That of mkcomposefs, with composefs.digest=v1-… on the command line
    V1,
    /// composefs-rs' own, and bootc's, with composefs=… on the command line
    V2,
}

impl From<ErofsFormat> for Format {
    fn from(typed: ErofsFormat) -> Self {
        match typed {
            ErofsFormat::V1 => Self::V1,
            ErofsFormat::V2 => Self::V2,
        }
    }
}

/// The exit code of an error: 2 for a command line that has no meaning, 3 for an image or a size that is refused, 1 where
/// something failed.
pub fn code(error: &Error) -> ExitCode {
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        let of_image =
            cause.is::<Corrupt>() || cause.is::<Incomplete>() || cause.is::<CannotBoot>() || cause.is::<Rejected>();
        of_image || cause.is::<NoRoom>() || cause.is::<NoSpace>() || cause.is::<Failing>() || cause.is::<Unfit>()
    };
    match error {
        _ if error.is::<clap::Error>() => ExitCode::from(2),
        _ if error.chain().any(refused) => ExitCode::from(3),
        _ => ExitCode::FAILURE,
    }
}
