//! A file system is frozen and thawed, so that nothing of it is in its log only.
//!
//! Between the two whoever writes to it waits, so it must not stay frozen, whatever becomes of this process: a second
//! one, the watchdog, thaws it when the first one dies, or takes too long.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{Pid, Signal, WaitOptions, kill_process, setsid, waitpid},
};

use super::fault;

/// `_IOWR('X', 119, int)`, and the number after it (`linux/fs.h`).
const FIFREEZE: libc::c_ulong = 0xc004_5877;
const FITHAW: libc::c_ulong = 0xc004_5878;

/// When the watchdog thaws what nobody has thawed. It does not end a freeze that is still under way.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Freezes the file system that holds `dir`, and thaws it: what was written to it before is on the disk, in its place.
/// When this returns it is not frozen; when the process is killed, it is not frozen for longer than it takes to thaw it.
///
/// # Errors
///
/// `EBUSY` when somebody else has frozen it, and `EPERM` and `EOPNOTSUPP`: nothing was done. `EIO`: it is not known what
/// is on the disk.
pub fn cycle(dir: impl AsFd) -> io::Result<()> {
    let dir = dir.as_fd();
    let watchdog = Watchdog::start(dir)?;
    if let Err(error) = fault::changing("ioctl").and_then(|()| ioctl(dir, FIFREEZE)) {
        // Somebody else froze it; leave it frozen.
        watchdog.dismiss();
        return Err(error);
    }
    fault::changing("ioctl")?;
    match ioctl(dir, FITHAW) {
        // The watchdog was faster.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        thawed => thawed?,
    }
    watchdog.dismiss();
    Ok(())
}

fn ioctl(file: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<()> {
    #[allow(unsafe_code, reason = "an ioctl that no library knows")]
    // SAFETY: neither request reads or writes what its argument points to (`ioctl_fsfreeze`, `fs/ioctl.c`).
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, 0) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A process that thaws when this is dropped, and when this process dies.
struct Watchdog {
    pid: Pid,
    /// Closed when this process ends.
    leash: Option<OwnedFd>,
}

impl Watchdog {
    fn start(dir: BorrowedFd<'_>) -> io::Result<Self> {
        let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
        #[allow(unsafe_code, reason = "no safe fork: a new process must not be looked up on what is being frozen")]
        // SAFETY: the child makes system calls only, which is all that is allowed where other threads were
        // (signal-safety(7)), and does not return.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                drop(ours);
                watch(dir, &theirs)
            }
            pid => {
                let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
                Ok(Self { pid, leash: Some(ours) })
            }
        }
    }

    /// There is nothing to thaw.
    fn dismiss(self) {
        _ = kill_process(self.pid, Signal::KILL);
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.leash = None;
        while let Err(Errno::INTR) = waitpid(Some(self.pid), WaitOptions::empty()) {}
    }
}

/// The watchdog's life: it thaws when the other end of the pipe is closed, and before that whenever its patience ends.
fn watch(dir: BorrowedFd<'_>, leash: &OwnedFd) -> ! {
    // What a terminal sends to all of its processes does not reach it.
    _ = setsid();
    loop {
        let mut closed = [PollFd::new(leash, PollFlags::IN)];
        let polled = poll(&mut closed, Some(&PATIENCE));
        _ = ioctl(dir, FITHAW);
        if polled.is_ok_and(|ready| ready > 0) {
            #[allow(unsafe_code, reason = "nothing that the other process has prepared for its end is done here")]
            // SAFETY: has no preconditions.
            unsafe {
                libc::_exit(0)
            }
        }
    }
}
