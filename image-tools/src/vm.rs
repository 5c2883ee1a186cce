//! A machine in QEMU: started, listened to, talked to, ended. Everything waits for what the guest says, for an answer of
//! QEMU, or for the end of the process; and whatever stops the machine ends each wait, with what QEMU says of it.

pub mod accel;
mod console;
mod guest;
mod machine;
mod qemu;
mod qmp;
pub mod ready;
mod saved;
mod watch;

use std::{
    os::unix::net::UnixListener,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use serde_json::json;
use xshell::{Shell, cmd};

pub use self::machine::{Asks, Changes, Firmware, Machine, Network, Panic, Show};
use self::{
    accel::{Accel, Taken},
    qmp::Qmp,
    saved::Saved,
    watch::{Ending, Watch},
};
use crate::program;

/// How long a program that is asked to end is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// A running machine; it ends with this value.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    reader: Option<JoinHandle<()>>,
    watch: Watch,
    qmp: Qmp,
    /// What runs it.
    pub accel: Taken,
    until: Option<Instant>,
    timeout: Option<Duration>,
    _terminal: Option<console::Terminal>,
    _scratch: tempfile::TempDir,
    _life: tracing::Span,
}

impl Vm {
    /// Starts the machine, or lets a saved one go on.
    ///
    /// # Errors
    ///
    /// When QEMU is missing, too old, does not start, or does not know what was saved: with what it said.
    pub fn start(machine: &Machine) -> Result<Self> {
        let taken = match &machine.resume {
            None => accel::choose(&machine.accel, machine.arch)?,
            Some(state) => accel::choose_again(Saved::read(state)?.accelerator, &machine.accel, machine.arch)
                .with_context(|| format!("going on from {}", state.display()))?,
        };
        let mut vm = Self::launch(taken, (&machine.log, machine.show), machine.timeout, |accel, scratch| {
            qemu::command(machine, accel, scratch)
        })?;
        if let Some(state) = &machine.resume {
            let resumed = vm.migrate("migrate-incoming", state);
            resumed.map_err(|error| vm.told(error)).with_context(|| format!("going on from {}", state.display()))?;
        }
        Ok(vm)
    }

    /// Starts what `command` says, without a disk, a log, or an end of its own.
    fn firmware(command: impl FnOnce(&Path) -> Result<Command>) -> Result<Self> {
        let taken = Taken { accelerator: Accel::Kvm, why_not_kvm: None };
        Self::launch(taken, (Path::new("/dev/null"), Show::Nothing), None, |_, scratch| command(scratch))
    }

    fn launch(
        accel: Taken,
        (log, show): (&Path, Show),
        timeout: Option<Duration>,
        command: impl FnOnce(Accel, &Path) -> Result<Command>,
    ) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("vm-").tempdir()?;
        let mut command = command(accel.accelerator, scratch.path())?;
        let terminal = (show == Show::Interactive).then(console::Terminal::keep).flatten();
        let stdin = if show == Show::Interactive { Stdio::inherit() } else { Stdio::null() };
        command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let socket = scratch.path().join("qmp");
        let listener = UnixListener::bind(&socket).with_context(|| format!("listening at {}", socket.display()))?;
        let words = scratch.path().join(guest::PORT);
        let words = UnixListener::bind(&words).with_context(|| format!("listening at {}", words.display()))?;
        let life = tracing::info_span!("machine", ?command);
        life.in_scope(|| tracing::info!("started"));
        let mut child = command.spawn().map_err(|error| program::not_started(qemu::STARTER, error))?;
        let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let watch = Watch::default();
        let reader = console::read(&mut child, log, show, &watch)?;
        // QEMU has made its other connections before it answers.
        let answered = Qmp::accept(&listener, &child, &watch, until);
        match answered.and_then(|qmp| ready::listen(&words, &watch).map(|()| qmp)) {
            Ok(qmp) => Ok(Self {
                child,
                reader: Some(reader),
                watch,
                qmp,
                accel,
                until,
                timeout,
                _terminal: terminal,
                _scratch: scratch,
                _life: life,
            }),
            Err(error) => {
                _ = child.kill();
                _ = child.wait();
                _ = reader.join();
                Err(error.context(watch.tell(|heard| heard.complaints.trim().to_owned())))
            }
        }
    }

    /// Waits until the guest has said `text` on its console since the last call.
    ///
    /// # Errors
    ///
    /// When the machine ends, stops, starts over and over again, or has no time left: says which, with the console's last
    /// lines.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        self.watch.tell(|heard| heard.resets = Some(0));
        let heard = self.watch.wait(self.until, |heard| heard.has_said(text).then_some(()));
        // Whoever works with the guest may restart it.
        self.watch.tell(|heard| heard.resets = None);
        heard.map_err(|ending| self.ended(ending).context(format!("the guest never said {text:?}")))
    }

    /// Waits for anything on the console; else says why there is nothing, and how that ended.
    fn wait_for_any_word(mut self, until: Instant) -> Result<(), (Ending, Error)> {
        let spoken = self.watch.wait(Some(until), |heard| heard.has_spoken().then_some(()));
        spoken.map_err(|ending| (ending.clone(), self.ended(ending)))
    }

    /// Presses the power button until the machine is off: a guest that is still starting does not hear it.
    ///
    /// # Errors
    ///
    /// As [`Vm::wait_off`].
    pub fn power_down(mut self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(3);
        loop {
            let pressed = self.qmp.execute("system_powerdown", json!({}));
            let soon = Instant::now() + PATIENCE;
            let until = self.until.map_or(soon, |until| until.min(soon));
            match self.watch.wait(Some(until), |heard| heard.has_ended().then_some(())) {
                Err(Ending::Deadline) if self.until.is_none_or(|until| until > Instant::now()) => {
                    pressed.context("pressing the power button")?;
                }
                _ => return self.wait_off(),
            }
        }
    }

    /// Saves the running machine in the file `state`, and ends it. On its disk as it is now, or a copy, and with the same
    /// memory and processors, another one can go on from there ([`Machine::resume`]), as often as one likes. The file is
    /// there when it is whole.
    ///
    /// # Errors
    ///
    /// With what QEMU says.
    pub fn save(mut self, state: &Path) -> Result<()> {
        let saving = || format!("saving the machine in {}", state.display());
        let dir = state.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut part = tempfile::NamedTempFile::new_in(dir).with_context(saving)?;
        Saved { accelerator: self.accel.accelerator }.write(part.as_file_mut()).with_context(saving)?;
        self.migrate("migrate", part.path()).with_context(saving)?;
        self.qmp.execute("quit", json!({}))?;
        self.wait_off()?;
        part.persist(state).with_context(saving)?;
        Ok(())
    }

    /// Waits until the machine is off.
    ///
    /// # Errors
    ///
    /// When QEMU failed, or the machine stopped instead, or has no time left: says which, with what QEMU said.
    pub fn wait_off(mut self) -> Result<()> {
        match self.watch.wait(self.until, |heard| (heard.has_ended() && heard.trouble.is_none()).then_some(())) {
            Ok(()) | Err(Ending::Ended) => {}
            Err(ending) => return Err(self.ended(ending)),
        }
        let status = self.child.wait().context("waiting for QEMU")?;
        self.finish();
        let complaints = self.watch.tell(|heard| heard.complaints.trim().to_owned());
        ensure!(status.success(), "QEMU failed ({status}): {complaints}");
        Ok(())
    }

    /// Runs a program of the host while the guest runs; it finds the guest's ssh in `GUEST_PORT`, and `more` there.
    ///
    /// # Errors
    ///
    /// When it cannot be started, and when the machine stops before it ends: then the program is ended.
    pub fn run(
        &mut self,
        program: &Path,
        arguments: &[String],
        machine: &Machine,
        more: &[(&str, String)],
    ) -> Result<ExitStatus> {
        let shell = Shell::new()?;
        let command = cmd!(shell, "{program} {arguments...}").env("GUEST_PORT", machine.ssh.unwrap_or(0).to_string());
        let command = command.envs(more.iter().map(|(name, value)| (*name, value)));
        let child = Command::from(command).spawn().with_context(|| format!("starting {}", program.display()))?;
        self.watch.tell(|heard| heard.program_ended = false);
        let pid = rustix::process::Pid::from_child(&child);
        let watch = self.watch.clone();
        let waiting = std::thread::spawn(move || {
            let mut child = child;
            let status = child.wait();
            watch.tell(|heard| heard.program_ended = true);
            status
        });
        let ended = match self.watch.wait(self.until, |heard| heard.program_ended.then_some(())) {
            Ok(()) => None,
            // A guest that is powered off by the program is no trouble: the program goes on. A QEMU that fails is.
            Err(Ending::Ended) if self.child.wait().is_ok_and(|status| status.success()) => {
                self.watch.ended_program(self.until).err()
            }
            Err(ending) => Some(ending),
        };
        if ended.is_some() {
            _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            if self.watch.ended_program(Some(Instant::now() + PATIENCE)).is_err() {
                _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let status = waiting.join().map_err(|_| anyhow!("waiting for {}", program.display()))?;
        match ended {
            Some(ending) => Err(self.ended(ending).context(format!("{} was ended", program.display()))),
            None => status.with_context(|| format!("waiting for {}", program.display())),
        }
    }

    /// To QEMU, a saved machine is one on its way to another host.
    fn migrate(&mut self, command: &str, state: &Path) -> Result<()> {
        let file = json!({ "transport": "file", "filename": state, "offset": saved::OFFSET });
        let capabilities = json!({ "capabilities": [{ "capability": "events", "state": true }] });
        self.watch.tell(|heard| heard.stop_is_wanted = true);
        self.qmp.execute("migrate-set-capabilities", capabilities)?;
        self.qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }))?;
        self.qmp.execute(command, json!({ "channels": [{ "channel-type": "main", "addr": file }] }))?;
        loop {
            let event = self.watch.wait(self.until, |heard| heard.migration.pop_front());
            match event.map_err(|ending| self.ended(ending))?["status"].as_str() {
                Some("completed") => break,
                Some("failed") => {
                    // On the way in it ends at once, and its last words say why.
                    let why = self.qmp.execute("query-migrate", json!({})).unwrap_or_default();
                    bail!("{}", why["error-desc"].as_str().unwrap_or("QEMU has refused it"));
                }
                _ => {}
            }
        }
        if command == "migrate-incoming" {
            self.watch.tell(|heard| heard.stop_is_wanted = false);
            let state = self.qmp.execute("query-status", json!({}))?;
            let state = state["status"].as_str().unwrap_or("unknown");
            ensure!(state == "running", "the machine did not run when it was saved ({state}): save another one");
        }
        Ok(())
    }

    /// Ends the machine; the error says why it is no good, and has the console's last words.
    pub fn last_words(mut self, why: &str) -> Error {
        let tail = self.watch.tell(|heard| heard.tail());
        _ = self.child.kill();
        _ = self.child.wait();
        self.finish();
        anyhow!("{why}\nthe console's last words:\n{tail}")
    }

    /// What there is to say of a machine that does not go on: why, QEMU's state and words, the console's last lines.
    fn ended(&mut self, ending: Ending) -> Error {
        let mut story = match &ending {
            Ending::Trouble(trouble) => trouble.to_string(),
            Ending::Ended => match self.child.wait() {
                Ok(status) if !status.success() => format!("QEMU failed ({status})"),
                _ => "the machine is off".to_owned(),
            },
            Ending::Deadline => {
                let minutes = self.timeout.unwrap_or_default().as_secs_f64() / 60.0;
                format!("the machine is not done after {minutes:.1} minutes (--timeout)")
            }
        };
        if ending != Ending::Ended
            && let Ok(state) = self.qmp.execute("query-status", json!({}))
        {
            story += &format!("; QEMU's state: {}", state["status"].as_str().unwrap_or("unknown"));
        }
        // A machine that is stopped says nothing more, and one that has ended has said it all.
        _ = self.child.kill();
        _ = self.child.wait();
        self.finish();
        let (complaints, tail) = self.watch.tell(|heard| (heard.complaints.trim().to_owned(), heard.tail()));
        if !complaints.is_empty() {
            story += &format!("\nQEMU said:\n{complaints}");
        }
        anyhow!("{story}\nthe console's last words:\n{tail}")
    }

    /// The error with what QEMU complained about.
    fn told(&mut self, error: Error) -> Error {
        _ = self.child.kill();
        _ = self.child.wait();
        self.finish();
        let complaints = self.watch.tell(|heard| heard.complaints.trim().to_owned());
        if complaints.is_empty() { error } else { error.context(complaints) }
    }

    /// Waits for the end of console and complaints.
    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            _ = reader.join();
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
