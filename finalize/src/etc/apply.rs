//! Writes the merged tree: the new tree's nodes by hard link, local ones by copy. Neither tree is changed.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{fd::BorrowedFd, unix::fs::MetadataExt},
};

use rayon::prelude::*;
use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};

use super::{
    merge::Take,
    plan::{Plan, Step},
    scan::{self, Walker},
    tree::{Kind, Node, RelPath, Tree},
};
use crate::sys;

/// How often a file that changes under the copy is copied.
const TRIES: u32 = 3;

/// What was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Bytes of local files.
    pub bytes_copied: u64,
    /// Files that kept changing while they were copied, or that vanished.
    pub moved: Vec<RelPath>,
}

/// Where nodes come from and go to.
#[derive(Debug, Clone, Copy)]
pub struct Roots<'a> {
    /// The live tree.
    pub current: BorrowedFd<'a>,
    /// The new tree, on the file system of `output`.
    pub new: BorrowedFd<'a>,
    /// An empty directory: the merged tree.
    pub output: BorrowedFd<'a>,
}

/// Writes the merged tree into `roots.output`.
///
/// # Errors
///
/// The path and the error of the first node that could not be written; then `output` is to be removed.
pub fn apply(plan: &Plan, new: &Tree, roots: Roots<'_>) -> Result<Applied, (RelPath, io::Error)> {
    let mut writer = Writer::new(roots).map_err(|error| (RelPath::default(), error))?;
    for (path, step) in &plan.steps {
        let Some(node) = &step.node else { continue };
        let label = new.nodes.get(path).and_then(|node| node.label.as_ref());
        let written = match step.take {
            _ if step.content.is_some() => writer.put(path, step, label),
            Take::New => writer.take_new(path, node),
            Take::Current => writer.take_current(path, &relabelled(node, label)),
        };
        written.map_err(|error| (path.clone(), error))?;
    }
    let leaves: Vec<_> = plan.quiet.leaves.iter().collect();
    let copied: u64 =
        leaves.par_iter().map(|(dir, names)| take_all(dir, names, roots)).try_reduce(|| 0, |a, b| Ok(a + b))?;
    writer.done.bytes_copied += copied;
    for (path, step) in plan.steps.iter().rev() {
        if let Some(node) = step.node.as_ref().filter(|node| node.is_dir()) {
            writer.finish_dir(path, node).map_err(|error| (path.clone(), error))?;
        }
    }
    if let Some(root) = &plan.root {
        finish(roots.output, b".", root).map_err(|error| (RelPath::default(), error))?;
    }
    Ok(writer.done)
}

/// The new tree's leaves `names` of the directory `dir`; returns the bytes that had to be copied.
fn take_all(dir: &RelPath, names: &[Box<[u8]>], roots: Roots<'_>) -> Result<u64, (RelPath, io::Error)> {
    let here = |error: io::Error| (dir.clone(), error);
    let mut walkers = (Walker::new(roots.new).map_err(here)?, Walker::new(roots.output).map_err(here)?);
    let (from, to) = (walkers.0.dir(dir).map_err(here)?, walkers.1.dir(dir).map_err(here)?);
    let mut bytes = 0;
    for name in names {
        let taken = take_leaf(from, to, name, || match scan::node(from, name)? {
            scan::Found::Node(node) => Ok(node),
            _ => Err(Errno::NOENT.into()),
        });
        bytes +=
            taken.map_err(|error| (RelPath::child(Some(dir).filter(|dir| !dir.as_bytes().is_empty()), name), error))?;
    }
    Ok(bytes)
}

/// A leaf of the new tree: the same inode under a second name, so that nothing is copied; where that cannot be, a copy
/// of `node`. Returns the bytes that had to be copied.
fn take_leaf(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &[u8],
    node: impl FnOnce() -> io::Result<Node>,
) -> io::Result<u64> {
    match sys::node::link(from, name, to, name) {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::XDEV | Errno::MLINK | Errno::PERM)) => {
            copy((from, name), to, name, &node()?).map(|copied| copied.bytes)
        }
        other => other.map(|()| 0),
    }
}

/// Copies the local nodes that are kept beside the image's into the merged tree.
///
/// # Errors
///
/// As [`apply`].
pub fn put_beside(plan: &Plan, current: &Tree, roots: Roots<'_>) -> Result<Applied, (RelPath, io::Error)> {
    let mut writer = Writer::new(roots).map_err(|error| (RelPath::default(), error))?;
    for (from, to) in &plan.beside {
        let renamed =
            |path: &RelPath| RelPath::from_bytes([to.as_bytes(), &path.as_bytes()[from.as_bytes().len()..]].concat());
        let nodes: Vec<_> = current.nodes.iter().filter(|(path, _)| *path == from || path.is_below(from)).collect();
        for (path, node) in &nodes {
            writer.copy_current(path, &renamed(path), node).map_err(|error| ((*path).clone(), error))?;
        }
        for (path, node) in nodes.iter().rev().filter(|(_, node)| node.is_dir()) {
            writer.finish_dir(&renamed(path), node).map_err(|error| ((*path).clone(), error))?;
        }
    }
    Ok(writer.done)
}

/// Copies the local nodes that have no place in the merged tree into `roots.output`, with all below and the
/// directories above them.
///
/// # Errors
///
/// As [`apply`].
pub fn set_aside(plan: &Plan, current: &Tree, roots: Roots<'_>) -> Result<Applied, (RelPath, io::Error)> {
    let mut writer = Writer::new(roots).map_err(|error| (RelPath::default(), error))?;
    let wanted = |path: &RelPath| plan.aside.iter().any(|top| path == top || path.is_below(top) || top.is_below(path));
    let nodes: Vec<_> = current.nodes.iter().filter(|(path, _)| wanted(path)).collect();
    for (path, node) in &nodes {
        writer.take_current(path, node).map_err(|error| ((*path).clone(), error))?;
    }
    for (path, node) in nodes.iter().rev().filter(|(_, node)| node.is_dir()) {
        writer.finish_dir(path, node).map_err(|error| ((*path).clone(), error))?;
    }
    Ok(writer.done)
}

fn relabelled(node: &Node, label: Option<&Vec<u8>>) -> Node {
    Node { label: label.cloned().or_else(|| node.label.clone()), ..node.clone() }
}

struct Writer {
    current: Walker,
    new: Walker,
    output: Walker,
    /// The first path of each local inode with several names.
    first_names: BTreeMap<(u64, u64), RelPath>,
    links: Walker,
    done: Applied,
}

impl Writer {
    fn new(roots: Roots<'_>) -> io::Result<Self> {
        Ok(Self {
            current: Walker::new(roots.current)?,
            new: Walker::new(roots.new)?,
            output: Walker::new(roots.output)?,
            links: Walker::new(roots.output)?,
            first_names: BTreeMap::new(),
            done: Applied::default(),
        })
    }

    /// A node of the new tree: leaves as [`take_leaf`] does, directories anew.
    fn take_new(&mut self, path: &RelPath, node: &Node) -> io::Result<()> {
        let to = self.output.parent_of(path)?;
        if node.is_dir() {
            return sys::node::mkdir(to, path.name());
        }
        let from = self.new.parent_of(path)?;
        self.done.bytes_copied += take_leaf(from, to, path.name(), || Ok(node.clone()))?;
        Ok(())
    }

    /// A file with bytes that neither tree has.
    fn put(&mut self, path: &RelPath, step: &Step, label: Option<&Vec<u8>>) -> io::Result<()> {
        let (Some(node), Some(content)) = (&step.node, &step.content) else { return Ok(()) };
        let to = self.output.parent_of(path)?;
        sys::node::write(&File::from(sys::node::create(to, path.name())?), content)?;
        self.done.bytes_copied += content.len() as u64;
        finish(to, path.name(), &relabelled(node, label))
    }

    /// A node of the live tree, copied. One that vanished since the plan was made is left out.
    fn take_current(&mut self, path: &RelPath, node: &Node) -> io::Result<()> {
        self.copy_current(path, path, node)
    }

    /// The same, under another path.
    fn copy_current(&mut self, from_path: &RelPath, path: &RelPath, node: &Node) -> io::Result<()> {
        let to = self.output.parent_of(path)?;
        if node.is_dir() {
            return sys::node::mkdir(to, path.name());
        }
        if let Kind::File { inode, shared: true, .. } = node.kind
            && let Some(first) = self.first_names.get(&inode)
        {
            let from = self.links.parent_of(first)?;
            return sys::node::link(from, first.name(), to, path.name());
        }
        let copied =
            self.current.parent_of(from_path).and_then(|from| copy((from, from_path.name()), to, path.name(), node));
        match copied {
            Ok(copied) => {
                self.done.bytes_copied += copied.bytes;
                if copied.moving {
                    self.done.moved.push(path.clone());
                }
                if let Kind::File { inode, shared: true, .. } = node.kind {
                    self.first_names.insert(inode, path.clone());
                }
                Ok(())
            }
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {
                self.done.moved.push(path.clone());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Owner, mode and times of a directory, once everything is in it.
    fn finish_dir(&mut self, path: &RelPath, node: &Node) -> io::Result<()> {
        finish(self.output.parent_of(path)?, path.name(), node)
    }
}

struct Copied {
    bytes: u64,
    moving: bool,
}

fn copy(from: (BorrowedFd<'_>, &[u8]), to: BorrowedFd<'_>, name: &[u8], node: &Node) -> io::Result<Copied> {
    let copied = match &node.kind {
        Kind::Link(target) => {
            sys::node::symlink(target, to, name)?;
            Copied { bytes: 0, moving: false }
        }
        _ => copy_file(from, (to, name))?,
    };
    finish(to, name, node)?;
    Ok(copied)
}

/// The bytes of a file, again where it changed meanwhile.
fn copy_file(from: (BorrowedFd<'_>, &[u8]), to: (BorrowedFd<'_>, &[u8])) -> io::Result<Copied> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let source = File::from(openat(from.0, from.1, flags, Mode::empty())?);
    let target = File::from(sys::node::create(to.0, to.1)?);
    let stamp = || source.metadata().map(|m| (m.ctime(), m.ctime_nsec(), m.mtime(), m.mtime_nsec(), m.len()));
    let mut bytes = 0;
    for _ in 0..TRIES {
        let before = stamp()?;
        bytes = sys::node::copy_bytes(&source, &target)?;
        if stamp()? == before {
            return Ok(Copied { bytes, moving: false });
        }
    }
    Ok(Copied { bytes, moving: true })
}

/// Owner, extended attributes, mode, times, in this order: a change of owner drops set-id bits and capabilities.
fn finish(dir: BorrowedFd<'_>, name: &[u8], node: &Node) -> io::Result<()> {
    sys::node::chown(dir, name, node.uid, node.gid)?;
    for (key, value) in &node.xattrs {
        sys::xattr::set(dir, name, key, value)?;
    }
    if let Some(label) = &node.label {
        sys::xattr::set(dir, name, b"security.selinux", label)?;
    }
    if !matches!(node.kind, Kind::Link(_)) {
        sys::node::chmod(dir, name, node.mode)?;
    }
    sys::node::set_mtime(dir, name, node.mtime)
}
