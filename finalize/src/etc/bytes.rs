//! Whether two files have the same bytes: read side by side, until the first difference or the size that both had.

use std::{
    cell::RefCell,
    fs::File,
    io::{self, Read},
    os::fd::BorrowedFd,
};

use rustix::{
    fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, flistxattr, openat, statx},
    io::Errno,
};

use crate::{stop::Stop, sys};

use super::{
    Sources,
    plan::{Plan, SameBytes, Side},
    scan::{self, Walker},
    tree::{RelPath, Tree},
};

/// What opening a file without following or waiting for anything takes.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC).union(OFlags::NONBLOCK);

/// No account file is larger.
const LIMIT: u64 = 16 << 20;

type Buffers = [[u8; 1 << 16]; 2];

/// The files of the three trees.
#[derive(Debug)]
pub struct Files<'a> {
    pristine: Option<Walker<'a>>,
    current: Walker<'a>,
    new: Walker<'a>,
    buffers: Box<Buffers>,
    stop: &'a Stop,
}

impl<'a> Files<'a> {
    /// The files below the three roots; `stop` is asked before each file, and between the blocks of a large one.
    pub fn new(sources: &Sources<'a>, stop: &'a Stop) -> Self {
        Self {
            pristine: sources.pristine.map(Walker::new),
            current: Walker::new(sources.current),
            new: Walker::new(sources.new),
            buffers: Box::new([[0; 1 << 16]; 2]),
            stop,
        }
    }

    fn open(&mut self, side: Side, path: &RelPath) -> io::Result<Option<File>> {
        self.stop.check()?;
        let walker = match side {
            Side::Pristine => match &mut self.pristine {
                Some(walker) => walker,
                None => return Ok(None),
            },
            Side::Current => &mut self.current,
            Side::New => &mut self.new,
        };
        let open = |dir: BorrowedFd<'_>| Ok(File::from(openat(dir, path.name(), FILE, Mode::empty())?));
        match walker.parent_of(path).and_then(open) {
            Ok(file) => Ok(Some(file)),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Opens every local file that `plan` copies, so that one which must not be read is known before the first write. A
    /// file that vanished meanwhile is none of them, nor is one of which that `is_known`.
    ///
    /// # Errors
    ///
    /// The path and the error of the first that cannot be opened.
    pub fn check_readable(
        &mut self,
        plan: &Plan,
        current: &Tree,
        is_known: impl Fn(&RelPath) -> bool,
    ) -> Result<(), (RelPath, io::Error)> {
        for path in plan.copied(current).filter(|path| !is_known(path)) {
            self.open(Side::Current, path).map_err(|error| (path.clone(), error))?;
        }
        Ok(())
    }
}

impl SameBytes for Files<'_> {
    fn same_bytes(&mut self, one: Side, other: Side, path: &RelPath) -> io::Result<bool> {
        let (Some(mut one), Some(mut other)) = (self.open(one, path)?, self.open(other, path)?) else {
            return Ok(false);
        };
        let (size, other_size) = (one.metadata()?.len(), other.metadata()?.len());
        let mut one = self.stop.reading(&mut one);
        Ok(size == other_size && same(&mut one, &mut other, size, &mut self.buffers)?)
    }

    fn read(&mut self, side: Side, path: &RelPath) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open(side, path)?.filter(|file| file.metadata().is_ok_and(|found| found.is_file()))
        else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes)?;
        Ok(Some(bytes).filter(|bytes| bytes.len() < LIMIT as usize))
    }
}

/// Whether the regular files `name` of two directories have the same owner, mode, size and bytes, neither has an extended
/// attribute that counts, and the other has no flag. `false` where that is not certain.
///
/// # Errors
///
/// Those of reading; a file that vanished is not the same.
pub fn surely_same(one: BorrowedFd<'_>, other: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    let (Some((mut one, a)), Some((mut other, b))) = (open_plain(one, name)?, open_plain(other, name)?) else {
        return Ok(false);
    };
    if a != b || sys::flags::get(&other)?.is_some() {
        return Ok(false);
    }
    thread_local!(static BUFFERS: RefCell<Box<Buffers>> = RefCell::new(Box::new([[0; 1 << 16]; 2])));
    BUFFERS.with_borrow_mut(|buffers| same(&mut one, &mut other, a.0, buffers))
}

/// What must be equal before bytes are read.
type Stamp = (u64, u32, u32, u16);

/// A regular file without an extended attribute that counts.
fn open_plain(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<(File, Stamp)>> {
    let file = match openat(dir, name, FILE, Mode::empty()) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        other => other?,
    };
    let stat = statx(&file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    let mut names = [0; 512];
    let plain = match flistxattr(&file, &mut names) {
        Ok(length) => !names[..length].split(|b| *b == 0).any(|name| !name.is_empty() && scan::counts(name)),
        Err(Errno::NOTSUP) => true,
        Err(Errno::RANGE) => false,
        Err(error) => return Err(error.into()),
    };
    let regular = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile;
    let stamp = (stat.stx_size, stat.stx_uid, stat.stx_gid, stat.stx_mode);
    Ok((regular && plain).then(|| (File::from(file), stamp)))
}

/// Whether two files of `size` bytes have the same ones. Small files are most files: one read each.
fn same(one: &mut impl Read, other: &mut impl Read, size: u64, [a, b]: &mut Buffers) -> io::Result<bool> {
    let mut left = size;
    while left > 0 {
        let part = left.min(a.len() as u64) as usize;
        let (x, y) = (fill(one, &mut a[..part])?, fill(other, &mut b[..part])?);
        if x != part || a[..x] != b[..y] {
            return Ok(false);
        }
        left -= part as u64;
    }
    Ok(true)
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
