//! `etc plan` and `etc merge`: the merge engine on any three directories.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use cap_std::{ambient_authority, fs::Dir};
use clap::{Args, Subcommand};

use crate::etc::{Merge, Sources};

/// What to do with the three trees.
#[derive(Debug, Subcommand)]
pub enum Etc {
    /// Print what a merge would do; write nothing
    Plan {
        #[command(flatten)]
        trees: Trees,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Write the merged tree into a new directory
    Merge {
        #[command(flatten)]
        trees: Trees,
        /// The merged tree; must not exist
        #[arg(long)]
        output: PathBuf,
    },
}

/// The three trees.
#[derive(Debug, Args)]
pub struct Trees {
    /// The booted image's own /etc
    #[arg(long)]
    pristine: PathBuf,
    /// The live /etc
    #[arg(long)]
    current: PathBuf,
    /// The staged deployment's /etc
    #[arg(long)]
    new: PathBuf,
}

impl Etc {
    /// Does what was asked, and writes what there is to say to `out`.
    ///
    /// # Errors
    ///
    /// Those of reading the trees and of writing the output, which then is not left behind.
    pub fn run(self, out: &mut dyn Write) -> Result<()> {
        let (Etc::Plan { trees, .. } | Etc::Merge { trees, .. }) = &self;
        let [pristine, current, new] = [open(&trees.pristine)?, open(&trees.current)?, open(&trees.new)?];
        let fd = std::os::fd::AsFd::as_fd;
        let merge = Merge::plan(Sources { pristine: Some(fd(&pristine)), current: fd(&current), new: fd(&new) })?;
        match self {
            Etc::Plan { json: true, .. } => writeln!(out, "{:#}", merge.plan.to_json())?,
            Etc::Plan { .. } => writeln!(out, "{}", merge.plan)?,
            Etc::Merge { output, .. } => {
                write_merged(&merge, &output)?;
                writeln!(out, "{}", merge.plan)?;
            }
        }
        Ok(())
    }
}

fn open(path: &Path) -> Result<Dir> {
    Dir::open_ambient_dir(path, ambient_authority()).with_context(|| format!("opening {}", path.display()))
}

fn write_merged(merge: &Merge<'_>, output: &Path) -> Result<()> {
    let name = output.file_name().and_then(|name| name.to_str());
    let name = name.with_context(|| format!("{} does not end in a UTF-8 name", output.display()))?;
    let parent = open(output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
    let conflicts = format!("{name}.conflicts");
    for taken in [name, &conflicts] {
        ensure!(parent.symlink_metadata(taken).is_err(), "{taken} exists beside {}: remove it", output.display());
    }
    let written = merge.write(&parent, name, &conflicts);
    if written.is_err() {
        _ = parent.remove_dir_all(name);
        _ = parent.remove_dir_all(&conflicts);
    }
    written.map(drop)
}
