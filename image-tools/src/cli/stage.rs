//! `stage`: an update for the machine that runs.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::Args;
use finalize::host::Ambient;

use crate::{
    oci::Reference,
    stage::{self, Request},
    workshop::Workshop,
};

/// The update as typed.
#[derive(Debug, Args)]
pub struct Stage {
    /// The image: docker://NAME, containers-storage:NAME, oci:DIR[:TAG] or oci-archive:FILE[:TAG]; what the machine follows
    /// unless told
    image: Option<Reference>,
    /// Download only: the next shutdown does not finalize the update, until it is staged again without this
    #[arg(long)]
    lock: bool,
    /// Say whether there is an update, and stage nothing
    #[arg(long, conflicts_with = "lock")]
    check: bool,
    /// What the machine follows from then on; the image unless told
    #[arg(long, value_name = "IMAGE")]
    target_imgref: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    ambient: Ambient,
}

impl Stage {
    /// Stages the update, or asks for one, and says what became of that.
    pub fn run(self, workshop: &Workshop, out: &mut dyn Write) -> Result<ExitCode> {
        let Self { image, lock, check, target_imgref, json, ambient } = self;
        let request = Request { image, locked: lock, target: target_imgref, ambient };
        let outcome = if check { stage::check(&request, workshop) } else { stage::stage(&request, workshop) }?;
        match json {
            true => writeln!(out, "{}", serde_json::to_string(&outcome)?)?,
            false => writeln!(out, "{outcome}")?,
        }
        Ok(ExitCode::SUCCESS)
    }
}
