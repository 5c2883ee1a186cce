//! Blobs of an image: what is read from one is what its digest says, or an error.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use oci_spec::image::Descriptor;
use sha2::{Digest, Sha256};

use super::{Corrupt, Remote};

/// What a manifest, an index or a configuration may be at most: what registries take (distribution specification, "Pushing
/// Manifests").
pub(super) const DOCUMENT: u64 = 4 << 20;

/// Where the blobs of an image are.
#[derive(Debug, Clone)]
pub enum Blobs {
    /// In the layout in this directory.
    Layout(PathBuf),
    /// Elsewhere.
    Remote(Arc<Remote>),
}

impl Blobs {
    /// Those of the layout in `dir`.
    pub fn of(dir: &Path) -> Self {
        Self::Layout(dir.to_owned())
    }

    fn place(&self) -> String {
        match self {
            Self::Layout(dir) => dir.display().to_string(),
            Self::Remote(remote) => remote.name().to_owned(),
        }
    }

    /// Opens a blob; it is checked by [`Blob::finish`].
    ///
    /// # Errors
    ///
    /// When there is none, or its digest is none of SHA-256.
    pub fn open(&self, descriptor: &Descriptor) -> Result<Blob> {
        let digest = descriptor.digest();
        ensure!(digest.algorithm().as_ref() == "sha256", "the blob {digest} has no SHA-256 digest");
        let reader: Box<dyn Read + Send> = match self {
            // One byte too many is as wrong as any number of them.
            Self::Remote(remote) => Box::new(remote.blob(descriptor).take(descriptor.size().saturating_add(1))),
            Self::Layout(dir) => {
                let file = File::open(dir.join("blobs/sha256").join(digest.digest()));
                Box::new(file.with_context(|| format!("opening the blob {digest} in {}", self.place()))?)
            }
        };
        Ok(Blob { reader, hasher: Sha256::new(), size: 0, wanted: descriptor.clone(), blobs: self.clone() })
    }

    /// The bytes of a small blob.
    ///
    /// # Errors
    ///
    /// As [`Blobs::open`] and [`Blob::finish`], and when it is larger than any document should be.
    pub fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let (digest, size) = (descriptor.digest(), descriptor.size());
        ensure!(size <= DOCUMENT, Corrupt(format!("{digest} has {size} bytes, more than any document of an image")));
        let mut blob = self.open(descriptor)?;
        let mut bytes = vec![];
        (&mut blob).take(DOCUMENT).read_to_end(&mut bytes).with_context(|| format!("reading the blob {digest}"))?;
        blob.finish()?;
        Ok(bytes)
    }
}

/// An open blob.
pub struct Blob {
    reader: Box<dyn Read + Send>,
    hasher: Sha256,
    size: u64,
    wanted: Descriptor,
    blobs: Blobs,
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blob").field("wanted", &self.wanted).field("blobs", &self.blobs).finish_non_exhaustive()
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

impl Blob {
    /// Reads what is left, and compares size and digest.
    ///
    /// # Errors
    ///
    /// [`Corrupt`], and those of reading.
    pub fn finish(mut self) -> Result<()> {
        let digest = self.wanted.digest().clone();
        io::copy(&mut self, &mut io::sink()).with_context(|| format!("reading the blob {digest}"))?;
        let (found, size, place) = (hex::encode(self.hasher.finalize()), self.size, self.blobs.place());
        if matches!(self.blobs, Blobs::Remote(_)) {
            let wanted = self.wanted.size();
            ensure!(size >= wanted, "the blob {digest} of {place} came in part, {size} of {wanted} bytes: try again");
        }
        ensure!(
            found == digest.digest() && size == self.wanted.size(),
            Corrupt(format!(
                "the blob {digest} in {place} is corrupt: it has {size} bytes and the digest sha256:{found}; copy the image again"
            ))
        );
        Ok(())
    }
}
