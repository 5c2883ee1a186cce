//! Writes nodes of the merged tree, one by one.

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::{fd::BorrowedFd, unix::fs::MetadataExt},
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags, openat, readlinkat, statx},
    io::Errno,
};

use super::{Applied, Failed, Links, Roots};
use crate::{
    etc::{
        merge::Take,
        names::{Listing, Names, zip},
        plan::Step,
        scan::{self, Walker},
        tree::{Kind, Node, RelPath},
    },
    sys::{self, flags::Flags},
};

/// A node, by its directory and its name.
type At<'a> = (BorrowedFd<'a>, &'a [u8]);

/// How often a file that changes under the copy is copied.
const TRIES: u32 = 3;

/// How deep a directory may be that was a file when the plan was made.
const DEPTH: u32 = 64;

/// Where it reads from and writes to, with the directories open that it was in last.
pub struct Writer<'a> {
    roots: Roots<'a>,
    current: Walker<'a>,
    new: Walker<'a>,
    output: Walker<'a>,
    /// The first path of each local inode with several names.
    first_names: BTreeMap<(u64, u64), RelPath>,
    links: Walker<'a>,
    /// What it wrote.
    pub done: Applied,
}

impl<'a> Writer<'a> {
    /// Has written nothing.
    pub fn new(roots: Roots<'a>) -> Self {
        Self {
            roots,
            current: Walker::new(roots.current),
            new: Walker::new(roots.new),
            output: Walker::new(roots.output),
            links: Walker::new(roots.output),
            first_names: BTreeMap::new(),
            done: Applied::default(),
        }
    }

    /// What the plan says of `path`, where `new` is the new tree's node.
    ///
    /// # Errors
    ///
    /// Those of reading and writing.
    pub fn step(&mut self, path: &RelPath, step: &Step, new: Option<&Node>) -> io::Result<()> {
        let Some(node) = &step.node else { return Ok(()) };
        let label = new.and_then(|node| node.label.clone()).or_else(|| node.label.clone());
        match (&step.content, step.take) {
            (Some(content), _) => self.put(path, content, &Node { label, ..node.clone() }),
            (None, Take::New) => self.take_new(path, node),
            (None, Take::Current) => self.take_current(path, &Node { label, ..node.clone() }),
        }
    }

    /// The new tree's leaves `names` of the directory `dir`.
    ///
    /// # Errors
    ///
    /// The path and the error of the first that could not be written.
    pub fn take_all(&mut self, dir: &RelPath, names: &Names) -> Result<(), Failed> {
        let here = |error: io::Error| (dir.clone(), error);
        let (from, to) = (self.new.dir(dir).map_err(here)?, self.output.dir(dir).map_err(here)?);
        for name in names.iter() {
            let node = || match scan::node(from, name)? {
                scan::Found::Node(node) => Ok(node),
                _ => Err(Errno::NOENT.into()),
            };
            let taken = take_leaf((from, name), (to, name), node, self.roots);
            let above = Some(dir).filter(|dir| !dir.as_bytes().is_empty());
            let copied = taken.map_err(|error| (RelPath::child(above, name), error))?;
            self.done.unshared += u64::from(copied.is_some());
            self.done.bytes_copied += copied.unwrap_or_default();
        }
        Ok(())
    }

    /// A node of the new tree: leaves as [`take_leaf`] does, directories anew.
    fn take_new(&mut self, path: &RelPath, node: &Node) -> io::Result<()> {
        let to = self.output.parent_of(path)?;
        if node.is_dir() {
            return sys::node::mkdir(to, path.name());
        }
        let from = self.new.parent_of(path)?;
        let (from, to) = ((from, path.name()), (to, path.name()));
        let copied = take_leaf(from, to, || Ok(node.clone()), self.roots)?;
        self.done.unshared += u64::from(copied.is_some());
        self.done.bytes_copied += copied.unwrap_or_default();
        Ok(())
    }

    /// A file with bytes that neither tree has.
    fn put(&mut self, path: &RelPath, content: &[u8], node: &Node) -> io::Result<()> {
        let to = self.output.parent_of(path)?;
        sys::node::write(&File::from(sys::node::create(to, path.name(), node.mode)?), content)?;
        self.done.bytes_copied += content.len() as u64;
        finish(to, path.name(), node)
    }

    /// A node of the live tree, copied. One that vanished since the plan was made is left out.
    ///
    /// # Errors
    ///
    /// Those of reading and writing.
    pub fn take_current(&mut self, path: &RelPath, node: &Node) -> io::Result<()> {
        self.copy_current(path, path, node)
    }

    /// The same, under another path.
    ///
    /// # Errors
    ///
    /// Those of reading and writing.
    pub fn copy_current(&mut self, from_path: &RelPath, path: &RelPath, node: &Node) -> io::Result<()> {
        self.roots.check()?;
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
        let roots = self.roots;
        let copied = self
            .current
            .parent_of(from_path)
            .and_then(|from| copy((from, from_path.name()), (to, path.name()), node, || roots.check()));
        match copied {
            Ok(copied) => {
                self.done.bytes_copied += copied.bytes;
                self.done.flags.extend(copied.flags.map(|flags| (path.clone(), flags)));
                if copied.moving {
                    self.done.moved.push(path.clone());
                }
                if let Kind::File { inode, shared: true, .. } = node.kind {
                    self.first_names.insert(inode, path.clone());
                }
                Ok(())
            }
            Err(error) if is_another(&error) => {
                self.done.moved.push(path.clone());
                self.copy_again(from_path, path, DEPTH)
            }
            Err(error) => Err(error),
        }
    }

    /// What is in the live tree now, where the plan has something else: nothing any more, another kind of leaf, or a
    /// directory with what is in it.
    fn copy_again(&mut self, from_path: &RelPath, path: &RelPath, depth: u32) -> io::Result<()> {
        self.roots.check()?;
        let found = self.current.parent_of(from_path).and_then(|from| scan::node(from, from_path.name()));
        let node = match found {
            Ok(scan::Found::Node(node)) if !node.is_dir() || depth > 0 => node,
            Ok(_) => return Ok(()),
            Err(error) if is_another(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        if !node.is_dir() {
            let from = self.current.parent_of(from_path)?;
            let to = self.output.parent_of(path)?;
            return match copy((from, from_path.name()), (to, path.name()), &node, || self.roots.check()) {
                Err(error) if is_another(&error) => Ok(()),
                copied => {
                    let copied = copied?;
                    self.done.bytes_copied += copied.bytes;
                    self.done.flags.extend(copied.flags.map(|flags| (path.clone(), flags)));
                    Ok(())
                }
            };
        }
        sys::node::mkdir(self.output.parent_of(path)?, path.name())?;
        let own = match self.current.dir(from_path).map(|dir| openat(dir, c".", scan::DIR, Mode::empty())) {
            Ok(own) => own?,
            Err(error) if is_another(&error) => return self.finish_dir(path, &node),
            Err(error) => return Err(error),
        };
        let names = [Listing::read(&own)?, Listing::default(), Listing::default()];
        for (name, _) in zip(&names) {
            let [from, to] = [from_path, path].map(|dir| RelPath::child(Some(dir), name));
            self.copy_again(&from, &to, depth - 1)?;
        }
        self.finish_dir(path, &node)
    }

    /// Owner, mode and times of a directory, once everything is in it.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn finish_dir(&mut self, path: &RelPath, node: &Node) -> io::Result<()> {
        finish(self.output.parent_of(path)?, path.name(), node)
    }
}

/// A leaf of the new tree: the same inode under a second name, so that nothing is copied; where that cannot or shall not
/// be, a copy of `node`. Returns the bytes of a copy.
fn take_leaf(
    from: At<'_>,
    to: At<'_>,
    node: impl FnOnce() -> io::Result<Node>,
    roots: Roots<'_>,
) -> io::Result<Option<u64>> {
    if roots.links == Links::Share {
        match sys::node::link(from.0, from.1, to.0, to.1) {
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::XDEV | Errno::MLINK | Errno::PERM)) => {}
            other => return other.map(|()| None),
        }
    }
    copy(from, to, &node()?, || roots.check()).map(|copied| Some(copied.bytes))
}

/// Whether something else is there than what was looked for.
fn is_another(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ISDIR | Errno::NXIO))
}

struct Copied {
    bytes: u64,
    moving: bool,
    flags: Option<Flags>,
}

fn copy(from: At<'_>, to: At<'_>, node: &Node, may_go_on: impl Fn() -> io::Result<()>) -> io::Result<Copied> {
    let copied = match &node.kind {
        Kind::Link(target) => {
            // What it points to is part of the plan; what is there may be another link, or no link.
            let now = match readlinkat(from.0, from.1, Vec::new()) {
                Err(Errno::INVAL) => return Err(Errno::ISDIR.into()),
                now => now?,
            };
            sys::node::symlink(now.as_bytes(), to.0, to.1)?;
            Copied { bytes: 0, moving: now.as_bytes() != target, flags: None }
        }
        _ => copy_file(from, to, node.mode, may_go_on)?,
    };
    finish(to.0, to.1, node)?;
    Ok(copied)
}

fn copy_file(from: At<'_>, to: At<'_>, mode: u32, may_go_on: impl Fn() -> io::Result<()>) -> io::Result<Copied> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let source = File::from(openat(from.0, from.1, flags, Mode::empty())?);
    if !source.metadata()?.is_file() {
        return Err(Errno::ISDIR.into());
    }
    let flags = sys::flags::get(&source)?;
    let target = File::from(sys::node::create(to.0, to.1, mode)?);
    let copy = |source: &File, target: &File| sys::node::copy_bytes(source, target, &may_go_on);
    Ok(Copied { flags, ..copy_while_it_changes(&source, &target, copy)? })
}

/// Copies the bytes of `source` with `copy`, again where it changed meanwhile.
fn copy_while_it_changes(
    source: &File,
    target: &File,
    mut copy: impl FnMut(&File, &File) -> io::Result<u64>,
) -> io::Result<Copied> {
    let stamp = || source.metadata().map(|m| (m.ctime(), m.ctime_nsec(), m.mtime(), m.mtime_nsec(), m.len()));
    let (mut before, mut bytes) = (stamp()?, 0);
    for again in 0..TRIES {
        if again > 0 {
            sys::node::empty(target)?;
        }
        bytes = copy(source, target)?;
        let after = stamp()?;
        if after == before {
            return Ok(Copied { bytes, moving: false, flags: None });
        }
        before = after;
    }
    Ok(Copied { bytes, moving: true, flags: None })
}

/// Owner, extended attributes, mode, times, in this order: a change of owner drops set-id bits and capabilities, and an
/// access list changes the mode. What is as it should be is not set again.
///
/// # Errors
///
/// Those of writing.
pub fn finish(dir: BorrowedFd<'_>, name: &[u8], node: &Node) -> io::Result<()> {
    let made = statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)?;
    let owned = (made.stx_uid, made.stx_gid) == (node.uid, node.gid);
    if !owned {
        sys::node::chown(dir, name, node.uid, node.gid)?;
    }
    for (key, value) in &node.xattrs {
        sys::xattr::set(dir, name, key, value)?;
    }
    if let Some(label) = &node.label {
        sys::xattr::set_label(dir, name, label)?;
    }
    let is_mode = owned && node.xattrs.is_empty() && u32::from(made.stx_mode) & 0o7777 == node.mode;
    if !matches!(node.kind, Kind::Link(_)) && !is_mode {
        sys::node::chmod(dir, name, node.mode)?;
    }
    sys::node::set_mtime(dir, name, node.mtime)
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, fs, io::Write as _};

    use super::*;

    /// A file of `length` bytes that grows by one in each of its first `growing` copies: how it was taken, what is copied.
    fn copied(length: usize, growing: usize) -> (bool, String) {
        let dir = tempfile::tempdir().unwrap();
        let at = |name| dir.path().join(name);
        fs::write(at("log"), "x".repeat(length)).unwrap();
        let (source, target) = (File::open(at("log")).unwrap(), File::create(at("copy")).unwrap());
        let mut log = File::options().append(true).open(at("log")).unwrap();
        let mut copies = 0;
        let copied = copy_while_it_changes(&source, &target, |source, target| {
            let bytes = sys::node::copy_bytes(source, target, || Ok(()))?;
            copies += 1;
            if copies <= growing {
                log.write_all(b"y")?;
            }
            Ok(bytes)
        });
        let (copied, copy) = (copied.unwrap(), fs::read_to_string(at("copy")).unwrap());
        assert_eq!(copied.bytes, copy.len() as u64);
        (copied.moving, copy)
    }

    /// Nothing, small files, and those of a block and more.
    const LENGTHS: [usize; 5] = [0, 1, 4094, 4096, 100_000];

    #[test]
    fn a_file_that_changes_while_it_is_copied_is_copied_again() {
        for length in LENGTHS {
            for growing in 0..TRIES as usize {
                let whole = "x".repeat(length) + &"y".repeat(growing);
                assert!(copied(length, growing) == (false, whole), "{length} bytes and {growing}");
            }
        }
    }

    #[test]
    fn a_file_that_grows_all_the_time_is_kept_as_last_read_and_reported() {
        for length in LENGTHS {
            let last_read = "x".repeat(length) + &"y".repeat(TRIES as usize - 1);
            assert!(copied(length, usize::MAX) == (true, last_read), "{length} bytes");
        }
    }

    #[test]
    fn a_large_file_is_not_copied_to_its_end_when_it_is_time_to_stop() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name| dir.path().join(name);
        fs::write(at("large"), vec![b'x'; 40 << 20]).unwrap();
        let (source, target) = (File::open(at("large")).unwrap(), File::create(at("copy")).unwrap());
        let asked = Cell::new(0);
        let stopped = sys::node::copy_bytes(&source, &target, || {
            asked.set(asked.get() + 1);
            if asked.get() < 2 { Ok(()) } else { Err(io::Error::other("stopped by a signal")) }
        });
        // Where the file system shares blocks, nobody needs to ask.
        match stopped {
            Ok(bytes) => assert_eq!((bytes, asked.get()), (40 << 20, 0)),
            Err(error) => assert_eq!((error.to_string().as_str(), asked.get()), ("stopped by a signal", 2)),
        }
        assert!(asked.get() == 0 || target.metadata().unwrap().len() < 40 << 20);
    }
}
