//! Small files and directories: created, replaced as a whole, removed.

use std::{
    io::{self, Read, Write},
    os::fd::AsFd,
};

use cap_std::fs::{Dir, File, OpenOptions, OpenOptionsExt, Permissions, PermissionsExt};

use super::{fault, rename, sync};

/// No boot entry, marker or record is larger: what is, is not read.
const LIMIT: u64 = 1 << 20;

/// The content of the small file `path`, or nothing where there is none. Symlinks are followed within `dir` only.
///
/// # Errors
///
/// Those of openat2(2) and read(2); `InvalidData` when the file is larger than 1 MiB or is not UTF-8.
pub fn read(dir: &Dir, path: &str) -> io::Result<Option<String>> {
    let file = match dir.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let mut bytes = Vec::new();
    file.take(LIMIT + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "larger than 1 MiB"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8"))
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
        _ = dir.remove_file(&aside);
    }
    written?;
    sync::fsync(dir.open(".")?)
}

/// Writes `name` in `dir` in place, and makes its content durable.
///
/// # Errors
///
/// Those of open(2), write(2) and fsync(2).
pub fn write(dir: &Dir, name: &str, content: &[u8]) -> io::Result<()> {
    fault::changing("openat")?;
    let mut file = dir.open_with(name, OpenOptions::new().write(true).create(true).truncate(true))?;
    fault::changing("write")?;
    file.write_all(content)?;
    sync::fsync(file.as_fd())
}

/// Copies the file `from` to the file `to`, and makes its content durable.
///
/// # Errors
///
/// Those of reading and writing; `to` may then exist in part.
pub fn copy(dir: &Dir, from: &str, to: &str) -> io::Result<()> {
    let mut source = dir.open(from)?;
    fault::changing("openat")?;
    let mut file = dir.open_with(to, OpenOptions::new().write(true).create(true).truncate(true))?;
    fault::changing("write")?;
    io::copy(&mut source, &mut file)?;
    sync::fsync(file.as_fd())
}

/// Creates the directory `path` and what is missing above it.
///
/// # Errors
///
/// Those of mkdir(2).
pub fn create_dir_all(dir: &Dir, path: &str) -> io::Result<()> {
    if dir.is_dir(path) {
        return Ok(());
    }
    fault::changing("mkdirat")?;
    dir.create_dir_all(path)
}

/// Removes the file `name`; it is no error when there is none.
///
/// # Errors
///
/// Those of unlink(2).
pub fn remove(dir: &Dir, name: &str) -> io::Result<()> {
    fault::changing("unlinkat")?;
    absent_is_fine(dir.remove_file(name))
}

/// Removes the directory `name` and everything in it; it is no error when there is none.
///
/// # Errors
///
/// Those of unlink(2).
pub fn remove_tree(dir: &Dir, name: &str) -> io::Result<()> {
    fault::changing("unlinkat")?;
    absent_is_fine(dir.remove_dir_all(name))
}

/// The file `name`, created where there is none, which nobody but its owner can open from now on.
///
/// # Errors
///
/// Those of open(2) and fchmod(2).
pub fn open_private(dir: &Dir, name: &str) -> io::Result<File> {
    fault::changing("openat")?;
    let file = dir.open_with(name, OpenOptions::new().write(true).create(true).mode(0o600))?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        fault::changing("fchmod")?;
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    Ok(file)
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
