//! What the journal is told, each kind of message by an id of its own (journald's `MESSAGE_ID=`,
//! systemd.journal-fields(7)), so that others can wait for it and find it: `journalctl MESSAGE_ID=…`.

use std::{
    fmt,
    io::{self, IsTerminal, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
    time::Duration,
};

use tracing_subscriber::{filter::LevelFilter, fmt as text, prelude::*};

/// A kind of message: 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageId(u128);

/// An update was finalized: the new deployment boots next.
pub const FINALIZED: MessageId = MessageId(0xf1568c1d_a4eb49cb_a42c33dd_927d84fb);
/// An update could not be finalized. The text says what boots next.
pub const FAILED: MessageId = MessageId(0x958f9a9f_2c35415e_a1b8b5f1_f9994631);
/// A conflict is set to `fail`: this run has written nothing.
pub const REFUSED: MessageId = MessageId(0xf8dcb995_26be4f21_a3836cb4_475196dd);
/// The finalized deployment has booted.
pub const BOOTED: MessageId = MessageId(0x4f239fd0_76984742_88b0d7d5_88580d65);
/// Another deployment than the finalized one has booted.
pub const NOT_BOOTED: MessageId = MessageId(0xb1680caa_a38f4f0d_8080b991_d8f7a957);
/// A finalization did not come to its end, or an update is still waiting. The text says whether the next shutdown tries.
pub const UNFINISHED: MessageId = MessageId(0x5785a151_96684bc3_85fe7dde_52c69a84);
/// A staged update needs attention before the next shutdown.
pub const ATTENTION: MessageId = MessageId(0xc3ab435e_699d2619_ede1776f_688ff8bd);

/// The boot loader has given the finalized deployment up: the one before it has booted.
pub const FELL_BACK: MessageId = MessageId(0xd485c61e_d889abd1_e0eab4dc_f0f6c435);
/// The booted deployment is found good: its boots are not counted any more.
pub const GOOD: MessageId = MessageId(0x4d838577_6f6d6500_ca243aa0_c11696f0);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Whether somebody only wants to know, or has to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// All is well.
    Info,
    /// A person should look.
    Warning,
}

/// Sends what is logged to the journal where a service has started the program, else to standard error. Logging never fails:
/// a full disk or a closed pipe behind standard error changes nothing.
pub fn begin() {
    let journal = is_connected().then(tracing_journald::layer).and_then(Result::ok);
    let lines = journal.is_none().then(|| {
        let lines = text::layer().with_writer(io::stderr).without_time().with_target(false);
        lines.with_ansi(io::stderr().is_terminal()).log_internal_errors(false)
    });
    let journal = journal.map(|layer| layer.with_field_prefix(None));
    // A second call would change nothing.
    _ = tracing_subscriber::registry().with(LevelFilter::INFO).with(journal).with(lines).try_init();
}

/// Tells `text` to the journal by its id, then to whoever reads `out`.
///
/// A process that has ended before journald looks leaves a message without a unit (systemd issue 2913). So the message names
/// the unit itself, in a field that `journalctl -u` believes of root (`OBJECT_SYSTEMD_UNIT=`, systemd.journal-fields(7)); and
/// where a person should look, this waits until the journal has all that was said before on disk, standard error too.
///
/// The message is a courtesy: where nobody takes it (a closed pipe, a full disk), what it tells of has happened all the same.
pub fn tell(out: &mut dyn Write, id: MessageId, weight: Weight, text: &str) {
    if is_connected() {
        let unit =
            std::fs::read_to_string("/proc/self/cgroup").ok().as_deref().and_then(unit_of).map(tracing::field::display);
        match weight {
            Weight::Info => tracing::info!(MESSAGE_ID = %id, OBJECT_SYSTEMD_UNIT = unit, "{text}"),
            Weight::Warning => {
                tracing::warn!(MESSAGE_ID = %id, OBJECT_SYSTEMD_UNIT = unit, "{text}");
                // A journal that does not answer has the message all the same.
                _ = synchronize();
            }
        }
    }
    say(out, text);
}

/// The unit of a process, by what /proc/PID/cgroup says of it (cgroups(7)).
fn unit_of(cgroup: &str) -> Option<String> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    path.rsplit('/').find(|name| name.ends_with(".service")).map(str::to_owned)
}

/// Writes a line that nobody need read.
pub fn say(out: &mut dyn Write, text: &str) {
    _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Standard output that a reader may close early, as `head` does: what is written then is dropped, without an error.
#[derive(Debug)]
pub struct Pipe<W>(pub W);

impl<W: Write> Write for Pipe<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            other => other,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            other => other,
        }
    }
}

/// What `journalctl --sync` does: returns when all that was sent before is stored (`io.systemd.Journal.Synchronize`, a
/// Varlink call: JSON, and a zero byte).
fn synchronize() -> io::Result<()> {
    const PATIENCE: Option<Duration> = Some(Duration::from_secs(5));
    let mut journal = UnixStream::connect("/run/systemd/journal/io.systemd.journal")?;
    journal.set_read_timeout(PATIENCE)?;
    journal.set_write_timeout(PATIENCE)?;
    journal.write_all(b"{\"method\":\"io.systemd.Journal.Synchronize\"}\0")?;
    journal.read_exact(&mut [0])
}

/// Whether standard output or standard error is the journal: `$JOURNAL_STREAM` names device and inode of the journal's end,
/// and may be inherited by programs whose output goes elsewhere (systemd.exec(5)).
fn is_connected() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    [is_stream(&stream, io::stderr()), is_stream(&stream, io::stdout())].contains(&true)
}

/// Whether `$JOURNAL_STREAM` is this file.
fn is_stream(stream: &str, file: impl AsFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_told_by_device_and_inode() {
        let (one, other) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let stat = rustix::fs::fstat(&one).unwrap();
        let stream = format!("{}:{}", stat.st_dev, stat.st_ino);
        assert!(is_stream(&stream, &one) && !is_stream(&stream, &other));
        assert!(!is_stream("", &one) && !is_stream(&format!("{stream}0"), &one));
    }

    #[test]
    fn the_unit_is_the_innermost_service() {
        let of = |text: &str| unit_of(text);
        assert_eq!(of("0::/system.slice/a.service\n").as_deref(), Some("a.service"));
        assert_eq!(of("1:name=systemd:/x.service\n0::/system.slice/a.service/part\n").as_deref(), Some("a.service"));
        assert_eq!([of("0::/user.slice/session-1.scope\n"), of("")], [None, None]);
    }

    #[test]
    fn an_id_has_32_digits() {
        assert_eq!(MessageId(0x1f).to_string(), "0000000000000000000000000000001f");
        let all = [FINALIZED, FAILED, REFUSED, BOOTED, NOT_BOOTED, UNFINISHED, ATTENTION, FELL_BACK, GOOD]
            .map(|id| id.to_string());
        assert!(all.iter().all(|id| id.len() == 32 && all.iter().filter(|other| *other == id).count() == 1));
    }
}
