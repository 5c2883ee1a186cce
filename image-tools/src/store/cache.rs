//! Layers that were read before, in a directory of the build host: a file each, named after what is in it, with its pack and
//! its entries.
//!
//! A file appears with its name when it is complete (open(2), `O_TMPFILE`), so whoever is killed leaves nothing. All of it is
//! checked each time it is used; what is damaged is removed, and made again. Files are never written to again, so several
//! programs may share the directory, and anybody may remove any of them at any time.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsRawFd, unix::fs::FileExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags},
    io::Errno,
};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_128;

use super::{
    entry::{Digest, Entry},
    pack::Places,
};
use crate::node::PackedAt;

/// Another one for each change of what a file has: its form, and how an archive is cut into entries, objects and stream.
const FORMAT: u32 = 1;

/// What a file ends with: the checksum of its index, and how many bytes that has.
const END: usize = 16 + 8;

/// How much of a pack has a checksum of its own, in bytes. XXH3 finds every damage, and is several times as fast as SHA-256,
/// which would find no forgery either: who can write to the cache can write another checksum.
const PIECE: u64 = 4 << 20;

/// A directory of layers.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// A layer, but for its pack.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Read {
    /// Its split stream.
    pub stream: Vec<u8>,
    /// Its entries, in order.
    pub entries: Vec<Entry>,
}

/// What is behind a pack.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    diff_id: String,
    /// The checksums of the pack, piece by piece.
    sums: Vec<u128>,
    places: Vec<(Digest, PackedAt)>,
    read: Read,
}

impl Cache {
    /// In `dir`, which is made.
    ///
    /// # Errors
    ///
    /// Names the directory.
    pub fn open(dir: &Path) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("creating the cache {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned() })
    }

    /// Where a layer is; nowhere where its name is none.
    fn path(&self, diff_id: &str) -> Option<PathBuf> {
        let hex = diff_id.strip_prefix("sha256:")?;
        let is_digest = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_digest.then(|| self.dir.join(format!("layer-{FORMAT}-{hex}")))
    }

    /// The layer, where it is there and whole.
    ///
    /// # Errors
    ///
    /// When what is damaged cannot be removed.
    pub fn load(&self, diff_id: &str) -> Result<Option<(File, Places, Read)>> {
        let Some(path) = self.path(diff_id) else { return Ok(None) };
        match load(&path, diff_id) {
            Ok(found) => Ok(found),
            Err(why) => {
                tracing::warn!("the cache has a damaged layer, which is made again: {}: {why:#}", path.display());
                match std::fs::remove_file(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(error).with_context(|| format!("removing {}", path.display()))
                    }
                    _ => Ok(None),
                }
            }
        }
    }

    /// A file for a pack, without a name.
    ///
    /// # Errors
    ///
    /// Names the directory.
    pub fn create(&self) -> Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&self.dir, flags, Mode::from_raw_mode(0o644));
        let file = file.with_context(|| {
            let dir = self.dir.display();
            format!("creating a file in the cache {dir}, which must be on a file system with O_TMPFILE (ext4, XFS, btrfs, tmpfs)")
        })?;
        Ok(File::from(file))
    }

    /// Gives the file of [`Cache::create`], in which the pack is, its name.
    ///
    /// # Errors
    ///
    /// Names it.
    pub fn save(&self, file: &File, of: (&str, &Places), read: Read) -> Result<Read> {
        let (diff_id, places) = of;
        let Some(path) = self.path(diff_id) else { return Ok(read) };
        let save = || {
            let size = file.metadata()?.len();
            let sums = sums(file, size)?;
            let mut places: Vec<_> =
                places.iter().map(|(digest, place)| (Digest(digest.clone()), place.clone())).collect();
            places.sort_by_key(|(_, place)| place.start);
            let index = Index { diff_id: diff_id.to_owned(), sums, places, read };
            let (index, read) = (postcard::to_stdvec(&index)?, index.read);
            let mut end = index.clone();
            end.write_all(&xxh3_128(&index).to_le_bytes())?;
            end.write_all(&(index.len() as u64).to_le_bytes())?;
            file.write_all_at(&end, size)?;
            let nameless = format!("/proc/self/fd/{}", file.as_raw_fd());
            match rustix::fs::linkat(CWD, nameless, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
                // Somebody else has made it meanwhile.
                Ok(()) | Err(Errno::EXIST) => Ok(read),
                Err(error) => Err(anyhow::Error::new(error)),
            }
        };
        save().with_context(|| format!("writing {}", path.display()))
    }
}

fn load(path: &Path, diff_id: &str) -> Result<Option<(File, Places, Read)>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let size = file.metadata()?.len();
    let mut end = [0; END];
    file.read_exact_at(&mut end, size.checked_sub(END as u64).context("it is too short")?)?;
    let (sum, length) = end.split_at(16);
    let length = u64::from_le_bytes(length.try_into()?);
    let pack = size.checked_sub(length.saturating_add(END as u64)).context("it is too short")?;
    let mut index = vec![0; usize::try_from(length)?];
    file.read_exact_at(&mut index, pack)?;
    ensure!(xxh3_128(&index).to_le_bytes() == sum, "its index has another checksum");
    let index: Index = postcard::from_bytes(&index).context("reading its index")?;
    ensure!(index.diff_id == diff_id, "it is of the layer {}", index.diff_id);
    ensure!(sums(&file, pack)? == index.sums, "its pack has other checksums");
    let places = index.places.into_iter().map(|(digest, place)| (digest.0, place)).collect();
    Ok(Some((file, places, index.read)))
}

/// The checksums of the first `size` bytes.
fn sums(file: &File, size: u64) -> io::Result<Vec<u128>> {
    let sum = |piece| {
        let at = piece * PIECE;
        let mut bytes = vec![0; usize::try_from(PIECE.min(size - at)).map_err(io::Error::other)?];
        file.read_exact_at(&mut bytes, at)?;
        Ok(xxh3_128(&bytes))
    };
    (0..size.div_ceil(PIECE)).into_par_iter().map(sum).collect()
}
