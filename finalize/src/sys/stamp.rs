//! Whether an inode is as it was when somebody looked last.
//!
//! The proof is the inode's change time, which no call can set: whatever changes content, owner, mode, attributes, flags or
//! names of an inode moves it (inode(7), "Timestamp fields"). Two things could make it lie. It is as coarse as a clock's tick,
//! or as seconds on old file systems: what changed within [`TICK`] before it was looked at is not believed. And a clock that is
//! set back gives the same times twice: then nothing is ([`Clock::went_back`]).
//!
//! Unseen: a clock that is set back and forth between two looks, and whoever writes to the block device.

use std::{io, os::fd::BorrowedFd};

use rustix::{
    fs::{AtFlags, StatxFlags, statx},
    io::Errno,
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

/// In seconds: two changes within that time may have one change time. FAT counts in twos.
pub const TICK: i64 = 4;

/// The state of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, u32),
    changed: (i64, u32),
}

/// What a name led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mark {
    /// Nothing.
    Absent,
    /// Something that had just changed: it may change again and look the same.
    Fresh,
    /// This.
    At(Stamp),
}

impl Mark {
    /// The node `name` of `dir`.
    ///
    /// # Errors
    ///
    /// Those of statx(2), but that there is none.
    pub fn of(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Self> {
        let stat = match statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
            Err(Errno::NOENT) => return Ok(Self::Absent),
            other => other?,
        };
        Ok(Self::At(Stamp {
            inode: stat.stx_ino,
            size: stat.stx_size,
            modified: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            changed: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
        }))
    }

    /// The same, if the last change is longer ago than a clock's tick.
    pub fn settled(self, tick: i64) -> Self {
        let now = clock_gettime(ClockId::Realtime).tv_sec;
        match self {
            Self::At(stamp) if stamp.changed.0 + tick > now => Self::Fresh,
            other => other,
        }
    }

    /// Whether nothing has changed between the two looks.
    pub fn holds(self, now: Self) -> bool {
        self == now && self != Self::Fresh
    }

    /// Whether the two differ in nothing but the time of a change that a new name makes too.
    pub fn holds_but_for_links(self, later: Self) -> bool {
        match (self, later) {
            (Self::At(one), Self::At(other)) => Stamp { changed: other.changed, ..one } == other,
            (one, other) => one == other,
        }
    }

    /// The same without the number of the inode, which FAT has only as long as it is mounted.
    pub fn without_inode(self) -> Self {
        match self {
            Self::At(stamp) => Self::At(Stamp { inode: 0, ..stamp }),
            other => other,
        }
    }
}

/// The two clocks, for a person may set one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clock {
    /// Seconds from the boot to 1970, negated: the calendar's time less the time since the boot.
    offset: i64,
}

impl Clock {
    /// Now.
    pub fn now() -> Self {
        let seconds = |clock| clock_gettime(clock).tv_sec;
        Self { offset: seconds(ClockId::Realtime) - seconds(ClockId::Boottime) }
    }

    /// Whether the calendar's time was set back since.
    pub fn went_back(self) -> bool {
        Self::now().offset < self.offset - 1
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::fd::AsFd};

    use super::*;

    #[test]
    fn every_change_shows_and_what_is_young_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "1").unwrap();
        let open = fs::File::open(dir.path()).unwrap();
        let mark = || Mark::of(open.as_fd(), b"f").unwrap();
        let before = mark();
        assert!(before.holds(mark()) && before.settled(-1) == before);
        assert_eq!(before.settled(TICK), Mark::Fresh);
        assert!(!Mark::Fresh.holds(Mark::Fresh), "nothing is known of it");
        fs::hard_link(&file, dir.path().join("g")).unwrap();
        assert!(!before.holds(mark()) && before.holds_but_for_links(mark()));
        fs::write(&file, "22").unwrap();
        assert!(!before.holds_but_for_links(mark()));
        fs::remove_file(&file).unwrap();
        assert_eq!(mark(), Mark::Absent);
    }

    #[test]
    fn a_clock_that_is_set_back_is_noticed() {
        let now = Clock::now();
        assert!(!now.went_back());
        assert!(!Clock { offset: now.offset - 3600 }.went_back(), "set forward");
        assert!(Clock { offset: now.offset + 3600 }.went_back());
    }
}
