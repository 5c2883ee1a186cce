//! The command line as typed.

mod boot;
mod crash;
mod inspect;
mod seal;

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use finalize::{boot::Loader, staged::BootType};

use crate::{
    build,
    oci::Source,
    recipe::{Boot as BootPlace, BootFs, DiskFormat, Esps, Recipe, Sealing},
};

/// From OCI images to bootable composefs disk images.
#[derive(Debug, Parser)]
#[command(version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build a disk image from an OCI image, and stage a second one on it
    Build(Build),
    /// Boot a disk image in QEMU, its console on the terminal, until it is off
    Boot(boot::Boot),
    /// Try every power cut during a finalization, on copies of a disk image
    Crash(crash::Crash),
    /// Say what is on a disk image, without mounting it
    Inspect(inspect::Inspect),
    /// Give an image the UKI that boots it
    Seal(seal::Seal),
    /// Say what the deployment of an image will be called
    Digest(seal::Digest),
}

#[derive(Debug, Args)]
struct Build {
    /// The deployment that is booted: oci:DIR[:TAG] or oci-archive:FILE[:TAG]
    #[arg(long)]
    image: Source,
    /// The deployment that is staged
    #[arg(long)]
    stage: Option<Source>,
    /// The disk image
    #[arg(long)]
    output: PathBuf,
    /// Its format
    #[arg(long, value_enum, default_value = "raw")]
    format: DiskFormat,
    /// systemd-boot or grub
    #[arg(long, default_value = "systemd-boot")]
    bootloader: Loader,
    /// bls or uki
    #[arg(long, default_value = "bls")]
    boot_type: BootType,
    /// Make boot a partition of its own (GRUB), ext4 unless told
    #[arg(long, value_enum, value_name = "FILE SYSTEM", num_args = 0..=1, default_missing_value = "ext4")]
    boot_partition: Option<BootFs>,
    /// Make a second ESP with the same content, as mirrored disks have it
    #[arg(long)]
    mirror_esp: bool,
    /// Leave fs-verity out
    #[arg(long)]
    unsealed: bool,
    /// What all identifiers are made from
    #[arg(long, default_value = "composefs")]
    seed: String,
    /// The size of the disk in MiB
    #[arg(long, default_value_t = 4096)]
    size: u64,
    /// More words for the kernel command line
    #[arg(long, default_value = "console=ttyS0")]
    options: Vec<String>,
}

impl Cli {
    /// Does what was asked, and writes what there is to say to `out`.
    ///
    /// # Errors
    ///
    /// Whatever keeps it from being done.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        match self.command {
            Command::Boot(typed) => return typed.run(out),
            Command::Crash(typed) => return typed.run(out),
            Command::Inspect(typed) => return typed.run(out),
            Command::Seal(typed) => return typed.run(out),
            Command::Digest(typed) => return typed.run(out),
            Command::Build(typed) => {
                let recipe = typed.recipe();
                let bar = indicatif::ProgressBar::new_spinner();
                let built = build::build(&recipe, &mut |what| bar.set_message(what.to_owned()))?;
                bar.finish_and_clear();
                writeln!(out, "{}", serde_json::to_string(&built)?)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Build {
    fn recipe(self) -> Recipe {
        Recipe {
            image: self.image,
            stage: self.stage,
            output: self.output,
            format: self.format,
            loader: self.bootloader,
            boot_type: self.boot_type,
            boot: self.boot_partition.map_or(BootPlace::Directory, BootPlace::Partition),
            esps: if self.mirror_esp { Esps::Mirrored } else { Esps::One },
            sealing: if self.unsealed { Sealing::Unsealed } else { Sealing::Sealed },
            seed: self.seed,
            size: self.size << 20,
            options: self.options,
        }
    }
}
