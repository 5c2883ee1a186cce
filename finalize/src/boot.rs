//! The boot loader's side of a finalization: which loader, where its entries live, and how they are exchanged.

pub mod arrange;
pub mod bls;
pub mod count;
pub mod entries;
pub mod grub;
pub(crate) mod live;
pub mod loader;
pub mod order;
pub mod swap;
pub(crate) mod uki;
pub mod user_cfg;

use std::{io, os::fd::AsFd};

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    cmdline::Target,
    digest::DeploymentId,
    layout::{ENTRIES, LOADER, USER_CFG},
    stop::Stop,
    sys::{self, stamp::Mark},
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
    pub fn root(&self) -> &Dir {
        match self {
            Self::Entries(place) => &place.root,
            Self::Menu { esp, .. } => esp,
        }
    }

    /// What the files that an entry boots are now. Each is there, and is not empty.
    fn marks(&self, boots: &[String]) -> Result<Vec<Mark>> {
        let look = |path: &String| {
            let name = path.trim_start_matches('/');
            let named = || format!("looking for {path}, which its boot entry names");
            let found = self.root().metadata(name).with_context(named)?;
            ensure!(found.is_file() && found.len() > 0, "{path}, which its boot entry names, is empty");
            // What a link leads to may change without the link.
            if self.root().symlink_metadata(name).with_context(named)?.is_symlink() {
                return Ok(Mark::Fresh);
            }
            Ok(Mark::of(self.root().as_fd(), name.as_bytes()).with_context(named)?.without_inode())
        };
        boots.iter().map(look).collect()
    }

    fn check(&self, boots: &[String], wanted: &Wanted<'_>) -> Result<()> {
        let (what, found) = match boots {
            [] => return Ok(()),
            [uki] => self.digests_of_uki(uki, wanted)?,
            [kernel, initrds @ ..] => (boots.join(" and "), self.digests_of_kernel(kernel, initrds, wanted.stop)?),
        };
        if let Some(digest) = wanted.digest
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

    /// The digest of a UKI that boots the deployment: over its sections `.linux` and `.initrd`. None of a file that is no
    /// UKI.
    fn digests_of_uki(&self, path: &str, Wanted { id, stop, .. }: &Wanted<'_>) -> Result<(String, Vec<String>)> {
        let found = uki::cmdline(self.open(path)?).and_then(|text| Target::find(&text));
        if let Some(found) = found {
            ensure!(found.id == **id, "{path} boots {}, not {id}: stage the deployment again", found.id);
        }
        let digest = uki::digest(self.open(path)?, stop);
        // A digest that was not finished says nothing of the UKI.
        stop.check()?;
        Ok((path.to_owned(), digest.into_iter().collect()))
    }

    /// The digests over the kernel and each of the initrds: staging has written down that of one of them. Microcode, or a
    /// program that mounts, may stand before or behind it.
    fn digests_of_kernel(&self, kernel: &str, initrds: &[String], stop: &Stop) -> Result<Vec<String>> {
        let add = |path: &str, hash: &mut Sha256| {
            io::copy(&mut stop.reading(self.open(path)?), hash).with_context(|| format!("reading {path}"))
        };
        let mut hash = Sha256::new();
        add(kernel, &mut hash)?;
        let with = |path: &String| {
            let mut hash = hash.clone();
            add(path, &mut hash)?;
            Ok(hex::encode(hash.finalize()))
        };
        initrds.iter().map(with).collect()
    }
}

/// Files that a staged entry boots, checked, and what they were then: as long as they are that, they need no second check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    place: usize,
    boots: Vec<String>,
    digest: Option<String>,
    marks: Vec<Mark>,
}

impl Checked {
    fn is_that(&self, now: &Self) -> bool {
        let holds = self.marks.iter().zip(&now.marks).all(|(then, now)| then.holds(*now));
        (self.place, &self.boots, &self.digest) == (now.place, &now.boots, &now.digest) && holds
    }
}

/// What [`probe`] has found.
#[derive(Debug)]
pub struct Probed {
    /// Where the exchange stands.
    pub staged: swap::Staged,
    /// The files that were checked.
    pub checked: Vec<Checked>,
}

/// What the staged entries must boot.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The deployment.
    pub id: &'a DeploymentId,
    /// The digest that staging wrote down, if it has (`digest` of an origin file: SHA-256 over kernel, then initrd).
    pub digest: Option<&'a str>,
    /// Asked between the blocks of a kernel, an initrd or a UKI.
    pub stop: &'a Stop,
}

/// Where the exchange for a deployment stands at each place, with what it will boot checked: that it is there, and has its
/// digest. Files that are as they were when they were `known` to be right are not read again. Writes nothing.
///
/// # Errors
///
/// As [`swap::probe`], when a kernel, an initrd or a UKI that the new entry names is missing or not what was staged, and
/// when there is no room for the entries; when it is time to stop.
pub fn probe(places: &[Place], wanted: &Wanted<'_>, known: &[Checked]) -> Result<Probed> {
    let staged = swap::probe(places, wanted.id)?;
    let mut checked = vec![];
    for (place, boots) in staged.boots() {
        let marks = places[place].marks(&boots)?;
        let marks = marks.into_iter().map(|mark| mark.settled(sys::fault::tick())).collect();
        let now = Checked { place, boots, digest: wanted.digest.map(str::to_owned), marks };
        if !known.iter().any(|known| known.is_that(&now)) {
            places[place].check(&now.boots, wanted)?;
            // FAT reads all of its table to answer. Entries take a few blocks, and what does not fit is taken back.
            sys::space::check(places[place].root(), ROOM)
                .context("looking for room for loader/entries on the boot file system")?;
        }
        checked.push(now);
    }
    Ok(Probed { staged, checked })
}
