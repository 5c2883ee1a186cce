//! Failpoints: the program stopped at its n-th changing system call, by exit or by an error.
//!
//! Every function of [`crate::sys`] that changes something on a disk calls [`changing`] first. Without the feature
//! `failpoints` (in every shipped binary) that is nothing at all. With it, `COMPOSEFS_FINALIZE_FAIL=<how>:<n>` arms the
//! n-th call, counted from 1: `exit` ends the process at once, as a power cut does; `enospc` and `eio` make that call,
//! and every one after it, fail.

/// Announces the changing system call `name`.
///
/// # Errors
///
/// The error that an armed failpoint asks for; without the feature `failpoints`, none.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn changing(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(feature = "failpoints")]
pub use armed::changing;

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        io,
        sync::{
            OnceLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    use rustix::io::Errno;

    static CALLS: AtomicU64 = AtomicU64::new(0);

    #[derive(Clone, Copy)]
    enum How {
        Exit,
        Error(Errno),
    }

    fn plan() -> Option<(How, u64)> {
        static PLAN: OnceLock<Option<(How, u64)>> = OnceLock::new();
        *PLAN.get_or_init(|| {
            let text = std::env::var("COMPOSEFS_FINALIZE_FAIL").ok()?;
            let (how, n) = text.split_once(':')?;
            let how = match how {
                "exit" => How::Exit,
                "enospc" => How::Error(Errno::NOSPC),
                "eio" => How::Error(Errno::IO),
                _ => return None,
            };
            Some((how, n.parse().ok()?))
        })
    }

    /// Announces the changing system call `name`.
    pub fn changing(_name: &'static str) -> io::Result<()> {
        let n = CALLS.fetch_add(1, Ordering::SeqCst) + 1;
        match plan() {
            Some((How::Exit, at)) if n == at => std::process::exit(77),
            Some((How::Error(errno), at)) if n >= at => Err(errno.into()),
            _ => Ok(()),
        }
    }
}
