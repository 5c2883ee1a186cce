//! What somebody who stages an update needs of a machine that runs: the machine for himself, where the entries of the next boot
//! go, and the marker, which comes last.

use std::io;

use anyhow::{Context, Result};
use cap_std::fs::Dir;

use crate::{
    boot::Place,
    deployment::Deployment,
    digest::DeploymentId,
    host::{Access, Ambient, Host, place},
    layout::{ENTRIES_STAGED, ENTRIES_TRASH, MARKER, MET, USER_CFG_STAGED},
    lock::Lock,
    pending,
    staged::{BootType, Marker, Origin},
    stop::Stop,
    sys,
};

/// A machine on which nothing else is finalized, rolled back or staged as long as this lives.
#[derive(Debug)]
pub struct Staging {
    /// The machine, with what staging writes to writable.
    pub host: Host,
    _lock: Lock,
}

/// Where the next entries go.
#[derive(Debug)]
pub struct Sites {
    /// The places that boot the running deployment.
    pub places: Vec<Place>,
    /// Further ESPs with UKIs.
    pub copies: Vec<Dir>,
}

impl Staging {
    /// The machine behind `ambient`, once nobody else changes its deployments.
    ///
    /// # Errors
    ///
    /// Those of [`Host::open`], and of taking the lock.
    pub fn open(ambient: &Ambient, stop: &Stop) -> Result<Self> {
        let host = Host::open(ambient, Access::Write)?;
        let lock = Lock::take(&host.sysroot, stop)?;
        Ok(Self { host, _lock: lock })
    }

    /// The update that waits for a shutdown, or for being unlocked.
    ///
    /// # Errors
    ///
    /// When a marker is malformed.
    pub fn waiting(&self) -> Result<Option<Marker>> {
        Ok(match self.host.marker()? {
            Some(marker) => Some(marker),
            None => pending::remembered(&self.host.sysroot)?.filter(|marker| marker.depl_id != self.host.booted.id),
        })
    }

    /// What a deployment comes from.
    ///
    /// # Errors
    ///
    /// When it is not there, or not whole.
    pub fn origin(&self, id: &DeploymentId) -> Result<Origin> {
        Ok(Deployment::open(&self.host.sysroot, id)?.origin)
    }

    /// Where the entries of the next boot go.
    ///
    /// # Errors
    ///
    /// When no entry boots the running deployment.
    pub fn sites(&self, boot_type: BootType) -> Result<Sites> {
        let (places, copies) = place::for_staging(&self.host, boot_type)?;
        Ok(Sites { places, copies })
    }

    /// Ends the update that waits, if one does: first it is forgotten, durably, then its entries go. What it consists of stays,
    /// and nobody needs it any more.
    ///
    /// # Errors
    ///
    /// Those of writing. Called again, it goes on.
    pub fn cancel(&self, sites: &Sites) -> Result<()> {
        pending::forget(&self.host.sysroot)?;
        pending::remove(&self.host, MARKER)?;
        pending::remove(&self.host, MET)?;
        sites.places.iter().try_for_each(drop_staged)
    }

    /// Says that the deployment is staged, once all of it is on the disk: from here on the next shutdown finalizes it, unless it
    /// is `locked`.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn mark(&self, id: &DeploymentId, locked: bool) -> Result<()> {
        let marker = Marker { depl_id: id.clone(), finalization_locked: locked };
        pending::write_down(&self.host, &marker)?;
        pending::resume(&self.host, &marker)
    }
}

/// Removes the entries that are staged at a place; a name that means something becomes rubbish first.
fn drop_staged(place: &Place) -> Result<()> {
    let missing = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
    let drop = || match place {
        Place::Menu { grub, .. } => {
            sys::remove::file(grub, USER_CFG_STAGED)?;
            sys::sync::fsync(grub.open(".")?)
        }
        Place::Entries(place) => match place.loader_dir() {
            Err(error) if missing(&error) => Ok(()),
            loader => sys::remove::discard(&loader?, ENTRIES_STAGED, ENTRIES_TRASH),
        },
    };
    drop().context("removing the entries that are staged")
}
