//! The guest's serial console: kept in a log, shown, and waited on.

use std::{
    collections::VecDeque,
    fs::File,
    io::{Read, Write},
    path::Path,
    process::Child,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use anyhow::{Context, Result};

use super::Show;

/// How much of the console is kept in memory.
const KEEP: usize = 1 << 20;

/// What the guest has said.
#[derive(Debug)]
pub struct Console {
    heard: Arc<(Mutex<Heard>, Condvar)>,
    reader: Option<JoinHandle<()>>,
    errors: Arc<Mutex<String>>,
}

#[derive(Debug, Default)]
struct Heard {
    /// The last of it.
    text: VecDeque<u8>,
    /// How many bytes of `text` were waited for already.
    seen: usize,
    ended: bool,
}

impl Console {
    /// Reads the standard output of QEMU, which is the console, and its complaints.
    ///
    /// # Errors
    ///
    /// When the log cannot be created.
    pub fn read(child: &mut Child, log: &Path, show: Show) -> Result<Self> {
        let mut log = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let mut out = child.stdout.take().context("QEMU has no standard output")?;
        let mut complaints = child.stderr.take().context("QEMU has no standard error")?;
        let heard = Arc::new((Mutex::new(Heard::default()), Condvar::new()));
        let errors = Arc::new(Mutex::new(String::new()));
        let (listener, collector) = (Arc::clone(&heard), Arc::clone(&errors));
        let collector = std::thread::spawn(move || {
            let mut text = String::new();
            _ = complaints.read_to_string(&mut text);
            *locked(&collector) = text;
        });
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                _ = log.write_all(&buffer[..n]);
                if show == Show::Terminal {
                    _ = std::io::stdout().write_all(&buffer[..n]).and_then(|()| std::io::stdout().flush());
                }
                locked(&listener.0).add(&buffer[..n]);
                listener.1.notify_all();
            }
            _ = collector.join();
            locked(&listener.0).ended = true;
            listener.1.notify_all();
        });
        Ok(Self { heard, reader: Some(reader), errors })
    }

    /// Waits for `text`; false when the console ended before it came.
    pub fn wait_for(&self, text: &str) -> bool {
        let mut heard = locked(&self.heard.0);
        loop {
            if heard.find(text.as_bytes()) {
                return true;
            }
            if heard.ended {
                return false;
            }
            heard = self.heard.1.wait(heard).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The last lines.
    pub fn tail(&self) -> String {
        let heard = locked(&self.heard.0);
        let bytes: Vec<u8> = heard.text.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Waits for the end of the console.
    pub fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
    }

    /// What QEMU complained about.
    pub fn errors(&self) -> String {
        locked(&self.errors).trim().to_owned()
    }
}

impl Heard {
    fn add(&mut self, bytes: &[u8]) {
        self.text.extend(bytes);
        let too_many = self.text.len().saturating_sub(KEEP);
        self.text.drain(..too_many);
        self.seen = self.seen.saturating_sub(too_many);
    }

    /// Whether `wanted` came; what came up to its end is not looked at again.
    fn find(&mut self, wanted: &[u8]) -> bool {
        let seen = self.seen;
        let text = &self.text.make_contiguous()[seen..];
        let found = text.windows(wanted.len()).position(|window| window == wanted);
        if let Some(at) = found {
            self.seen += at + wanted.len();
        }
        found.is_some()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_once_even_when_they_come_in_pieces() {
        let mut heard = Heard::default();
        heard.add(b"log");
        assert!(!heard.find(b"login:"));
        heard.add(b"in: x");
        assert!(heard.find(b"login:"));
        assert!(!heard.find(b"login:"));
        heard.add(&vec![b'.'; KEEP]);
        heard.add(b"login:");
        assert!(heard.find(b"login:"));
    }
}
