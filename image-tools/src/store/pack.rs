//! Contents, one behind the other in one large file, each with its fs-verity metadata before it: so they are written once,
//! and copied to a disk in long runs.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    sync::Arc,
};

use anyhow::{Context, Result, ensure};
use composefs::fsverity::{FsVerityHashValue, Sha512HashValue};

use super::import::Contents;
use crate::{
    node::{Pack, Packed, PackedAt},
    oci::Corrupt,
    verity::{Algorithm, BLOCK, Sealing, metadata_blocks},
};

/// What is larger is not gathered in memory, in bytes; and where all of so many are zeros, there is a hole.
const PIECE: usize = 1 << 20;

/// How much is gathered before it is written, in bytes.
const GATHERED: usize = 4 << 20;

/// How many holes a file may have; further zeros are data.
const HOLES: usize = 500;

/// The contents of a pack, by their digests.
pub type Places = HashMap<Sha512HashValue, PackedAt>;

/// A pack that is being written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    /// The bytes that are in the file.
    written: u64,
    /// What comes next, whole blocks.
    gathered: Vec<u8>,
    places: Places,
}

impl Contents for Writer {
    fn add(&mut self, from: &mut dyn Read, size: u64) -> Result<Sha512HashValue> {
        let (digest, place) = match usize::try_from(size) {
            Ok(size) if size <= PIECE => self.gather(from, size)?,
            _ => self.stream(from, size)?,
        };
        let digest = Sha512HashValue::from_hex(hex::encode(digest))?;
        if self.places.contains_key(&digest) {
            // What comes next is written over it.
            let end = place.start * BLOCK as u64;
            self.gathered.truncate(usize::try_from(end.saturating_sub(self.written))?);
            self.written = self.written.min(end);
        } else {
            self.places.insert(digest.clone(), place);
        }
        if self.gathered.len() >= GATHERED {
            self.flush()?;
        }
        Ok(digest)
    }
}

impl Writer {
    /// Writes to `file`, which is empty.
    pub fn new(file: File) -> Self {
        Self { file, written: 0, gathered: vec![], places: Places::new() }
    }

    fn gather(&mut self, from: &mut dyn Read, size: usize) -> Result<(Vec<u8>, PackedAt)> {
        let metadata = metadata_blocks(size as u64, Algorithm::Sha512);
        let begin = self.gathered.len();
        let start = (self.written + begin as u64) / BLOCK as u64;
        let data = begin + usize::try_from(metadata)? * BLOCK;
        self.gathered.resize(data + size.next_multiple_of(BLOCK), 0);
        read(from, &mut self.gathered[data..data + size])?;
        let (before, bytes) = self.gathered[begin..].split_at_mut(data - begin);
        let mut put = |block: u64, metadata: &[u8]| {
            let at = usize::try_from(block).map_err(io::Error::other)? * BLOCK;
            before[at..at + BLOCK].copy_from_slice(metadata);
            Ok::<_, io::Error>(())
        };
        let mut sealing = Sealing::new(size as u64, Algorithm::Sha512);
        bytes[..size].chunks(BLOCK).try_for_each(|block| sealing.add(block, &mut put))?;
        let digest = sealing.finish(&mut put)?;
        let blocks = (size as u64).div_ceil(BLOCK as u64);
        let data = if blocks == 0 { vec![] } else { vec![(0, blocks)] };
        Ok((digest, PackedAt { start, metadata, size: size as u64, data }))
    }

    fn stream(&mut self, from: &mut dyn Read, size: u64) -> Result<(Vec<u8>, PackedAt)> {
        self.flush()?;
        let metadata = metadata_blocks(size, Algorithm::Sha512);
        let start = self.written;
        let file = &self.file;
        let mut put = |block: u64, bytes: &[u8]| file.write_all_at(bytes, start + block * BLOCK as u64);
        let mut sealing = Sealing::new(size, Algorithm::Sha512);
        let mut at = start + metadata * BLOCK as u64;
        let (mut data, mut piece) = (Runs::default(), vec![0; PIECE]);
        let mut rest = size;
        while rest > 0 {
            let length = usize::try_from(rest)?.min(PIECE);
            let whole = length.next_multiple_of(BLOCK);
            read(from, &mut piece[..length])?;
            piece[length..whole].fill(0);
            piece[..length].chunks(BLOCK).try_for_each(|block| sealing.add(block, &mut put))?;
            if data.take((whole / BLOCK) as u64, length == PIECE && piece.iter().all(|byte| *byte == 0)) {
                file.write_all_at(&piece[..whole], at)?;
                at += whole as u64;
            }
            rest -= length as u64;
        }
        let digest = sealing.finish(&mut put)?;
        self.written = at;
        Ok((digest, PackedAt { start: start / BLOCK as u64, metadata, size, data: data.found }))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.gathered, self.written)?;
        self.written += self.gathered.len() as u64;
        self.gathered.clear();
        Ok(())
    }

    /// The file, and what is in it.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn finish(mut self) -> Result<(File, Places)> {
        self.flush()?;
        self.file.set_len(self.written)?;
        Ok((self.file, self.places))
    }
}

/// Which blocks of a file are data.
#[derive(Debug, Default)]
struct Runs {
    found: Vec<(u64, u64)>,
    /// The blocks so far, holes too.
    blocks: u64,
}

impl Runs {
    /// Whether the next blocks are data: they are no zeros, or there are too many holes.
    fn take(&mut self, blocks: u64, are_zeros: bool) -> bool {
        let at = self.blocks;
        self.blocks += blocks;
        if are_zeros && self.found.len() < HOLES {
            return false;
        }
        match self.found.last_mut() {
            Some((first, count)) if *first + *count == at => *count += blocks,
            _ => self.found.push((at, blocks)),
        }
        true
    }
}

/// Fills `buffer` with what an archive has there.
fn read(from: &mut dyn Read, buffer: &mut [u8]) -> Result<()> {
    from.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => Corrupt("the archive ends in its content".to_owned()).into(),
        _ => anyhow::Error::new(error),
    })
}

/// Writes the content of a packed file to `to`.
///
/// # Errors
///
/// Those of reading and writing.
pub fn copy(from: &Packed, to: &mut dyn Write) -> Result<()> {
    let PackedAt { start, metadata, size, data } = &from.place;
    let (mut at, mut written) = ((start + metadata) * BLOCK as u64, 0);
    let mut buffer = vec![0; PIECE.min(usize::try_from(*size)?)];
    let zeros = |until: u64, written: &mut u64, to: &mut dyn Write| {
        let count = until.saturating_sub(*written);
        *written += count;
        io::copy(&mut io::repeat(0).take(count), to).map(drop)
    };
    for (first, count) in data {
        zeros(first * BLOCK as u64, &mut written, to)?;
        let end = size.min(&((first + count) * BLOCK as u64)).to_owned();
        while written < end {
            let length = usize::try_from(end - written)?.min(buffer.len());
            from.pack.file.read_exact_at(&mut buffer[..length], at).context("reading a pack")?;
            to.write_all(&buffer[..length])?;
            (at, written) = (at + length as u64, written + length as u64);
        }
        at = at.next_multiple_of(BLOCK as u64);
    }
    zeros(*size, &mut written, to)?;
    ensure!(written == *size, "a pack is not what it says");
    Ok(())
}

/// Packs that are complete, by what they hold.
#[derive(Debug, Default)]
pub struct Packs {
    contents: HashMap<Sha512HashValue, Packed>,
    count: usize,
}

impl Packs {
    /// Takes a pack up, and whether it is nobody else's; what an earlier one has too is taken from that.
    pub fn insert(&mut self, (file, is_scratch): (File, bool), places: &Places) {
        let pack = Arc::new(Pack { file, number: self.count, is_scratch });
        self.count += 1;
        for (digest, place) in places {
            let packed = || Packed { pack: pack.clone(), place: place.clone() };
            self.contents.entry(digest.clone()).or_insert_with(packed);
        }
    }

    /// The content with this digest.
    pub fn get(&self, digest: &Sha512HashValue) -> Option<&Packed> {
        self.contents.get(digest)
    }

    /// All contents.
    pub fn iter(&self) -> impl Iterator<Item = (&Sha512HashValue, &Packed)> {
        self.contents.iter()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use composefs::fsverity::compute_verity;

    use super::*;

    const MIB: usize = 1 << 20;

    fn content(size: usize, holes: &[usize]) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8 + 1).collect();
        for hole in holes {
            bytes[hole * MIB..(hole + 1) * MIB].fill(0);
        }
        bytes
    }

    #[test]
    fn what_was_packed_comes_out_again_with_its_digest() {
        let contents = [
            content(0, &[]),
            content(65, &[]),
            content(4096, &[]),
            content(70_000, &[]),
            content(MIB, &[]),
            content(MIB + 1, &[]),
            content(9 * MIB + 5, &[0, 3, 4, 8]),
            content(6 * MIB, &[5]),
            content(3 * MIB, &[0, 1, 2]),
        ];
        let mut pack = Writer::new(tempfile::tempfile().unwrap());
        let mut add = |content: &Vec<u8>| pack.add(&mut &content[..], content.len() as u64).unwrap();
        let once: Vec<_> = contents.iter().map(&mut add).collect();
        // A second time there is nothing to be written.
        let twice: Vec<_> = contents.iter().rev().map(&mut add).collect();
        assert!(twice.iter().rev().eq(&once));
        let short = pack.add(&mut &b"x"[..], 2).unwrap_err();
        assert_eq!(short.to_string(), "the archive ends in its content");
        let (file, places) = pack.finish().unwrap();
        let blocks =
            places.values().map(|place| place.metadata + place.data.iter().map(|(_, count)| count).sum::<u64>());
        let blocks: u64 = blocks.sum();
        assert!(file.metadata().unwrap().len() <= (blocks + 2) * BLOCK as u64, "{blocks} blocks");
        let mut packs = Packs::default();
        packs.insert((file, true), &places);
        for (content, id) in contents.iter().zip(once) {
            assert_eq!(id, compute_verity(content), "{} bytes", content.len());
            let mut out = vec![];
            copy(packs.get(&id).unwrap(), &mut out).unwrap();
            assert!(out == *content, "{} bytes", content.len());
        }
    }
}
