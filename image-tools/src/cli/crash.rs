//! `crash`: every power cut during a finalization or another change, tried on copies of a disk.

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::boot::{Limits, arch_of};
use crate::{
    arch::Arch,
    crash::{
        BASE, Recording, Session, Watched,
        case::Case,
        judge::Verdict,
        proof::{Cuts, Enough, Proof},
    },
};

/// What is proven, as typed.
#[derive(Debug, Args)]
pub struct Crash {
    /// A disk image with a staged deployment; not changed. Without it, the recording in DIR is tried again
    disk: Option<PathBuf>,
    /// The architecture; what the disk is for, as far as it tells, and else this machine's
    #[arg(long, value_parser = super::arch)]
    arch: Option<&'static Arch>,
    /// Where the recording is kept: the disk, its writes, what becomes of it
    #[arg(long, value_name = "DIR")]
    recording: PathBuf,
    /// Try this many moments only, drawn evenly from all
    #[arg(long, value_name = "N")]
    moments: Option<usize>,
    /// Random subsets of unflushed writes, with torn sectors, besides the moments
    #[arg(long, value_name = "N", default_value_t = 100)]
    random: usize,
    /// What moments and subsets are drawn with
    #[arg(long, value_name = "S", default_value_t = 1)]
    seed: u64,
    /// Record the boot after the earliest power cut with which the update boots, not the shutdown
    #[arg(long)]
    next_boot: bool,
    /// Record what this program has the machine do, not the shutdown: stage an update, or roll back
    #[arg(long, value_name = "PROGRAM", conflicts_with = "next_boot")]
    watch: Option<PathBuf>,
    /// Try one power cut only, as a failure names it
    #[arg(long, value_name = "CUT")]
    cut: Option<Case>,
    /// Keep the disk of --cut
    #[arg(long, value_name = "FILE", requires = "cut")]
    output: Option<PathBuf>,
    /// Really boot the machine after this many of them
    #[arg(long, value_name = "K", default_value_t = 0, requires = "look")]
    boot: usize,
    /// What looks at a booted machine: gets the deployment that must be booted, finds the guest's port in GUEST_PORT
    #[arg(long, value_name = "PROGRAM")]
    look: Option<PathBuf>,
    /// Go on from what `boot --save` saved, on the disk as it was then
    #[arg(long, value_name = "FILE", conflicts_with = "crowded")]
    resume: Option<PathBuf>,
    /// Make the ESP awkward: what is exchanged and what is added lies in two sectors
    #[arg(long)]
    crowded: bool,
    /// Succeed if the machine is broken by a power cut, for it was sabotaged
    #[arg(long)]
    sabotaged: bool,
    /// End when a power cut has broken the machine; they are tried in a random order
    #[arg(long, requires = "sabotaged")]
    one_is_enough: bool,
    #[command(flatten)]
    limits: Limits,
    /// The port of 127.0.0.1 that leads to the guest's ssh
    #[arg(long, value_name = "PORT")]
    ssh: Option<u16>,
    /// The public key that may log in as root
    #[arg(long, value_name = "FILE")]
    authorized_key: Option<PathBuf>,
    /// A port of 127.0.0.1 that the guest reaches as 10.0.2.100:5000
    #[arg(long, value_name = "PORT", requires = "ssh")]
    reach: Option<u16>,
    /// A program to run when the guest is ready, which edits it and syncs; then what is recorded begins
    #[arg(last = true)]
    program: Vec<String>,
}

impl Crash {
    /// Proves it.
    ///
    /// # Errors
    ///
    /// When the machine cannot be recorded, or a disk cannot be judged.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        let disk = self.disk.clone().unwrap_or_else(|| self.recording.join(BASE));
        let session = Session {
            arch: arch_of(&disk, self.arch)?,
            watched: match &self.watch {
                Some(program) => Watched::Program(program.clone()),
                None if self.next_boot => Watched::NextBoot,
                None => Watched::Shutdown,
            },
            disk: self.disk.clone().unwrap_or_default(),
            resume: self.resume.clone(),
            crowded: self.crowded,
            ssh: self.ssh,
            authorized_key: self.authorized_key.clone(),
            reach: self.reach,
            program: self.program.clone(),
            accel: self.limits.accel(),
            timeout: self.limits.timeout(),
        };
        let recording = match &self.disk {
            Some(_) => Recording::make(&self.recording, &session),
            None => Recording::open(&self.recording),
        }?;
        if let Some(cut) = &self.cut {
            let verdict = recording.try_one(cut, self.output.as_deref())?;
            writeln!(out, "{cut}: {verdict}")?;
            return Ok(code(!matches!(verdict, Verdict::Broken(_))));
        }
        let enough = if self.one_is_enough { Enough::OneBroken } else { Enough::All };
        let proof = recording.prove(Cuts { moments: self.moments, random: self.random, seed: self.seed, enough })?;
        writeln!(out, "{proof}")?;
        self.show_broken(&proof, out)?;
        if self.sabotaged {
            return Ok(code(proof.broken().next().is_some()));
        }
        let whole = proof.broken().next().is_none();
        for cut in proof.sample(if whole { self.boot } else { 0 }) {
            let look: &Path = self.look.as_deref().context("--boot needs --look")?;
            let verdict = recording.boot(&cut, &session, look)?;
            writeln!(out, "booted after {cut}: {verdict}; after the shutdown that followed: new")?;
        }
        ensure!(whole, "a power cut can break the machine");
        Ok(ExitCode::SUCCESS)
    }

    fn show_broken(&self, proof: &Proof, out: &mut dyn Write) -> Result<()> {
        let shown = if self.sabotaged { 2 } else { 10 };
        for (cut, verdict) in proof.broken().take(shown) {
            writeln!(out, "{cut}: {verdict}")?;
            writeln!(out, "  again: image-tools crash --recording {} --cut {cut}", self.recording.display())?;
        }
        Ok(())
    }
}

fn code(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
