//! `inspect`: what is on a disk image, and whether it is as it must be.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{arch::Arch, inspect::Disk};

/// The image as typed.
#[derive(Debug, Args)]
pub struct Inspect {
    /// The disk image
    disk: PathBuf,
    /// The architecture; what the disk is for unless told, as far as that can be seen
    #[arg(long, value_parser = super::arch)]
    arch: Option<&'static Arch>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Check everything, and fail with a line for each thing that is wrong
    #[arg(long)]
    check: bool,
}

impl Inspect {
    /// Looks.
    ///
    /// # Errors
    ///
    /// When the image cannot be read.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        let disk = Disk::open(&self.disk, self.arch)?;
        let report = disk.report()?;
        let wrong = if self.check { disk.check(&report)? } else { vec![] };
        match self.json {
            true => {
                let mut value = serde_json::to_value(&report)?;
                value["wrong"] = serde_json::to_value(&wrong)?;
                writeln!(out, "{value:#}")?;
            }
            false => {
                write!(out, "{report}")?;
                wrong.iter().try_for_each(|line| writeln!(out, "WRONG       {line}"))?;
            }
        }
        Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
