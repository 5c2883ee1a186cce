//! Whether a deployment is on a disk as a whole, as the booted system sees the disk: with the journal replayed.

use anyhow::{Context, Result, ensure};
use ext4_view::Ext4;
use finalize::{digest::DeploymentId, layout, staged::Origin};

use super::{
    etc::{Etc, etc, same},
    scratch::Scratch,
};

/// A deployment, and the /etc that it must have.
#[derive(Debug)]
pub struct Deployed {
    /// Its name.
    pub id: DeploymentId,
    /// What is there of it when that /etc is in place.
    pub mark: &'static str,
    /// Its /etc: at each path as one of these has it.
    pub etc: Vec<Etc>,
}

impl Deployed {
    /// Whether it is there.
    ///
    /// # Errors
    ///
    /// Says what is missing, or is not what it must be.
    pub fn is_whole(&self, scratch: &Scratch) -> Result<()> {
        let (ext4, id) = (ext4(scratch)?, &self.id);
        let mark = format!("/{}/{}", layout::deployment(id), self.mark);
        ensure!(ext4.exists(mark.as_str())?, "{mark} is missing");
        same(&etc(&ext4, id, layout::ETC)?, &self.etc).with_context(|| format!("the /etc of {}", id.short()))?;
        let image = format!("/{}", layout::image(id));
        ensure!(ext4.exists(image.as_str())?, "{image} is missing");
        let origin = format!("/{}/{}", layout::deployment(id), layout::origin(id));
        let origin = ext4.read_to_string(origin.as_str()).with_context(|| format!("reading {origin}"))?;
        origin.parse::<Origin>().context("reading the origin file")?;
        Ok(())
    }
}

/// The physical root, its journal replayed.
///
/// # Errors
///
/// When it cannot be mounted.
pub fn ext4(disk: &Scratch) -> Result<Ext4> {
    let root = disk.partition("root").context("the disk has no partition root")?;
    Ext4::load_from_path(root).context("mounting the root file system")
}
