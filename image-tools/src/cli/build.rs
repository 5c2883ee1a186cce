//! `build`: from images to a disk image.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Args, CommandFactory, error::ErrorKind};
use finalize::{boot::Loader, staged::BootType};

use super::boots::Boots;
use crate::{
    build::{self, BootFs, Esps, Request},
    deployment::{Boot, Choice, Enrol, Sealing, When},
    oci::Reference,
    plan::Format,
    secureboot,
    system::Way,
    workshop::Workshop,
};

/// The disk image as typed.
#[derive(Debug, Args)]
pub struct Build {
    /// The deployment that is booted: oci:DIR[:TAG], oci-archive:FILE[:TAG], docker://NAME or containers-storage:NAME
    #[arg(long)]
    image: Reference,
    /// The deployment that is staged
    #[arg(long)]
    stage: Option<Reference>,
    #[command(flatten)]
    boots: Boots,
    /// The disk image
    #[arg(long)]
    output: PathBuf,
    /// Its format
    #[arg(long, value_enum, default_value = "raw")]
    format: Format,
    /// Make boot a partition of its own (GRUB), ext4 unless told
    #[arg(long, value_enum, value_name = "FILE SYSTEM", num_args = 0..=1, default_missing_value = "ext4")]
    boot_partition: Option<BootFs>,
    /// Make a second ESP with the same content, as mirrored disks have it
    #[arg(long)]
    mirror_esp: bool,
    /// Put PK.auth, KEK.auth and db.auth of this directory on the ESP, where systemd-boot enrols them for Secure Boot; made by
    /// `seal --secureboot-keys`
    #[arg(long, value_name = "DIR")]
    secureboot_keys: Option<PathBuf>,
    /// When it enrols them [default: systemd-boot's own, if-safe: in a virtual machine, by itself]
    #[arg(long, value_enum, value_name = "WHEN", requires = "secureboot_keys")]
    secureboot_enroll: Option<When>,
    /// Leave fs-verity out
    #[arg(long)]
    unsealed: bool,
    /// The EROFS format of the deployments, which decides their digests
    #[arg(long, value_enum, default_value = "v2")]
    erofs_format: super::ErofsFormat,
    /// What the machine takes its updates from, docker://quay.io/me/os say; containers-storage:localhost/ID:VERSION_ID unless told
    #[arg(long, value_name = "IMAGE")]
    target_imgref: Option<String>,
    /// What all identifiers are made from: the same one, the same images and times make the same bytes. Random unless told
    #[arg(long)]
    seed: Option<String>,
    /// The size of the ESP in MiB; 512 unless told, or what the kernels of three deployments need
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(34..))]
    esp_size: Option<u32>,
    /// The size of a boot partition in MiB; the same. XFS begins at 300
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(34..))]
    boot_size: Option<u32>,
    /// The size of the disk in MiB; auto: room for three deployments that share nothing, and 1 GiB for /var
    #[arg(long, value_name = "MIB", default_value = "auto")]
    size: Size,
    /// Keep what layers become in this directory, and take from there what another build has kept. Several builds may share
    /// it; anything in it may be removed at any time
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// More words for the kernel command line; with one for the console on the serial port,
    /// unless one of them is a console. UKIs bring their own
    #[arg(long)]
    options: Vec<String>,
    /// The time of files that no image brings, seconds since 1970; when the newest image was created, unless told
    #[arg(long, value_name = "SECONDS", env = "SOURCE_DATE_EPOCH", hide_env_values = true)]
    time: Option<u64>,
    /// Print what the disk would be, and the programs that would make it; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Print the plan of --dry-run as JSON
    #[arg(long, requires = "dry_run")]
    json: bool,
}

/// A size in MiB, or none where the disk decides.
#[derive(Debug, Clone, Copy)]
struct Size(Option<u64>);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // As bytes it fits into 64 bits, and into what the partition table counts.
        match text.parse::<u32>() {
            _ if text == "auto" => Ok(Self(None)),
            Ok(mib) => Ok(Self(Some(u64::from(mib)))),
            Err(_) => Err(format!("{text:?} is neither auto nor a number of MiB")),
        }
    }
}

impl Build {
    /// Builds, and prints which deployments the disk has.
    pub fn run(self, workshop: &Workshop, out: &mut dyn Write) -> Result<ExitCode> {
        let (dry_run, json, request) = (self.dry_run, self.json, self.request()?);
        let scratch = if dry_run { workshop.anywhere() } else { workshop.beside(&request.output) };
        let planned = build::plan(request, scratch?, &workshop.runtime)?;
        match (dry_run, json) {
            (false, _) => writeln!(out, "{}", serde_json::to_string(&planned.write()?)?)?,
            (true, false) => write!(out, "{}", planned.plan)?,
            (true, true) => writeln!(out, "{:#}", planned.plan.to_json())?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn request(self) -> Result<Request> {
        let way = self.boots.way();
        if self.boot_partition.is_some() && way.loader == Loader::SystemdBoot {
            let why = "systemd-boot reads its entries from the ESP: a boot partition needs --bootloader grub";
            return Err(super::Cli::command().error(ErrorKind::ArgumentConflict, why).into());
        }
        if self.output.symlink_metadata().is_ok_and(|there| !there.is_file()) {
            let why = format!("{} is there, and no regular file: --output is a file of its own", self.output.display());
            return Err(super::Cli::command().error(ErrorKind::ValueValidation, why).into());
        }
        if way.boot_type == BootType::Uki && !self.options.is_empty() {
            let why =
                "--options are words of entries: a UKI brings its own command line, which image-tools seal gives it";
            return Err(super::Cli::command().error(ErrorKind::ArgumentConflict, why).into());
        }
        let enrol = enrol(self.secureboot_keys, self.secureboot_enroll, way)?;
        let choice = Choice {
            way,
            boot: if self.boot_partition.is_some() { Boot::Partition } else { Boot::Directory },
            sealing: if self.unsealed { Sealing::Unsealed } else { Sealing::Sealed },
            options: self.options,
            target: self.target_imgref,
            enrol,
        };
        Ok(Request {
            image: self.image,
            stage: self.stage,
            arch: self.boots.arch,
            output: self.output,
            format: self.format,
            erofs: self.erofs_format.into(),
            choice,
            boot: self.boot_partition.unwrap_or(BootFs::Ext4),
            esps: if self.mirror_esp { Esps::Mirrored } else { Esps::One },
            seed: self.seed.unwrap_or_else(|| format!("{:032x}", fastrand::u128(..))),
            esp_size: self.esp_size.map(|mib| u64::from(mib) << 20),
            boot_size: self.boot_size.map(|mib| u64::from(mib) << 20),
            size: self.size.0.map(|mib| mib << 20),
            cache: self.cache,
            time: self.time,
        })
    }
}

/// What is enrolled, and when. Only a UKI has one signature for kernel, initrd and options, and GRUB starts none without shim.
pub fn enrol(keys: Option<PathBuf>, when: Option<When>, way: Way) -> Result<Option<Enrol>> {
    let Some(dir) = keys else { return Ok(None) };
    if way != (Way { loader: Loader::SystemdBoot, boot_type: BootType::Uki }) {
        let why = "only signed UKIs and systemd-boot start with them: --secureboot-keys needs --boot-type uki \
                   and --bootloader systemd-boot";
        return Err(super::Cli::command().error(ErrorKind::ArgumentConflict, why).into());
    }
    Ok(Some(Enrol { keys: secureboot::keys(&dir)?, dir, when }))
}
