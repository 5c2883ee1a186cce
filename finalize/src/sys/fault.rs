//! Failpoints: the program stopped at its n-th changing system call, by exit or by an error.
//!
//! Every function of [`crate::sys`] that changes something on a disk calls [`changing`] first. Without the feature
//! `failpoints` (in every shipped binary) that is nothing at all. With it, `COMPOSEFS_FINALIZE_FAIL=<how>:<n>` arms the
//! n-th call, counted from 1: `exit` ends the process at once, as a power cut does; `term` and `stop` send it SIGTERM and
//! SIGSTOP; `enospc` and `eio` make that call, and every one after it, fail; `enospc-once`, `eio-once`, `ebusy-once` and
//! `eagain-once` only that one.
//!
//! With `COMPOSEFS_FINALIZE_ANNOUNCE` set, each announcement is a readlink(2) of `/changing/<name>`, which strace(1) shows: a
//! test compares the calls that change something with those that were announced.
//!
//! `COMPOSEFS_FINALIZE_NO_SYNC=<step>,<step>` is sabotage: nothing is synced during these steps of a finalization
//! ([`crate::record::Step`]), of a rollback (`rollback`) and of staging (`image-tools`, `stage.rs`); with `checkpoint` all is synced, but no journal is written back; with `rename` a tree is
//! removed under the name that means something. A proof that power cuts do no harm must fail then, or it proves nothing.

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

/// A step of the finalization begins.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn step(_name: &str) {}

/// Whether this step's syncs are left out; without the feature `failpoints`, never.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn is_sabotaged() -> bool {
    false
}

/// Whether that is left out; without the feature `failpoints`, never.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn lacks(_what: &str) -> bool {
    false
}

/// [`super::stamp::TICK`]; with the feature `failpoints`, what `COMPOSEFS_FINALIZE_TICK` says.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
pub fn tick() -> i64 {
    super::stamp::TICK
}

#[cfg(feature = "failpoints")]
pub use armed::{changing, is_sabotaged, lacks, step, tick};

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        io,
        sync::{
            OnceLock,
            atomic::{AtomicBool, AtomicU64, Ordering},
        },
    };

    use rustix::{
        io::Errno,
        process::{Signal, getpid, kill_process},
    };

    static CALLS: AtomicU64 = AtomicU64::new(0);
    static SABOTAGED: AtomicBool = AtomicBool::new(false);

    #[derive(Clone, Copy)]
    enum How {
        Exit,
        Signal(Signal),
        Errors(Errno),
        Error(Errno),
    }

    fn plan() -> Option<(How, u64)> {
        static PLAN: OnceLock<Option<(How, u64)>> = OnceLock::new();
        *PLAN.get_or_init(|| {
            let text = std::env::var("COMPOSEFS_FINALIZE_FAIL").ok()?;
            let (how, n) = text.split_once(':')?;
            let how = match how {
                "exit" => How::Exit,
                "term" => How::Signal(Signal::TERM),
                "stop" => How::Signal(Signal::STOP),
                "enospc" => How::Errors(Errno::NOSPC),
                "eio" => How::Errors(Errno::IO),
                "enospc-once" => How::Error(Errno::NOSPC),
                "eio-once" => How::Error(Errno::IO),
                "ebusy-once" => How::Error(Errno::BUSY),
                "eagain-once" => How::Error(Errno::AGAIN),
                _ => return None,
            };
            Some((how, n.parse().ok()?))
        })
    }

    /// Announces the changing system call `name`.
    pub fn changing(name: &'static str) -> io::Result<()> {
        if std::env::var_os("COMPOSEFS_FINALIZE_ANNOUNCE").is_some() {
            announce(name);
        }
        let n = CALLS.fetch_add(1, Ordering::SeqCst) + 1;
        match plan() {
            Some((How::Exit, at)) if n == at => std::process::exit(77),
            Some((How::Signal(signal), at)) if n == at => Ok(kill_process(getpid(), signal)?),
            Some((How::Error(errno), at)) if n == at => Err(errno.into()),
            Some((How::Errors(errno), at)) if n >= at => Err(errno.into()),
            _ => Ok(()),
        }
    }

    /// A system call that does nothing but show, between the others that strace(1) lists, that `name` was announced.
    fn announce(name: &str) {
        let word = format!("/changing/{name}");
        _ = rustix::fs::readlink(word, Vec::new());
    }

    /// A step of the finalization begins.
    pub fn step(name: &str) {
        SABOTAGED.store(lacks(name), Ordering::SeqCst);
    }

    /// Whether that is left out.
    pub fn lacks(what: &str) -> bool {
        let steps = std::env::var("COMPOSEFS_FINALIZE_NO_SYNC").unwrap_or_default();
        steps.split(',').any(|step| step == what)
    }

    /// How old a change must be to be believed: tests do not wait.
    pub fn tick() -> i64 {
        let set = std::env::var("COMPOSEFS_FINALIZE_TICK").ok().and_then(|text| text.parse().ok());
        set.unwrap_or(crate::sys::stamp::TICK)
    }

    /// Whether this step's syncs are left out.
    pub fn is_sabotaged() -> bool {
        SABOTAGED.load(Ordering::SeqCst)
    }
}
