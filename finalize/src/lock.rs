//! One finalization at a time.
//!
//! flock(2) asks for no more than an open file, so the lock file is root's alone: whoever can open the file can stop every update.

use std::{io, time::Duration};

use cap_std::fs::{Dir, File};
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use crate::{
    layout::{FINALIZE_STATE, LOCK, name_of},
    stop::{Stop, Stopped},
    sys,
};

/// flock(2) cannot be waited for and stopped at the same time.
const AGAIN: Duration = Duration::from_millis(50);

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum NotLocked {
    /// The lock file cannot be opened or locked.
    #[error("locking {LOCK}")]
    Failed(#[source] io::Error),
    /// Another finalization holds the lock until it is time to stop.
    #[error("waiting for another finalization, which holds {LOCK}")]
    Busy(#[source] Stopped),
}

/// Held as long as it lives; the kernel lets go of it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held, not used")] File);

impl Lock {
    /// Takes the lock; waits, and says so, while another finalization has it.
    ///
    /// # Errors
    ///
    /// Says whether another finalization is why.
    pub fn take(sysroot: &Dir, stop: &Stop) -> Result<Self, NotLocked> {
        let open = || {
            sys::file::create_dir_all(sysroot, FINALIZE_STATE)?;
            sys::file::open_private(&sysroot.open_dir(FINALIZE_STATE)?, name_of(LOCK))
        };
        let file = open().map_err(NotLocked::Failed)?;
        let mut waiting = false;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Self(file)),
                Err(Errno::WOULDBLOCK) => {}
                Err(error) => return Err(NotLocked::Failed(error.into())),
            }
            if !std::mem::replace(&mut waiting, true) {
                tracing::info!("another finalization is running: waiting for it");
            }
            stop.pause(AGAIN).map_err(NotLocked::Busy)?;
        }
    }
}
