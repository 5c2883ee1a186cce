//! Copies that leave holes out (lseek(2), `SEEK_DATA`): disks are large, and mostly empty.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    ops::Range,
    path::Path,
};

use anyhow::{Context, Result};
use rustix::{fs::SeekFrom as Sparse, io::Errno};

/// Copies a file.
///
/// # Errors
///
/// Names both files.
pub fn copy(from: &Path, to: &Path) -> Result<()> {
    let all = 0..from.metadata().with_context(|| format!("copying {}", from.display()))?.len();
    part(from, all, to).map(drop)
}

/// Copies a part of a file to a file of its own, and returns that.
///
/// # Errors
///
/// Names both files.
pub fn part(from: &Path, range: Range<u64>, to: &Path) -> Result<File> {
    let copied = || {
        let mut copy = File::options().read(true).write(true).create(true).truncate(true).open(to)?;
        copy.set_len(range.end - range.start)?;
        data(from, range, &mut copy, 0).map(|()| copy)
    };
    copied().with_context(|| format!("copying {} to {}", from.display(), to.display()))
}

/// Copies a file into a part of another that has no data yet, which begins at byte `at`.
///
/// # Errors
///
/// Names both files.
pub fn into(from: &Path, to: &Path, at: u64) -> Result<()> {
    let copied = || data(from, 0..from.metadata()?.len(), &mut File::options().write(true).open(to)?, at);
    copied().with_context(|| format!("copying {} into {}", from.display(), to.display()))
}

/// Copies what is data of `range`, to `at` and after.
fn data(from: &Path, range: Range<u64>, to: &mut File, at: u64) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut next = range.start;
    while next < range.end {
        let data = match rustix::fs::seek(&source, Sparse::Data(next)) {
            Err(Errno::NXIO) => break,
            data => data?.min(range.end),
        };
        let hole = rustix::fs::seek(&source, Sparse::Hole(data))?.min(range.end);
        source.seek(SeekFrom::Start(data))?;
        to.seek(SeekFrom::Start(at + data - range.start))?;
        io::copy(&mut Read::take(&source, hole - data), to)?;
        next = hole;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn holes_are_left_out_of_a_copy() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to, back] = ["from", "to", "back"].map(|name| dir.path().join(name));
        let file = File::create(&from).unwrap();
        file.set_len(1 << 30).unwrap();
        file.write_all_at(b"data", 5 << 20).unwrap();
        file.write_all_at(b"behind", 1 << 29).unwrap();
        let read = |path: &Path, at: u64| {
            let mut bytes = [0; 6];
            let file = File::open(path).unwrap();
            file.read_exact_at(&mut bytes, at).unwrap();
            let blocks = file.metadata().unwrap().blocks();
            assert!(blocks < 1000, "{blocks} blocks");
            (bytes, file.metadata().unwrap().len())
        };
        drop(part(&from, 1 << 20..1 << 29, &to).unwrap());
        assert_eq!(read(&to, 4 << 20), (*b"data\0\0", (1 << 29) - (1 << 20)));
        File::create(&back).unwrap().set_len(1 << 30).unwrap();
        into(&to, &back, 1 << 20).unwrap();
        assert_eq!(read(&back, 5 << 20), (*b"data\0\0", 1 << 30));
        assert_eq!(read(&back, 1 << 29).0, [0; 6]);
    }
}
