//! The guest's serial console and QEMU's complaints: read as they come, kept in a log, shown, and told to whoever waits.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Write},
    path::Path,
    process::Child,
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::{Show, watch::Watch};

/// Reads the standard output of QEMU, which is the console, and its standard error, until both are closed. The thread
/// ends then, and the watch knows that the console is closed.
///
/// # Errors
///
/// When the log cannot be created.
pub fn read(child: &mut Child, log: &Path, show: Show, watch: &Watch) -> Result<JoinHandle<()>> {
    let mut log = File::create(log).with_context(|| format!("creating {}", log.display()))?;
    let mut out = child.stdout.take().context("QEMU has no standard output")?;
    let complaints = BufReader::new(child.stderr.take().context("QEMU has no standard error")?);
    let (listener, collector) = (watch.clone(), watch.clone());
    let collecting = std::thread::spawn(move || {
        for line in complaints.split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).into_owned();
            collector.tell(|heard| heard.complaints.push_str(&format!("{line}\n")));
        }
    });
    Ok(std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut buffer) {
            _ = log.write_all(&buffer[..n]);
            if show != Show::Nothing {
                _ = std::io::stdout().write_all(&buffer[..n]).and_then(|()| std::io::stdout().flush());
            }
            listener.tell(|heard| heard.add(&buffer[..n]));
        }
        _ = collecting.join();
        listener.tell(|heard| heard.console_is_closed = true);
    }))
}

/// The terminal as it was: QEMU makes it one on which each key counts, and is ended without a chance to undo that.
#[derive(Debug)]
pub struct Terminal(Termios);

impl Terminal {
    /// Remembers how the terminal of standard input is; nothing where there is none.
    pub fn keep() -> Option<Self> {
        tcgetattr(std::io::stdin()).ok().map(Self)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &self.0);
    }
}
