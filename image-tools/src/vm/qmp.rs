//! QEMU's machine protocol (qmp-spec): one JSON object a line.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    process::Child,
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::{Value, json};

/// A connection to a running QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
    /// What QEMU has said unasked, and nobody has waited for yet.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Takes the connection that `child` makes to `listener`.
    ///
    /// # Errors
    ///
    /// When QEMU ends before it connects, or does not speak the protocol.
    pub fn accept(listener: &UnixListener, child: &Child) -> Result<Self> {
        let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("watching QEMU")?;
        let mut either = [PollFd::new(listener, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        poll(&mut either, None).context("waiting for QEMU")?;
        ensure!(!either[0].revents().is_empty(), "QEMU ended at once");
        let (stream, _) = listener.accept().context("connecting to QEMU")?;
        let mut qmp = Self { stream: BufReader::new(stream), events: VecDeque::new() };
        qmp.line().context("reading QEMU's greeting")?;
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command; returns what it returned.
    ///
    /// # Errors
    ///
    /// With the description that QEMU gives.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").with_context(|| format!("asking QEMU for {command}"))?;
        loop {
            let answer = self.line().with_context(|| format!("waiting for QEMU's answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or_default());
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
            self.events.push_back(answer);
        }
    }

    /// Waits for the next event of this name; returns its data. Events of other names are forgotten.
    ///
    /// # Errors
    ///
    /// When QEMU ends before.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            let mut event = match self.events.pop_front() {
                Some(event) => event,
                None => self.line().with_context(|| format!("waiting for QEMU's event {name}"))?,
            };
            if event["event"] == name {
                return Ok(event["data"].take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("QEMU has ended");
        }
        Ok(serde_json::from_str(&line)?)
    }
}
