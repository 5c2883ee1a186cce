//! FAT has no journal: after a power cut it is checked before anybody writes. And a directory is made and removed in an order
//! that leaves no name without a cluster, for where the kernel meets one, it makes the file system read-only.

use std::{
    fs::OpenOptions,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{FileExt, OpenOptionsExt},
    },
    path::Path,
    process::Command,
};

use rustix::{
    fs::{FsWord, OFlags, openat},
    io::Errno,
};

use super::sync;

/// Has fsck.fat(8) mend the file system on `device` if somebody wrote to it and never unmounted it, as systemd-fsck(8) does
/// where systemd mounts it. A rename that a power cut tore leaves two names with the same clusters, and the kernel lets nobody
/// write any more when one of them is deleted. A directory whose name is on the disk and whose cluster is not becomes, in one pass,
/// one without a cluster, which the kernel takes as badly; the next pass removes that. So passes are made until one finds nothing.
/// Whether there was something to mend.
///
/// Does nothing where it is mounted, in whatever namespace, or no FAT. Nothing can come between: the device is held
/// (open(2), `O_EXCL`).
///
/// # Errors
///
/// `NotFound` when fsck.fat is not installed, others when it fails or the device cannot be read.
pub fn mend(device: &Path) -> io::Result<bool> {
    let held = match OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(device) {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(false),
        held => held?,
    };
    let mut sector = [0; 512];
    held.read_exact_at(&mut sector, 0)?;
    if !is_dirty(&sector) {
        return Ok(false);
    }
    let run = |program: &str| Command::new(program).arg("-a").arg(device).output();
    for _ in 0..PASSES {
        let output = run("fsck.fat").or_else(|_| run("/usr/sbin/fsck.fat"))?;
        match output.status.code() {
            Some(0) => break,
            // It has found and mended something (fsck.fat(8), EXIT STATUS).
            Some(1) => {}
            _ => {
                let said = String::from_utf8_lossy(&output.stderr);
                return Err(io::Error::other(format!("fsck.fat failed ({}): {}", output.status, said.trim())));
            }
        }
    }
    Ok(true)
}

/// How often fsck.fat is run at most; two passes that found something have been seen.
const PASSES: usize = 4;

/// Whether a directory is on FAT.
///
/// # Errors
///
/// Those of fstatfs(2).
pub fn has(dir: impl AsFd) -> io::Result<bool> {
    const MSDOS: FsWord = 0x4d44;
    Ok(rustix::fs::fstatfs(dir)?.f_type == MSDOS)
}

/// Has the table of clusters reach the disk, and nothing else: an fsync(2) of the directory above `dir`, in which nothing has
/// changed (`fat_file_fsync`). The name of a new directory in `dir` then comes later than its cluster.
///
/// # Errors
///
/// As [`sync::fsync`].
pub fn sync_table(dir: impl AsFd) -> io::Result<()> {
    sync::fsync(opened(dir, "..")?)
}

/// Has the names in the directory `dir` reach the disk. The clusters of a directory that was removed are not free as long as
/// somebody has it open: held until then, they never are while the name is there.
///
/// # Errors
///
/// As [`sync::fsync`].
pub fn sync_names(dir: impl AsFd) -> io::Result<()> {
    sync::fsync(opened(dir, ".")?)
}

fn opened(dir: impl AsFd, path: &str) -> Result<OwnedFd, Errno> {
    openat(dir, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, 0.into())
}

/// What Linux notes in the boot sector while the file system is mounted to be written (`FAT_STATE_DIRTY` of
/// linux/msdos_fs.h): where, depends on whether it is FAT32, which has no 16-bit size of its tables.
fn is_dirty(sector: &[u8; 512]) -> bool {
    let is_fat32 = sector[22..24] == [0, 0];
    let (kind, state) = if is_fat32 { (82, 65) } else { (54, 37) };
    sector[510..] == [0x55, 0xaa] && sector[kind..].starts_with(b"FAT") && sector[state] & 1 != 0
}
