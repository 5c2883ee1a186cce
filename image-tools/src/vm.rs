//! A machine in QEMU: started, listened to, talked to, ended. Nothing waits for time; everything waits for what the
//! guest says, for an answer of QEMU, or for the end of the process.

pub mod console;
pub mod qemu;
pub mod qmp;

use std::{
    os::unix::net::UnixListener,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use wait_timeout::ChildExt;

use self::{console::Console, qmp::Qmp};

/// What to boot, and how.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The disk image, raw or qcow2.
    pub disk: PathBuf,
    /// Whether the disk keeps what the guest writes.
    pub changes: Changes,
    /// Where all of its writes and flushes are logged; for raw disks.
    pub write_log: Option<PathBuf>,
    /// The firmware's variables, kept between boots; made when it is not there.
    pub vars: Option<PathBuf>,
    /// Where the console is logged.
    pub log: PathBuf,
    /// Whether the console is shown.
    pub show: Show,
    /// The port of the loopback address that leads to the guest's ssh.
    pub ssh: Option<u16>,
    /// The public key that may log in as root.
    pub authorized_key: Option<PathBuf>,
    /// The saved machine to go on from, see [`Vm::save`].
    pub resume: Option<PathBuf>,
    /// Memory in MiB.
    pub memory: u32,
    /// How many processors it has.
    pub processors: u32,
}

/// What becomes of the guest's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Changes {
    /// They are in the disk image.
    Keep,
    /// They are gone when the machine is.
    Drop,
}

/// Whether the console goes to standard output as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// It does.
    Terminal,
    /// It is only logged.
    Nothing,
}

/// A running machine; it ends with this value.
#[derive(Debug)]
pub struct Vm {
    child: Child,
    console: Console,
    qmp: Qmp,
    _scratch: tempfile::TempDir,
}

impl Vm {
    /// Starts the machine, or lets a saved one go on.
    ///
    /// # Errors
    ///
    /// When QEMU is missing, too old, does not start, or does not know what was saved: with what it said.
    pub fn start(machine: &Machine) -> Result<Self> {
        if let Some(state) = machine.resume.as_ref().filter(|state| !state.exists()) {
            bail!("going on from {}: there is no such file: save a machine first", state.display());
        }
        let scratch = tempfile::Builder::new().prefix("vm-").tempdir()?;
        let mut command = qemu::command(machine, scratch.path())?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let socket = scratch.path().join("qmp");
        let listener = UnixListener::bind(&socket).with_context(|| format!("listening at {}", socket.display()))?;
        let mut child = command.spawn().context("starting qemu-system-x86_64: is it installed?")?;
        let mut console = Console::read(&mut child, &machine.log, machine.show)?;
        let resumed = Qmp::accept(&listener, &child).and_then(|mut qmp| {
            if let Some(state) = &machine.resume {
                migrate(&mut qmp, "migrate-incoming", state)
                    .with_context(|| format!("going on from {}", state.display()))?;
            }
            Ok(qmp)
        });
        match resumed {
            Ok(qmp) => Ok(Self { child, console, qmp, _scratch: scratch }),
            Err(error) => {
                _ = child.kill();
                _ = child.wait();
                console.finish();
                Err(error.context(console.errors()))
            }
        }
    }

    /// Waits until the guest has said `text` on its console since the last call.
    ///
    /// # Errors
    ///
    /// When the machine ends without having said it: shows its last lines.
    pub fn wait_for(&mut self, text: &str) -> Result<()> {
        let heard = self.console.wait_for(text);
        ensure!(heard, "the guest never said {text:?}; its last words:\n{}", self.console.tail());
        Ok(())
    }

    /// Presses the power button until the machine is off: a guest that is still starting does not hear it.
    ///
    /// # Errors
    ///
    /// When QEMU does not answer, or failed: with what it said.
    pub fn power_down(mut self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(3);
        while self.child.wait_timeout(Duration::ZERO)?.is_none() {
            let pressed = self.qmp.execute("system_powerdown", json!({}));
            match self.child.wait_timeout(PATIENCE)? {
                None => _ = pressed.context("pressing the power button")?,
                Some(_) => break,
            }
        }
        self.wait_off()
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
        let part = tempfile::NamedTempFile::new_in(dir).with_context(saving)?;
        migrate(&mut self.qmp, "migrate", part.path()).with_context(saving)?;
        self.qmp.execute("quit", json!({}))?;
        self.wait_off()?;
        part.persist(state).with_context(saving)?;
        Ok(())
    }

    /// Waits until the machine is off.
    ///
    /// # Errors
    ///
    /// When QEMU failed: with what it said.
    pub fn wait_off(mut self) -> Result<()> {
        let status = self.child.wait().context("waiting for QEMU")?;
        self.console.finish();
        ensure!(status.success(), "QEMU failed ({status}): {}", self.console.errors());
        Ok(())
    }

    /// Runs a program of the host while the guest runs; it finds the guest's ssh in `GUEST_PORT`.
    ///
    /// # Errors
    ///
    /// When it cannot be started.
    pub fn run(&self, program: &Path, arguments: &[String], machine: &Machine) -> Result<ExitStatus> {
        let mut command = Command::new(program);
        command.args(arguments).env("GUEST_PORT", machine.ssh.unwrap_or(0).to_string());
        command.status().with_context(|| format!("starting {}", program.display()))
    }
}

/// To QEMU, a saved machine is one on its way to another host.
fn migrate(qmp: &mut Qmp, command: &str, state: &Path) -> Result<()> {
    let file = json!({ "transport": "file", "filename": state, "offset": 0 });
    qmp.execute("migrate-set-capabilities", json!({ "capabilities": [{ "capability": "events", "state": true }] }))?;
    qmp.execute("migrate-set-parameters", json!({ "max-bandwidth": 1u64 << 40 }))?;
    qmp.execute(command, json!({ "channels": [{ "channel-type": "main", "addr": file }] }))?;
    loop {
        match qmp.event("MIGRATION")?["status"].as_str() {
            Some("completed") => return Ok(()),
            Some("failed") => {
                // On the way in it ends at once, and its last words say why.
                let why = qmp.execute("query-migrate", json!({})).unwrap_or_default();
                bail!("{}", why["error-desc"].as_str().unwrap_or("QEMU has refused it"));
            }
            _ => {}
        }
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
