//! What `run` and `test` have in common, as typed: the machine that is made for the occasion.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use finalize::cmdline::Format as ErofsFormat;

use super::{boot::Limits, boots::Boots};
use crate::{
    arch::Arch,
    build::{BootFs, Esps, Request},
    deployment::{Boot, Choice, Sealing},
    oci::Reference,
    own::{Own, Trial, containerfile::Source},
    plan::Format,
    vm::{Firmware, Network, Show},
    workshop::Workshop,
};

/// The machine as typed.
#[derive(Debug, Args)]
pub struct Typed {
    #[command(flatten)]
    boots: Boots,
    /// Boot with Secure Boot and these keys, as `build` takes them
    #[arg(long, value_name = "DIR")]
    secureboot_keys: Option<PathBuf>,
    /// More words for the kernel command line
    #[arg(long)]
    options: Vec<String>,
    /// Keep what layers become in this directory, and take from there what another build has kept
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// The port of 127.0.0.1 that leads to the guest's ssh [default: any that is free]
    #[arg(long, value_name = "PORT")]
    ssh: Option<u16>,
    /// Let the guest reach what this machine reaches
    #[arg(long)]
    network: bool,
    /// Where the console is logged [default: nowhere that stays]
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Memory in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// How many processors the machine has
    #[arg(long, default_value_t = 2)]
    processors: u32,
    #[command(flatten)]
    limits: Limits,
}

impl Typed {
    /// The machine, with its disk built.
    pub fn make(self, image: Source, stage: Option<Source>, rest: (Show, &Workshop)) -> Result<Own> {
        let arch = match self.boots.arch {
            Some(arch) => arch,
            None => Arch::host()?,
        };
        let way = self.boots.way();
        let enrol = super::build::enrol(self.secureboot_keys, None, way)?;
        let trial = Trial {
            image,
            stage,
            arch,
            firmware: if enrol.is_some() { Firmware::SecureBoot } else { Firmware::Open },
            log: self.log,
            show: rest.0,
            ssh: self.ssh,
            network: if self.network { Network::Open } else { Network::Restricted },
            accel: self.limits.accel(),
            timeout: self.limits.timeout(),
            memory: self.memory,
            processors: self.processors,
        };
        let choice =
            Choice { way, boot: Boot::Directory, sealing: Sealing::Sealed, options: self.options, target: None, enrol };
        let request = |image: Reference, stage: Option<Reference>, output: PathBuf| {
            Ok(Request {
                image,
                stage,
                arch: Some(arch),
                output,
                format: Format::Raw,
                erofs: ErofsFormat::V2,
                choice,
                boot: BootFs::Ext4,
                esps: Esps::One,
                seed: format!("{:032x}", fastrand::u128(..)),
                esp_size: None,
                boot_size: None,
                size: None,
                cache: self.cache,
                time: None,
            })
        };
        Own::make(trial, request, rest.1)
    }
}
