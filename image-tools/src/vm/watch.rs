//! What a machine says, from all sides at once: its console, QEMU's events and answers, QEMU's complaints, its end. Whoever
//! waits for one of them is woken by each, so that no state of QEMU is waited in for ever.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde_json::Value;

use super::ready::Port;

/// How much of the console is kept in memory.
const KEEP: usize = 1 << 20;

/// How often a guest may start over before it is ready: a firmware that sets itself up does once.
const RESETS: u32 = 3;

/// Shared by those who listen and those who wait.
#[derive(Debug, Clone, Default)]
pub struct Watch(Arc<(Mutex<Heard>, Condvar)>);

/// What was heard so far.
#[derive(Debug, Default)]
pub struct Heard {
    console: Console,
    /// What the guest has said at its port.
    pub port: Port,
    /// Whether the guest's ssh has answered.
    pub ssh_answers: bool,
    /// Whether nobody waits for the guest to be ready any more.
    pub waits_are_over: bool,
    /// What QEMU wrote to standard error.
    pub complaints: String,
    /// Answers to commands, in order.
    pub answers: VecDeque<Value>,
    /// Events of a migration: the machine is saved, or goes on.
    pub migration: VecDeque<Value>,
    /// What has ended or stopped the machine, the first of them.
    pub trouble: Option<Trouble>,
    /// Whether the machine is being stopped by us.
    pub stop_is_wanted: bool,
    /// How often the guest was reset since somebody began to wait for its words; none where it may start over as it likes.
    pub resets: Option<u32>,
    /// Whether QEMU has closed its console, and its complaints.
    pub console_is_closed: bool,
    /// Whether QEMU has closed its monitor: there are no more events.
    pub monitor_is_closed: bool,
    /// Whether the program of the host has ended.
    pub program_ended: bool,
}

/// Why a machine does not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// It stopped, and nobody here asked for that. QEMU says why when it is asked for its state.
    Stopped,
    /// The disk of the host is full or fails: what could not be done, and the reason that QEMU gives.
    Disk(String),
    /// The guest's kernel gave up.
    Panicked,
    /// The guest's watchdog ended its patience.
    Watchdog,
    /// The guest starts over and over again.
    Resets,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Disk(why) => write!(f, "the machine was stopped, for its disk cannot be {why}"),
            Self::Panicked => f.write_str("the guest's kernel panicked"),
            Self::Watchdog => f.write_str("the guest's watchdog fired"),
            Self::Resets => write!(f, "the guest was reset more than {RESETS} times before it was ready"),
        }
    }
}

/// Why waiting ended without what was waited for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Something stopped the machine.
    Trouble(Trouble),
    /// QEMU has ended.
    Ended,
    /// The time that was given is over.
    Deadline,
}

impl Watch {
    /// Waits until `found` finds something in what was heard, or the machine does not go on.
    ///
    /// # Errors
    ///
    /// What has ended the wait. What was found counts, also where the machine has ended since.
    pub fn wait<T>(&self, until: Option<Instant>, mut found: impl FnMut(&mut Heard) -> Option<T>) -> Result<T, Ending> {
        let mut heard = self.lock();
        loop {
            if let Some(found) = found(&mut heard) {
                return Ok(found);
            }
            if let Some(trouble) = &heard.trouble {
                return Err(Ending::Trouble(trouble.clone()));
            }
            if heard.has_ended() {
                return Err(Ending::Ended);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Err(Ending::Deadline);
            }
            heard = match left {
                None => self.0.1.wait(heard).unwrap_or_else(PoisonError::into_inner),
                Some(left) => self.0.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Waits for QEMU's next answer, which comes whatever state the machine is in; none when QEMU ends before, or does not
    /// answer until then.
    pub fn answer(&self, until: Instant) -> Option<Value> {
        let mut heard = self.lock();
        loop {
            if let Some(answer) = heard.answers.pop_front() {
                return Some(answer);
            }
            let left = until.saturating_duration_since(Instant::now());
            if heard.has_ended() || left == Duration::ZERO {
                return None;
            }
            heard = self.0.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end of the program of the host, whatever the machine does.
    ///
    /// # Errors
    ///
    /// [`Ending::Deadline`].
    pub fn ended_program(&self, until: Option<Instant>) -> Result<(), Ending> {
        let mut heard = self.lock();
        while !heard.program_ended {
            let left = until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
            if left == Duration::ZERO {
                return Err(Ending::Deadline);
            }
            heard = self.0.1.wait_timeout(heard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }

    /// Changes what was heard, and wakes all who wait.
    pub fn tell<T>(&self, change: impl FnOnce(&mut Heard) -> T) -> T {
        let told = change(&mut self.lock());
        self.0.1.notify_all();
        told
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    /// Whether QEMU has ended, and everything that it said was heard. Console and monitor are read beside each other: what
    /// the monitor said last is the reason why the console was closed.
    pub fn has_ended(&self) -> bool {
        self.console_is_closed && self.monitor_is_closed
    }

    /// Bytes of the console.
    pub fn add(&mut self, bytes: &[u8]) {
        self.console.add(bytes);
    }

    /// Whether the guest has said `wanted`; what came up to its end is not looked at again.
    pub fn has_said(&mut self, wanted: &str) -> bool {
        self.console.find(wanted.as_bytes())
    }

    /// Whether the guest has said anything at all.
    pub fn has_spoken(&self) -> bool {
        !self.console.text.is_empty()
    }

    /// The last lines of the console.
    pub fn tail(&self) -> String {
        let bytes: Vec<u8> = self.console.text.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// What QEMU says unasked (QEMU's `qapi/run-state.json` and `qapi/block-core.json`).
    pub fn event(&mut self, event: &Value) {
        let data = &event["data"];
        let trouble = match event["event"].as_str().unwrap_or_default() {
            "MIGRATION" => {
                self.migration.push_back(data.clone());
                None
            }
            "STOP" if !self.stop_is_wanted => Some(Trouble::Stopped),
            "BLOCK_IO_ERROR" if data["action"] == "stop" => {
                let done = if data["operation"] == "read" { "read" } else { "written to" };
                let why = data["reason"].as_str().unwrap_or("no reason is given");
                Some(Trouble::Disk(format!("{done}: {why}")))
            }
            // With the action `run` a panic is the guest's own affair.
            "GUEST_PANICKED" if data["action"] != "run" => Some(Trouble::Panicked),
            "WATCHDOG" => Some(Trouble::Watchdog),
            "RESET" => {
                self.resets = self.resets.map(|resets| resets + 1);
                self.resets.is_some_and(|resets| resets > RESETS).then_some(Trouble::Resets)
            }
            _ => None,
        };
        if self.trouble.is_none() {
            self.trouble = trouble;
        }
    }
}

#[derive(Debug, Default)]
struct Console {
    /// The last of it.
    text: VecDeque<u8>,
    /// How many bytes of `text` were waited for already.
    seen: usize,
}

impl Console {
    fn add(&mut self, bytes: &[u8]) {
        self.text.extend(bytes);
        let too_many = self.text.len().saturating_sub(KEEP);
        self.text.drain(..too_many);
        self.seen = self.seen.saturating_sub(too_many);
    }

    fn find(&mut self, wanted: &[u8]) -> bool {
        let seen = self.seen;
        let text = &self.text.make_contiguous()[seen..];
        let found = text.windows(wanted.len().max(1)).position(|window| window == wanted);
        if let Some(at) = found {
            self.seen += at + wanted.len();
        }
        found.is_some()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_are_found_once_even_when_they_come_in_pieces() {
        let mut heard = Heard::default();
        heard.add(b"log");
        assert!(!heard.has_said("login:"));
        heard.add(b"in: x");
        assert!(heard.has_said("login:"));
        assert!(!heard.has_said("login:"));
        heard.add(&vec![b'.'; KEEP]);
        heard.add(b"login:");
        assert!(heard.has_said("login:"));
    }

    #[test]
    fn a_wait_ends_with_what_stops_the_machine_but_not_with_what_we_do_ourselves() {
        let ends = |events: &[Value], prepare: fn(&mut Heard)| {
            let watch = Watch::default();
            watch.tell(prepare);
            watch.tell(|heard| events.iter().for_each(|event| heard.event(event)));
            watch.wait(Some(Instant::now()), |heard| heard.has_said("words").then_some(())).unwrap_err()
        };
        let event = |name: &str| json!({ "event": name, "data": { "action": "stop", "reason": "No space" } });
        let nothing = |_: &mut Heard| {};
        assert_eq!(ends(&[], nothing), Ending::Deadline);
        assert_eq!(ends(&[event("STOP")], nothing), Ending::Trouble(Trouble::Stopped));
        assert_eq!(ends(&[event("STOP")], |heard| heard.stop_is_wanted = true), Ending::Deadline);
        let disk = Ending::Trouble(Trouble::Disk("written to: No space".into()));
        assert_eq!(ends(&[event("BLOCK_IO_ERROR"), event("STOP")], nothing), disk);
        assert_eq!(ends(&[event("GUEST_PANICKED")], nothing), Ending::Trouble(Trouble::Panicked));
        let goes_on = json!({ "event": "GUEST_PANICKED", "data": { "action": "run" } });
        assert_eq!(ends(&[goes_on], nothing), Ending::Deadline);
        assert_eq!(ends(&[event("WATCHDOG")], nothing), Ending::Trouble(Trouble::Watchdog));
        let counted = |heard: &mut Heard| heard.resets = Some(0);
        assert_eq!(ends(&vec![event("RESET"); 3], counted), Ending::Deadline);
        assert_eq!(ends(&vec![event("RESET"); 4], counted), Ending::Trouble(Trouble::Resets));
        assert_eq!(ends(&vec![event("RESET"); 4], nothing), Ending::Deadline);
        assert_eq!(ends(&[], |heard| heard.console_is_closed = true), Ending::Deadline);
        let both = |heard: &mut Heard| (heard.console_is_closed, heard.monitor_is_closed) = (true, true);
        assert_eq!(ends(&[], both), Ending::Ended);
    }
}
