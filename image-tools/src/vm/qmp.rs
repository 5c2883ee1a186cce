//! QEMU's machine protocol (qmp-spec): one JSON object a line. A thread reads; answers and events go to the watch.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    process::Child,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::{Value, json};

use super::watch::Watch;

/// QEMU answers at once; commands that take long are only begun.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection to a running QEMU.
#[derive(Debug)]
pub struct Qmp {
    stream: UnixStream,
    watch: Watch,
}

impl Qmp {
    /// Takes the connection that `child` makes to `listener`.
    ///
    /// # Errors
    ///
    /// When QEMU ends before it connects, or does not speak the protocol.
    pub fn accept(listener: &UnixListener, child: &Child, watch: &Watch) -> Result<Self> {
        let ended = pidfd_open(Pid::from_child(child), PidfdFlags::empty()).context("watching QEMU")?;
        let mut either = [PollFd::new(listener, PollFlags::IN), PollFd::new(&ended, PollFlags::IN)];
        poll(&mut either, None).context("waiting for QEMU")?;
        ensure!(!either[0].revents().is_empty(), "QEMU ended at once");
        let (stream, _) = listener.accept().context("connecting to QEMU")?;
        let lines = BufReader::new(stream.try_clone().context("connecting to QEMU")?).lines();
        let listener = watch.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
                listener.tell(|heard| match value.get("event") {
                    Some(_) => heard.event(&value),
                    None if value.get("QMP").is_none() => heard.answers.push_back(value),
                    None => {}
                });
            }
        });
        let mut qmp = Self { stream, watch: watch.clone() };
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Executes a command; returns what it returned. A machine that has stopped answers all the same.
    ///
    /// # Errors
    ///
    /// With the description that QEMU gives, or when QEMU ends before it answers.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream, "{request}").with_context(|| format!("asking QEMU for {command}"))?;
        let answer = self.watch.answer(Instant::now() + PATIENCE);
        let mut answer = answer.with_context(|| format!("QEMU ended before it answered {command}, or hangs"))?;
        match answer.get("error") {
            Some(error) => bail!("QEMU refused {command}: {}", error["desc"].as_str().unwrap_or_default()),
            None => Ok(answer["return"].take()),
        }
    }
}
