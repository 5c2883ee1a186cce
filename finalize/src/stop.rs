//! When to stop: at SIGTERM or SIGINT, or at a deadline that comes before the service manager's, so that there is time
//! to leave everything in order.
//!
//! Stopping is cooperative: writers poll between steps and between files.

use std::{
    io::{self, Read},
    os::unix::net::UnixStream,
    time::{Duration, Instant},
};

use anyhow::Result;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

/// Between the first attempt and the second; later ones are farther apart.
const PAUSE: Duration = Duration::from_millis(500);

/// Why a finalization stops before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stopped {
    /// Somebody asked the process to end.
    #[error("stopped by a signal")]
    Signal,
    /// The time is over.
    #[error("not done after {}", .0)]
    Deadline(Limit),
}

/// How much time there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// So many seconds, as the configuration says.
    Configured(u64),
    /// So many seconds, as the program's own rule.
    Fixed(u64),
}

impl Limit {
    fn seconds(self) -> u64 {
        let (Self::Configured(seconds) | Self::Fixed(seconds)) = self;
        seconds
    }
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} seconds", self.seconds())?;
        match self {
            Self::Configured(_) => f.write_str(" ([finalize] timeout-seconds in config.toml)"),
            Self::Fixed(_) => Ok(()),
        }
    }
}

impl From<Stopped> for io::Error {
    fn from(stopped: Stopped) -> Self {
        Self::other(stopped)
    }
}

/// Knows whether to stop.
#[derive(Debug)]
pub struct Stop {
    /// Becomes readable at a signal.
    signal: Option<UnixStream>,
    began: Instant,
    limit: Option<Limit>,
}

impl Stop {
    /// Stops at SIGTERM and at SIGINT, which from now on end the process no more.
    ///
    /// # Errors
    ///
    /// Those of sigaction(2).
    pub fn at_signal() -> io::Result<Self> {
        let (signal, handler) = UnixStream::pair()?;
        signal_hook::low_level::pipe::register(libc::SIGTERM, handler.try_clone()?)?;
        signal_hook::low_level::pipe::register(libc::SIGINT, handler)?;
        Ok(Self { signal: Some(signal), ..Self::never() })
    }

    /// Never stops.
    pub fn never() -> Self {
        Self { signal: None, began: Instant::now(), limit: None }
    }

    /// Also stops when so much time has passed since this value was made.
    pub fn set_deadline(&mut self, limit: Limit) {
        self.limit = Some(limit);
    }

    /// Fails when it is time to stop.
    ///
    /// # Errors
    ///
    /// Says why.
    pub fn check(&self) -> Result<(), Stopped> {
        self.pause(Duration::ZERO)
    }

    /// The same reader, which fails when it is time to stop: asked before each read.
    pub fn reading<'a>(&'a self, reader: impl Read + 'a) -> impl Read + 'a {
        Reading { stop: self, reader }
    }

    /// Tries again, so many times, with pauses between, while what fails may pass: something is busy, or not there yet.
    ///
    /// # Errors
    ///
    /// The last one, and the first that does not pass; [`Stopped`] when there is no time left to try again.
    pub fn patiently<T>(&self, again: u32, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
        for number in 1..=again {
            match attempt() {
                Err(error) if may_pass(&error) => tracing::warn!("{error:#}; trying again"),
                done => return done,
            }
            self.pause(PAUSE * number)?;
        }
        attempt()
    }

    /// Waits, but not longer than until it is time to stop.
    ///
    /// # Errors
    ///
    /// As [`Stop::check`].
    pub fn pause(&self, how_long: Duration) -> Result<(), Stopped> {
        let left = self.limit.map(|limit| Duration::from_secs(limit.seconds()).saturating_sub(self.began.elapsed()));
        let timeout = Timespec::try_from(left.map_or(how_long, |left| left.min(how_long))).ok();
        let mut signal: Vec<_> = self.signal.iter().map(|signal| PollFd::new(signal, PollFlags::IN)).collect();
        // That a signal arrived is what the descriptor says, whatever became of the call.
        let signalled = match poll(&mut signal, timeout.as_ref()) {
            Err(Errno::INTR) => return self.check(),
            polled => polled.is_ok_and(|ready| ready > 0),
        };
        match (signalled, left, self.limit) {
            (true, ..) => Err(Stopped::Signal),
            (false, Some(left), Some(limit)) if left <= how_long => Err(Stopped::Deadline(limit)),
            _ => Ok(()),
        }
    }
}

struct Reading<'a, R> {
    stop: &'a Stop,
    reader: R,
}

impl<R: Read> Read for Reading<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.stop.check()?;
        self.reader.read(buffer)
    }
}

/// An error without a number says that something was not found.
fn may_pass(error: &anyhow::Error) -> bool {
    let number = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).and_then(io::Error::raw_os_error);
    let passing = [libc::EBUSY, libc::EAGAIN, libc::EINTR, libc::ENOENT, libc::ENODEV, libc::ENXIO, libc::ENOMEDIUM];
    number.is_none_or(|number| passing.contains(&number))
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        let attempts = |number: i32| {
            let mut attempts = 0;
            let result = Stop::never().patiently(1, || {
                attempts += 1;
                Err::<(), _>(io::Error::from_raw_os_error(number)).context("mounting a device")
            });
            assert!(result.is_err());
            attempts
        };
        assert_eq!([libc::EBUSY, libc::EAGAIN, libc::ENXIO, libc::EIO, libc::EACCES].map(attempts), [2, 2, 2, 1, 1]);
    }

    #[test]
    fn a_file_is_not_read_to_its_end_when_a_signal_arrives() {
        struct Blocks(UnixStream, usize);
        impl Read for Blocks {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.1 += 1;
                if self.1 == 3 {
                    io::Write::write_all(&mut self.0, b"x")?;
                }
                Ok(if self.1 < 1000 { buffer.len() } else { 0 })
            }
        }
        let (signal, sender) = UnixStream::pair().unwrap();
        let stop = Stop { signal: Some(signal), ..Stop::never() };
        let mut blocks = Blocks(sender, 0);
        let stopped = io::copy(&mut stop.reading(&mut blocks), &mut io::sink()).unwrap_err();
        let stopped = stopped.into_inner().and_then(|why| why.downcast::<Stopped>().ok());
        assert_eq!((stopped, blocks.1), (Some(Box::new(Stopped::Signal)), 3));
        // Without a signal, all of it is read.
        let (_, sender) = UnixStream::pair().unwrap();
        let mut blocks = Blocks(sender, 3);
        io::copy(&mut Stop::never().reading(&mut blocks), &mut io::sink()).unwrap();
        assert_eq!(blocks.1, 1000);
    }

    #[test]
    fn a_deadline_and_a_signal_stop() {
        let mut stop = Stop::never();
        assert_eq!(stop.check(), Ok(()));
        stop.set_deadline(Limit::Configured(3600));
        assert_eq!(stop.check(), Ok(()));
        assert_eq!(stop.pause(Duration::from_millis(1)), Ok(()));
        stop.set_deadline(Limit::Configured(0));
        assert_eq!(stop.check(), Err(Stopped::Deadline(Limit::Configured(0))));
        let (signal, sender) = UnixStream::pair().unwrap();
        let stop = Stop { signal: Some(signal), ..Stop::never() };
        assert_eq!(stop.check(), Ok(()));
        io::Write::write_all(&mut &sender, b"x").unwrap();
        assert_eq!(stop.pause(Duration::from_secs(3600)), Err(Stopped::Signal));
    }
}
