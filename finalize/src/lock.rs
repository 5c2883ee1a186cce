//! One finalization at a time.

use anyhow::{Context, Result};
use cap_std::fs::{Dir, File, OpenOptions};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    layout::{FINALIZE_STATE, LOCK},
    sys,
};

/// Held as long as it lives; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] File);

impl Lock {
    /// Takes the lock; waits, and says so, while another finalization has it.
    ///
    /// # Errors
    ///
    /// Those of creating the lock file and of flock(2).
    pub fn take(sysroot: &Dir) -> Result<Self> {
        let open = || {
            sys::file::create_dir_all(sysroot, FINALIZE_STATE)?;
            sysroot.open_with(LOCK, OpenOptions::new().write(true).create(true))
        };
        let file = open().with_context(|| format!("opening {LOCK}"))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                tracing::info!("another finalization is running: waiting for it");
                flock(&file, FlockOperation::LockExclusive)
            }
            other => other,
        }
        .with_context(|| format!("locking {LOCK}"))?;
        Ok(Self(file))
    }
}
