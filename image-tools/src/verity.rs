//! fs-verity metadata made by hand, for a build host whose kernel or file system has none.
//!
//! Source of the facts: the kernel's `Documentation/filesystems/fsverity.rst` (Merkle tree, `struct
//! fsverity_descriptor`) and `Documentation/filesystems/ext4/verity.rst` (where ext4 keeps them): behind the data, from
//! the next multiple of 65,536, the Merkle tree with the root level first; from the next block the descriptor; then
//! zeros, with the descriptor's size as le32 in the last four bytes of that block.

use std::convert::Infallible;

use sha2::{Digest, Sha256, Sha512};

/// The block size of data, of the Merkle tree and of the file system.
pub const BLOCK: usize = 4096;
const METADATA_ALIGN: u64 = 65_536;
const DESCRIPTOR_SIZE: usize = 256;

/// The hash algorithm of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Algorithm {
    /// The number that fs-verity gives it.
    fn id(self) -> u8 {
        match self {
            Self::Sha256 => 1,
            Self::Sha512 => 2,
        }
    }

    /// The algorithm whose digests have this many hex digits.
    pub fn of_hex(hex: &str) -> Option<Self> {
        match hex.len() {
            64 => Some(Self::Sha256),
            128 => Some(Self::Sha512),
            _ => None,
        }
    }

    /// The bytes of a hash.
    fn length(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    fn hash(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(data).to_vec(),
            Self::Sha512 => Sha512::digest(data).to_vec(),
        }
    }
}

/// The fs-verity metadata of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// What ext4 keeps behind the data, from [`metadata_offset`] on: whole blocks of [`BLOCK`] bytes.
    tail: Vec<u8>,
    /// The file's digest: the hash of the descriptor.
    pub digest: Vec<u8>,
}

impl Metadata {
    /// Of a file with these bytes.
    pub fn compute(data: &[u8], algorithm: Algorithm) -> Self {
        let mut tail = vec![];
        let mut put = |block: u64, bytes: &[u8]| {
            let at = usize::try_from(block).unwrap_or(usize::MAX).saturating_mul(BLOCK);
            tail.resize(tail.len().max(at.saturating_add(BLOCK)), 0);
            tail[at..at + BLOCK].copy_from_slice(bytes);
            Ok::<_, Infallible>(())
        };
        let mut sealing = Sealing::new(data.len() as u64, algorithm);
        let Ok(()) = data.chunks(BLOCK).try_for_each(|block| sealing.add(block, &mut put));
        let Ok(digest) = sealing.finish(&mut put);
        Self { tail, digest }
    }

    /// What a file system with blocks of `block` bytes keeps behind the data, from [`metadata_offset`] on: whole blocks.
    pub fn tail(&self, block: usize) -> Vec<u8> {
        // The descriptor has a block of its own here.
        let mut tail = self.tail[..self.tail.len() - BLOCK + DESCRIPTOR_SIZE].to_vec();
        tail.resize((tail.len() + 4).next_multiple_of(block) - 4, 0);
        tail.extend((DESCRIPTOR_SIZE as u32).to_le_bytes());
        tail
    }
}

/// The metadata of a file whose bytes come one block after the other: what is kept in memory does not grow with the file.
#[derive(Debug)]
pub struct Sealing {
    algorithm: Algorithm,
    size: u64,
    /// The levels of the Merkle tree, the one above the data first.
    levels: Vec<Level>,
    root: Vec<u8>,
}

/// A level: where its next block belongs, and what that has so far.
#[derive(Debug)]
struct Level {
    next: u64,
    hashes: Vec<u8>,
}

impl Sealing {
    /// Of a file that will have `size` bytes.
    pub fn new(size: u64, algorithm: Algorithm) -> Self {
        let counts = levels(size, algorithm);
        let below: Vec<u64> = (1..=counts.len()).map(|level| counts[level..].iter().sum()).collect();
        let levels = below.into_iter().map(|next| Level { next, hashes: Vec::with_capacity(BLOCK) }).collect();
        Self { algorithm, size, levels, root: vec![] }
    }

    /// Adds the next block, a whole one unless it is the last. Hands blocks of the metadata that are complete to `put`, each
    /// with its number.
    ///
    /// # Errors
    ///
    /// Those of `put`.
    pub fn add<E>(&mut self, block: &[u8], put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let hash = match block.len() {
            BLOCK => self.algorithm.hash(block),
            length => {
                let mut padded = [0; BLOCK];
                padded[..length].copy_from_slice(block);
                self.algorithm.hash(&padded)
            }
        };
        self.push(0, hash, put)
    }

    fn push<E>(
        &mut self,
        at: usize,
        hash: Vec<u8>,
        put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(level) = self.levels.get_mut(at) else {
            self.root = hash;
            return Ok(());
        };
        level.hashes.extend(hash);
        if level.hashes.len() == BLOCK { self.complete(at, put) } else { Ok(()) }
    }

    fn complete<E>(&mut self, at: usize, put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let level = &mut self.levels[at];
        level.hashes.resize(BLOCK, 0);
        put(level.next, &level.hashes)?;
        level.next += 1;
        let hash = self.algorithm.hash(&level.hashes);
        level.hashes.clear();
        self.push(at + 1, hash, put)
    }

    /// The digest, after the last block; `put` gets what is left.
    ///
    /// # Errors
    ///
    /// Those of `put`.
    pub fn finish<E>(mut self, put: &mut impl FnMut(u64, &[u8]) -> Result<(), E>) -> Result<Vec<u8>, E> {
        for at in 0..self.levels.len() {
            if !self.levels[at].hashes.is_empty() {
                self.complete(at, put)?;
            }
        }
        let descriptor = descriptor(self.algorithm, self.size, &self.root);
        let mut last = descriptor.clone();
        last.resize(BLOCK - 4, 0);
        last.extend((DESCRIPTOR_SIZE as u32).to_le_bytes());
        put(metadata_blocks(self.size, self.algorithm) - 1, &last)?;
        Ok(self.algorithm.hash(&descriptor))
    }
}

/// How many blocks each level of the Merkle tree has, the one above the data first; none for a file of one block or less.
fn levels(size: u64, algorithm: Algorithm) -> Vec<u64> {
    let hashes = (BLOCK / algorithm.length()) as u64;
    let (mut counts, mut below) = (vec![], size.div_ceil(BLOCK as u64));
    while below > 1 {
        below = below.div_ceil(hashes);
        counts.push(below);
    }
    counts
}

/// How many blocks the metadata of a file of `size` bytes have.
pub fn metadata_blocks(size: u64, algorithm: Algorithm) -> u64 {
    levels(size, algorithm).iter().sum::<u64>() + 1
}

/// How many bytes the metadata by SHA-512 of a file of `size` bytes take, in whole blocks of `block` bytes; none of a file that
/// has none.
pub fn metadata_size(size: Option<u64>, block: u64) -> u64 {
    let Some(size) = size else { return 0 };
    let tree: u64 = levels(size, Algorithm::Sha512).iter().sum();
    (tree * BLOCK as u64 + DESCRIPTOR_SIZE as u64).next_multiple_of(block)
}

/// Where ext4 keeps the metadata of a file of `size` bytes.
pub fn metadata_offset(size: u64) -> u64 {
    size.next_multiple_of(METADATA_ALIGN)
}

/// `struct fsverity_descriptor`: version 1, no salt, no signature. The root hash of an empty file is all zeros.
fn descriptor(algorithm: Algorithm, size: u64, root_hash: &[u8]) -> Vec<u8> {
    let mut descriptor = vec![1, algorithm.id(), BLOCK.ilog2() as u8, 0];
    descriptor.extend([0; 4]);
    descriptor.extend(size.to_le_bytes());
    descriptor.extend(root_hash);
    descriptor.resize(DESCRIPTOR_SIZE, 0);
    descriptor
}

#[cfg(test)]
mod tests {
    use composefs::fsverity::{Sha256HashValue, Sha512HashValue, compute_verity};

    use super::*;

    fn check(size: usize, tree_blocks: usize) {
        let data: Vec<u8> = (0..size).map(|i| (i * 31 % 251) as u8).collect();
        let metadata = Metadata::compute(&data, Algorithm::Sha512);
        let theirs: Sha512HashValue = compute_verity(&data);
        assert_eq!(hex::encode(&metadata.digest), composefs::fsverity::FsVerityHashValue::to_hex(&theirs), "{size}");
        assert_eq!(metadata.tail(BLOCK).len(), (tree_blocks + 1) * BLOCK, "{size}");
        assert_eq!(metadata_blocks(size as u64, Algorithm::Sha512), tree_blocks as u64 + 1, "{size}");
        let tail = metadata.tail(BLOCK);
        assert_eq!(tail.len() as u64, metadata_size(Some(size as u64), BLOCK as u64));
        assert_eq!(tail[tail.len() - 4..], [0, 1, 0, 0]);
        // The root level stands first, and its hash in the descriptor.
        if tree_blocks > 0 {
            let descriptor = &tail[tail.len() - BLOCK..];
            assert_eq!(descriptor[16..80], Algorithm::Sha512.hash(&tail[..BLOCK])[..], "{size}");
        }
        let short = Metadata::compute(&data, Algorithm::Sha256);
        let theirs: Sha256HashValue = compute_verity(&data);
        assert_eq!(hex::encode(&short.digest), composefs::fsverity::FsVerityHashValue::to_hex(&theirs), "{size}");
    }

    #[test]
    fn digests_are_those_of_composefs_and_trees_have_the_right_height() {
        check(0, 0);
        check(1, 0);
        check(4096, 0);
        check(4097, 1);
        check(64 * 4096, 1);
        check(64 * 4096 + 1, 3);
        check(64 * 64 * 4096, 65);
        check(64 * 64 * 4096 + 1, 68);
    }
}
