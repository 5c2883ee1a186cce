//! The boot loader's side of a finalization: which loader, where its entries live, and how they are exchanged.

pub mod bls;
pub mod entries;
pub mod grub;
pub mod loader;
pub mod menu;
pub mod order;
pub mod swap;
pub mod uki;

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;
use sha2::{Digest, Sha256};

use crate::{cmdline::Target, digest::DeploymentId, sys};

pub use loader::Loader;

/// What entries and the directory that holds them take, in bytes.
const ROOM: u64 = 1 << 14;

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

    /// Where the exchange for deployment `id` stands here, with what it will boot checked: that it is there, and has the
    /// digest that staging wrote down (`digest` of an origin file: SHA-256 over kernel, then initrd). Writes nothing.
    ///
    /// # Errors
    ///
    /// As [`swap::probe`], when a kernel, an initrd or a UKI that the new entry names is missing or not what was staged, and
    /// when there is no room for the entries.
    pub fn probe(&self, id: &DeploymentId, digest: Option<&str>) -> Result<swap::Probe> {
        let probe = swap::probe(self, id)?;
        if let swap::Probe::Ready(staged) = &probe {
            let boots = staged.boots()?;
            for path in &boots {
                let found = self.root.metadata(path.trim_start_matches('/'));
                let found = found.with_context(|| format!("looking for {path}, which the staged entry names"))?;
                ensure!(found.is_file() && found.len() > 0, "{path}, which the staged entry names, is empty");
            }
            self.check_digest(&boots, id, digest)?;
            sys::space::check(&self.root, ROOM)
                .context("looking for room for loader/entries on the boot file system")?;
        }
        Ok(probe)
    }

    fn check_digest(&self, boots: &[String], id: &DeploymentId, digest: Option<&str>) -> Result<()> {
        let open = |path: &str| {
            let file = self.root.open(path.trim_start_matches('/')).map(cap_std::fs::File::into_std);
            file.with_context(|| format!("opening {path}"))
        };
        let again = "stage the deployment again";
        if let [uki] = boots
            && let Some(text) = uki::cmdline(open(uki)?)
        {
            let found = Target::find(&text).map(|target| target.id);
            ensure!(found.as_ref().is_none_or(|found| found == id), "{uki} boots {found:?}, not {id}: {again}");
        }
        let Some(digest) = digest.filter(|_| boots.len() > 1) else { return Ok(()) };
        let mut hash = Sha256::new();
        for path in boots {
            std::io::copy(&mut open(path)?, &mut hash).with_context(|| format!("reading {path}"))?;
        }
        let found = hex::encode(hash.finalize());
        ensure!(
            found == digest,
            "{} are not what was staged: their digest is {found}, not {digest}: {again}",
            boots.join(" and ")
        );
        Ok(())
    }
}
