//! `etc plan` and `etc merge`: the merge engine on any three directories. `etc status` and `etc reset` are in [`drift`].

mod drift;

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
    etc::{
        Merge, Sources,
        diff::{self, Diff},
        plan::Plan,
        view::View,
    },
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
    /// What this machine has changed in /etc since the booted image
    Status(Box<drift::Status>),
    /// Put paths of /etc back to the booted image's; the local ones are kept in etc.conflicts
    Reset(Box<drift::Reset>),
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
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Form {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Show what becomes of the content of text files
    #[arg(long)]
    pub content: bool,
    /// List each path that the image adds, changes or removes, not only how many there are
    #[arg(long)]
    pub all: bool,
}

impl Form {
    /// Prints what `merge` does, and on standard error why it must not. `extra` goes into the JSON.
    ///
    /// # Errors
    ///
    /// Those of reading files and of writing.
    pub fn print(self, merge: &Merge<'_>, extra: serde_json::Value, out: &mut dyn Write) -> Result<ExitCode> {
        let view = View::of(merge)?;
        if self.json {
            let mut plan = view.to_json();
            plan["reason"] = serde_json::Value::Null;
            if self.content {
                plan["content"] = serde_json::to_value(diff::all(&view)?)?;
            }
            if let (Some(plan), serde_json::Value::Object(extra)) = (plan.as_object_mut(), extra) {
                plan.extend(extra);
            }
            writeln!(out, "{plan:#}")?;
        } else {
            self.print_content(&view, out)?;
            view.print(out, std::io::IsTerminal::is_terminal(&std::io::stdout()).into(), self.all)?;
        }
        let mut refused = false;
        for line in merge.plan.refusals() {
            refused = true;
            writeln!(std::io::stderr(), "{line}")?;
        }
        Ok(if refused { ExitCode::from(3) } else { ExitCode::SUCCESS })
    }

    fn print_content(self, view: &View<'_>, out: &mut dyn Write) -> Result<()> {
        if self.content {
            for Diff { path, from, to, diff } in diff::all(view)? {
                writeln!(out, "--- /etc/{path}, {from}\n+++ /etc/{path}, {to}\n{diff}")?;
            }
        }
        Ok(())
    }

    /// Says that there is nothing to merge: `reason` for programs, `text` for people.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn nothing(self, reason: &str, text: &str, out: &mut dyn Write) -> Result<()> {
        if !self.json {
            return Ok(writeln!(out, "{text}")?);
        }
        let mut plan = Plan::default().to_json();
        plan["reason"] = reason.into();
        plan["message"] = text.into();
        Ok(writeln!(out, "{plan:#}")?)
    }
}

impl Etc {
    /// Does it.
    ///
    /// # Errors
    ///
    /// Those of reading the trees and of writing the output, which then, as after a signal, is not left behind.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        let trees = match &self {
            Self::Plan { trees, .. } | Self::Merge { trees, .. } => trees,
            Self::Status(status) => return status.run(out),
            Self::Reset(reset) => return reset.run(out),
        };
        let [pristine, current, new] = [open(&trees.pristine)?, open(&trees.current)?, open(&trees.new)?];
        let config = trees.config.as_ref().map(|file| Config::from_file(file)).transpose()?;
        let (config, warnings) = config.unwrap_or_default();
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let sources = Sources { pristine: Some(pristine.as_fd()), current: current.as_fd(), new: new.as_fd() };
        let stop = Stop::at_signal().context("listening for signals")?;
        let merge = Merge::plan_in_time(sources, &config.policy, &stop)?;
        match self {
            Self::Plan { form, .. } => form.print(&merge, serde_json::Value::Null, out),
            Self::Merge { output, conflicts, json, .. } => {
                if merge.plan.refused.is_empty() {
                    write_merged(&merge, &output, conflicts, &stop)?;
                }
                Form { json, ..Form::default() }.print(&merge, serde_json::Value::Null, out)
            }
            Self::Status(_) | Self::Reset(_) => Ok(ExitCode::SUCCESS),
        }
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
pub(super) fn split(path: &Path) -> Result<(Dir, String)> {
    let name = path.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} does not end in a UTF-8 name", path.display()))?;
    let parent = open(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    Ok((parent, name.to_owned()))
}
