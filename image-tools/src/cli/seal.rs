//! `seal` and `digest`: an image that names itself.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Args;

use crate::{
    arch::Arch,
    oci::Reference,
    seal::{self, Request},
    secureboot::Signer,
    workshop::Workshop,
};

/// The image to seal, as typed.
#[derive(Debug, Args)]
pub struct Seal {
    /// The image: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    image: Reference,
    /// The architecture, where an image is there for several; this machine's unless told
    #[arg(long, value_parser = super::arch)]
    arch: Option<&'static Arch>,
    /// The OCI layout to make
    #[arg(long)]
    output: PathBuf,
    /// The name of the image in it
    #[arg(long, default_value = "latest")]
    tag: String,
    /// The kernel's command line, but for composefs=; with one word for the console on the serial port, unless it names a console
    #[arg(long, default_value = "root=LABEL=root rw")]
    options: String,
    /// The program that makes a UKI
    #[arg(long, default_value = "ukify")]
    ukify: PathBuf,
    /// Sign the UKI and systemd-boot with this key (PEM), for Secure Boot
    #[arg(long, value_name = "FILE", requires = "secureboot_cert")]
    secureboot_key: Option<PathBuf>,
    /// Its certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "secureboot_key")]
    secureboot_cert: Option<PathBuf>,
    /// Make this directory with PK.auth, KEK.auth and db.auth, by which a firmware knows the certificate: for
    /// `build --secureboot-keys`
    #[arg(long, value_name = "DIR", requires = "secureboot_key")]
    secureboot_keys: Option<PathBuf>,
    /// The EROFS format of the deployment, which decides its digest
    #[arg(long, value_enum, default_value = "v2")]
    erofs_format: super::ErofsFormat,
}

impl Seal {
    /// Seals, and prints the image's digest.
    pub fn run(self, workshop: &Workshop, out: &mut dyn Write) -> Result<ExitCode> {
        let signer = self.secureboot_key.zip(self.secureboot_cert).map(|(key, cert)| Signer { key, cert });
        let keys = self.secureboot_keys;
        let Self { image, arch, output, tag, options, ukify, erofs_format, .. } = self;
        let format = erofs_format.into();
        let request = Request { image, arch, output, tag, options, ukify, signer, keys, format };
        writeln!(out, "{}", seal::seal(request, workshop)?)?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The image to compute the digest of, as typed.
#[derive(Debug, Args)]
pub struct Digest {
    /// The image: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    image: Reference,
    /// The architecture, where an image is there for several; this machine's unless told
    #[arg(long, value_parser = super::arch)]
    arch: Option<&'static Arch>,
    /// The EROFS format of the deployment, which decides its digest
    #[arg(long, value_enum, default_value = "v2")]
    erofs_format: super::ErofsFormat,
}

impl Digest {
    /// Prints what the deployment of the image is called.
    pub fn run(self, workshop: &Workshop, out: &mut dyn Write) -> Result<ExitCode> {
        writeln!(out, "{}", seal::digest(&self.image, self.arch, self.erofs_format.into(), workshop)?)?;
        Ok(ExitCode::SUCCESS)
    }
}
