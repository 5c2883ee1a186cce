//! `check`: what an image lacks, all of it.

use std::{io::Write, process::ExitCode};

use anyhow::Result;
use clap::Args;
use finalize::{boot::Loader, staged::BootType};

use crate::{
    arch::Arch,
    check::{Level, Way, look},
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
    /// The architecture, where an image is there for several; this machine's unless told
    #[arg(long, value_parser = super::arch)]
    arch: Option<&'static Arch>,
    /// The boot loader that it needs: systemd-boot or grub
    #[arg(long, default_value = "systemd-boot")]
    bootloader: Loader,
    /// How it boots: bls or uki
    #[arg(long, default_value = "bls")]
    boot_type: BootType,
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
        let arch = self.arch.map(|arch| oci::Arch::from(arch.go));
        let name = self.image.to_string();
        let image = Image::resolve(self.image.image(&scratch.path().join("image"))?, arch.as_ref(), means)?;
        let way = Way { loader: self.bootloader, boot_type: self.boot_type };
        let findings = look(&store, &image, way)?;
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
