//! Mounts as values: a detached mount's descriptor is a directory capability. There is no mount point, nothing to
//! unmount, and no guard whose drop can fail; the kernel drops the mount with its last descriptor.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{
        FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, OpenTreeFlags, fsconfig_create, fsconfig_reconfigure,
        fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, open_tree,
    },
};

use super::fault;

/// A private, writable mount of the tree that is mounted at `path`, without the mounts below it.
///
/// The mount that everybody sees stays as it is, read-only say; see open_tree(2), `OPEN_TREE_CLONE`.
///
/// # Errors
///
/// `EINVAL` when `path` is not in a mount that may be cloned, `EPERM` without `CAP_SYS_ADMIN`, `EROFS` when the file
/// system itself is read-only and cannot be made writable.
pub fn clone_writable(path: &Path) -> io::Result<OwnedFd> {
    fault::changing("mount_setattr")?;
    let tree = clone(path)?;
    make_writable(&tree)?;
    let flags = rustix::fs::fstatvfs(&tree)?.f_flag;
    if flags.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        reconfigure_writable(path)?;
    }
    Ok(tree)
}

/// A private mount of the tree that is mounted at `path`, without the mounts below it, as writable as the original.
///
/// # Errors
///
/// As [`clone_writable`].
pub fn clone(path: &Path) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

/// Remounts the file system (not only the mount) at `path` read-write; see fspick(2).
///
/// # Errors
///
/// Those of the file system, `EROFS` for a device that cannot be written.
pub fn reconfigure_writable(path: &Path) -> io::Result<()> {
    fault::changing("fsconfig")?;
    let context = fspick(CWD, path, FsPickFlags::FSPICK_CLOEXEC)?;
    fsconfig_set_flag(context.as_fd(), "rw")?;
    Ok(fsconfig_reconfigure(context.as_fd())?)
}

/// A detached read-write mount of the FAT file system on `device`, for root's eyes only, nosuid, nodev, noexec.
///
/// # Errors
///
/// `EBUSY` when the file system is mounted read-only elsewhere, `EINVAL` when it is no FAT, `ENODEV` without vfat.
pub fn fat(device: &Path) -> io::Result<OwnedFd> {
    detached("vfat", device, &[("fmask", "0177"), ("dmask", "0077")])
}

/// A detached read-write mount of the file system on `device`, nosuid, nodev, noexec.
///
/// # Errors
///
/// Those of fsconfig(2) and fsmount(2).
pub fn detached(kind: &str, device: &Path, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    fault::changing("fsmount")?;
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", device)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Where the block device `device` is mounted, if it is.
///
/// # Errors
///
/// Those of reading `/proc/self/mountinfo`.
pub fn mount_point_of(device: &Path) -> io::Result<Option<PathBuf>> {
    let number = rustix::fs::stat(device)?.st_rdev;
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let mounts = procfs::process::Process::myself().and_then(|me| me.mountinfo()).map_err(io::Error::other)?;
    Ok(mounts.into_iter().find(|mount| mount.majmin == number).map(|mount| mount.mount_point))
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

fn make_writable(mount: impl AsFd) -> io::Result<()> {
    const EMPTY: &CStr = c"";
    let attributes =
        MountAttr { set: 0, clear: u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()), propagation: 0, userns_fd: 0 };
    #[allow(unsafe_code, reason = "rustix has no mount_setattr(2) yet")]
    // SAFETY: the pointers are to values that outlive the call, and the size is that of the structure.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            EMPTY.as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
