//! fs-verity metadata made by hand, for a build host whose kernel or file system has none.
//!
//! Source of the facts: the kernel's `Documentation/filesystems/fsverity.rst` (Merkle tree, `struct
//! fsverity_descriptor`) and `Documentation/filesystems/ext4/verity.rst` (where ext4 keeps them): behind the data, from
//! the next multiple of 65,536, the Merkle tree with the root level first; from the next block the descriptor; then
//! zeros, with the descriptor's size as le32 in the last four bytes of that block.

use std::io::Read;

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
    /// The Merkle tree, root level first, whole blocks. Empty for a file of one block or less.
    pub tree: Vec<u8>,
    /// The 256-byte descriptor, which ends in zeros.
    pub descriptor: Vec<u8>,
    /// The file's digest: the hash of the descriptor.
    pub digest: Vec<u8>,
    /// The size of the data.
    pub size: u64,
}

impl Metadata {
    /// Reads `data` to its end and computes its metadata.
    pub fn compute(data: &mut dyn Read, algorithm: Algorithm) -> std::io::Result<Self> {
        let (leaves, size) = hash_blocks(data, algorithm)?;
        let mut levels = vec![];
        let mut hashes = leaves;
        while hashes.len() > algorithm.hash(&[]).len() {
            hashes.resize(hashes.len().next_multiple_of(BLOCK), 0);
            let above = hashes.chunks(BLOCK).flat_map(|block| algorithm.hash(block)).collect();
            levels.push(std::mem::replace(&mut hashes, above));
        }
        let tree = levels.into_iter().rev().flatten().collect();
        let descriptor = descriptor(algorithm, size, &hashes);
        Ok(Self { tree, digest: algorithm.hash(&descriptor), descriptor, size })
    }

    /// Where ext4 keeps the Merkle tree (or the descriptor of a file without one).
    pub fn offset(&self) -> u64 {
        metadata_offset(self.size)
    }

    /// All that lies from [`Metadata::offset`] on, in a file system with blocks of `block` bytes: whole blocks.
    pub fn tail(&self, block: usize) -> Vec<u8> {
        let mut tail = self.tree.clone();
        tail.extend(&self.descriptor);
        tail.resize((tail.len() + 4).next_multiple_of(block) - 4, 0);
        tail.extend((DESCRIPTOR_SIZE as u32).to_le_bytes());
        tail
    }
}

/// How many bytes the metadata by SHA-512 of a file of `size` bytes take, in whole blocks of `block` bytes; none of a file that
/// has none.
pub fn metadata_size(size: Option<u64>, block: u64) -> u64 {
    const HASHES: u64 = BLOCK as u64 / 64;
    let Some(size) = size else { return 0 };
    let (mut blocks, mut tree) = (size.div_ceil(BLOCK as u64), 0);
    while blocks > 1 {
        blocks = blocks.div_ceil(HASHES);
        tree += blocks * BLOCK as u64;
    }
    (tree + DESCRIPTOR_SIZE as u64).next_multiple_of(block)
}

/// Where ext4 keeps the metadata of a file of `size` bytes.
pub fn metadata_offset(size: u64) -> u64 {
    size.next_multiple_of(METADATA_ALIGN)
}

/// The hashes of all blocks, the last one padded with zeros, and the number of bytes. No data, no hash.
fn hash_blocks(data: &mut dyn Read, algorithm: Algorithm) -> std::io::Result<(Vec<u8>, u64)> {
    let mut hashes = vec![];
    let mut size = 0;
    let mut buffer = vec![0; 64 * BLOCK];
    loop {
        let filled = fill(data, &mut buffer)?;
        size += filled as u64;
        let padded = filled.next_multiple_of(BLOCK);
        buffer[filled..padded].fill(0);
        hashes.extend(buffer[..padded].chunks(BLOCK).flat_map(|block| algorithm.hash(block)));
        if filled < buffer.len() {
            return Ok((hashes, size));
        }
    }
}

fn fill(data: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match data.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
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
        let metadata = Metadata::compute(&mut data.as_slice(), Algorithm::Sha512).unwrap();
        let theirs: Sha512HashValue = compute_verity(&data);
        assert_eq!(hex::encode(&metadata.digest), composefs::fsverity::FsVerityHashValue::to_hex(&theirs), "{size}");
        assert_eq!((metadata.size, metadata.tree.len() / BLOCK), (size as u64, tree_blocks), "{size}");
        let tail = metadata.tail(BLOCK);
        assert_eq!(tail.len(), (tree_blocks + 1) * BLOCK);
        assert_eq!(tail.len() as u64, metadata_size(Some(size as u64), BLOCK as u64));
        assert_eq!(tail[tail.len() - 4..], [0, 1, 0, 0]);
        let short = Metadata::compute(&mut data.as_slice(), Algorithm::Sha256).unwrap();
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
