//! Deployments that a person keeps: `state/finalize/pins.json`, *ours*. Nothing of a pinned deployment is collected.
//!
//! A finalization drops every entry but that of the new and that of the booted deployment. So a pin keeps the text of its
//! deployment's entry too, and a rollback to it puts that back.

use anyhow::{Context, Error, Result, anyhow};
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};

use crate::{
    boot::live::Booting,
    deployment::Deployment,
    digest::{DeploymentId, named},
    host::{Access, Host, place},
    layout::{FINALIZE_STATE, PINS, name_of},
    lock::Lock,
    next::booted_kind,
    stop::Stop,
    sys,
};

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pins {
    /// 1.
    pub schema: u32,
    /// The pinned deployments, in the order in which they were pinned.
    pub pins: Vec<Kept>,
    /// The keys of a newer version, kept.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// A pinned deployment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// The deployment.
    pub deployment: DeploymentId,
    /// The text of the entry that booted it when it was pinned.
    pub entry: String,
}

impl Pins {
    /// Those of a physical root.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or is none.
    pub fn read(sysroot: &Dir) -> Result<Self> {
        let text = sys::file::read(sysroot, PINS).with_context(|| format!("reading {PINS}"))?;
        let Some(text) = text else { return Ok(Self { schema: 1, pins: vec![], other: serde_json::Map::new() }) };
        serde_json::from_str(&text)
            .with_context(|| format!("reading {PINS}: not a list of pins: remove the file, and pin again"))
    }

    /// The pin of deployment `id`.
    pub fn get(&self, id: &DeploymentId) -> Option<&Kept> {
        self.pins.iter().find(|kept| kept.deployment == *id)
    }

    /// Pins deployment `id`, which `entry` boots, or keeps that entry for it. False where nothing changes.
    pub fn add(&mut self, id: &DeploymentId, entry: &Booting) -> bool {
        let kept = Kept { deployment: id.clone(), entry: entry.text.clone() };
        match self.pins.iter_mut().find(|other| other.deployment == *id) {
            Some(other) if *other == kept => return false,
            Some(other) => *other = kept,
            None => self.pins.push(kept),
        }
        true
    }

    /// Pins deployment `id` no more. False where nothing changes.
    pub fn remove(&mut self, id: &DeploymentId) -> bool {
        let before = self.pins.len();
        self.pins.retain(|kept| kept.deployment != *id);
        self.pins.len() != before
    }

    /// Replaces the file, durably.
    ///
    /// # Errors
    ///
    /// Those of writing; then the old one is still there.
    pub fn write(&self, sysroot: &Dir) -> Result<()> {
        let write = || -> Result<()> {
            let text = format!("{:#}\n", serde_json::to_value(self)?);
            sys::file::create_dir_all(sysroot, FINALIZE_STATE)?;
            Ok(sys::file::write_atomic(&sysroot.open_dir(FINALIZE_STATE)?, name_of(PINS), text.as_bytes())?)
        };
        write().with_context(|| format!("writing {PINS}"))
    }
}

/// What became of a wish.
#[derive(Debug)]
pub enum Pinned {
    /// It is so now, or would be.
    Changed(DeploymentId),
    /// It was so before.
    Unchanged(DeploymentId),
    /// It cannot be, and why; nothing was written.
    Refused(Error),
}

/// Pins the deployment whose id begins with `text`. On a `host` that is open for reading nothing is written.
///
/// # Errors
///
/// When another finalization keeps the lock, and those of reading and writing.
pub fn pin(host: &Host, text: &str, stop: &Stop) -> Result<Pinned> {
    change(host, stop, |pins| {
        let mut entries = vec![];
        let booted = booted_kind(host);
        let places = place::find(host, booted)?;
        for place in &places {
            entries.extend(place.deployments()?);
        }
        let id = match named(text, entries.iter()) {
            Ok(id) => id,
            Err(error) => return Ok(Pinned::Refused(error.into())),
        };
        if let Err(error) = Deployment::open(&host.sysroot, &id) {
            return Ok(Pinned::Refused(error.context(format!("{} is not whole", id.short()))));
        }
        let entry = places.iter().rev().find_map(|place| place.entry(&id).transpose());
        let Some(entry) = entry.transpose()? else {
            return Ok(Pinned::Refused(anyhow!("{} is started by no entry that could be kept", id.short())));
        };
        Ok(if pins.add(&id, &entry) { Pinned::Changed(id) } else { Pinned::Unchanged(id) })
    })
}

/// Pins the deployment whose id begins with `text` no longer. On a `host` that is open for reading nothing is written.
///
/// # Errors
///
/// As [`pin`].
pub fn unpin(host: &Host, text: &str, stop: &Stop) -> Result<Pinned> {
    change(host, stop, |pins| {
        let id = match named(text, pins.pins.iter().map(|kept| &kept.deployment)) {
            Ok(id) => id,
            Err(_) => {
                return Ok(Pinned::Refused(anyhow!(
                    "no pinned deployment has an id that begins with {}",
                    text.escape_debug()
                )));
            }
        };
        Ok(if pins.remove(&id) { Pinned::Changed(id) } else { Pinned::Unchanged(id) })
    })
}

fn change(host: &Host, stop: &Stop, change: impl FnOnce(&mut Pins) -> Result<Pinned>) -> Result<Pinned> {
    let writes = host.access == Access::Write;
    let _lock = writes.then(|| Lock::take(&host.sysroot, stop)).transpose()?;
    let mut pins = Pins::read(&host.sysroot)?;
    let changed = change(&mut pins)?;
    if writes && matches!(changed, Pinned::Changed(_)) {
        pins.write(&host.sysroot)?;
    }
    Ok(changed)
}
