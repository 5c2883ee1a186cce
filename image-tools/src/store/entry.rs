//! An entry of a layer, as it can be written down.

use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

use composefs::{
    fsverity::{FsVerityHashValue, Sha512HashValue},
    tree::{LeafContent, RegularFile, Stat},
};
use serde::{Deserialize, Serialize};

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its path, as the archive has it.
    pub path: Vec<u8>,
    /// Owner, mode, time and extended attributes.
    pub status: Status,
    /// What it is.
    pub item: Item,
}

/// Owner, mode, time and extended attributes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Permission and set-id bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// A directory.
    Directory,
    /// A file that is in its inode.
    Inline(Vec<u8>),
    /// A file that is an object: its digest and its size.
    Object(Digest, u64),
    /// A symlink.
    Symlink(Vec<u8>),
    /// A device with characters.
    Character(u64),
    /// A device with blocks.
    Block(u64),
    /// A fifo.
    Fifo,
    /// One more name of the entry at this path.
    Link(Vec<u8>),
}

/// The digest of an object.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub Sha512HashValue);

impl TryFrom<String> for Digest {
    type Error = hex::FromHexError;

    fn try_from(hex: String) -> Result<Self, Self::Error> {
        Sha512HashValue::from_hex(hex).map(Self)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.0.to_hex()
    }
}

impl Status {
    /// As composefs has it.
    pub fn stat(&self) -> Stat {
        let xattr = |(name, value): &(Vec<u8>, Vec<u8>)| (OsStr::from_bytes(name).into(), value.clone().into());
        Stat {
            st_mode: self.mode,
            st_uid: self.uid,
            st_gid: self.gid,
            st_mtim_sec: self.seconds,
            st_mtim_nsec: self.nanoseconds,
            xattrs: self.xattrs.iter().map(xattr).collect(),
        }
    }
}

impl Item {
    /// As composefs has it; nothing where it is a directory or one more name.
    pub fn leaf(&self) -> Option<LeafContent<Sha512HashValue>> {
        Some(match self {
            Self::Directory | Self::Link(_) => return None,
            Self::Inline(bytes) => LeafContent::Regular(RegularFile::Inline(bytes.clone().into())),
            Self::Object(digest, size) => LeafContent::Regular(RegularFile::External(digest.0.clone(), *size)),
            Self::Symlink(target) => LeafContent::Symlink(OsStr::from_bytes(target).into()),
            Self::Character(number) => LeafContent::CharacterDevice(*number),
            Self::Block(number) => LeafContent::BlockDevice(*number),
            Self::Fifo => LeafContent::Fifo,
        })
    }
}
