//! Deployments that the boot loader has given up, remembered on the disk: `state/finalize/failed.json`, readable by everybody.
//!
//! Whoever stages asks [`of`] first, and does not take such a deployment again unasked; `arm` does not resume it, and no
//! finalization makes it boot. `composefs-finalize try-again` forgets it, as does the deployment itself once it is found good.
//!
//! ```json
//! { "schema": 1, "failed": [ { "deployment": "<D>", "boots": 3, "at": "2026-11-27T21:00:00Z" } ] }
//! ```

use std::fmt;

use anyhow::{Context, Result};
use cap_std::fs::Dir;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    digest::DeploymentId,
    layout::{FAILED, FINALIZE_STATE, name_of},
    sys,
};

/// So many are remembered: the latest.
const MOST: usize = 32;

/// A deployment that did not boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Its name.
    pub deployment: DeploymentId,
    /// How often it was started without being found good.
    pub boots: u32,
    /// When this was noticed.
    pub at: Timestamp,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (id, boots) = (self.deployment.short(), self.boots);
        let times = if boots == 1 { "once" } else { &format!("{boots} times") };
        write!(f, "{id} was started {times} and never reached boot-complete.target; it is not taken again, ")?;
        write!(f, "unless you say so: composefs-finalize try-again {id}, then stage it again")
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct File {
    schema: u32,
    failed: Vec<Failed>,
}

/// All of them, the latest last.
///
/// # Errors
///
/// When the file cannot be read or is malformed.
pub fn all(sysroot: &Dir) -> Result<Vec<Failed>> {
    let text = sys::file::read(sysroot, FAILED).with_context(|| format!("reading {FAILED}"))?;
    let file: Option<File> = text.map(|text| serde_json::from_str(&text)).transpose().with_context(|| {
        format!("reading {FAILED}: remove the file, and deployments that have failed may be staged again")
    })?;
    Ok(file.map_or(vec![], |file| file.failed))
}

/// Whether deployment `id` is one that the boot loader of the machine with the physical root `sysroot` has given up.
///
/// # Errors
///
/// As [`all`].
pub fn of(sysroot: &Dir, id: &DeploymentId) -> Result<Option<Failed>> {
    Ok(all(sysroot)?.into_iter().find(|failed| failed.deployment == *id))
}

/// The same for those who go on where nobody knows: a file that cannot be read keeps no update away.
pub fn of_or_warn(sysroot: &Dir, id: &DeploymentId) -> Option<Failed> {
    of(sysroot, id).unwrap_or_else(|error| {
        tracing::warn!("{error:#}");
        None
    })
}

/// Remembers `failed`, durably; what is remembered of the same deployment already is replaced.
///
/// # Errors
///
/// Those of writing; then the old file is still there.
pub fn add(sysroot: &Dir, failed: &Failed) -> Result<()> {
    // A file that nobody can read is replaced.
    let mut known = all(sysroot).unwrap_or_default();
    if known.iter().any(|known| (&known.deployment, known.boots) == (&failed.deployment, failed.boots)) {
        return Ok(());
    }
    known.retain(|known| known.deployment != failed.deployment);
    known.push(failed.clone());
    let surplus = known.len().saturating_sub(MOST);
    write(sysroot, known.split_off(surplus))
}

/// Forgets deployment `id`, durably. Whether it was remembered.
///
/// # Errors
///
/// Those of reading and writing.
pub fn remove(sysroot: &Dir, id: &DeploymentId) -> Result<bool> {
    let mut known = all(sysroot)?;
    let before = known.len();
    known.retain(|known| known.deployment != *id);
    if known.len() < before {
        write(sysroot, known)?;
        return Ok(true);
    }
    Ok(false)
}

fn write(sysroot: &Dir, failed: Vec<Failed>) -> Result<()> {
    let text = format!("{:#}\n", serde_json::to_value(File { schema: 1, failed })?);
    let write = || {
        sys::file::create_dir_all(sysroot, FINALIZE_STATE)?;
        sys::file::write_atomic(&sysroot.open_dir(FINALIZE_STATE)?, name_of(FAILED), text.as_bytes())
    };
    write().with_context(|| format!("writing {FAILED}"))
}
