//! For what kind of machine a disk is: the type of its root partition tells, or else the boot loader on its ESP.

use std::{
    fs,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use super::{
    fat::Fat,
    find::Found,
    format,
    kind::Role,
    table::{self, Partition},
};
use crate::{
    arch::{Arch, TABLE},
    program,
};

const SEVERAL: &str = "the ESP has boot loaders for several machines: choose one with --arch";

const MIB: u64 = 1 << 20;

impl Found {
    /// What the disk with these partitions is for; nothing where it does not tell, or its ESP has boot loaders for several
    /// machines, which is noted.
    ///
    /// # Errors
    ///
    /// When the ESP cannot be read.
    pub(super) fn arch(&mut self, partitions: &[Partition]) -> Result<Option<&'static Arch>> {
        let (None, Some((_, esp))) = (by_type(partitions), self.esps.first()) else { return Ok(by_type(partitions)) };
        let found = by_loader(esp)?;
        if found.len() > 1 {
            self.notes.push(SEVERAL.to_owned());
        }
        Ok(if let [arch] = found[..] { Some(arch) } else { None })
    }
}

/// What a disk image is for, in any format that qemu-img reads, of which no more is read than is needed; nothing where it has
/// no partition table, or does not tell.
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
    let Ok(partitions) = table::read_head(&image.part(0, 2 * MIB)?.0) else { return Ok(None) };
    if let Some(arch) = by_type(&partitions) {
        return Ok(Some(arch));
    }
    let Some(esp) = partitions.iter().find(|found| found.role == Role::Esp) else { return Ok(None) };
    let (file, start) = image.part(esp.start, esp.size)?;
    match by_loader(&Fat::at(&file, start))?[..] {
        [] => Ok(None),
        [arch] => Ok(Some(arch)),
        _ => bail!(SEVERAL),
    }
}

fn by_type(partitions: &[Partition]) -> Option<&'static Arch> {
    let is_root = |arch: &&Arch| partitions.iter().any(|found| found.kind == arch.root.guid.to_string());
    TABLE.iter().find(is_root)
}

fn by_loader(esp: &Fat) -> Result<Vec<&'static Arch>> {
    let mut found = vec![];
    for arch in &TABLE {
        found.extend(esp.exists(&arch.default_loader())?.then_some(arch));
    }
    Ok(found)
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
