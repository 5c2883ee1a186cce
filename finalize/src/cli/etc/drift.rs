//! `etc status` and `etc reset`: the live /etc against the booted image's, with no update staged.

use std::{
    io::Write,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result};
use cap_std::fs::Dir;
use clap::Args;

use super::split;
use crate::{
    deployment::Deployment,
    etc::{
        Sources,
        diff::{self, Diff},
        drift,
        policy::Policy,
        reset::{self, Reset as Plan},
    },
    host::{Access, Ambient, Host, open},
    layout,
    lock::Lock,
    stop::Stop,
};

/// Compares.
#[derive(Debug, Args)]
pub struct Status {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Show what was changed in text files
    #[arg(long)]
    content: bool,
    /// Compare this directory with --pristine, not the machine's /etc
    #[arg(long, value_name = "DIR", requires = "pristine")]
    current: Option<PathBuf>,
    #[command(flatten)]
    ambient: Ambient,
}

/// Resets.
#[derive(Debug, Args)]
pub struct Reset {
    /// Paths, absolute or relative to /etc
    #[arg(required = true)]
    paths: Vec<String>,
    /// Print what would be reset; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Change this directory, not the machine's /etc
    #[arg(long, value_name = "DIR", requires_all = ["pristine", "conflicts"])]
    current: Option<PathBuf>,
    /// Where the local ones are kept; a number is added where it exists [default: the deployment's etc.conflicts]
    #[arg(long, value_name = "DIR", requires = "current")]
    conflicts: Option<PathBuf>,
    #[command(flatten)]
    ambient: Ambient,
}

/// The live /etc and the booted image's.
struct Two {
    pristine: Option<Dir>,
    current: Dir,
}

impl Two {
    fn sources(&self) -> Sources<'_> {
        let current = self.current.as_fd();
        Sources { pristine: self.pristine.as_ref().map(AsFd::as_fd), current, new: current }
    }

    /// Of any two directories.
    fn of(pristine: Option<&Path>, current: &Path) -> Result<Self> {
        Ok(Self { pristine: pristine.map(open).transpose()?, current: open(current)? })
    }
}

impl Status {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Those of reading and of writing the answer.
    pub fn run(&self, out: &mut dyn Write) -> Result<ExitCode> {
        if let Some(current) = &self.current {
            self.show(&Two::of(self.ambient.pristine.as_deref(), current)?, &Policy::default(), out)?;
            return Ok(ExitCode::SUCCESS);
        }
        let host = Host::open(&self.ambient, Access::Read)?;
        let pristine = host.pristine()?;
        let two = Two { pristine: pristine.etc.as_ref().map(Dir::try_clone).transpose()?, current: host.etc()? };
        self.show(&two, &host.config(&mut vec![]).policy, out)?;
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, two: &Two, policy: &Policy, out: &mut dyn Write) -> Result<()> {
        let merge = drift::read(two.sources(), policy)?;
        let view = drift::view(&merge)?;
        let diffs = if self.content { diff::all(&view)? } else { vec![] };
        let diffs = diffs.into_iter().map(|diff| Diff { from: "the image's", to: "the local", ..diff });
        if self.json {
            let mut answer = drift::to_json(&view);
            if self.content {
                answer["content"] = serde_json::to_value(diffs.collect::<Vec<_>>())?;
            }
            return Ok(writeln!(out, "{answer:#}")?);
        }
        for Diff { path, from, to, diff } in diffs {
            writeln!(out, "--- /etc/{path}, {from}\n+++ /etc/{path}, {to}\n{diff}")?;
        }
        Ok(drift::print(&view, out)?)
    }
}

impl Reset {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Those of reading and writing; each path is then reset or untouched.
    pub fn run(&self, out: &mut dyn Write) -> Result<ExitCode> {
        if let (Some(current), Some(conflicts)) = (&self.current, &self.conflicts) {
            let two = Two::of(self.ambient.pristine.as_deref(), current)?;
            let (parent, name) = split(conflicts)?;
            let shown = conflicts.parent().unwrap_or(Path::new("")).display().to_string();
            self.reset(&two, (&parent, &name), &shown, out)?;
            return Ok(ExitCode::SUCCESS);
        }
        let host = Host::open(&self.ambient, if self.dry_run { Access::Read } else { Access::Write })?;
        let stop = Stop::at_signal().context("listening for signals")?;
        let _lock = (!self.dry_run).then(|| Lock::take(&host.sysroot, &stop)).transpose()?;
        let booted = Deployment::open(&host.sysroot, &host.booted.id)?;
        let pristine = host.pristine()?;
        let two = Two { pristine: pristine.etc.as_ref().map(Dir::try_clone).transpose()?, current: host.etc()? };
        let shown = host.ambient.sysroot.join(layout::deployment(&booted.id)).display().to_string();
        self.reset(&two, (&booted.state, layout::ETC_CONFLICTS), &shown, out)?;
        Ok(ExitCode::SUCCESS)
    }

    fn reset(&self, two: &Two, conflicts: (&Dir, &str), shown: &str, out: &mut dyn Write) -> Result<()> {
        let paths = self.paths.iter().map(|path| reset::parse(path)).collect::<Result<_>>()?;
        let plan = Plan::plan(two.sources(), paths)?;
        let view = plan.view()?;
        drift::print(&view, out)?;
        if self.dry_run {
            return Ok(writeln!(out, "nothing was written (--dry-run)")?);
        }
        let stop = Stop::at_signal().context("listening for signals")?;
        if let Some(name) = plan.write(&two.current, conflicts, &stop)? {
            let name = Path::new(shown).join(name);
            writeln!(out, "reset; local copies saved in {}", name.display())?;
        }
        Ok(())
    }
}
