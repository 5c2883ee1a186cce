//! Where the contents of layers are kept: in packs, on a build host; as objects, on a machine that runs.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use composefs::{
    fsverity::{FsVerityHashValue, Sha512HashValue},
    repository::Repository,
};
use composefs_oci::layer_content_id;

use super::{
    Imported, Layered,
    cache::{self, Cache},
    entry::Entry,
    import::{Contents as _, import},
    live::{self, Objects},
    pack::{self, Packs, Writer},
};
use crate::node::{Content, HostFile, Packed};

/// Where they are.
#[derive(Debug)]
pub enum Kept {
    /// In packs, and perhaps in a cache.
    Packed {
        /// What was packed.
        packs: RefCell<Packs>,
        /// Where layers are taken from, and put.
        cache: Option<Cache>,
    },
    /// In the repository itself.
    Live(Objects),
}

impl Default for Kept {
    fn default() -> Self {
        Self::Packed { packs: RefCell::default(), cache: None }
    }
}

impl Kept {
    /// Reads a layer, unless it is there already.
    ///
    /// # Errors
    ///
    /// Those of reading and writing.
    pub fn import(&self, repository: &Arc<Repository<Sha512HashValue>>, of: &Layered<'_>) -> Result<Imported> {
        let (diff_id, size) = (&of.layer.diff_id, of.layer.descriptor.size());
        let (packs, cache) = match self {
            Self::Packed { packs, cache } => (packs, cache),
            Self::Live(objects) => {
                if let Some(stream) = repository.has_stream(&layer_content_id(&diff_id.parse()?))? {
                    of.progress.add(size);
                    let entries = live::entries(repository, &stream);
                    let named = || format!("reading the layer {diff_id}, which the repository has");
                    return Ok(Imported { entries: entries.with_context(named)?, stream });
                }
                let mut objects = objects;
                let read = |archive: &mut dyn io::Read| import(repository, &mut objects, archive);
                let (stream, entries) = of.image.read(of.layer, of.progress, read)?;
                return Ok(Imported { stream, entries });
            }
        };
        let cached = cache.as_ref().map(|cache| cache.load(diff_id)).transpose()?.flatten();
        let (stream, entries) = match cached {
            Some((file, places, read)) => {
                of.progress.add(size);
                packs.borrow_mut().insert((file, false), &places);
                (repository.ensure_object(&read.stream)?, read.entries)
            }
            None => packed(repository, (packs, cache.as_ref()), of)?,
        };
        Ok(Imported { stream, entries })
    }

    /// The content of an object as a node has it.
    pub fn content(&self, repository: &Path, id: &Sha512HashValue, size: u64) -> Result<Content> {
        Ok(match self {
            Self::Packed { .. } => Content::Packed(self.packed(id)?),
            Self::Live(_) => Content::File(HostFile { path: object_path(repository, id), size }),
        })
    }

    /// Writes the content of an object to `to`.
    pub fn copy(
        &self,
        repository: &Repository<Sha512HashValue>,
        id: &Sha512HashValue,
        to: &mut dyn Write,
    ) -> Result<()> {
        match self {
            Self::Packed { .. } => pack::copy(&self.packed(id)?, to),
            Self::Live(_) => {
                io::copy(&mut File::from(repository.open_object(id)?), to)?;
                Ok(())
            }
        }
    }

    /// The content of an object of a layer.
    pub fn packed(&self, id: &Sha512HashValue) -> Result<Packed> {
        let packs = self.packs()?.borrow();
        Ok(packs.get(id).with_context(|| format!("no layer has the object {}", id.to_hex()))?.clone())
    }

    /// The packs.
    pub fn packs(&self) -> Result<&RefCell<Packs>> {
        match self {
            Self::Packed { packs, .. } => Ok(packs),
            Self::Live(_) => bail!("nothing is packed on a machine that runs"),
        }
    }

    /// Packs files of the build host, in order.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be read.
    pub fn pack(&self, paths: &[PathBuf], scratch: &Path) -> Result<Vec<Packed>> {
        let mut pack = Writer::new(tempfile::tempfile_in(scratch)?);
        let mut add = |path: &PathBuf| -> Result<Sha512HashValue> {
            let mut file = File::open(path)?;
            let size = file.metadata()?.len();
            pack.add(&mut file, size)
        };
        let ids = paths.iter().map(|path| add(path).with_context(|| format!("reading {}", path.display())));
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let (file, places) = pack.finish()?;
        self.packs()?.borrow_mut().insert((file, true), &places);
        ids.iter().map(|id| self.packed(id)).collect()
    }
}

/// Where an object is in the repository at `repository`.
pub fn object_path(repository: &Path, id: &Sha512HashValue) -> PathBuf {
    repository.join("objects").join(id.to_object_pathname())
}

/// Reads a layer into a pack, which the cache keeps.
fn packed(
    repository: &Arc<Repository<Sha512HashValue>>,
    (packs, cache): (&RefCell<Packs>, Option<&Cache>),
    of: &Layered<'_>,
) -> Result<(Sha512HashValue, Vec<Entry>)> {
    let file = match cache {
        Some(cache) => cache.create()?,
        None => tempfile::tempfile_in(of.scratch).context("creating a file for the contents of a layer")?,
    };
    let mut pack = Writer::new(file);
    let read = |archive: &mut dyn io::Read| import(repository, &mut pack, archive);
    let (stream, entries) = of.image.read(of.layer, of.progress, read)?;
    let (file, places) = pack.finish()?;
    let Some(cache) = cache else {
        packs.borrow_mut().insert((file, true), &places);
        return Ok((stream, entries));
    };
    let read = cache::Read { stream: repository.read_object(&stream)?, entries };
    let read = cache.save(&file, (&of.layer.diff_id, &places), read)?;
    packs.borrow_mut().insert((file, false), &places);
    Ok((stream, read.entries))
}
