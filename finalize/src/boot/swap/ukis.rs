//! The older way of staging UKIs, as `EFI/Linux/<name>.efi.staged`.
//!
//! systemd-boot shows every `EFI/Linux/*.efi` by itself, so the moment such a file has its name it boots, the newest
//! version first. FAT renames in two writes, between which both names may own the same clusters, or the new one none. So a
//! copy is renamed, and the staged file goes last: whatever a power cut leaves under the new name, another run puts right.
//!
//! No file that has its name already is overwritten or removed, for it may be what boots now: where the name is taken, the
//! new UKI gets one that is free and sorts before it.

use std::io;

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;

use super::{
    super::{
        count::{Trial, bare, counted, is_spent},
        uki::{deployment, is_uki},
    },
    Exchange, Stands,
};
use crate::{
    digest::DeploymentId,
    layout::{EFI_LINUX, EFI_LINUX_BOOTC},
    sys,
};

const STAGED: &str = ".staged";
const ASIDE: &str = ".composefs-finalize.new";

/// UKIs that wait under their names with `.staged` behind them.
#[derive(Debug)]
pub struct Ukis {
    id: DeploymentId,
    /// The one that boots the deployment last.
    waiting: Vec<Waiting>,
    /// Where the one that boots the deployment has its name, or will have it.
    boots: (Dir, String),
    /// Those that this run has given their names.
    given: Vec<(Dir, String)>,
    /// The tries that the new deployment's UKI has in its name.
    tries: u32,
}

/// A UKI that waits for its name.
#[derive(Debug)]
struct Waiting {
    dir: Dir,
    /// Without `.staged`.
    name: String,
    boots: Option<DeploymentId>,
}

impl Waiting {
    fn staged(&self) -> String {
        format!("{}{STAGED}", self.name)
    }
}

impl Ukis {
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
                    Some(future) if is_uki(future) => {
                        let (dir, name, boots) = (dir.try_clone()?, future.to_owned(), deployment(&dir, &name));
                        waiting.push(Waiting { dir, name, boots });
                    }
                    _ if is_uki(&name) && path == EFI_LINUX => live.push((dir.try_clone()?, name)),
                    _ => {}
                }
            }
        }
        waiting.sort_by_key(|waiting| (waiting.boots.as_ref() == Some(id), waiting.name.clone()));
        let next = waiting.last().filter(|waiting| waiting.boots.as_ref() == Some(id));
        let live = live.into_iter().find(|(dir, name)| deployment(dir, name).as_ref() == Some(id));
        let (boots, stands) = match (next, live) {
            (Some(next), _) => ((next.dir.try_clone()?, next.name.clone()), Stands::Ready),
            (None, Some(live)) => (live, Stands::Exchanged),
            (None, None) => return Ok(None),
        };
        Ok(Some((Self { id: id.clone(), waiting, boots, given: vec![], tries: 0 }, stands)))
    }

    fn sync_esp(&self) -> Result<()> {
        sys::sync::file_system(self.boots.0.open(".")?).context("syncing the ESP")
    }
}

impl Exchange for Ukis {
    fn boots(&self) -> Vec<String> {
        vec![]
    }

    fn count(&mut self, trial: Option<&Trial>) -> Result<(), String> {
        self.tries = trial.map_or(0, |trial| trial.tries);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.sync_esp()
    }

    fn exchange(&mut self) -> Result<()> {
        for waiting in &self.waiting {
            let (dir, staged) = (&waiting.dir, waiting.staged());
            let naming = || format!("giving {staged} its name");
            let name = match name_for(waiting, &self.id).with_context(naming)? {
                // The same UKI, tried before, and once more because a person says so.
                Name::Has(name) if is_spent(&name) && waiting.boots.as_ref() == Some(&self.id) => {
                    let fresh = counted(&name, self.tries);
                    sys::rename::replace(dir, &name, &fresh).with_context(naming)?;
                    fresh
                }
                Name::Has(name) => name,
                Name::Give(name) => {
                    let is_new = self.tries > 0 && waiting.boots.as_ref() == Some(&self.id);
                    let name = if is_new { counted(&name, self.tries) } else { name };
                    self.given.push((dir.try_clone()?, name.clone()));
                    copy(dir, &staged, &name).with_context(naming)?;
                    name
                }
            };
            if waiting.boots.as_ref() == Some(&self.id) {
                self.boots = (dir.try_clone()?, name);
            }
        }
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        let (dir, name) = &self.boots;
        self.sync_esp()?;
        sys::sync::fsync(dir.open(name)?).with_context(|| format!("syncing {name}"))?;
        let found = deployment(dir, name);
        ensure!(
            found.as_ref() == Some(&self.id),
            "{name} boots {}, not {}: stage the deployment again",
            found.as_ref().map_or("nothing", DeploymentId::short),
            self.id.short()
        );
        Ok(())
    }

    fn take_back(&mut self) -> Result<()> {
        for (dir, name) in self.given.drain(..).rev() {
            sys::remove::file(&dir, &name).with_context(|| format!("removing {name}"))?;
        }
        self.sync_esp()
    }

    fn clean_up(&mut self) -> Result<()> {
        for waiting in &self.waiting {
            let staged = waiting.staged();
            sys::remove::file(&waiting.dir, &staged).with_context(|| format!("removing {staged}"))?;
        }
        self.sync_esp()
    }
}

/// What is to be done for a waiting UKI.
enum Name {
    /// A copy gets this name.
    Give(String),
    /// This one boots the same already.
    Has(String),
}

/// The name that a waiting UKI gets: its own, where it is free; else one with a number, which sorts before it. What has a
/// name is only replaced where it boots `id` or, torn by a power cut, nothing.
fn name_for(waiting: &Waiting, id: &DeploymentId) -> io::Result<Name> {
    let dir = &waiting.dir;
    let mut taken = vec![];
    for entry in dir.entries()? {
        taken.extend(entry?.file_name().into_string());
    }
    let stem = &waiting.name[..waiting.name.len() - ".efi".len()];
    let numbered = (1..).map(|number| format!("{stem}-{number}.efi"));
    for name in [waiting.name.clone()].into_iter().chain(numbered) {
        // A counter is no part of a name.
        let Some(other) = taken.iter().find(|other| bare(other).eq_ignore_ascii_case(&bare(&name))) else {
            return Ok(Name::Give(name));
        };
        if is_copy(dir, &waiting.staged(), other)? {
            return Ok(Name::Has(other.clone()));
        }
        let is_of_ours = |wanted: &DeploymentId| name.contains(wanted.as_str());
        match (deployment(dir, other), &waiting.boots) {
            (Some(found), Some(wanted)) if found == *wanted && found == *id => return Ok(Name::Give(other.clone())),
            (Some(found), Some(wanted)) if found == *wanted => return Ok(Name::Has(other.clone())),
            (None, Some(wanted)) if is_of_ours(wanted) => return Ok(Name::Give(other.clone())),
            _ => {}
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Whether two files have the same bytes.
fn is_copy(dir: &Dir, one: &str, other: &str) -> io::Result<bool> {
    let (mut one, mut other) = (dir.open(one)?, dir.open(other)?);
    if one.metadata()?.len() != other.metadata()?.len() {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let (n, m) = (fill(&mut one, &mut a)?, fill(&mut other, &mut b)?);
        if a[..n] != b[..m] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut impl io::Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            length => filled += length,
        }
    }
    Ok(filled)
}

/// A copy of `from` under the name `to`, its content on the disk before the name.
fn copy(dir: &Dir, from: &str, to: &str) -> io::Result<()> {
    let written = sys::file::copy(dir, from, ASIDE).and_then(|()| sys::sync::file_system(dir.open(".")?));
    let renamed = written.and_then(|()| sys::rename::replace(dir, ASIDE, to));
    if renamed.is_err() {
        _ = sys::remove::file(dir, ASIDE);
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
