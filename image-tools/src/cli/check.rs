//! `check`: what an image lacks, all of it.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::Args;

use super::boots::Boots;
use crate::{
    check::{Level, look},
    oci::{self, Image, Means},
    own::containerfile::Source,
    store::Store,
    workshop::Workshop,
};

/// The image as typed.
#[derive(Debug, Args)]
pub struct Check {
    /// The image, as `build` takes it, or a directory with a Containerfile
    image: Source,
    #[command(flatten)]
    boots: Boots,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Check {
    /// Looks; exit code 3 where something is missing.
    ///
    /// # Errors
    ///
    /// When the image cannot be read.
    pub fn run(self, workshop: &Workshop, out: &mut dyn Write) -> Result<ExitCode> {
        let scratch = workshop.anywhere()?;
        let store = Store::create(&scratch.path().join("composefs"))?;
        let means = Means { scratch: scratch.path(), runtime: Some(&workshop.runtime) };
        let arch = self.boots.arch.map(|arch| oci::Arch::from(arch.go));
        let name = self.image.to_string();
        let image = Image::resolve(self.image.image(&scratch.path().join("image"))?, arch.as_ref(), means)?;
        let findings = look(&store, &image, self.boots.way())?;
        let missing = findings.iter().filter(|finding| finding.level == Level::Missing).count();
        match self.json {
            true => {
                let value = serde_json::json!({ "schema": 1, "image": name, "findings": findings });
                writeln!(out, "{value:#}")?;
            }
            false => {
                findings.iter().try_for_each(|finding| writeln!(out, "{finding}"))?;
                let says = match missing {
                    0 => "boots and can be updated, as far as one sees without booting it".to_owned(),
                    1 => "does not yet: one thing is missing".to_owned(),
                    many => format!("does not yet: {many} things are missing"),
                };
                writeln!(out, "{name} {says}")?;
            }
        }
        Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::from(3) })
    }
}
