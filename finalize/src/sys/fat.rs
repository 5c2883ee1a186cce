//! FAT has no journal: after a power cut it is checked before anybody writes.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::Path,
    process::Command,
};

/// Has fsck.fat(8) mend the file system on `device` if somebody wrote to it and never unmounted it, as systemd-fsck(8) does
/// where systemd mounts it. A rename that a power cut tore leaves two names with the same clusters, and the kernel lets nobody
/// write any more when one of them is deleted. Whether there was something to mend.
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
    let output = run("fsck.fat").or_else(|_| run("/usr/sbin/fsck.fat"))?;
    // 1 says that it has found and mended something (fsck.fat(8), EXIT STATUS).
    if !matches!(output.status.code(), Some(0 | 1)) {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(io::Error::other(format!("fsck.fat failed ({}): {}", output.status, said.trim())));
    }
    Ok(true)
}

/// What Linux notes in the boot sector while the file system is mounted to be written (`FAT_STATE_DIRTY` of
/// linux/msdos_fs.h): where, depends on whether it is FAT32, which has no 16-bit size of its tables.
fn is_dirty(sector: &[u8; 512]) -> bool {
    let is_fat32 = sector[22..24] == [0, 0];
    let (kind, state) = if is_fat32 { (82, 65) } else { (54, 37) };
    sector[510..] == [0x55, 0xaa] && sector[kind..].starts_with(b"FAT") && sector[state] & 1 != 0
}
