//! `etc plan` and `etc merge`: the merge engine on any three directories.

use std::{
    io::Write,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;
use clap::{Args, Subcommand};

use crate::{
    config::Config,
    etc::{Merge, Sources, diff},
    host::open,
    stop::Stop,
};

/// What to do with the three trees.
#[derive(Debug, Subcommand)]
pub enum Etc {
    /// Print what a merge would do; write nothing
    Plan {
        #[command(flatten)]
        trees: Trees,
        #[command(flatten)]
        form: Form,
    },
    /// Write the merged tree into a new directory
    Merge {
        #[command(flatten)]
        trees: Trees,
        /// The merged tree; must not exist
        #[arg(long, value_name = "DIR")]
        output: PathBuf,
        /// Local nodes that have no place in it; must not exist [default: OUTPUT.conflicts]
        #[arg(long, value_name = "DIR")]
        conflicts: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

/// The three trees.
#[derive(Debug, Args)]
pub struct Trees {
    /// The booted image's own /etc
    #[arg(long, value_name = "DIR")]
    pristine: PathBuf,
    /// The live /etc
    #[arg(long, value_name = "DIR")]
    current: PathBuf,
    /// The staged deployment's /etc
    #[arg(long, value_name = "DIR")]
    new: PathBuf,
    /// Policies and rules
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// How a plan is printed.
#[derive(Debug, Clone, Copy, Args)]
pub struct Form {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show what becomes of the content of text files
    #[arg(long)]
    pub content: bool,
}

impl Form {
    /// Prints the plan of `merge`.
    ///
    /// # Errors
    ///
    /// Those of reading files and of writing.
    pub fn print(self, merge: &Merge<'_>, out: &mut dyn Write) -> Result<()> {
        if self.json {
            let mut plan = merge.plan.to_json();
            if self.content {
                plan["content"] = serde_json::to_value(diff::all(merge)?)?;
            }
            return Ok(writeln!(out, "{plan:#}")?);
        }
        if self.content {
            for (path, text) in diff::all(merge)? {
                writeln!(out, "--- /etc/{path}, the image's\n+++ /etc/{path}, merged\n{text}")?;
            }
        }
        merge.plan.print(out, std::io::IsTerminal::is_terminal(&std::io::stdout()).into())?;
        Ok(())
    }
}

impl Etc {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Those of reading the trees and of writing the output, which then, as after a signal, is not left behind.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        let (Self::Plan { trees, .. } | Self::Merge { trees, .. }) = &self;
        let [pristine, current, new] = [open(&trees.pristine)?, open(&trees.current)?, open(&trees.new)?];
        let config = trees.config.as_ref().map(|file| Config::from_file(file)).transpose()?;
        let (config, warnings) = config.unwrap_or_default();
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let sources = Sources { pristine: Some(pristine.as_fd()), current: current.as_fd(), new: new.as_fd() };
        let merge = Merge::plan(sources, &config.policy)?;
        let refused = !merge.plan.refused.is_empty();
        match self {
            Self::Plan { form, .. } => form.print(&merge, out)?,
            Self::Merge { output, conflicts, json, .. } => {
                if !refused {
                    let stop = Stop::at_signal().context("listening for signals")?;
                    write_merged(&merge, &output, conflicts, &stop)?;
                }
                Form { json, content: false }.print(&merge, out)?;
            }
        }
        Ok(if refused { ExitCode::from(3) } else { ExitCode::SUCCESS })
    }
}

fn write_merged(merge: &Merge<'_>, output: &Path, conflicts: Option<PathBuf>, stop: &Stop) -> Result<()> {
    let default = || {
        let mut name = output.as_os_str().to_owned();
        name.push(".conflicts");
        PathBuf::from(name)
    };
    let (parent, name) = split(output)?;
    let (aside, aside_name) = split(&conflicts.unwrap_or_else(default))?;
    for (dir, name) in [(&parent, &name), (&aside, &aside_name)] {
        ensure!(dir.symlink_metadata(name).is_err(), "{name} exists beside {}: remove it", output.display());
    }
    let written = merge.write_to((&parent, &name), (&aside, &aside_name), stop);
    if written.is_err() {
        _ = parent.remove_dir_all(&name);
        _ = aside.remove_dir_all(&aside_name);
    }
    written?.said().iter().for_each(|line| tracing::warn!("{line}"));
    Ok(())
}

/// The directory that holds `path`, and its name there.
fn split(path: &Path) -> Result<(Dir, String)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} does not end in a UTF-8 name", path.display()))?;
    let parent = open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    Ok((parent, name.to_owned()))
}
