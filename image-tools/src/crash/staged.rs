//! An update that is staged while the machine is watched: where its marker is on the disk, all of it must be.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, anyhow, ensure};
use ext4_view::Ext4;
use finalize::{
    boot::{Loader, entries::Entries, grub},
    digest::DeploymentId,
    layout,
    staged::Marker,
};
use sha2::{Digest, Sha256};

use super::{
    deployed::ext4,
    etc::{Etc, etc, same},
    eyes::{Eyes, Menu},
    scratch::Scratch,
};
use crate::inspect::{self, fat::Fat, objects::VERITY};

/// Files by their paths, and what they must be.
type Files = BTreeMap<String, String>;

/// What there must be of each update that a marker may name.
#[derive(Debug, Default)]
pub struct Staged {
    updates: BTreeMap<DeploymentId, Update>,
    /// Objects that the update has brought.
    objects: Files,
    /// Whether these have fs-verity.
    is_sealed: bool,
    /// Names of streams that the update has brought: whoever stages the next update takes what they name for whole.
    streams: BTreeSet<String>,
}

#[derive(Debug, Default)]
struct Update {
    etc: Etc,
    root: Files,
    esp: Files,
    /// Whether it is what was staged while the machine was watched.
    is_new: bool,
}

/// What was seen of updates on one file system.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    /// The deployment that the marker names, if it is on this file system.
    marker: Option<DeploymentId>,
    /// What is wrong with each update.
    wrong: BTreeMap<DeploymentId, String>,
    /// What is wrong whatever waits.
    broken: Option<String>,
}

impl Waits {
    /// The update that waits, all of it on the disk; nothing where none does. This is the root file system.
    ///
    /// # Errors
    ///
    /// Says what of it is not there.
    pub fn whole_with(&self, esp: Option<&Self>) -> Result<Option<&DeploymentId>> {
        if let Some(why) = &self.broken {
            return Err(anyhow!("{why}"));
        }
        let Some(id) = &self.marker else { return Ok(None) };
        for seen in [Some(self), esp].into_iter().flatten() {
            if let Some(why) = seen.wrong.get(id) {
                return Err(anyhow!("{} is staged, and not whole: {why}", id.short()));
            }
        }
        Ok(Some(id))
    }
}

impl Staged {
    /// Learns from the disk before and after an update was staged.
    ///
    /// # Errors
    ///
    /// When what is staged is not whole there.
    pub fn learn(first: (&Scratch, &Eyes), last: (&Scratch, &Eyes)) -> Result<Self> {
        let mut staged = Self::default();
        for ((disk, eyes), is_new) in [(first, false), (last, true)] {
            let ext4 = ext4(disk)?;
            if let Some(id) = marker(&ext4)? {
                let update = Update::read(&ext4, eyes, &id).with_context(|| format!("looking at {}", id.short()))?;
                staged.updates.insert(id, Update { is_new, ..update });
            }
        }
        let (before, after) = (ext4(first.0)?, ext4(last.0)?);
        for path in &objects(&after)? - &objects(&before)? {
            let what = print(&after.read(path.as_str())?);
            staged.objects.insert(path, what);
        }
        staged.streams = &streams(&after)? - &streams(&before)?;
        ensure!(!staged.objects.is_empty() && !staged.streams.is_empty(), "the update has brought nothing");
        staged.is_sealed = staged.sealed(last.0)?.values().any(|sealed| *sealed);
        Ok(staged)
    }

    /// Which objects that are there have fs-verity, as the file system says without its journal.
    fn sealed(&self, disk: &Scratch) -> Result<BTreeMap<String, bool>> {
        let root = disk.partition("root").context("the disk has no partition root")?;
        let paths: Vec<_> = self.objects.keys().cloned().collect();
        let inodes = inspect::ext4::Ext4::at(root, 0).inodes(&paths)?;
        Ok(paths.into_iter().zip(inodes).map(|(path, inode)| (path, inode.flags & VERITY != 0)).collect())
    }

    /// What there is of updates on the ESP.
    pub fn on_esp(&self, esp: &Fat) -> Waits {
        let read = |path: &str| esp.bytes(path);
        let wrong = self.updates.iter().filter_map(|(id, update)| {
            let error = are(&update.esp, read).err()?;
            Some((id.clone(), format!("{error:#}")))
        });
        Waits { wrong: wrong.collect(), ..Waits::default() }
    }

    /// What there is of updates on the root file system; fs-verity is looked at once it is `repaired`, for debugfs replays no
    /// journal.
    pub fn on_root(&self, disk: &Scratch, is_repaired: bool) -> Waits {
        let mut waits = Waits::default();
        if let Err(error) = self.look_at_root(disk, is_repaired, &mut waits) {
            waits.broken = Some(format!("{error:#}"));
        }
        waits
    }

    fn look_at_root(&self, disk: &Scratch, is_repaired: bool, waits: &mut Waits) -> Result<()> {
        let ext4 = ext4(disk)?;
        waits.marker = marker(&ext4)?;
        if let Some(id) = &waits.marker {
            ensure!(self.updates.contains_key(id), "{} is staged, which nobody has staged", id.short());
        }
        let objects = self.objects_are_whole(disk, &ext4, is_repaired);
        for (id, update) in &self.updates {
            let whole = || -> Result<()> {
                same(&etc(&ext4, id, layout::ETC)?, std::slice::from_ref(&update.etc)).context("its /etc")?;
                are(&update.root, |path| read(&ext4, path))
            };
            let mut result = whole();
            if update.is_new {
                result = result.and(objects.as_ref().copied().map_err(|error| anyhow!("{error:#}")));
            }
            if let Err(error) = result {
                waits.wrong.insert(id.clone(), format!("{error:#}"));
            }
        }
        for name in &self.streams {
            if ext4.symlink_metadata(name.as_str()).is_ok() {
                objects.with_context(|| format!("{name} names contents that are not whole"))?;
                break;
            }
        }
        Ok(())
    }

    fn objects_are_whole(&self, disk: &Scratch, ext4: &Ext4, is_repaired: bool) -> Result<()> {
        are(&self.objects, |path| read(ext4, path))?;
        if self.is_sealed && is_repaired {
            let unsealed = self.sealed(disk)?.into_iter().find(|(_, is_sealed)| !is_sealed);
            ensure!(unsealed.is_none(), "{} has no fs-verity", unsealed.map(|(path, _)| path).unwrap_or_default());
        }
        Ok(())
    }
}

impl Update {
    fn read(ext4: &Ext4, eyes: &Eyes, id: &DeploymentId) -> Result<Self> {
        let mut update = Self { etc: etc(ext4, id, layout::ETC)?, ..Self::default() };
        let on_root = |path: &str| read(ext4, path);
        let on_esp = |path: &str| eyes.esp.bytes(path);
        let entries = format!("{}/{}", layout::LOADER, layout::ENTRIES_STAGED);
        match eyes.menu {
            Menu::Esp => {
                let found: Entries = eyes.esp.files(&entries)?.into_iter().collect();
                note(&mut update.esp, files(&entries, &found), on_esp)?;
            }
            Menu::Generated | Menu::Blsuki => {
                ensure!(eyes.prefix == "/boot", "the boot directory is on another file system");
                let entries = format!("/boot/{entries}");
                let mut found = vec![];
                for entry in ext4.read_dir(entries.as_str()).with_context(|| format!("reading {entries}"))? {
                    let name = entry?.file_name().as_str()?.to_owned();
                    if !name.starts_with('.') {
                        found.push((name.clone(), ext4.read_to_string(format!("{entries}/{name}").as_str())?));
                    }
                }
                note(&mut update.root, files(&entries, &found.into_iter().collect()), on_root)?;
            }
            Menu::UserCfg => {
                let menu = format!("{}/{}/{}", eyes.prefix, layout::GRUB, layout::USER_CFG_STAGED);
                let text = ext4.read_to_string(menu.as_str()).with_context(|| format!("reading {menu}"))?;
                note(&mut update.esp, grub::chainloaded(&text).into_iter().map(|(_, uki)| uki).collect(), on_esp)?;
                note(&mut update.root, vec![menu], on_root)?;
            }
        }
        let origin = format!("/{}/{}", layout::deployment(id), layout::origin(id));
        note(&mut update.root, vec![format!("/{}", layout::image(id)), origin], on_root)?;
        Ok(update)
    }
}

/// All files in a directory of entries, and all that these boot.
fn files(dir: &str, entries: &Entries) -> Vec<String> {
    let own = entries.files().map(|(name, _)| format!("{dir}/{name}"));
    // GRUB's menu beside them is none of them, and shows all.
    let parsed = entries.ordered(Loader::Grub).into_iter().map(|(_, entry)| entry);
    own.chain(parsed.flat_map(|entry| entry.files().map(str::to_owned).collect::<Vec<_>>())).collect()
}

fn note(files: &mut Files, paths: Vec<String>, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<()> {
    for path in paths {
        let bytes = read(&path)?.with_context(|| format!("{path} is missing"))?;
        files.insert(path, print(&bytes));
    }
    Ok(())
}

/// Whether the files are what they must be.
fn are(files: &Files, read: impl Fn(&str) -> Result<Option<Vec<u8>>>) -> Result<()> {
    for (path, wanted) in files {
        let found = read(path)?.map_or_else(|| "missing".to_owned(), |bytes| print(&bytes));
        ensure!(found == *wanted, "{path} is {found}, must be {wanted}");
    }
    Ok(())
}

fn print(bytes: &[u8]) -> String {
    format!("{} bytes {}", bytes.len(), &hex::encode(Sha256::digest(bytes))[..16])
}

fn read(ext4: &Ext4, path: &str) -> Result<Option<Vec<u8>>> {
    match ext4.exists(path).with_context(|| format!("looking for {path}"))? {
        true => Ok(Some(ext4.read(path).with_context(|| format!("reading {path}"))?)),
        false => Ok(None),
    }
}

/// The deployment that is remembered as staged.
///
/// # Errors
///
/// When that is malformed.
pub fn marker(ext4: &Ext4) -> Result<Option<DeploymentId>> {
    let path = format!("/{}", layout::STAGED);
    let Some(bytes) = read(ext4, &path)? else { return Ok(None) };
    let marker: Marker = String::from_utf8_lossy(&bytes).parse().with_context(|| format!("reading {path}"))?;
    Ok(Some(marker.depl_id))
}

/// The paths of all objects.
fn objects(ext4: &Ext4) -> Result<BTreeSet<String>> {
    below(ext4, &format!("/{}/objects", layout::REPOSITORY))
}

/// The paths of all names that streams have.
fn streams(ext4: &Ext4) -> Result<BTreeSet<String>> {
    below(ext4, &format!("/{}/streams", layout::REPOSITORY))
}

/// The paths of all that is below a directory, and is none itself.
fn below(ext4: &Ext4, top: &str) -> Result<BTreeSet<String>> {
    let (mut found, mut dirs) = (BTreeSet::new(), vec![top.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in ext4.read_dir(dir.as_str()).with_context(|| format!("reading {dir}"))? {
            let entry = entry?;
            let name = entry.file_name().as_str()?.to_owned();
            let path = format!("{dir}/{name}");
            if name == "." || name == ".." {
            } else if entry.file_type()?.is_dir() {
                dirs.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    Ok(found)
}
