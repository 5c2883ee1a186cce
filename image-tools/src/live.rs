//! Writes nodes into the file systems of a machine that runs. Nothing is overwritten that anything boots, and whoever calls this
//! says when it is on the disk.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use cap_std::fs::Dir;
use finalize::sys;
use rustix::fs::FileType;

use crate::node::{Content, Device, HostFile, Meta, Node};

/// What a file system keeps of a node beside its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Owner, mode, time and attributes.
    All,
    /// Nothing: FAT, and the boot directories of GRUB, whose files are root's.
    Nothing,
}

/// Writes all nodes below `root`. A directory that is there is used; a file that is there must be what it is to be.
///
/// # Errors
///
/// Names the node.
pub fn write(root: &Dir, nodes: &[Node], keeps: Keeps) -> Result<()> {
    let mut writer = Writer { parents: HashMap::new(), root, keeps };
    for node in nodes {
        writer.node(node).with_context(|| format!("writing {}", node.path.display()))?;
    }
    // The time of a directory changes as long as something is put into it.
    for node in nodes.iter().rev().filter(|node| matches!(node.content, Content::Dir)) {
        writer.time(node).with_context(|| format!("writing {}", node.path.display()))?;
    }
    Ok(())
}

/// Makes these files, their directories and the directories above them durable.
///
/// # Errors
///
/// Those of fsync(2).
pub fn sync(root: &Dir, nodes: &[Node]) -> Result<()> {
    let mut dirs = std::collections::BTreeSet::new();
    for node in nodes {
        let named = || format!("syncing {}", node.path.display());
        match node.content {
            Content::Dir => drop(dirs.insert(node.path.clone())),
            _ => sys::sync::fsync(root.open(&node.path).with_context(named)?).with_context(named)?,
        }
        dirs.extend(node.path.ancestors().skip(1).map(Path::to_owned));
    }
    // Those below come first.
    for dir in dirs.iter().rev() {
        let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
        sys::sync::fsync(root.open(dir)?).with_context(|| format!("syncing {}", dir.display()))?;
    }
    Ok(())
}

/// The bytes that these nodes take at most on a file system, those that are there already left out.
///
/// # Errors
///
/// Those of statx(2).
pub fn needs(root: &Dir, nodes: &[Node]) -> Result<u64> {
    const BLOCK: u64 = 1 << 14;
    let mut sum = 0;
    for node in nodes {
        let named = || format!("looking at {}", node.path.display());
        sum += match root.symlink_metadata(&node.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => node.size().next_multiple_of(BLOCK) + BLOCK,
            found => found.map(|_| 0).with_context(named)?,
        };
    }
    Ok(sum)
}

struct Writer<'a> {
    root: &'a Dir,
    /// Directories that are open, by their paths.
    parents: HashMap<PathBuf, Dir>,
    keeps: Keeps,
}

impl Writer<'_> {
    fn parent(&mut self, path: &Path) -> io::Result<&Dir> {
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        if !self.parents.contains_key(&parent) {
            let dir =
                if parent.as_os_str().is_empty() { self.root.try_clone()? } else { self.root.open_dir(&parent)? };
            // Descriptors are few, and most nodes come in the order of their directories.
            if self.parents.len() > 64 {
                self.parents.clear();
            }
            self.parents.insert(parent.clone(), dir);
        }
        self.parents.get(&parent).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        let name = name(node)?;
        let (root, keeps) = (self.root, self.keeps);
        let dir = self.parent(&node.path)?;
        let at = dir.as_fd();
        match &node.content {
            Content::Dir => match sys::node::mkdir(at, name) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
                made => {
                    made?;
                    if keeps == Keeps::Nothing && sys::fat::has(at)? {
                        sys::fat::sync_table(at)?;
                    }
                }
            },
            Content::Link(target) => sys::node::symlink(target.as_os_str().as_bytes(), at, name)?,
            Content::HardLink(first) => {
                let from = root.open_dir(first.parent().unwrap_or(Path::new(".")))?;
                let first = first.file_name().context("it is one more name of nothing")?;
                return Ok(sys::node::link(from.as_fd(), first.as_bytes(), at, name)?);
            }
            Content::Fifo => sys::node::special(at, name, FileType::Fifo, 0)?,
            Content::Device(Device::Block, number) => sys::node::special(at, name, FileType::BlockDevice, *number)?,
            Content::Device(Device::Character, number) => {
                sys::node::special(at, name, FileType::CharacterDevice, *number)?;
            }
            Content::Bytes(bytes) => file(dir, node, &mut &bytes[..])?,
            Content::File(HostFile { path, .. }) => {
                let mut from = File::open(path).with_context(|| format!("opening {}", path.display()))?;
                file(dir, node, &mut from)?;
            }
            Content::Packed(_) | Content::Sealed(_) => bail!("packs are for disk images"),
        }
        if keeps == Keeps::All { own(dir, node) } else { Ok(()) }
    }

    fn time(&mut self, node: &Node) -> Result<()> {
        if self.keeps == Keeps::Nothing {
            return Ok(());
        }
        let seconds = i64::try_from(node.meta.mtime)?;
        Ok(sys::node::set_mtime(self.parent(&node.path)?.as_fd(), name(node)?, (seconds, 0))?)
    }
}

fn name(node: &Node) -> Result<&[u8]> {
    Ok(node.path.file_name().context("it has no name")?.as_bytes())
}

/// A new file with what `from` has. One that is there, an earlier run may have written: it must be the same.
fn file(dir: &Dir, node: &Node, from: &mut dyn Read) -> Result<()> {
    let name = name(node)?;
    let mode = node.meta.mode;
    let made = match sys::node::create(dir.as_fd(), name, mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let mut there = dir.open(node.path.file_name().unwrap_or_default())?;
            ensure!(is_same(&mut there, from)?, "there is another one already, and something may boot it");
            return Ok(());
        }
        made => File::from(made?),
    };
    let mut piece = vec![0; 1 << 20];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            count => sys::node::write(&made, &piece[..count])?,
        }
    }
}

/// Whether two readers have the same bytes to their ends.
fn is_same(one: &mut dyn Read, other: &mut dyn Read) -> io::Result<bool> {
    let mut pieces = [vec![], vec![]];
    loop {
        pieces.iter_mut().for_each(Vec::clear);
        let [mine, theirs] = &mut pieces;
        (&mut *one).take(1 << 20).read_to_end(mine)?;
        (&mut *other).take(1 << 20).read_to_end(theirs)?;
        if mine != theirs {
            return Ok(false);
        }
        if mine.is_empty() {
            return Ok(true);
        }
    }
}

/// Owner, attributes, mode and time, in this order: a new owner costs set-id bits and capabilities.
fn own(dir: &Dir, node: &Node) -> Result<()> {
    let Meta { mode, uid, gid, mtime, xattrs } = &node.meta;
    let (at, name) = (dir.as_fd(), name(node)?);
    sys::node::chown(at, name, *uid, *gid)?;
    for (key, value) in xattrs {
        sys::xattr::set(at, name, key, value)?;
    }
    if !matches!(node.content, Content::Link(_)) {
        sys::node::chmod(at, name, *mode)?;
    }
    Ok(sys::node::set_mtime(at, name, (i64::try_from(*mtime)?, 0))?)
}
