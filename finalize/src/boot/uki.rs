//! UKIs as files: which deployment one boots, the digest over its kernel and initrd, and those that systemd-boot shows by
//! themselves (the Boot Loader Specification, "Type #2 EFI Unified Kernel Images").

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

use anyhow::{Context, Result};
use cap_std::fs::Dir;
use object::read::{Object, ObjectSection, ReadCache, pe::PeFile64};
use sha2::{Digest, Sha256};

use super::{
    Loader,
    count::{bare, is_spent},
    order::compare_versions,
};
use crate::{cmdline::Target, digest::DeploymentId, layout::EFI_LINUX, stop::Stop};

/// A command line is shorter.
const LIMIT: u64 = 1 << 16;

/// The command line in a UKI (section `.cmdline`); nothing where it is no UKI, or has none.
pub fn cmdline(file: File) -> Option<String> {
    text(file, ".cmdline")
}

/// The os-release(5) in a UKI (section `.osrel`): its title and version.
pub fn os_release(file: File) -> Option<String> {
    text(file, ".osrel")
}

fn text(mut file: File, name: &str) -> Option<String> {
    let (at, length) = section(&file, name)?;
    let mut text = vec![];
    file.seek(SeekFrom::Start(at)).ok()?;
    file.take(length.min(LIMIT)).read_to_end(&mut text).ok()?;
    Some(String::from_utf8(text).ok()?.trim_end_matches(['\0', '\n']).to_owned())
}

/// SHA-256 over the sections `.linux` and `.initrd` of a UKI, in hex; nothing where it has them not, or where it is time to
/// stop.
pub fn digest(mut file: File, stop: &Stop) -> Option<String> {
    let mut hash = Sha256::new();
    for name in [".linux", ".initrd"] {
        let (at, length) = section(&file, name)?;
        file.seek(SeekFrom::Start(at)).ok()?;
        io::copy(&mut stop.reading(file.by_ref().take(length)), &mut hash).ok()?;
    }
    Some(hex::encode(hash.finalize()))
}

/// Where a section of a PE file is in the file, and how long it is.
fn section(file: &File, name: &str) -> Option<(u64, u64)> {
    let cache = ReadCache::new(file.try_clone().ok()?);
    PeFile64::parse(&cache).ok()?.section_by_name(name)?.file_range()
}

/// The deployment that the UKI `name` boots, by its command line.
pub fn deployment(dir: &Dir, name: &str) -> Option<DeploymentId> {
    let file = dir.open(name).ok()?.into_std();
    Target::find(&cmdline(file)?).map(|target| target.id)
}

/// The deployments of the UKIs that `loader` shows by themselves, in descending order of their names.
///
/// # Errors
///
/// Those of getdents(2).
pub fn shown(esp: &Dir, loader: Loader) -> Result<Vec<DeploymentId>> {
    if loader != Loader::SystemdBoot {
        return Ok(vec![]);
    }
    let dir = match esp.open_dir(EFI_LINUX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        dir => dir.with_context(|| format!("opening {EFI_LINUX}"))?,
    };
    let mut names = vec![];
    for entry in dir.entries().with_context(|| format!("reading {EFI_LINUX}"))? {
        names.extend(entry?.file_name().into_string().ok().filter(|name| is_uki(name)));
    }
    names.sort_by(|one, other| {
        let by_name = || compare_versions(&bare(other), &bare(one));
        is_spent(one).cmp(&is_spent(other)).then_with(by_name)
    });
    Ok(names.iter().filter_map(|name| deployment(&dir, name)).collect())
}

/// Whether systemd-boot shows a file of this name.
pub fn is_uki(name: &str) -> bool {
    name.len().checked_sub(4).and_then(|at| name.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(".efi"))
}
