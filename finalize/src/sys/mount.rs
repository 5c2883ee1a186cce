//! Mounts as values: a detached mount's descriptor is a directory capability. There is no mount point, nothing to
//! unmount, and no guard whose drop can fail; the kernel drops the mount with its last descriptor.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use procfs::process::{MountInfo, Process};
use rustix::{
    fs::{AtFlags, CWD, StatxFlags},
    io::Errno,
    mount::{
        FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
        fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick,
        move_mount, open_tree, unmount,
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
        reconfigure_writable(CWD, path)?;
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

/// Mounts a detached tree on the directory `to`, where everybody sees the mount.
///
/// # Errors
///
/// Those of move_mount(2).
pub fn attach(tree: OwnedFd, to: &Path) -> io::Result<()> {
    fault::changing("move_mount")?;
    Ok(move_mount(tree, "", CWD, to, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Takes away what is mounted on the directory `from`, and below it; nothing where nothing is.
///
/// # Errors
///
/// Those of umount2(2).
pub fn detach(from: &Path) -> io::Result<()> {
    fault::changing("umount")?;
    match unmount(from, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Err(Errno::INVAL) => Ok(()),
        other => Ok(other?),
    }
}

/// Mounts what waits at one of these places for somebody who looks (systemd.automount(5)), as whoever goes there does: a
/// file system must not be taken away from its own mount unit.
///
/// # Errors
///
/// Those of reading `/proc/self/mountinfo`. What cannot be mounted is nobody's.
pub fn wake(places: &[&str]) -> io::Result<()> {
    waiting(places)?.iter().for_each(|mount| drop(std::fs::read_dir(&mount.mount_point)));
    Ok(())
}

/// Whether anything waits at one of these places.
///
/// # Errors
///
/// Those of reading `/proc/self/mountinfo`.
pub fn waits(places: &[&str]) -> io::Result<bool> {
    Ok(!waiting(places)?.is_empty())
}

fn waiting(places: &[&str]) -> io::Result<Vec<MountInfo>> {
    let mounts = mounts()?.into_iter().filter(|mount| mount.fs_type == "autofs");
    let waiting = mounts.filter(|mount| places.iter().any(|place| mount.mount_point == Path::new(place)));
    Ok(waiting.filter(is_visible).collect())
}

/// Makes the file system at `path`, or in which `dir` is, writable, not only the mount; see fspick(2).
fn reconfigure_writable(dir: impl AsFd, path: impl rustix::path::Arg) -> io::Result<()> {
    fault::changing("fsconfig")?;
    let context = fspick(dir, path, FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    fsconfig_set_flag(context.as_fd(), "rw")?;
    Ok(fsconfig_reconfigure(context.as_fd())?)
}

/// Mount options of a FAT file system: for root's eyes only.
pub const FAT_OPTIONS: &[(&str, &str)] = &[("fmask", "0177"), ("dmask", "0077")];

/// A detached read-write mount of the file system on `device`, nosuid, nodev, noexec.
///
/// # Errors
///
/// Those of fsconfig(2) and fsmount(2): `EBUSY` when the file system is mounted read-only elsewhere, `EINVAL` when it is
/// of another kind, `ENODEV` when the kernel does not know the kind.
pub fn detached(kind: &str, device: &Path, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    fault::changing("fsmount")?;
    mount(kind, device, options, MountAttrFlags::empty())
}

/// The same, and neither the mount nor the file system below it can be written: a journal is not replayed where the file
/// system allows to leave that out, and no flag on the disk says that it was mounted.
///
/// # Errors
///
/// As [`detached`]; `EBUSY` when the file system is mounted read-write elsewhere.
pub fn detached_read_only(kind: &str, device: &Path, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let without_replay: &[(&str, &str)] = match kind {
        "ext4" => &[("noload", "")],
        "xfs" => &[("norecovery", "")],
        _ => &[],
    };
    mount(kind, device, &[options, without_replay, &[("ro", "")]].concat(), MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// The same where the file system is mounted read-write by somebody whose mount cannot be seen, in another namespace: nothing
/// can be written through this mount.
///
/// # Errors
///
/// As [`detached`].
pub fn detached_beside_writer(kind: &str, device: &Path, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    mount(kind, device, options, MountAttrFlags::MOUNT_ATTR_RDONLY)
}

/// [`detached`] where the file system is mounted read-only by somebody whose mount cannot be seen: it is made writable, the
/// other mount stays as it is.
///
/// # Errors
///
/// As [`detached_read_only`] and [`clone_writable`].
pub fn detached_beside_reader(kind: &str, device: &Path, options: &[(&str, &str)]) -> io::Result<OwnedFd> {
    let tree = mount(kind, device, &[options, &[("ro", "")]].concat(), MountAttrFlags::empty())?;
    reconfigure_writable(&tree, "")?;
    Ok(tree)
}

/// An option without a value is a flag.
fn mount(kind: &str, device: &Path, options: &[(&str, &str)], more: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", device)?;
    for (key, value) in options {
        match value.is_empty() {
            true => fsconfig_set_flag(context.as_fd(), *key)?,
            false => fsconfig_set_string(context.as_fd(), *key, *value)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes | more)?)
}

/// Where the whole file system on the block device `device` is mounted and can be seen, if it is: neither a mount of one of
/// its directories, nor a mount with another one on top of it.
///
/// # Errors
///
/// Those of reading `/proc/self/mountinfo`.
pub fn mount_point_of(device: &Path) -> io::Result<Option<PathBuf>> {
    let number = rustix::fs::stat(device)?.st_rdev;
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let whole = mounts()?.into_iter().filter(|mount| mount.majmin == number && mount.root == "/");
    Ok(whole.filter(is_visible).map(|mount| mount.mount_point).next())
}

/// The device of the file system that holds `directory`, by what was mounted: file systems as btrfs have device numbers of
/// their own, which no device has.
///
/// # Errors
///
/// `NotFound` when it was not mounted from a device, and those of reading `/proc/self/mountinfo`.
pub fn source_of(directory: impl AsFd) -> io::Result<PathBuf> {
    let wanted = mount_id(directory.as_fd(), "")?;
    let number = rustix::fs::fstat(directory)?.st_dev;
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let mounts = mounts()?;
    // A private mount is in no list; another one of the same file system is.
    let by_id = mounts.iter().find(|mount| u64::from(mount.mnt_id.unsigned_abs()) == wanted);
    let mount = by_id.or_else(|| mounts.iter().find(|mount| mount.majmin == number));
    let source = mount.and_then(|mount| mount.mount_source.as_deref()).filter(|source| source.starts_with('/'));
    source.map(PathBuf::from).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "not mounted from a device"))
}

fn mounts() -> io::Result<Vec<MountInfo>> {
    let mounts = Process::myself().and_then(|me| me.mountinfo()).map_err(io::Error::other)?;
    Ok(mounts.into_iter().collect())
}

/// Whether one who goes to the mount point finds this mount.
fn is_visible(mount: &MountInfo) -> bool {
    mount_id(CWD, &mount.mount_point).is_ok_and(|id| id == u64::from(mount.mnt_id.unsigned_abs()))
}

/// The identity of the mount that a path is in; see statx(2), `STATX_MNT_ID`. Triggers no automount.
fn mount_id(dir: impl AsFd, path: impl rustix::path::Arg) -> io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(dir, path, flags, StatxFlags::MNT_ID)?.stx_mnt_id)
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
