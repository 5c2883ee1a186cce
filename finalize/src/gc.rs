//! What nothing needs any more is removed: the state, the image, the kernel and the tags of deployments that no boot entry boots
//! and nobody has pinned, then the objects of the repository that nothing names.
//!
//! Never: what an entry names, live or staged, on any file system that boots; the booted, the staged and a pinned deployment; an
//! entry itself. What cannot be read may name anything, so then nothing is removed at all. What is found decides each time, so a
//! run that was stopped is finished by the next one: whatever has a meaning by its name is renamed before it is removed, and a
//! name goes before what it names.

mod named;
mod repository;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt, io,
};

use anyhow::{Context, Error, Result, anyhow};
use cap_std::fs::Dir;
use serde::Serialize;

use self::{
    named::{Named, names},
    repository::{Objects, Reached, STREAMS, Store, Streams, TAG, image_object, unreached},
};
use crate::{
    boot::bls::id_of_uki,
    digest::DeploymentId,
    host::{Host, roots::roots},
    layout::{
        self, BOOT_PREFIX, DEPLOYMENTS, EFI_LINUX, EFI_LINUX_BOOTC, FINALIZE_STATE, IMAGES, KERNEL_TRASH, STATE_TRASH,
        name_of,
    },
    lock::Lock,
    pin::Pins,
    staged::Origin,
    stop::Stop,
    sys, unstage,
};

/// Why a deployment stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// It is booted.
    Booted,
    /// It waits for a shutdown.
    Staged,
    /// A boot entry names it, live or staged.
    Entry,
    /// A person has pinned it.
    Pinned,
    /// A tag of somebody's names its image.
    Tagged,
}

/// A directory with a kernel, or a UKI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Kernel {
    /// By its number among the file systems that boot.
    root: usize,
    /// The directory that it lies in.
    dir: String,
    name: String,
    id: DeploymentId,
}

/// What is removed, and what stays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Garbage {
    /// State directories, by their deployments.
    states: Vec<DeploymentId>,
    /// Names of images.
    images: Vec<DeploymentId>,
    kernels: Vec<Kernel>,
    /// Tags of manifests, below `streams`.
    tags: Vec<String>,
    streams: Vec<String>,
    /// Deployments that stay, and why.
    kept: BTreeMap<DeploymentId, Vec<Why>>,
}

/// What [`collect`] has removed, or would remove.
#[derive(Debug)]
pub struct Collected {
    /// By name.
    pub garbage: Garbage,
    /// In the repository.
    pub objects: Objects,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// Everything that takes part in the decision.
struct Found {
    roots: Vec<Dir>,
    store: Option<Box<dyn Store>>,
    /// What a root reaches once the garbage is gone.
    reached: Reached,
    /// Names of streams that stay and that no reference names.
    extra: Vec<String>,
    garbage: Garbage,
    notes: Vec<String>,
}

/// What [`collect`] would remove. Writes nothing.
///
/// # Errors
///
/// As [`collect`].
pub fn look(host: &Host) -> Result<Result<Collected, Error>> {
    let mut found = match find(host)? {
        Ok(found) => found,
        Err(refused) => return Ok(Err(refused)),
    };
    let mut objects = Objects::default();
    if let Some(store) = &found.store {
        for name in staying_images(host, &found.garbage)? {
            found.reached.objects.extend(image_object(&host.sysroot, &name));
            found.reached.objects.extend(store.image(&name)?);
        }
        objects = unreached(&host.sysroot, &found.reached)?;
    }
    Ok(Ok(Collected { garbage: found.garbage, objects, notes: found.notes }))
}

/// Removes it. Safe to stop and to run again. The inner error is a refusal: nothing was written.
///
/// # Errors
///
/// When another finalization keeps the lock, when something cannot be read that may name a deployment, and what cannot be removed.
pub fn collect(host: &Host, stop: &Stop) -> Result<Result<Collected, Error>> {
    let _lock = Lock::take(&host.sysroot, stop)?;
    let found = match find(host)? {
        Ok(found) => found,
        Err(refused) => return Ok(Err(refused)),
    };
    if let Some(store) = &found.store
        && !store.lock()?
    {
        return Ok(Err(anyhow!("another program uses the repository composefs: try again when it is done")));
    }
    remove_rubbish(host, &found)?;
    found.garbage.states.iter().try_for_each(|id| remove_state(&host.sysroot, id))?;
    stop.check()?;
    remove_names(&host.sysroot, &found.garbage)?;
    for kernel in &found.garbage.kernels {
        stop.check()?;
        remove_kernel(&found.roots[kernel.root], kernel)
            .with_context(|| format!("removing {}/{}", kernel.dir, kernel.name))?;
    }
    stop.check()?;
    let mut objects = Objects::default();
    if let Some(store) = &found.store {
        let images = staying_images(host, &found.garbage)?;
        let roots: Vec<_> = images.iter().chain(&found.extra).map(String::as_str).collect();
        objects = store.collect(&roots)?;
    }
    Ok(Ok(Collected { garbage: found.garbage, objects, notes: found.notes }))
}

/// Looks at everything, and decides.
fn find(host: &Host) -> Result<Result<Found, Error>> {
    let sysroot = &host.sysroot;
    let roots = roots(host).context("looking for what boots")?;
    let mut named = Named::read(&roots)?;
    let pins = Pins::read(sysroot)?;
    let kernels = kernels(&roots)?;
    let states = ids(sysroot, DEPLOYMENTS)?;
    let images = ids(sysroot, IMAGES)?;
    let all: BTreeSet<_> = states.iter().chain(&images).chain(kernels.iter().map(|kernel| &kernel.id)).collect();
    if !all.iter().any(|id| named.deployment(id)) {
        return Ok(Err(anyhow!("no boot entry names a deployment that is here, so nobody knows what is needed")));
    }
    let mut kept: BTreeMap<DeploymentId, Vec<Why>> = BTreeMap::new();
    let (staged, _) = unstage::waiting(host);
    for id in &all {
        let why = [
            (Why::Booted, **id == host.booted.id),
            (Why::Staged, staged.as_ref() == Some(*id)),
            (Why::Entry, named.deployment(id)),
            (Why::Pinned, pins.get(id).is_some()),
        ];
        let why: Vec<_> = why.into_iter().filter(|(_, holds)| *holds).map(|(why, _)| why).collect();
        if !why.is_empty() {
            kept.insert((*id).clone(), why);
        }
    }
    pins.pins.iter().for_each(|kept| named.add(&kept.entry));
    let mut notes = vec![];
    let (manifests, are_known) = manifests(sysroot, kept.keys(), &mut notes)?;
    let store = repository::open(sysroot, &host.booted.id)?;
    if store.is_none() && sysroot.exists(layout::REPOSITORY) {
        notes.push(
            "the repository has no meta.json, so its objects stay: bootc writes one when it runs next".to_owned(),
        );
    }
    let streams = if store.is_some() { Streams::read(sysroot)? } else { Streams::default() };
    let is_dead =
        |path: &str| are_known && path.strip_prefix(TAG).is_some_and(|manifest| !manifests.contains(manifest));
    let (dead_tags, live_tags): (Vec<_>, Vec<_>) = streams.refs.iter().partition(|(path, _)| is_dead(path));
    let extra: Vec<_> = match are_known {
        true => manifests.iter().map(|manifest| format!("oci-manifest-{manifest}")).collect(),
        false => streams.all.keys().cloned().collect(),
    };
    let mut reached = Reached::default();
    if let Some(store) = &store {
        let names: Vec<_> =
            live_tags.iter().map(|(_, name)| name.as_str()).chain(extra.iter().map(String::as_str)).collect();
        reached = store.reach(&streams, &names)?;
    }
    let is_reached =
        |id: &DeploymentId| image_object(sysroot, id.as_str()).is_some_and(|object| reached.objects.contains(&object));
    for id in images.iter().filter(|id| is_reached(id)) {
        if kept.contains_key(id) {
            continue;
        }
        kept.insert(id.clone(), vec![Why::Tagged]);
    }
    let stays = |id: &DeploymentId| kept.get(id).is_some_and(|why| *why != [Why::Tagged]);
    let garbage = Garbage {
        states: states.into_iter().filter(|id| !stays(id)).collect(),
        images: images.into_iter().filter(|id| !kept.contains_key(id)).collect(),
        kernels: kernels.into_iter().filter(|kernel| !stays(&kernel.id) && !named.kernel(&kernel.id)).collect(),
        tags: dead_tags.into_iter().map(|(path, _)| path.clone()).collect(),
        streams: streams.all.keys().filter(|name| !reached.streams.contains(*name)).cloned().collect(),
        kept,
    };
    Ok(Ok(Found { roots, store, reached, extra, garbage, notes }))
}

/// The deployments that have something in a directory of the physical root.
fn ids(sysroot: &Dir, path: &str) -> Result<Vec<DeploymentId>> {
    Ok(names(sysroot, path)?.iter().filter_map(|name| name.parse().ok()).collect())
}

/// Kernels and UKIs that are, by their names, those of deployments; of an older bootc too. UKIs that a boot loader finds by
/// itself are none: they are entries.
fn kernels(roots: &[Dir]) -> Result<Vec<Kernel>> {
    let mut found = vec![];
    for (root, dir) in roots.iter().enumerate() {
        for path in ["", EFI_LINUX, EFI_LINUX_BOOTC] {
            for name in names(dir, if path.is_empty() { "." } else { path })? {
                let is_dir = dir.symlink_metadata(format!("./{path}/{name}")).is_ok_and(|found| found.is_dir());
                let id = match (is_dir, path) {
                    (true, "" | EFI_LINUX) => name.strip_prefix(BOOT_PREFIX).unwrap_or(&name).parse().ok(),
                    (false, EFI_LINUX_BOOTC) => id_of_uki(&format!("{EFI_LINUX_BOOTC}/{name}")),
                    _ => None,
                };
                let at = if path.is_empty() { "." } else { path }.to_owned();
                found.extend(id.map(|id| Kernel { root, dir: at, name, id }));
            }
        }
    }
    Ok(found)
}

/// The digests of the manifests of deployments that stay, and whether all of them are known.
fn manifests<'a>(
    sysroot: &Dir,
    ids: impl Iterator<Item = &'a DeploymentId>,
    notes: &mut Vec<String>,
) -> Result<(BTreeSet<String>, bool)> {
    let (mut found, mut are_known) = (BTreeSet::new(), true);
    for id in ids {
        let path = format!("{}/{}", layout::deployment(id), layout::origin(id));
        let origin = match sys::file::read(sysroot, &path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidData => None,
            text => text.with_context(|| format!("reading {path}"))?.and_then(|text| text.parse::<Origin>().ok()),
        };
        match origin.and_then(|origin| origin.manifest_digest) {
            Some(digest) => _ = found.insert(digest),
            None => {
                are_known = false;
                notes.push(format!("{path} names no manifest, so all tags and streams of the repository stay"));
            }
        }
    }
    Ok((found, are_known))
}

/// Names of images that stay.
fn staying_images(host: &Host, garbage: &Garbage) -> Result<Vec<String>> {
    let goes = |name: &String| name.parse().is_ok_and(|id| garbage.images.contains(&id));
    Ok(names(&host.sysroot, IMAGES)?.into_iter().filter(|name| name != "refs" && !goes(name)).collect())
}

/// What an earlier run was stopped at.
fn remove_rubbish(host: &Host, found: &Found) -> Result<()> {
    sys::remove::tree(&host.sysroot, STATE_TRASH).with_context(|| format!("removing {STATE_TRASH}"))?;
    for root in &found.roots {
        for path in [".", EFI_LINUX, EFI_LINUX_BOOTC] {
            let Ok(dir) = root.open_dir(path) else { continue };
            if dir.symlink_metadata(KERNEL_TRASH).is_ok() {
                sys::remove::tree(&dir, KERNEL_TRASH).with_context(|| format!("removing {path}/{KERNEL_TRASH}"))?;
            }
        }
    }
    Ok(())
}

/// A deployment's state is whole or gone.
fn remove_state(sysroot: &Dir, id: &DeploymentId) -> Result<()> {
    let remove = || -> io::Result<()> {
        if sys::fault::lacks("rename") {
            return sys::remove::tree(sysroot, &layout::deployment(id));
        }
        let (from, to) = (sysroot.open_dir(DEPLOYMENTS)?, sysroot.open_dir(FINALIZE_STATE)?);
        sys::rename::move_between((&from, OsStr::new(id.as_str())), (&to, OsStr::new(name_of(STATE_TRASH))))?;
        sys::sync::fsync(to.open(".")?)?;
        sys::sync::fsync(from.open(".")?)?;
        sys::remove::tree(sysroot, STATE_TRASH)
    };
    remove().with_context(|| format!("removing {}", layout::deployment(id)))
}

/// Tags before the streams that they name, all of them and the images before any object, durably.
fn remove_names(sysroot: &Dir, garbage: &Garbage) -> Result<()> {
    let streams = garbage.tags.iter().chain(&garbage.streams).map(|name| format!("{STREAMS}/{name}"));
    let all: Vec<_> = streams.chain(garbage.images.iter().map(layout::image)).collect();
    for path in &all {
        sys::remove::file(sysroot, path).with_context(|| format!("removing {path}"))?;
    }
    match all.is_empty() {
        true => Ok(()),
        false => sys::sync::root(sysroot.open(".")?).context("syncing the physical root"),
    }
}

/// A UKI goes after what belongs to it.
fn remove_kernel(root: &Dir, kernel: &Kernel) -> io::Result<()> {
    let dir = root.open_dir(&kernel.dir)?;
    if dir.symlink_metadata(&kernel.name)?.is_dir() {
        sys::remove::discard(&dir, &kernel.name, KERNEL_TRASH)?;
    } else {
        sys::remove::discard(&dir, &format!("{}.extra.d", kernel.name), KERNEL_TRASH)?;
        sys::remove::file(&dir, &kernel.name)?;
    }
    sys::sync::file_system(dir.open(".")?)
}

impl Garbage {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        let Self { states, images, kernels, tags, streams, kept: _ } = self;
        states.is_empty() && images.is_empty() && kernels.is_empty() && tags.is_empty() && streams.is_empty()
    }

    /// A line for each thing that is removed.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        let states = self.states.iter().map(layout::deployment);
        let kernels = self.kernels.iter().map(|kernel| match kernel.dir.as_str() {
            "." => kernel.name.clone(),
            dir => format!("{dir}/{}", kernel.name),
        });
        let streams = self.tags.iter().chain(&self.streams).map(|name| format!("{STREAMS}/{name}"));
        states.chain(self.images.iter().map(layout::image)).chain(kernels).chain(streams)
    }

    /// A line for each deployment that stays.
    pub fn kept(&self) -> impl Iterator<Item = String> {
        let words = |why: &[Why]| why.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        self.kept.iter().map(move |(id, why)| format!("{} ({})", id.short(), words(why)))
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Booted => "booted",
            Self::Staged => "staged",
            Self::Entry => "a boot entry names it",
            Self::Pinned => "pinned",
            Self::Tagged => "a tag names its image",
        })
    }
}
