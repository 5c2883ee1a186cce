//! What a file system shall hold, as values, and its two forms for e2fsprogs: a tar archive for `mke2fs -d -`, and a
//! batch for debugfs with what an archive cannot say (fs-verity, extended attributes).

use std::{
    ffi::OsStr,
    fmt::Write as _,
    fs::File,
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::disk::verity::Metadata;

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

/// What a node is.
#[derive(Debug, Clone)]
pub enum Content {
    /// A directory.
    Dir,
    /// A file with these bytes.
    Bytes(Vec<u8>),
    /// A file with the bytes of this one on the build host.
    File(PathBuf),
    /// The same, with fs-verity.
    Sealed(PathBuf, Metadata),
    /// A symlink.
    Link(PathBuf),
    /// A second name of an earlier node.
    HardLink(PathBuf),
}

/// A node of the tree. Parents stand before their children.
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
}

/// Writes the nodes as a tar archive.
///
/// # Errors
///
/// Those of reading files of the build host, named, and of writing.
pub fn write_tar(nodes: &[Node], out: &mut dyn Write) -> Result<()> {
    let mut archive = tar::Builder::new(out);
    for node in nodes {
        append(&mut archive, node).with_context(|| format!("adding {}", node.path.display()))?;
    }
    archive.finish().context("finishing the archive")
}

fn append(archive: &mut tar::Builder<&mut dyn Write>, node: &Node) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(node.meta.mode);
    header.set_uid(node.meta.uid.into());
    header.set_gid(node.meta.gid.into());
    header.set_mtime(node.meta.mtime);
    header.set_size(0);
    let open = |path: &Path| File::open(path).with_context(|| format!("opening {}", path.display()));
    let path = &node.path;
    match &node.content {
        Content::Dir => {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, path, std::io::empty())?;
        }
        Content::Bytes(bytes) => {
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, &bytes[..])?;
        }
        Content::File(from) => {
            let file = open(from)?;
            header.set_size(file.metadata()?.len());
            archive.append_data(&mut header, path, file)?;
        }
        Content::Sealed(from, metadata) => {
            let tail = metadata.tail();
            let gap = metadata.offset() - metadata.size;
            header.set_size(metadata.offset() + tail.len() as u64);
            let data = open(from)?.take(metadata.size).chain(std::io::repeat(0).take(gap)).chain(&tail[..]);
            archive.append_data(&mut header, path, data)?;
        }
        Content::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            archive.append_link(&mut header, path, target)?;
        }
        Content::HardLink(target) => {
            header.set_entry_type(tar::EntryType::Link);
            archive.append_link(&mut header, path, target)?;
        }
    }
    Ok(())
}

/// The commands for debugfs(8) that give sealed files their size and flag, and nodes their extended attributes. Values
/// are written to files below `scratch`.
///
/// # Errors
///
/// For a name that debugfs cannot be told, and those of writing.
pub fn debugfs_batch(nodes: &[Node], scratch: &Path) -> Result<String> {
    let mut batch = String::new();
    let mut values = 0;
    for node in nodes {
        let path = quoted(&node.path)?;
        if let Content::Sealed(_, metadata) = &node.content {
            // VERITY | EXTENTS
            writeln!(batch, "sif {path} size {}\nsif {path} flags 0x180000", metadata.size)?;
        }
        for (key, value) in &node.meta.xattrs {
            values += 1;
            let file = scratch.join(format!("xattr-{values}"));
            std::fs::write(&file, value).with_context(|| format!("writing {}", file.display()))?;
            writeln!(batch, "ea_set -f {} {path} {}", file.display(), String::from_utf8_lossy(key))?;
        }
    }
    Ok(batch)
}

/// A path as debugfs reads it.
fn quoted(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) if !text.contains(['"', '\n', '\r']) => Ok(format!("\"/{text}\"")),
        _ => bail!("the name {:?} cannot be carried over: it has quotes, line breaks or is not UTF-8", path),
    }
}

/// `name` below `dir`.
pub fn below(dir: &Path, name: &OsStr) -> PathBuf {
    if dir.as_os_str().as_bytes().is_empty() { PathBuf::from(name) } else { dir.join(name) }
}
