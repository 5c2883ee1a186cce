//! The boot loader's side of a finalization: which loader, where its entries live, and how they are exchanged.

pub mod bls;
pub mod entries;
pub mod esp;
pub mod grub;
pub mod loader;
pub mod menu;
pub mod place;
pub mod swap;
pub mod uki;

use anyhow::{Context, Result};
use cap_std::fs::Dir;

use crate::digest::DeploymentId;

pub use loader::Loader;

/// Where a boot loader finds its entries.
#[derive(Debug)]
pub struct Place {
    /// The root of the file system that holds kernels: paths in entries are absolute within it.
    pub root: Dir,
    /// The directory that holds `loader/`, relative to `root`: empty on an ESP or a boot partition, `boot` where boot
    /// is a directory of the root file system.
    pub boot: &'static str,
    /// Who reads the entries, and so how they are ordered.
    pub loader: Loader,
    /// How entries can be exchanged there.
    pub method: swap::Method,
    /// GRUB's own directory where its menu of UKIs is what boots; then `root` is the ESP with the UKIs.
    pub menu: Option<Dir>,
}

impl Place {
    /// The directory that holds `entries` and `entries.staged`.
    ///
    /// # Errors
    ///
    /// Those of openat2(2); `NotFound` on a machine without Type #1 entries.
    pub fn loader_dir(&self) -> std::io::Result<Dir> {
        let boot = if self.boot.is_empty() { "." } else { self.boot };
        self.root.open_dir(boot)?.open_dir(crate::layout::LOADER)
    }

    /// The deployments that it boots, the first one first.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub fn deployments(&self) -> Result<Vec<DeploymentId>> {
        if let Some(dir) = &self.menu {
            let menu = crate::sys::file::read(dir, crate::layout::USER_CFG).context("reading grub2/user.cfg")?;
            return Ok(menu::deployments(&menu.unwrap_or_default()).collect());
        }
        let live = entries::Entries::read(&self.loader_dir()?, crate::layout::ENTRIES)?.unwrap_or_default();
        Ok(live.ordered(self.loader).into_iter().filter_map(|(_, entry)| entry.deployment()).collect())
    }

    /// Where the exchange for deployment `id` stands here, with what it will boot checked. Writes nothing.
    ///
    /// # Errors
    ///
    /// Those of [`swap::probe`], and when a kernel, an initrd or a UKI that the new entry names is missing.
    pub fn probe(&self, id: &DeploymentId) -> Result<swap::Probe> {
        let probe = swap::probe(self, id)?;
        if let swap::Probe::Ready(staged) = &probe {
            for path in staged.boots()? {
                let found = self.root.metadata(path.trim_start_matches('/'));
                let found = found.with_context(|| format!("looking for {path}, which the staged entry names"))?;
                anyhow::ensure!(found.is_file() && found.len() > 0, "{path}, which the staged entry names, is empty");
            }
        }
        Ok(probe)
    }
}
