//! The boot loader's side of a finalization: which loader, where its entries live, and how they are exchanged.

pub mod bls;
pub mod entries;
pub mod grub;
pub mod loader;
pub mod order;
pub mod swap;
pub mod uki;
pub mod user_cfg;

use std::io;

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;
use sha2::{Digest, Sha256};

use crate::{
    cmdline::Target,
    digest::DeploymentId,
    layout::{ENTRIES, LOADER, USER_CFG},
    sys,
};

pub use loader::Loader;

/// What entries and the directory that holds them take, in bytes.
const ROOM: u64 = 1 << 14;

/// Where a boot loader finds its entries.
#[derive(Debug)]
pub enum Place {
    /// A directory of Type #1 entries.
    Entries(EntriesPlace),
    /// GRUB's menu of UKIs.
    Menu {
        /// The ESP with the UKIs: paths in menuentries are absolute within it.
        esp: Dir,
        /// GRUB's own directory, with `user.cfg`.
        grub: Dir,
    },
}

/// Where a directory of Type #1 entries is, and how it can be exchanged.
#[derive(Debug)]
pub struct EntriesPlace {
    /// The root of the file system that holds kernels: paths in entries are absolute within it.
    pub root: Dir,
    /// Where in it `loader/` is.
    pub boot: BootDir,
    /// Who reads the entries, and so how they are ordered.
    pub loader: Loader,
    /// How entries can be exchanged there.
    pub method: swap::Method,
}

/// The directory that holds `loader/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootDir {
    /// The root of an ESP or of a boot partition.
    Root,
    /// The directory `boot` of the root file system.
    Boot,
}

impl EntriesPlace {
    /// The directory that holds `entries` and `entries.staged`.
    ///
    /// # Errors
    ///
    /// Those of openat2(2); `NotFound` on a machine without Type #1 entries.
    pub fn loader_dir(&self) -> io::Result<Dir> {
        match self.boot {
            BootDir::Root => self.root.open_dir(LOADER),
            BootDir::Boot => self.root.open_dir("boot")?.open_dir(LOADER),
        }
    }
}

impl Place {
    /// The deployments that it boots, the first one first.
    ///
    /// # Errors
    ///
    /// When the entries cannot be read.
    pub fn deployments(&self) -> Result<Vec<DeploymentId>> {
        match self {
            Self::Menu { grub, .. } => {
                let menu = user_cfg::read(grub, USER_CFG).context("reading grub2/user.cfg")?;
                Ok(menu.unwrap_or_default().deployments())
            }
            Self::Entries(place) => {
                let mut all = uki::shown(&place.root, place.loader)?;
                let live = match place.loader_dir() {
                    Err(error) if error.kind() == io::ErrorKind::NotFound && !all.is_empty() => None,
                    dir => entries::Entries::read(&dir?, ENTRIES)?,
                };
                let live = live.unwrap_or_default();
                let mut first: Vec<_> =
                    live.ordered(place.loader).into_iter().filter_map(|(_, entry)| entry.deployment()).collect();
                first.append(&mut all);
                Ok(first)
            }
        }
    }

    /// The root of the file system with what the entries boot.
    fn root(&self) -> &Dir {
        match self {
            Self::Entries(place) => &place.root,
            Self::Menu { esp, .. } => esp,
        }
    }

    fn check(&self, boots: &[String], id: &DeploymentId, digest: Option<&str>) -> Result<()> {
        for path in boots {
            let found = self.root().metadata(path.trim_start_matches('/'));
            let found = found.with_context(|| format!("looking for {path}, which the staged entry names"))?;
            ensure!(found.is_file() && found.len() > 0, "{path}, which the staged entry names, is empty");
        }
        let (what, found) = match boots {
            [] => return Ok(()),
            [uki] => self.digests_of_uki(uki, id)?,
            [kernel, initrds @ ..] => (boots.join(" and "), self.digests_of_kernel(kernel, initrds)?),
        };
        if let Some(digest) = digest
            && let Some(last) = found.last()
        {
            ensure!(
                found.iter().any(|found| found == digest),
                "{what} changed after staging: the digest is {last}, expected {digest}: stage the deployment again"
            );
        }
        Ok(())
    }

    fn open(&self, path: &str) -> Result<std::fs::File> {
        let file = self.root().open(path.trim_start_matches('/')).map(cap_std::fs::File::into_std);
        file.with_context(|| format!("opening {path}"))
    }

    /// The digest of a UKI that boots `id`: over its sections `.linux` and `.initrd`. None of a file that is no UKI.
    fn digests_of_uki(&self, path: &str, id: &DeploymentId) -> Result<(String, Vec<String>)> {
        let found = uki::cmdline(self.open(path)?).and_then(|text| Target::find(&text));
        if let Some(found) = found {
            ensure!(found.id == *id, "{path} boots {}, not {id}: stage the deployment again", found.id);
        }
        Ok((path.to_owned(), uki::digest(self.open(path)?).into_iter().collect()))
    }

    /// The digests over the kernel and each of the initrds: staging has written down that of one of them. Microcode, or a
    /// program that mounts, may stand before or behind it.
    fn digests_of_kernel(&self, kernel: &str, initrds: &[String]) -> Result<Vec<String>> {
        let mut hash = Sha256::new();
        io::copy(&mut self.open(kernel)?, &mut hash).with_context(|| format!("reading {kernel}"))?;
        let with = |path: &String| {
            let mut hash = hash.clone();
            io::copy(&mut self.open(path)?, &mut hash).with_context(|| format!("reading {path}"))?;
            Ok(hex::encode(hash.finalize()))
        };
        initrds.iter().map(with).collect()
    }
}

/// Where the exchange for deployment `id` stands at each place, with what it will boot checked: that it is there, and has
/// the digest that staging wrote down (`digest` of an origin file: SHA-256 over kernel, then initrd). Writes nothing.
///
/// # Errors
///
/// As [`swap::probe`], when a kernel, an initrd or a UKI that the new entry names is missing or not what was staged, and
/// when there is no room for the entries.
pub fn probe(places: &[Place], id: &DeploymentId, digest: Option<&str>) -> Result<swap::Staged> {
    let staged = swap::probe(places, id)?;
    for (number, boots) in staged.boots() {
        places[number].check(&boots, id, digest)?;
        sys::space::check(places[number].root(), ROOM)
            .context("looking for room for loader/entries on the boot file system")?;
    }
    Ok(staged)
}
