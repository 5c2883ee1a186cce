//! Extended attributes of a node by its parent's descriptor and its name, of any length; symlinks are not followed.
//!
//! Linux got `listxattrat` and its kin only in 6.13, so the node is reached through `/proc/self/fd/<dir>/<name>`, which
//! the `l…xattr` calls do not follow in its last component.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use rustix::{
    fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr},
    io::Errno,
};

use super::fault;

/// All extended attributes; none where the file system has none.
///
/// # Errors
///
/// `ENOENT` when the node vanished, and those of llistxattr(2) and lgetxattr(2).
pub fn list(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = path(dir, name);
    let names = match grow(|buffer| llistxattr(&*path, buffer)) {
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        other => other?,
    };
    let mut all = BTreeMap::new();
    for key in names.split(|b| *b == 0).filter(|key| !key.is_empty()) {
        match grow(|buffer| lgetxattr(&*path, key, buffer)) {
            Ok(value) => _ = all.insert(key.to_vec(), value),
            // Removed since it was listed.
            Err(Errno::NODATA | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(all)
}

/// The name of SELinux's label.
pub const LABEL: &[u8] = b"security.selinux";

/// The label of a node, also one that says that there is none.
///
/// # Errors
///
/// Those of lgetxattr(2).
pub fn label(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    match grow(|buffer| lgetxattr(&*path(dir, name), LABEL, buffer)) {
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        other => Ok(Some(other?)),
    }
}

/// Whether a label says something. SELinux shows `unlabeled_t` where a node has no label, or one that the running policy
/// does not know.
pub fn is_label(text: &[u8]) -> bool {
    text.split(|byte| *byte == b':').nth(2) != Some(b"unlabeled_t")
}

/// Gives a node a label; one that the running policy does not know is left out.
///
/// # Errors
///
/// Those of lsetxattr(2).
pub fn set_label(dir: BorrowedFd<'_>, name: &[u8], label: &[u8]) -> io::Result<()> {
    match set(dir, name, LABEL, label) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        other => other,
    }
}

/// Sets one extended attribute.
///
/// # Errors
///
/// Those of lsetxattr(2).
pub fn set(dir: BorrowedFd<'_>, name: &[u8], key: &[u8], value: &[u8]) -> io::Result<()> {
    fault::changing("lsetxattr")?;
    Ok(lsetxattr(&*path(dir, name), key, value, XattrFlags::empty())?)
}

/// Removes one extended attribute; it is no error when there is none.
///
/// # Errors
///
/// Those of lremovexattr(2).
pub fn remove(dir: BorrowedFd<'_>, name: &[u8], key: &[u8]) -> io::Result<()> {
    fault::changing("lremovexattr")?;
    match lremovexattr(&*path(dir, name), key) {
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(()),
        other => Ok(other?),
    }
}

fn path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Calls with a larger buffer until the value fits; 64 KiB is the kernel's limit (`XATTR_SIZE_MAX`).
fn grow(mut call: impl FnMut(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
            Err(Errno::RANGE) if buffer.len() < 1 << 17 => buffer = vec![0; buffer.len() * 16],
            Err(error) => return Err(error),
        }
    }
}
