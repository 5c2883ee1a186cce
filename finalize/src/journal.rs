//! What the journal is told, each kind of message by an id of its own (journald's `MESSAGE_ID=`,
//! systemd.journal-fields(7)), so that others can wait for it and find it: `journalctl MESSAGE_ID=…`.

use std::{
    fmt,
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::Result;
use tracing_subscriber::{filter::LevelFilter, fmt as text, prelude::*};

/// A kind of message: 128 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageId(u128);

/// An update was finalized: the new deployment boots next.
pub const FINALIZED: MessageId = MessageId(0xf1568c1d_a4eb49cb_a42c33dd_927d84fb);
/// An update could not be finalized. The text says what boots next.
pub const FAILED: MessageId = MessageId(0x958f9a9f_2c35415e_a1b8b5f1_f9994631);
/// A conflict is set to `fail`: nothing was written.
pub const REFUSED: MessageId = MessageId(0xf8dcb995_26be4f21_a3836cb4_475196dd);
/// What was finalized has booted.
pub const BOOTED: MessageId = MessageId(0x4f239fd0_76984742_88b0d7d5_88580d65);
/// What was finalized has not booted, but something else.
pub const NOT_BOOTED: MessageId = MessageId(0xb1680caa_a38f4f0d_8080b991_d8f7a957);
/// A finalization did not come to its end, or an update was still waiting; it is tried at the next shutdown.
pub const UNFINISHED: MessageId = MessageId(0x5785a151_96684bc3_85fe7dde_52c69a84);

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

/// Sends what is logged to the journal where a service has started the program, else to standard error.
pub fn begin() {
    let journal = is_connected().then(tracing_journald::layer).and_then(Result::ok);
    let lines = journal.is_none().then(|| text::layer().with_writer(std::io::stderr).without_time().with_target(false));
    let journal = journal.map(|layer| layer.with_field_prefix(None));
    // A second call would change nothing.
    _ = tracing_subscriber::registry().with(LevelFilter::INFO).with(journal).with(lines).try_init();
}

/// Tells `text` to whoever reads `out`, and the journal by its id as well, and waits until the journal has it on disk.
///
/// Without that a process could end before journald looks whose message it was, and `journalctl -u` would not show it, nor
/// what was written to standard error then (systemd issue 2913).
///
/// # Errors
///
/// Those of writing.
pub fn tell(out: &mut dyn Write, id: MessageId, weight: Weight, text: &str) -> Result<()> {
    writeln!(out, "{text}")?;
    match (is_connected(), weight) {
        (false, _) => return Ok(()),
        (true, Weight::Info) => tracing::info!(MESSAGE_ID = %id, "{text}"),
        (true, Weight::Warning) => tracing::warn!(MESSAGE_ID = %id, "{text}"),
    }
    // A journal that does not answer has the message all the same.
    _ = synchronize();
    Ok(())
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

/// Whether standard output is the journal (systemd.exec(5), `$JOURNAL_STREAM`).
fn is_connected() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_32_digits() {
        assert_eq!(MessageId(0x1f).to_string(), "0000000000000000000000000000001f");
        let all = [FINALIZED, FAILED, REFUSED, BOOTED, NOT_BOOTED, UNFINISHED].map(|id| id.to_string());
        assert!(all.iter().all(|id| id.len() == 32 && all.iter().filter(|other| *other == id).count() == 1));
    }
}
