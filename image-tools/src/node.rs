//! What a file system shall hold, as values: whoever makes them does not know which writer comes.

use std::{fs::File, path::PathBuf, sync::Arc};

/// Owner, mode and time of a node.
#[derive(Debug, Clone, Default)]
pub struct Meta {
    /// Permission and set-id bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time, seconds since 1970.
    pub mtime: u64,
    /// Extended attributes.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Meta {
    /// root's, with this mode.
    pub fn root(mode: u32, mtime: u64) -> Self {
        Self { mode, mtime, ..Self::default() }
    }
}

/// A file of the build host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its size.
    pub size: u64,
}

/// A file of the build host in which the contents of many files lie, in blocks of 4096 bytes.
#[derive(Debug)]
pub struct Pack {
    /// It is open, and may have no name.
    pub file: File,
    /// Packs have an order.
    pub number: usize,
    /// Whether it goes with this program, so that nothing of it is needed once that is on a disk.
    pub is_scratch: bool,
}

/// A content in a pack: its fs-verity metadata, and right behind them what of its data is no hole.
#[derive(Debug, Clone)]
pub struct Packed {
    /// Where it is.
    pub pack: Arc<Pack>,
    /// Where in it.
    pub place: PackedAt,
}

/// A place in a pack.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PackedAt {
    /// The first block.
    pub start: u64,
    /// How many blocks of metadata there are.
    pub metadata: u64,
    /// The bytes of the data.
    pub size: u64,
    /// Which blocks of the data there are, as the first one and how many follow each other; the others are zeros.
    pub data: Vec<(u64, u64)>,
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Content {
    /// A directory.
    Dir,
    /// A file with these bytes.
    Bytes(Vec<u8>),
    /// A file with the bytes of this one on the build host.
    File(HostFile),
    /// A file with this content.
    Packed(Packed),
    /// The same, with fs-verity by SHA-512.
    Sealed(Packed),
    /// A symlink.
    Link(PathBuf),
    /// A second name of an earlier node.
    HardLink(PathBuf),
    /// A fifo.
    Fifo,
    /// A device, with its number as Linux packs it (makedev(3)).
    Device(Device, u64),
}

/// Which kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// One with blocks.
    Block,
    /// One with characters.
    Character,
}

/// A node of a file system. Parents stand before their children.
#[derive(Debug, Clone)]
pub struct Node {
    /// Relative to the file system's root.
    pub path: PathBuf,
    /// Owner, mode and time.
    pub meta: Meta,
    /// What it is.
    pub content: Content,
}

impl Node {
    /// A node of root's.
    pub fn new(path: impl Into<PathBuf>, meta: Meta, content: Content) -> Self {
        Self { path: path.into(), meta, content }
    }

    /// A directory of root's.
    pub fn dir(path: impl Into<PathBuf>, mtime: u64) -> Self {
        Self::new(path, Meta::root(0o755, mtime), Content::Dir)
    }

    /// A file of root's.
    pub fn file(path: impl Into<PathBuf>, content: Content, mtime: u64) -> Self {
        Self::new(path, Meta::root(0o644, mtime), content)
    }

    /// The bytes of what is sealed; nothing where nothing is.
    pub fn sealed_size(&self) -> Option<u64> {
        if let Content::Sealed(file) = &self.content { Some(file.place.size) } else { None }
    }

    /// Whether its content gives its place on the build host back while it is copied.
    pub fn moves(&self) -> bool {
        matches!(&self.content, Content::Packed(file) | Content::Sealed(file) if file.pack.is_scratch)
    }

    /// The bytes of its content.
    pub fn size(&self) -> u64 {
        match &self.content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(file) => file.size,
            Content::Packed(file) | Content::Sealed(file) => file.place.size,
            _ => 0,
        }
    }
}
