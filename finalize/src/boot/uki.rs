//! UKIs as files: which deployment one boots, and the older way of staging them, as `EFI/Linux/<name>.efi.staged`.
//!
//! systemd-boot shows every `EFI/Linux/*.efi` by itself (the Boot Loader Specification, "Type #2 EFI Unified Kernel
//! Images"), so the moment such a file has its name it boots, the newest version first. FAT renames in two writes, between
//! which both names may own the same clusters, or the new one none. So a copy is renamed, and the staged file goes last:
//! whatever a power cut leaves under the new name, another run puts right.

use std::{fs::File, io};

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;
use object::read::{Object, ObjectSection, ReadCache, pe::PeFile64};

use super::menu::Stands;
use crate::{
    cmdline::Target,
    digest::DeploymentId,
    layout::{EFI_LINUX, EFI_LINUX_BOOTC},
    sys,
};

const STAGED: &str = ".staged";
const ASIDE: &str = ".composefs-finalize.new";

/// The command line in a UKI (section `.cmdline`); nothing where it is no UKI, or has none.
pub fn cmdline(file: File) -> Option<String> {
    let cache = ReadCache::new(file);
    let uki = PeFile64::parse(&cache).ok()?;
    let text = uki.section_by_name(".cmdline")?.data().ok()?.to_vec();
    Some(String::from_utf8(text).ok()?.trim_end_matches(['\0', '\n']).to_owned())
}

/// UKIs that wait under their names with `.staged` behind them.
#[derive(Debug)]
pub struct Renames {
    id: DeploymentId,
    /// Directory and future name; the one that boots the deployment last.
    waiting: Vec<(Dir, String)>,
    /// The one that boots the deployment.
    boots: (Dir, String),
}

impl Renames {
    /// Finds the UKI of deployment `id` on an ESP, staged or in place, by its command line. Writes nothing. Nothing where
    /// there is none that was staged in this way, nor was.
    ///
    /// # Errors
    ///
    /// Those of reading directories.
    pub fn probe(esp: &Dir, id: &DeploymentId) -> Result<Option<(Self, Stands)>> {
        let (mut waiting, mut live) = (vec![], vec![]);
        for path in [EFI_LINUX, EFI_LINUX_BOOTC] {
            let Some(dir) = absent_is_none(esp.open_dir(path)).with_context(|| format!("opening {path}"))? else {
                continue;
            };
            for name in dir.entries().with_context(|| format!("reading {path}"))? {
                let Ok(name) = name?.file_name().into_string() else { continue };
                match name.strip_suffix(STAGED) {
                    Some(future) if future.ends_with(".efi") => waiting.push((dir.try_clone()?, future.to_owned())),
                    _ if name.ends_with(".efi") && path == EFI_LINUX => live.push((dir.try_clone()?, name)),
                    _ => {}
                }
            }
        }
        let boots_it = |dir: &Dir, name: &str| deployment(dir, name).as_ref() == Some(id);
        waiting.sort_by_key(|(dir, name)| (boots_it(dir, &format!("{name}{STAGED}")), name.clone()));
        let next = waiting.last().filter(|(dir, name)| boots_it(dir, &format!("{name}{STAGED}")));
        let live = live.iter().find(|(dir, name)| boots_it(dir, name));
        let (boots, stands) = match (next, live) {
            (Some(next), _) => (next, Stands::Ready),
            (None, Some(live)) => (live, Stands::Exchanged),
            (None, None) => return Ok(None),
        };
        let boots = (boots.0.try_clone()?, boots.1.clone());
        Ok(Some((Self { id: id.clone(), waiting, boots }, stands)))
    }

    /// Makes what is staged durable: somebody else has written it.
    ///
    /// # Errors
    ///
    /// Those of syncfs(2).
    pub fn sync(&self) -> Result<()> {
        sys::sync::file_system(self.boots.0.open(".")?).context("syncing the ESP")
    }

    /// Gives a copy of each staged UKI its name, durably, the one that boots the deployment last.
    ///
    /// # Errors
    ///
    /// Those of writing, `ENOSPC` say: the ESP must have space for one more UKI.
    pub fn exchange(&self) -> Result<()> {
        for (dir, name) in &self.waiting {
            copy(dir, &format!("{name}{STAGED}"), name).with_context(|| format!("giving {name}{STAGED} its name"))?;
        }
        Ok(())
    }

    /// Makes that durable, and reads it back.
    ///
    /// # Errors
    ///
    /// Those of syncing, and when what has the name does not boot the deployment.
    pub fn settle(&self) -> Result<()> {
        let (dir, name) = &self.boots;
        sys::sync::file_system(dir.open(".")?).context("syncing the ESP")?;
        sys::sync::fsync(dir.open(name)?).with_context(|| format!("syncing {name}"))?;
        let found = deployment(dir, name);
        ensure!(found.as_ref() == Some(&self.id), "{name} boots {found:?}, not {}: stage it again", self.id);
        Ok(())
    }

    /// Takes the names away from the copies whose originals are still staged, durably.
    ///
    /// # Errors
    ///
    /// Those of unlink(2) and syncing, and when the staged files are gone.
    pub fn take_back(&self) -> Result<()> {
        ensure!(!self.waiting.is_empty(), "the staged UKIs are gone: there is nothing to go back to");
        for (dir, name) in self.waiting.iter().rev() {
            sys::file::remove(dir, name).with_context(|| format!("removing {name}"))?;
        }
        sys::sync::file_system(self.boots.0.open(".")?).context("syncing the ESP")
    }

    /// Removes the staged files.
    ///
    /// # Errors
    ///
    /// Those of unlink(2).
    pub fn clean_up(&self) -> Result<()> {
        for (dir, name) in &self.waiting {
            sys::file::remove(dir, &format!("{name}{STAGED}")).with_context(|| format!("removing {name}{STAGED}"))?;
        }
        sys::sync::file_system(self.boots.0.open(".")?).context("syncing the ESP")
    }
}

fn deployment(dir: &Dir, name: &str) -> Option<DeploymentId> {
    let file = dir.open(name).ok()?.into_std();
    Target::find(&cmdline(file)?).map(|target| target.id)
}

/// A copy of `from` under the name `to`, its content on the disk before the name.
fn copy(dir: &Dir, from: &str, to: &str) -> io::Result<()> {
    let written = sys::file::copy(dir, from, ASIDE).and_then(|()| sys::sync::file_system(dir.open(".")?));
    let renamed = written.and_then(|()| sys::rename::replace(dir, ASIDE, to));
    if renamed.is_err() {
        _ = dir.remove_file(ASIDE);
    }
    renamed?;
    sys::sync::file_system(dir.open(".")?)
}

fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}
