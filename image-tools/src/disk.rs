//! A plan, written into a disk image: without root, loop devices or mounts.

pub mod esp;
pub mod ext4;
mod fill;
mod identity;
mod table;
mod tar;
mod volume;
pub mod xfs;
mod xfs_times;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rayon::prelude::*;
use tracing::info_span;
use uuid::Uuid;
use xshell::{Cmd, Shell, cmd};

use crate::{
    plan::{FileSystem, Format, Partition, Plan},
    program,
};

/// A disk image that is complete, and not where it belongs yet.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
    format: Format,
    /// The identifier of its partition table.
    uuid: Uuid,
}

/// What the writer of a partition is told.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The disk image.
    pub disk: &'a Path,
    /// The partition.
    pub partition: &'a Partition,
}

/// Makes the disk of the plan at `path`, all partitions at the same time.
pub fn write(plan: Plan, path: &Path) -> Result<Disk> {
    table::write(&plan, path)?;
    plan.partitions.par_iter().try_for_each(|partition| {
        let _step = info_span!(target: "image_tools::step", "write", partition = partition.purpose.name()).entered();
        let place = Place { disk: path, partition };
        match partition.file_system {
            FileSystem::Fat(serial) => esp::create(place, serial, plan.time),
            FileSystem::Ext4(uuid) => ext4::create(place, uuid, plan.time),
            FileSystem::Xfs(uuid) => xfs::create(place, uuid, plan.time),
        }
    })?;
    Ok(Disk { path: path.to_owned(), format: plan.format, uuid: plan.uuid })
}

impl Disk {
    /// Puts it at `output`, in its format, in one step.
    pub fn convert(self, output: &Path) -> Result<()> {
        let _step = info_span!(target: "image_tools::step", "put in place", output = %output.display()).entered();
        let mut finished = self.path.clone();
        if self.format != Format::Raw {
            finished = self.path.with_extension(self.format.name());
            let shell = program::shell()?;
            program::run(conversion(&shell, self.format, &self.path, &finished))?;
            identity::settle(&finished, self.format, self.uuid)?;
        }
        std::fs::rename(&finished, output).with_context(|| format!("writing {}", output.display()))
    }
}

fn conversion<'a>(shell: &'a Shell, format: Format, from: &Path, to: &Path) -> Cmd<'a> {
    let format = format.name();
    cmd!(shell, "qemu-img convert -f raw -O {format} {from} {to}")
}

/// The programs that [`write`] and [`Disk::convert`] will run for these partitions, as one would type them.
pub fn programs(partitions: &[Partition], format: Format) -> Result<Vec<String>> {
    let shell = program::shell()?;
    let disk = Path::new("DISK");
    let mut programs = vec![];
    for partition in partitions {
        let place = Place { disk, partition };
        programs.extend(match partition.file_system {
            FileSystem::Fat(serial) => esp::programs(&shell, place, serial),
            FileSystem::Ext4(uuid) => ext4::programs(&shell, place, uuid),
            FileSystem::Xfs(uuid) => xfs::programs(&shell, place, uuid),
        });
    }
    if format != Format::Raw {
        programs.push(conversion(&shell, format, disk, Path::new("OUTPUT")).to_string());
    }
    Ok(programs)
}
