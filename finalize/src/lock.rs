//! One finalization at a time.

use std::time::Duration;

use anyhow::{Context, Result};
use cap_std::fs::{Dir, File, OpenOptions};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    layout::{FINALIZE_STATE, LOCK},
    stop::Stop,
    sys,
};

/// flock(2) cannot be waited for and stopped at the same time.
const AGAIN: Duration = Duration::from_millis(50);

/// Held as long as it lives; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] File);

impl Lock {
    /// Takes the lock; waits, and says so, while another finalization has it.
    ///
    /// # Errors
    ///
    /// Those of creating the lock file and of flock(2), and [`crate::stop::Stopped`].
    pub fn take(sysroot: &Dir, stop: &Stop) -> Result<Self> {
        let open = || {
            sys::file::create_dir_all(sysroot, FINALIZE_STATE)?;
            sys::fault::changing("openat")?;
            sysroot.open_with(LOCK, OpenOptions::new().write(true).create(true))
        };
        let file = open().with_context(|| format!("opening {LOCK}"))?;
        let mut waiting = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Err(Errno::WOULDBLOCK) => {}
                other => {
                    other.with_context(|| format!("locking {LOCK}"))?;
                    return Ok(Self(file));
                }
            }
            if !std::mem::replace(&mut waiting, true) {
                tracing::info!("another finalization is running: waiting for it");
            }
            stop.pause(AGAIN).context("waiting for another finalization")?;
        }
    }
}
