//! For what kind of machine a disk is: the type of its root partition tells, or else the boot loader on its ESP.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use super::{
    Disk,
    fat::Fat,
    format,
    table::{self, Partition},
};
use crate::{
    arch::{Arch, TABLE},
    program,
};

/// The type of an EFI system partition (UEFI specification 2.10, 5.3.3).
const ESP: gpt::partition_types::Type = gpt::partition_types::EFI;

const MIB: u64 = 1 << 20;

impl Disk {
    /// What the firmware does not find.
    ///
    /// # Errors
    ///
    /// When the ESP cannot be read.
    pub(super) fn check_machine(&self) -> Result<Option<String>> {
        let Some(arch) = self.arch else {
            let why = "neither a root partition nor the ESP tells what machine the disk is for: say it with --arch";
            return Ok(Some(why.to_owned()));
        };
        let loader = arch.default_loader();
        let there = self.esp.exists(&loader)?;
        Ok((!there).then(|| format!("the ESP has no {loader}: the firmware of {arch} finds nothing to start")))
    }
}

/// What a disk with these partitions and this ESP is for; nothing where neither tells.
///
/// # Errors
///
/// When the ESP cannot be read, or has boot loaders for several.
pub fn of(partitions: &[Partition], esp: &Fat) -> Result<Option<&'static Arch>> {
    match by_type(partitions) {
        None => by_loader(esp),
        arch => Ok(arch),
    }
}

/// The same for a disk image in any format that qemu-img reads, of which no more is read than is needed; nothing where it
/// has no partition table either.
///
/// # Errors
///
/// When it cannot be read, or has boot loaders for several.
pub fn of_disk(image: &Path) -> Result<Option<&'static Arch>> {
    let found = fs::metadata(image).with_context(|| format!("opening {}", image.display()))?.file_type();
    if !found.is_file() && !found.is_block_device() {
        return Ok(None);
    }
    let dir = tempfile::tempdir()?;
    let image = Image { path: image.to_owned(), format: format(image)?, scratch: dir.path().to_owned() };
    // Whether there is a table: a disk may be one file system as a whole.
    let Ok(partitions) = table::read(&image.part(0, 2 * MIB)?.0) else { return Ok(None) };
    if let Some(arch) = by_type(&partitions) {
        return Ok(Some(arch));
    }
    let Some(esp) = partitions.iter().find(|found| found.kind == ESP.guid.to_string()) else { return Ok(None) };
    let (file, start) = image.part(esp.start, esp.size)?;
    by_loader(&Fat::at(&file, start))
}

fn by_type(partitions: &[Partition]) -> Option<&'static Arch> {
    let is_root = |arch: &&Arch| partitions.iter().any(|found| found.kind == arch.root.guid.to_string());
    TABLE.iter().find(is_root)
}

fn by_loader(esp: &Fat) -> Result<Option<&'static Arch>> {
    let mut found = vec![];
    for arch in &TABLE {
        found.extend(esp.exists(&arch.default_loader())?.then_some(arch));
    }
    match found[..] {
        [] => Ok(None),
        [arch] => Ok(Some(arch)),
        _ => bail!("the ESP has boot loaders for several machines: choose one with --arch"),
    }
}

/// A disk image.
struct Image {
    path: PathBuf,
    format: String,
    scratch: PathBuf,
}

impl Image {
    /// A raw file that has these bytes of the disk, and where in it they begin.
    fn part(&self, start: u64, size: u64) -> Result<(PathBuf, u64)> {
        let Self { path, format, scratch } = self;
        if format == "raw" {
            return Ok((path.clone(), start));
        }
        let (shell, part) = (program::shell()?, scratch.join(format!("part-{start}")));
        let (skip, count) = (start / MIB, size.div_ceil(MIB));
        let words = [format!("skip={skip}"), format!("count={count}"), format!("if={}", path.display())];
        let to = format!("of={}", part.display());
        program::run(cmd!(shell, "qemu-img dd -U -f {format} -O raw bs=1M {words...} {to}"))?;
        Ok((part, start % MIB))
    }
}
