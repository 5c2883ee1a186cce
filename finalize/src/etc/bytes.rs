//! Whether two files have the same bytes: read side by side, until the first difference.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::BorrowedFd,
};

use rustix::{
    fs::{Mode, OFlags, openat},
    io::Errno,
};

use super::{
    Sources,
    plan::{SameBytes, Side},
    scan::Walker,
    tree::RelPath,
};

/// No account file is larger.
const LIMIT: u64 = 16 << 20;

/// The files of the three trees.
#[derive(Debug)]
pub struct Files {
    pristine: Option<Walker>,
    current: Walker,
    new: Walker,
    buffers: Box<[[u8; 1 << 16]; 2]>,
}

impl Files {
    /// The files below the three roots.
    ///
    /// # Errors
    ///
    /// `EMFILE`.
    pub fn new(sources: &Sources<'_>) -> io::Result<Self> {
        Ok(Self {
            pristine: sources.pristine.map(Walker::new).transpose()?,
            current: Walker::new(sources.current)?,
            new: Walker::new(sources.new)?,
            buffers: Box::new([[0; 1 << 16]; 2]),
        })
    }

    fn open(&mut self, side: Side, path: &RelPath) -> io::Result<Option<File>> {
        let walker = match side {
            Side::Pristine => match &mut self.pristine {
                Some(walker) => walker,
                None => return Ok(None),
            },
            Side::Current => &mut self.current,
            Side::New => &mut self.new,
        };
        let open = |dir: BorrowedFd<'_>| {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            Ok(File::from(openat(dir, path.name(), flags, Mode::empty())?))
        };
        match walker.parent_of(path).and_then(open) {
            Ok(file) => Ok(Some(file)),
            Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl SameBytes for Files {
    fn same_bytes(&mut self, one: Side, other: Side, path: &RelPath) -> io::Result<bool> {
        let (Some(mut one), Some(mut other)) = (self.open(one, path)?, self.open(other, path)?) else {
            return Ok(false);
        };
        let [a, b] = &mut *self.buffers;
        loop {
            let (x, y) = (fill(&mut one, a)?, fill(&mut other, b)?);
            if a[..x] != b[..y] {
                return Ok(false);
            }
            if x < a.len() {
                return Ok(true);
            }
        }
    }

    fn read(&mut self, side: Side, path: &RelPath) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.open(side, path)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes)?;
        Ok(Some(bytes).filter(|bytes| bytes.len() < LIMIT as usize))
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
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
