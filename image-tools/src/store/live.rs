//! The repository of a machine that runs: contents become its objects at once, with the kernel's fs-verity where it is sealed.
//! What names them is made when they are on the disk.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::AsFd,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use composefs::{
    fsverity::{FsVerityHashValue, Sha512HashValue, compute_verity},
    repository::Repository,
    splitstream::{SplitStreamData, SplitStreamReader},
};
use composefs_oci::LAYER_CONTENT_TYPE;
use rustix::{
    fs::{AtFlags, statat, unlinkat},
    io::Errno,
};

use super::{
    entry::Entry,
    import::{self, Archive, Contents},
};
use crate::oci::Corrupt;

/// What is larger is not gathered in memory, in bytes.
const PIECE: u64 = 1 << 20;

/// What an update leaves free at least: a system whose file system is full does not work.
pub const RESERVE: u64 = 64 << 20;

/// The root file system has no room for an update.
#[derive(Debug, thiserror::Error)]
#[error("the update needs {missing} MiB more on {place}: remove what nobody needs, as `composefs-finalize gc` does")]
pub struct NoSpace {
    /// How much more, in MiB.
    pub missing: u64,
    /// Which file system.
    pub place: String,
}

impl NoSpace {
    /// Whether the file system of `dir` has room for so many bytes, and leaves [`RESERVE`].
    ///
    /// # Errors
    ///
    /// [`NoSpace`], and those of fstatvfs(3).
    pub fn check(dir: impl AsFd, bytes: u64, place: &str) -> Result<()> {
        Self::check_leaving(dir, (bytes, RESERVE), place)
    }

    /// The same, with so many bytes left.
    ///
    /// # Errors
    ///
    /// As [`NoSpace::check`].
    pub fn check_leaving(dir: impl AsFd, (bytes, rest): (u64, u64), place: &str) -> Result<()> {
        let found = rustix::fs::fstatvfs(dir).with_context(|| format!("asking for what is free on {place}"))?;
        let free = found.f_bavail.saturating_mul(found.f_frsize);
        let missing = bytes.saturating_add(rest).saturating_sub(free).div_ceil(1 << 20);
        ensure!(missing == 0, Self { missing, place: place.to_owned() });
        Ok(())
    }
}

/// The objects of the repository.
#[derive(Debug)]
pub struct Objects(pub Arc<Repository<Sha512HashValue>>);

impl Contents for &Objects {
    fn add(&mut self, from: &mut dyn Read, size: u64) -> Result<Sha512HashValue> {
        NoSpace::check(self.0.repo_fd(), size, "the root file system")?;
        let cut_off = || Corrupt("the archive ends in its content".to_owned());
        if size > PIECE {
            let mut counted = Counted { inner: from.take(size), count: 0 };
            let made = self.0.ensure_object_from_reader(&mut counted, size);
            ensure!(counted.count == size, cut_off());
            return made;
        }
        let mut bytes = vec![];
        from.take(size).read_to_end(&mut bytes)?;
        ensure!(bytes.len() as u64 == size, cut_off());
        self.ensure(&bytes)
    }
}

impl Objects {
    /// Makes an object of these bytes.
    ///
    /// Without fs-verity nobody knows whether an object that is there is whole: a power cut may have left it empty. It is
    /// compared, and made again.
    pub fn ensure(&self, bytes: &[u8]) -> Result<Sha512HashValue> {
        let path = || format!("objects/{}", compute_verity::<Sha512HashValue>(bytes).to_object_pathname());
        if self.0.is_insecure() {
            let path = path();
            match statat(self.0.repo_fd(), &path, AtFlags::empty()) {
                Err(Errno::NOENT) => {}
                Ok(_) if self.is(&path, bytes)? => {}
                Ok(_) => unlinkat(self.0.repo_fd(), &path, AtFlags::empty())
                    .with_context(|| format!("removing {path}, which is not what its name says"))?,
                Err(error) => return Err(error).with_context(|| format!("looking at {path}")),
            }
        }
        self.0.ensure_object(bytes)
    }

    fn is(&self, path: &str, bytes: &[u8]) -> Result<bool> {
        use rustix::fs::{Mode, OFlags, openat};
        let file = openat(self.0.repo_fd(), path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let mut found = vec![];
        File::from(file.with_context(|| format!("opening {path}"))?).read_to_end(&mut found)?;
        Ok(found == bytes)
    }
}

struct Counted<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

/// The entries of a layer that the repository has; contents are not read.
///
/// # Errors
///
/// When its split stream is not what an archive makes.
pub fn entries(repository: &Arc<Repository<Sha512HashValue>>, stream: &Sha512HashValue) -> Result<Vec<Entry>> {
    let reader = repository.open_stream("", Some(stream), Some(LAYER_CONTENT_TYPE))?;
    import::entries(&mut Known { objects: &Objects(repository.clone()), reader })
}

/// The archive of a layer that the repository has.
struct Known<'a> {
    objects: &'a Objects,
    reader: SplitStreamReader<Sha512HashValue>,
}

impl Archive for Known<'_> {
    fn read(&mut self, buffer: &mut Vec<u8>, count: usize) -> Result<usize> {
        let before = buffer.len();
        buffer.resize(before + count, 0);
        if self.reader.read_inline_exact(&mut buffer[before..])? {
            return Ok(count);
        }
        buffer.truncate(before);
        Ok(0)
    }

    fn keep(&mut self, _: &[u8]) {}

    fn object(&mut self, size: u64) -> Result<Sha512HashValue> {
        let length = usize::try_from(size)?;
        match self.reader.read_exact(length, length)? {
            SplitStreamData::External(id) => Ok(id),
            SplitStreamData::Inline(bytes) => self.objects.ensure(&bytes),
        }
    }

    fn made(&mut self, content: &mut dyn Read, size: u64) -> Result<Sha512HashValue> {
        let mut objects = self.objects;
        objects.add(content, size)
    }

    fn exactly(&mut self, size: u64) -> Result<Vec<u8>> {
        let length = usize::try_from(size)?;
        if length == 0 {
            return Ok(vec![]);
        }
        match self.reader.read_exact(length, length)? {
            SplitStreamData::Inline(bytes) => Ok(bytes.into()),
            SplitStreamData::External(id) => Ok(self.objects.0.read_object(&id)?),
        }
    }
}
