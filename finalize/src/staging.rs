//! What somebody who stages an update needs of a machine that runs: the machine for himself, where the entries of the next boot
//! go, and the marker, which comes last.

use anyhow::Result;
use cap_std::fs::Dir;

use crate::{
    boot::Place,
    deployment::Deployment,
    digest::DeploymentId,
    host::{Access, Ambient, Host, place},
    lock::Lock,
    pending,
    staged::{BootType, Marker, Origin},
    stop::Stop,
    unstage,
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

    /// Ends the update that waits, if one does, see [`unstage::cancel`]. What it consists of stays until `gc` collects it.
    ///
    /// # Errors
    ///
    /// Those of writing. Called again, it goes on.
    pub fn cancel(&self) -> Result<()> {
        unstage::cancel(&self.host).map(drop)
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
