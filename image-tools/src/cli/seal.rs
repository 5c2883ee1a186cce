//! `seal` and `digest`: an image that names itself.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{
    oci::Source,
    uki::seal::{self, Request},
};

/// The image to seal, as typed.
#[derive(Debug, Args)]
pub struct Seal {
    /// The image: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    image: Source,
    /// The OCI layout to make
    #[arg(long)]
    output: PathBuf,
    /// The name of the image in it
    #[arg(long, default_value = "latest")]
    tag: String,
    /// The kernel's command line, but for composefs=
    #[arg(long, default_value = "root=LABEL=root rw console=ttyS0")]
    options: String,
    /// The program that makes a UKI
    #[arg(long, default_value = "ukify")]
    ukify: PathBuf,
}

impl Seal {
    /// Seals, and prints the image's digest.
    ///
    /// # Errors
    ///
    /// Those of [`seal::seal`].
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        let Self { image, output, tag, options, ukify } = self;
        writeln!(out, "{}", seal::seal(&Request { image, output, tag, options, ukify })?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The image to compute the digest of, as typed.
#[derive(Debug, Args)]
pub struct Digest {
    /// The image: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    image: Source,
}

impl Digest {
    /// Prints what the deployment of the image is called.
    ///
    /// # Errors
    ///
    /// Those of [`seal::digest`].
    pub fn run(&self, out: &mut dyn Write) -> Result<ExitCode> {
        writeln!(out, "{}", seal::digest(&self.image)?)?;
        Ok(ExitCode::SUCCESS)
    }
}
