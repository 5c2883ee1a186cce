//! A directory tree as a value: what is merged, without what is on the disk.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A path below the root of a tree: bytes, components joined by `/`, never empty. Sorts parents before children.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The path of the child `name` of `self`; of a name alone at the root (`None`).
    pub fn child(parent: Option<&Self>, name: &[u8]) -> Self {
        let mut bytes = parent.map_or_else(Vec::new, |p| [&p.0[..], b"/"].concat());
        bytes.extend_from_slice(name);
        Self(bytes)
    }

    /// The path with these bytes: components joined by `/`.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes, as the kernel takes them.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/')
    }

    /// The directory that holds it; `None` at the root.
    pub fn parent(&self) -> Option<Self> {
        self.0.iter().rposition(|b| *b == b'/').map(|at| Self(self.0[..at].to_vec()))
    }

    /// The last component.
    pub fn name(&self) -> &[u8] {
        self.components().next_back().unwrap_or_default()
    }

    /// Whether it lies below `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self.0.len() > other.0.len() && self.0.starts_with(&other.0) && self.0[other.0.len()] == b'/'
    }
}

impl PartialOrd for RelPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// By components, so that a directory's children follow it before any of its siblings do.
impl Ord for RelPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |b: &u8| if *b == b'/' { 0 } else { u16::from(*b) + 1 };
        self.0.iter().map(key).cmp(other.0.iter().map(key))
    }
}

impl From<&str> for RelPath {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

/// Bytes that are not printable ASCII, and the backslash, as `\xHH`: reversible, and one line always.
impl std::fmt::Display for RelPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match std::str::from_utf8(&self.0) {
            Ok(text) if !text.chars().any(|c| c.is_control() || c == '\\') => f.write_str(text),
            _ => self.0.iter().try_for_each(|b| match b {
                b' '..=b'~' if *b != b'\\' => write!(f, "{}", char::from(*b)),
                _ => write!(f, "\\x{b:02x}"),
            }),
        }
    }
}

/// As people read it; to a program's own form, its bytes.
impl Serialize for RelPath {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => self.0.serialize(serializer),
        }
    }
}

/// From a program's own form alone.
impl<'de> Deserialize<'de> for RelPath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self)
    }
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A directory; its children are nodes of their own.
    Dir,
    /// A regular file of so many bytes, and the inode that holds them (device and number).
    File {
        /// Bytes.
        size: u64,
        /// Device and inode number.
        inode: (u64, u64),
        /// Whether other names lead to the same inode.
        shared: bool,
    },
    /// A symlink and its target, never followed.
    Link(Vec<u8>),
}

/// Extended attributes that belong to a node: all but labels, signatures and what overlayfs leaves.
pub type Xattrs = BTreeMap<Vec<u8>, Vec<u8>>;

/// A file, a directory or a symlink. Times are carried, but are never part of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permission and set-id bits: 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes.
    pub xattrs: Xattrs,
    /// `security.selinux`.
    pub label: Option<Vec<u8>>,
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, i64),
}

impl Node {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// Whether all but a regular file's bytes is equal. Sizes count; the mode of a symlink does not.
    pub fn same_but_bytes(&self, other: &Self) -> bool {
        let kind = match (&self.kind, &other.kind) {
            (Kind::File { size: a, .. }, Kind::File { size: b, .. }) => a == b,
            (a, b) => a == b,
        };
        let mode = matches!(self.kind, Kind::Link(_)) || self.mode == other.mode;
        kind && mode && (self.uid, self.gid) == (other.uid, other.gid) && self.xattrs == other.xattrs
    }
}

/// A tree: all nodes below its root, the root itself, and what was found there but is never carried.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// The root directory's own node; `None` for a tree that does not exist.
    pub root: Option<Node>,
    /// All nodes below it.
    pub nodes: BTreeMap<RelPath, Node>,
    /// Sockets, fifos and devices.
    pub skipped: Vec<RelPath>,
}
