//! The composefs repository, as far as a collection needs it: which streams and images there are, what they reach, and composefs'
//! own collection of objects.
//!
//! A name goes before what it names: a stream whose objects are half gone would be taken for a layer that is here. So streams
//! and images that nothing reaches lose their names first, durably; then composefs removes the objects that nothing names.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use cap_std::fs::Dir;
use composefs::{
    fsverity::{FsVerityHashValue, Sha256HashValue, Sha512HashValue},
    repository::{Repository, RepositoryOpenError},
};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use serde::Serialize;

use super::named::names;
use crate::{
    digest::DeploymentId,
    layout::{IMAGES, REPOSITORY, REPOSITORY_META},
};

/// Where bootc, and we, tag the manifest of an image that is a deployment: the manifest's digest follows.
pub const TAG: &str = "refs/oci/localhost%2Fbootc-";

/// The directory of streams.
pub const STREAMS: &str = "composefs/streams";

/// Objects that nothing names, and their size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Objects {
    /// How many there are.
    pub number: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Streams by their names, each with the digest of its object, and the names of those that a reference names, by its path.
#[derive(Debug, Default)]
pub struct Streams {
    /// Those of the first level.
    pub all: BTreeMap<String, String>,
    /// Below `refs`.
    pub refs: BTreeMap<String, String>,
}

impl Streams {
    /// Looks at the links; opens none of them.
    ///
    /// # Errors
    ///
    /// Those of getdents(2) and readlink(2), and a link that leads to no object.
    pub fn read(sysroot: &Dir) -> Result<Self> {
        let mut streams = Self::default();
        for name in names(sysroot, STREAMS)?.into_iter().filter(|name| name != "refs") {
            let path = format!("{STREAMS}/{name}");
            let target = sysroot.read_link_contents(&path).with_context(|| format!("reading the link {path}"))?;
            let target = target.to_string_lossy().into_owned();
            let Some(object) = object_of(&target) else { bail!("{path} leads to {target}, which is no object") };
            streams.all.insert(name, object);
        }
        let mut dirs = vec!["refs".to_owned()];
        while let Some(dir) = dirs.pop() {
            for name in names(sysroot, &format!("{STREAMS}/{dir}"))? {
                let (path, full) = (format!("{dir}/{name}"), format!("{STREAMS}/{dir}/{name}"));
                if sysroot.symlink_metadata(&full).is_ok_and(|found| found.is_dir()) {
                    dirs.push(path);
                    continue;
                }
                let target = sysroot.read_link_contents(&full).with_context(|| format!("reading the link {full}"))?;
                let name = target.file_name().map(|name| name.to_string_lossy().into_owned());
                streams.refs.insert(path, name.unwrap_or_default());
            }
        }
        Ok(streams)
    }
}

/// The object that the image `name` leads to; nothing where it leads to none.
pub fn image_object(sysroot: &Dir, name: &str) -> Option<String> {
    let target = sysroot.read_link_contents(format!("{IMAGES}/{name}")).ok()?;
    object_of(&target.to_string_lossy())
}

/// The digest in a link to an object: `../objects/ab/cdef…`.
fn object_of(target: &str) -> Option<String> {
    let (above, rest) = target.rsplit_once('/')?;
    let (_, first) = above.rsplit_once('/')?;
    let digest = format!("{first}{rest}");
    digest.parse::<DeploymentId>().is_ok().then_some(digest)
}

/// What roots reach.
#[derive(Debug, Default)]
pub struct Reached {
    /// Streams, by their names.
    pub streams: BTreeSet<String>,
    /// Objects, by their digests.
    pub objects: BTreeSet<String>,
}

/// An open repository; whoever reads or writes it meanwhile is waited for by nobody.
pub trait Store {
    /// Keeps everybody else out from now on. False where somebody is in.
    fn lock(&self) -> Result<bool>;

    /// What the streams `roots` reach, themselves among it.
    fn reach(&self, streams: &Streams, roots: &[&str]) -> Result<Reached>;

    /// The objects that the image `name` is made of, without its own.
    fn image(&self, name: &str) -> Result<Vec<String>>;

    /// composefs' own collection, with these streams and images as roots beside those that references name.
    fn collect(&self, roots: &[&str]) -> Result<Objects>;
}

/// The repository of a physical root, whose deployments have ids like `id`; nothing where there is none that composefs opens,
/// as an older bootc has left it, without `meta.json`.
///
/// # Errors
///
/// When it is there, and cannot be opened.
pub fn open(sysroot: &Dir, id: &DeploymentId) -> Result<Option<Box<dyn Store>>> {
    fn opened<H: FsVerityHashValue>(sysroot: &Dir) -> Result<Option<Box<dyn Store>>> {
        match Repository::<H>::open_path(sysroot, REPOSITORY) {
            Ok(mut repository) => {
                // Nothing is believed of what is read here but which names it has.
                repository.set_insecure();
                Ok(Some(Box::new(repository)))
            }
            Err(RepositoryOpenError::OldFormatRepository) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("opening the repository {REPOSITORY}")),
        }
    }
    if !sysroot.exists(REPOSITORY_META) {
        return Ok(None);
    }
    match id.as_str().len() {
        64 => opened::<Sha256HashValue>(sysroot),
        _ => opened::<Sha512HashValue>(sysroot),
    }
}

impl<H: FsVerityHashValue> Store for Repository<H> {
    fn lock(&self) -> Result<bool> {
        match flock(self.repo_fd(), FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Ok(false),
            locked => locked.map(|()| true).with_context(|| format!("locking {REPOSITORY}")),
        }
    }

    fn reach(&self, streams: &Streams, roots: &[&str]) -> Result<Reached> {
        let mut reached = Reached::default();
        let mut waiting: Vec<_> = roots.iter().map(|name| (*name).to_owned()).collect();
        while let Some(name) = waiting.pop() {
            // A reference may outlive what it names.
            let Some(object) = streams.all.get(&name) else { continue };
            reached.objects.insert(object.clone());
            if !reached.streams.insert(name.clone()) {
                continue;
            }
            let mut stream =
                self.open_stream(&name, None, None).with_context(|| format!("reading {STREAMS}/{name}"))?;
            stream.get_object_refs(|id| _ = reached.objects.insert(id.to_hex()))?;
            for (_, id) in stream.iter_named_refs() {
                let id = id.to_hex();
                waiting.extend(streams.all.iter().filter(|(_, object)| **object == id).map(|(name, _)| name.clone()));
                reached.objects.insert(id);
            }
        }
        Ok(reached)
    }

    fn image(&self, name: &str) -> Result<Vec<String>> {
        let objects = self.objects_for_image(name).with_context(|| format!("reading the image {name}"))?;
        Ok(objects.iter().map(FsVerityHashValue::to_hex).collect())
    }

    fn collect(&self, roots: &[&str]) -> Result<Objects> {
        let done = self.gc(roots).context("collecting the objects of the repository")?;
        Ok(Objects { number: done.objects_removed, bytes: done.objects_bytes })
    }
}

/// The objects of the repository that are not `reached`.
///
/// # Errors
///
/// Those of getdents(2) and statx(2).
pub fn unreached(sysroot: &Dir, reached: &Reached) -> Result<Objects> {
    const OBJECTS: &str = "composefs/objects";
    let mut objects = Objects::default();
    for first in names(sysroot, OBJECTS)? {
        for rest in names(sysroot, &format!("{OBJECTS}/{first}"))? {
            if !reached.objects.contains(&format!("{first}{rest}")) {
                let path = format!("{OBJECTS}/{first}/{rest}");
                objects.number += 1;
                objects.bytes += sysroot.metadata(&path).with_context(|| format!("looking at {path}"))?.len();
            }
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_to_an_object_is_its_digest() {
        let id = "ab".repeat(32);
        assert_eq!(object_of(&format!("../objects/ab/{}", &id[2..])), Some(id.clone()));
        for other in ["", "/", "x", "../x", "../../objects/ab/cd", &id] {
            assert_eq!(object_of(other), None, "{other}");
        }
    }
}
