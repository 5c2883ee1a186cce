//! Small files and directories: created, replaced as a whole, removed.

use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
};

use cap_std::fs::{Dir, File, MetadataExt, OpenOptions, OpenOptionsExt};
use rustix::fs::{Gid, Mode, Uid};

use super::{fat, fault, flags, node, remove, rename, sync};

/// No boot entry, marker or record is larger: what is, is not read.
const LIMIT: u64 = 1 << 20;

/// The content of the small file `path`, or nothing where there is none. Symlinks are followed within `dir` only.
///
/// # Errors
///
/// Those of openat2(2) and read(2); `InvalidData` when the file is larger than 1 MiB or is not UTF-8.
pub fn read(dir: &Dir, path: &str) -> io::Result<Option<String>> {
    let Some(bytes) = read_bytes(dir, path, LIMIT)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
}

/// The bytes of the file `path`, or nothing where there is none. Symlinks are followed within `dir` only.
///
/// # Errors
///
/// Those of openat2(2) and read(2); `InvalidData` when the file has more than `limit` bytes.
pub fn read_bytes(dir: &Dir, path: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let file = match dir.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > limit {
        true => Err(io::Error::new(io::ErrorKind::InvalidData, format!("larger than {} MiB", limit >> 20))),
        false => Ok(Some(bytes)),
    }
}

/// Writes `name` in `dir` as a whole: beside it first, durably, then by rename. Readers see the old or the new content.
///
/// # Errors
///
/// Those of open(2), write(2), fsync(2) and rename(2); then the old file is still there.
pub fn write_atomic(dir: &Dir, name: &str, content: &[u8]) -> io::Result<()> {
    let aside = format!(".{name}.new");
    let written = write(dir, &aside, content).and_then(|()| rename::replace(dir, &aside, name));
    if written.is_err() {
        _ = remove::file(dir, &aside);
    }
    written?;
    sync::fsync(dir.open(".")?)
}

/// The same, with the owner and the mode of the file `like`, where there is one: what nobody else may read stays so.
///
/// # Errors
///
/// As [`write_atomic`], and those of fchown(2) and fchmod(2).
pub fn write_atomic_like(dir: &Dir, name: &str, content: &[u8], like: &str) -> io::Result<()> {
    let aside = format!(".{name}.new");
    let written = write_like(dir, &aside, content, like).and_then(|()| rename::replace(dir, &aside, name));
    if written.is_err() {
        _ = remove::file(dir, &aside);
    }
    written?;
    sync::fsync(dir.open(".")?)
}

fn write_like(dir: &Dir, name: &str, content: &[u8], like: &str) -> io::Result<()> {
    let like = match dir.metadata(like) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return write(dir, name, content),
        found => found?,
    };
    remove::file(dir, name)?;
    fault::changing("openat")?;
    let mut file = dir.open_with(name, OpenOptions::new().write(true).create_new(true).mode(0o600))?;
    fault::changing("write")?;
    file.write_all(content)?;
    fault::changing("fchown")?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(like.uid())), Some(Gid::from_raw(like.gid())))?;
    fault::changing("fchmod")?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(like.mode() & 0o7777))?;
    sync::fsync(file.as_fd())
}

/// Writes `name` in `dir`, a directory of `/run`, as a whole, with the permission bits `mode`. Nothing is made durable: /run
/// never is.
///
/// # Errors
///
/// As [`write_aside`] and [`put_aside`]; then the old file is still there.
pub fn write_volatile(dir: &Dir, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
    let written = write_aside(dir, name, mode, content).and_then(|_| put_aside(dir, name));
    if written.is_err() {
        drop_aside(dir, name);
    }
    written
}

/// Writes what is to be `name` beside it, for [`put_aside`]. Nothing is synced.
///
/// # Errors
///
/// As [`write_new`].
pub fn write_aside(dir: &Dir, name: &str, mode: u32, content: &[u8]) -> io::Result<std::fs::File> {
    write_new(dir, &format!(".{name}.new"), mode, content)
}

/// What lies beside gets the name. Not synced.
///
/// # Errors
///
/// Those of rename(2).
pub fn put_aside(dir: &Dir, name: &str) -> io::Result<()> {
    rename::replace(dir, &format!(".{name}.new"), name)
}

/// What lies beside is not wanted.
pub fn drop_aside(dir: &Dir, name: &str) {
    _ = remove::file(dir, &format!(".{name}.new"));
}

/// Writes a new file with the permission bits `mode`, in the place of whatever has the name. Nothing is synced.
///
/// # Errors
///
/// Those of open(2) and write(2).
pub fn write_new(dir: &Dir, name: &str, mode: u32, content: &[u8]) -> io::Result<std::fs::File> {
    remove::file(dir, name)?;
    let file = std::fs::File::from(node::create(dir.as_fd(), name.as_bytes(), mode)?);
    node::write(&file, content)?;
    Ok(file)
}

/// Writes `name` in `dir` in place, and makes its content durable.
///
/// # Errors
///
/// Those of open(2), write(2) and fsync(2).
pub fn write(dir: &Dir, name: &str, content: &[u8]) -> io::Result<()> {
    fault::changing("openat")?;
    let mut file = dir.open_with(name, OpenOptions::new().write(true).create(true).truncate(true))?;
    if !content.is_empty() {
        fault::changing("write")?;
        file.write_all(content)?;
    }
    sync::fsync(file.as_fd())
}

/// Writes these bytes over the beginning of the file `name`, which stays where it is on the disk, and makes them durable.
///
/// # Errors
///
/// Those of openat2(2), write(2) and fsync(2).
pub fn overwrite(dir: &Dir, name: &str, content: &[u8]) -> io::Result<()> {
    let mut file = dir.open_with(name, OpenOptions::new().write(true))?;
    fault::changing("write")?;
    file.write_all(content)?;
    sync::fsync(file.as_fd())
}

/// Writes an existing EFI variable: in one call, which the firmware makes durable. A file system of variables knows no fsync.
///
/// # Errors
///
/// Those of openat2(2) and write(2).
pub fn write_variable(dir: &Dir, name: &str, content: &[u8]) -> io::Result<()> {
    flags::clear(dir.open(name)?.as_fd())?;
    let mut file = dir.open_with(name, OpenOptions::new().write(true))?;
    fault::changing("write")?;
    match file.write(content)? {
        length if length == content.len() => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Copies the file `from` to the file `to`, and makes its content durable.
///
/// # Errors
///
/// Those of reading and writing; `to` may then exist in part.
pub fn copy(dir: &Dir, from: &str, to: &str) -> io::Result<()> {
    const PIECE: usize = 1 << 20;
    let mut source = dir.open(from)?;
    fault::changing("openat")?;
    let mut file = dir.open_with(to, OpenOptions::new().write(true).create(true).truncate(true))?;
    let mut piece = vec![0; PIECE];
    loop {
        let length = source.read(&mut piece)?;
        if length == 0 {
            return sync::fsync(file.as_fd());
        }
        fault::changing("write")?;
        file.write_all(&piece[..length])?;
    }
}

/// Creates the directory `path` and what is missing above it.
///
/// # Errors
///
/// Those of mkdirat(2).
pub fn create_dir_all(dir: &Dir, path: &str) -> io::Result<()> {
    for (end, _) in path.match_indices('/').chain([(path.len(), "")]) {
        let part = &path[..end];
        if !dir.is_dir(part) {
            create_dir(dir, part)?;
        }
    }
    Ok(())
}

/// Makes the directory `path`; on FAT, its cluster is on the disk before its name is (see [`fat`]).
fn create_dir(dir: &Dir, path: &str) -> io::Result<()> {
    fault::changing("mkdirat")?;
    dir.create_dir(path)?;
    if fat::has(dir)? {
        let parent = path.rsplit_once('/').map_or(".", |(parent, _)| parent);
        fat::sync_table(dir.open_dir(parent)?)?;
    }
    Ok(())
}

/// The file `name`, created where there is none, which nobody but its owner can open from now on.
///
/// # Errors
///
/// Those of open(2) and fchmod(2).
pub fn open_private(dir: &Dir, name: &str) -> io::Result<File> {
    fault::changing("openat")?;
    let file = dir.open_with(name, OpenOptions::new().write(true).create(true).mode(0o600))?;
    if file.metadata()?.mode() & 0o077 != 0 {
        fault::changing("fchmod")?;
        rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)?;
    }
    Ok(file)
}
