//! When a guest is ready: when its systemd says so, at a port of its own; where systemd is older than 256, when its ssh answers.

use std::{
    fmt,
    io::{BufRead, BufReader, Read},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::net::UnixListener,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Vm,
    watch::{Ending, Watch},
};

/// How long one attempt to reach the guest's ssh may take, and how long is waited after one that failed.
const ATTEMPT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_secs(1);

/// What a guest has said of itself since it was started last.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Ready {
    /// Its kernel's command line; none where only its ssh has answered.
    pub cmdline: Option<String>,
    /// What `systemctl is-system-running` says.
    pub state: Option<String>,
    /// The units that have failed.
    pub failed: Vec<String>,
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.state {
            None => write!(f, "the machine is ready: its ssh answers"),
            Some(state) if self.failed.is_empty() => write!(f, "the machine is ready: systemd says {state}"),
            Some(state) => write!(f, "the machine is {state}: {} failed", self.failed.join(", ")),
        }
    }
}

/// What is heard at the port, at every start of the guest: `started` and the command line, `state` and a word, `failed` and a unit
/// for each, `ready`. A guest that starts over may have been anywhere, also in a line: an empty one comes first.
#[derive(Debug, Default)]
pub struct Port {
    said: Ready,
    is_done: bool,
}

impl Port {
    /// A line that the guest has said.
    pub fn line(&mut self, line: &str) {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("started", cmdline) => {
                *self = Self { said: Ready { cmdline: Some(cmdline.into()), ..Ready::default() }, is_done: false }
            }
            ("state", state) => self.said.state = Some(state.to_owned()),
            ("failed", unit) => self.said.failed.push(unit.to_owned()),
            ("ready", _) => self.is_done = true,
            _ => {}
        }
    }

    fn ready(&self) -> Option<Ready> {
        self.is_done.then(|| self.said.clone())
    }

    /// Whether the guest is one that says how far it is.
    fn speaks(&self) -> bool {
        self.said != Ready::default()
    }
}

/// Takes the connection that QEMU has made to `listener`, if it has made one, and reads it until QEMU ends.
///
/// # Errors
///
/// When the socket fails.
pub fn listen(listener: &UnixListener, watch: &Watch) -> Result<()> {
    listener.set_nonblocking(true).context("listening to the guest")?;
    let stream = match listener.accept() {
        Ok((stream, _)) => stream,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(error).context("listening to the guest"),
    };
    stream.set_nonblocking(false).context("listening to the guest")?;
    let watch = watch.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            watch.tell(|heard| heard.port.line(&line));
        }
    });
    Ok(())
}

impl Vm {
    /// Waits until the guest is ready: its systemd has done what it does at a start, or, where that cannot say so, its ssh
    /// answers on `ssh`. Nothing, when the guest has powered itself off before that. A guest that is not `wanted` may start over.
    ///
    /// # Errors
    ///
    /// As [`Vm::wait_for`].
    pub fn wait_ready(&mut self, ssh: Option<u16>, wanted: impl Fn(&Ready) -> bool) -> Result<Option<Ready>> {
        self.watch.tell(|heard| heard.resets = Some(0));
        if let Some(port) = ssh {
            let watch = self.watch.clone();
            std::thread::spawn(move || ask_ssh(port, &watch));
        }
        let heard = self.watch.wait(self.until, |heard| {
            let by_ssh = (heard.ssh_answers && !heard.port.speaks()).then(Ready::default);
            heard.port.ready().or(by_ssh).filter(&wanted)
        });
        self.watch.tell(|heard| (heard.resets, heard.waits_are_over) = (None, true));
        match heard {
            Ok(ready) => Ok(Some(ready)),
            Err(Ending::Ended) if self.child.wait().is_ok_and(|status| status.success()) => Ok(None),
            Err(ending) => {
                let far = self.watch.tell(|heard| match heard.port.speaks() {
                    true => "the system runs, and systemd still starts units",
                    false => {
                        "systemd 256 or later would have said that the system runs; else --ssh is needed, or --until"
                    }
                });
                Err(self.ended(ending).context(format!("the guest was never ready: {far}")))
            }
        }
    }
}

/// Tries the guest's ssh until it says its banner, or nobody waits any more. QEMU accepts connections at once; whether somebody
/// is behind that is known by the first word.
fn ask_ssh(port: u16, watch: &Watch) {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let banner = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&address, ATTEMPT)?;
        stream.set_read_timeout(Some(ATTEMPT))?;
        let mut word = [0; 4];
        stream.read_exact(&mut word)?;
        Ok(&word == b"SSH-")
    };
    loop {
        if banner().unwrap_or(false) {
            watch.tell(|heard| heard.ssh_answers = true);
            return;
        }
        let over = |heard: &mut super::watch::Heard| heard.waits_are_over.then_some(());
        if watch.wait(Some(Instant::now() + PAUSE), over) != Err(Ending::Deadline) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_says_how_far_it_is_at_every_start() {
        let mut port = Port::default();
        let mut hear = |lines: &[&str]| {
            lines.iter().for_each(|line| port.line(line));
            (port.speaks(), port.ready().map(|ready| ready.to_string()))
        };
        assert_eq!(hear(&[]), (false, None));
        assert_eq!(hear(&["started root=x composefs=y"]), (true, None));
        let degraded = "the machine is degraded: a.service, b.timer failed";
        assert_eq!(
            hear(&["state degraded", "failed a.service", "failed b.timer", "ready"]),
            (true, Some(degraded.to_owned()))
        );
        assert_eq!(hear(&["started root=x composefs=z"]), (true, None), "it has started again");
        let running = Some("the machine is ready: systemd says running");
        assert_eq!(hear(&["state running", "ready"]).1.as_deref(), running);
        let wherever =
            ["started x", "state degraded", "failed a.service", "started x", "failed b.service", "started x"];
        assert_eq!(hear(&wherever), (true, None), "it was stopped at any moment");
        assert_eq!(hear(&["state running", "ready"]).1.as_deref(), running);
        assert_eq!(Ready::default().to_string(), "the machine is ready: its ssh answers");
    }
}
