//! `init`: a Containerfile to begin with.

use std::{fs::File, io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::Args;

/// An operating system of one's own, on Debian.
const CONTAINERFILE: &str = include_str!("init.containerfile");

/// The directory as typed.
#[derive(Debug, Args)]
pub struct Init {
    /// The directory; made where there is none
    dir: PathBuf,
}

impl Init {
    /// Writes the Containerfile.
    ///
    /// # Errors
    ///
    /// When there is one already: it is not touched.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        std::fs::create_dir_all(&self.dir).with_context(|| format!("creating {}", self.dir.display()))?;
        let path = self.dir.join("Containerfile");
        let file = File::create_new(&path);
        let mut file = file.with_context(|| format!("writing {}: it must not be there yet", path.display()))?;
        file.write_all(CONTAINERFILE.as_bytes()).with_context(|| format!("writing {}", path.display()))?;
        let dir = self.dir.display();
        writeln!(
            out,
            "wrote {}; put composefs-finalize_*.deb and image-tools_*.deb beside it, then: image-tools run {dir}",
            path.display()
        )?;
        Ok(ExitCode::SUCCESS)
    }
}
