//! Takes the counters out of the names of a deployment's entries: it was found good.
//!
//! systemd-bless-boot(8) may do the same at the same time, and systemd-boot renames at each boot: what is not there any more
//! has been done by somebody else. On FAT a rename is two writes, between which the entry may have no name; so an entry gets
//! its bare name as a copy, durably, before the counted one goes. A UKI is large and is renamed, as systemd-bless-boot does.

use std::io;

use anyhow::{Context, Result, bail};
use cap_std::fs::Dir;

use super::{
    super::{EntriesPlace, Loader, bls::Entry, entries::is_entry, order::Counter, uki},
    bare,
};
use crate::{
    digest::DeploymentId,
    layout::{EFI_LINUX, ENTRIES},
    sys,
};

/// Until a copy has its name.
const ASIDE: &str = ".composefs-finalize.good";

/// Takes the counters out of the names of all entries of `place` that boot deployment `id`, durably. Says how many there were.
///
/// # Errors
///
/// When an entry cannot be written, or its bare name is another entry's. Then it is still counted.
pub fn bless(place: &EntriesPlace, id: &DeploymentId) -> Result<usize> {
    let mut found = 0;
    if let Ok(loader) = place.loader_dir() {
        found += entries(&loader, id).context("renaming the entry in loader/entries")?;
    }
    if place.loader == Loader::SystemdBoot {
        found += ukis(&place.root, id).context("renaming the UKI in EFI/Linux")?;
    }
    Ok(found)
}

fn entries(loader: &Dir, id: &DeploymentId) -> Result<usize> {
    let Some(dir) = absent_is_none(loader.open_dir(ENTRIES))? else { return Ok(0) };
    let mut found = 0;
    for name in counted(&dir)?.into_iter().filter(|name| is_entry(name)) {
        let Ok(Some(text)) = sys::file::read(&dir, &name) else { continue };
        if !text.parse::<Entry>().is_ok_and(|entry| entry.is_ours() && entry.deployment().as_ref() == Some(id)) {
            continue;
        }
        let good = bare(&name);
        match sys::file::read(&dir, &good)? {
            Some(other) if other == text => {}
            Some(_) => bail!("{good} is another entry; {name} stays as it is"),
            None => {
                let written = sys::file::write(&dir, ASIDE, text.as_bytes())
                    .and_then(|()| sys::sync::file_system(dir.open(".")?))
                    .and_then(|()| sys::rename::move_to(&dir, ASIDE, &good));
                if written.is_err() {
                    _ = sys::remove::file(&dir, ASIDE);
                }
                written.with_context(|| format!("writing {good}"))?;
            }
        }
        sys::sync::file_system(dir.open(".")?)?;
        sys::remove::file(&dir, &name).with_context(|| format!("removing {name}"))?;
        sys::sync::file_system(dir.open(".")?)?;
        found += 1;
    }
    Ok(found)
}

fn ukis(esp: &Dir, id: &DeploymentId) -> Result<usize> {
    let Some(dir) = absent_is_none(esp.open_dir(EFI_LINUX))? else { return Ok(0) };
    let mut found = 0;
    for name in counted(&dir)?.into_iter().filter(|name| uki::is_uki(name)) {
        if uki::deployment(&dir, &name).as_ref() != Some(id) {
            continue;
        }
        match sys::rename::move_to(&dir, &name, &bare(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            renamed => renamed.with_context(|| format!("renaming {name}"))?,
        }
        sys::sync::file_system(dir.open(".")?)?;
        found += 1;
    }
    Ok(found)
}

/// The names with a counter.
fn counted(dir: &Dir) -> io::Result<Vec<String>> {
    let mut names = vec![];
    for entry in dir.entries()? {
        let name = entry?.file_name().into_string().ok();
        names.extend(name.filter(|name| Counter::split(name).1.is_some()));
    }
    names.sort();
    Ok(names)
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
