//! Somebody's own image, tried out: a disk is built for the occasion, booted with a key for the occasion, and nothing is left.

pub mod containerfile;

use std::{net::TcpListener, path::PathBuf, time::Duration};

use anyhow::{Context, Result, bail, ensure};
use finalize::{cmdline::Target, digest::DeploymentId};
use tempfile::TempDir;
use xshell::cmd;

use self::containerfile::Source;
use crate::{
    arch::Arch,
    build::{self, Built, Request},
    inspect::Disk,
    oci::Reference,
    program,
    vm::{Asks, Changes, Firmware, Machine, Network, Panic, Show, Vm, accel::Asked, ready::Ready},
    workshop::Workshop,
};

/// What is tried, and in what machine.
#[derive(Debug)]
pub struct Trial {
    /// The image that is booted.
    pub image: Source,
    /// The update that is staged.
    pub stage: Option<Source>,
    /// What machine it is for; this one's architecture unless told.
    pub arch: &'static Arch,
    /// Which firmware it has.
    pub firmware: Firmware,
    /// Where the console is logged; nowhere that stays unless told.
    pub log: Option<PathBuf>,
    /// Whether it is shown.
    pub show: Show,
    /// The port of 127.0.0.1 that leads to the guest's ssh; any that is free unless told.
    pub ssh: Option<u16>,
    /// What the guest reaches.
    pub network: Network,
    /// What runs it.
    pub accel: Asked,
    /// How long it may live.
    pub timeout: Option<Duration>,
    /// Memory in MiB.
    pub memory: u32,
    /// How many processors it has.
    pub processors: u32,
}

/// A disk with the image, and the machine that boots it. Both go with this value.
#[derive(Debug)]
pub struct Own {
    /// What is on the disk.
    pub built: Built,
    /// The machine.
    pub machine: Machine,
    /// The private key that root's login takes.
    pub key: PathBuf,
    port: u16,
    _scratch: TempDir,
}

impl Own {
    /// Builds the disk: `request` says how, for the images of `trial`.
    ///
    /// # Errors
    ///
    /// When a Containerfile cannot be built, or the image does not boot: with everything that is missing.
    pub fn make(
        trial: Trial,
        request: impl FnOnce(Reference, Option<Reference>, PathBuf) -> Result<Request>,
        workshop: &Workshop,
    ) -> Result<Self> {
        let scratch = workshop.anywhere()?;
        let at = |name: &str| scratch.path().join(name);
        let image = trial.image.image(&at("image"))?;
        let stage = trial.stage.map(|stage| stage.image(&at("stage"))).transpose()?;
        let request = request(image, stage, at("disk"))?;
        let built = build::plan(request, workshop.anywhere()?, &workshop.runtime)?.write()?;
        let (shell, key) = (program::shell()?, at("key"));
        program::run(cmd!(shell, "ssh-keygen -q -t ed25519 -N '' -C image-tools -f {key}"))?;
        let port = match trial.ssh {
            Some(port) => port,
            None => free_port()?,
        };
        let machine = Machine {
            arch: trial.arch,
            disk: at("disk"),
            changes: Changes::Keep,
            write_log: None,
            vars: Some(at("vars")),
            firmware: trial.firmware,
            log: trial.log.unwrap_or_else(|| at("console.log")),
            show: trial.show,
            ssh: Some(port),
            authorized_key: Some(at("key.pub")),
            reach: None,
            network: trial.network,
            asks: Asks::Systemd,
            panic: Panic::Ends,
            resume: None,
            accel: trial.accel,
            timeout: trial.timeout,
            monitor: None,
            memory: trial.memory,
            processors: trial.processors,
        };
        Ok(Self { built, machine, key, port, _scratch: scratch })
    }

    /// What one types to log in; a command can follow.
    pub fn ssh(&self) -> String {
        let options =
            "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ConnectTimeout=60";
        format!("ssh -i {} -p {} {options} root@127.0.0.1", self.key.display(), self.port)
    }

    /// What a program of the host finds beside `GUEST_PORT`.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        [("GUEST_KEY", self.key.display().to_string()), ("GUEST_SSH", self.ssh())]
    }

    /// Boots, until the machine is ready; which deployment it has booted must be `wanted`.
    ///
    /// # Errors
    ///
    /// When it is never ready, with the console's last words, or has booted something else.
    pub fn boot(&self, wanted: &DeploymentId) -> Result<(Vm, Ready)> {
        let mut vm = Vm::start(&self.machine)?;
        let ready = vm.wait_ready(self.machine.ssh, |_| true)?.context("the machine was off before it was ready")?;
        let booted = match &ready.cmdline {
            Some(line) => line.clone(),
            None => {
                let (shell, ssh) = (program::shell()?, self.ssh());
                let ask = format!("exec {ssh} cat /proc/cmdline");
                program::run(cmd!(shell, "sh -c {ask}")).context("asking the guest what it has booted")?
            }
        };
        let booted = Target::find(&booted).map(|target| target.id);
        let is = booted.as_ref().map_or("no deployment", |id| id.short());
        if booted.as_ref() != Some(wanted) {
            let why = format!("the machine has booted {is}, not {}", wanted.short());
            return Err(vm.last_words(&why));
        }
        Ok((vm, ready))
    }

    /// Shuts the machine down, which finalizes the update, and looks on the disk whether it has.
    ///
    /// # Errors
    ///
    /// When the machine does not shut down, or would boot what it has booted before: with what the disk says of that.
    pub fn update(&self, vm: Vm, to: &DeploymentId) -> Result<()> {
        vm.power_down().context("shutting down with the update staged")?;
        let report = Disk::open(&self.machine.disk, Some(self.machine.arch))?.report()?;
        let first = report.entries.first().and_then(|entry| entry.deployment.clone());
        if first.as_ref() == Some(to) {
            return Ok(());
        }
        let record = match report.record {
            Some(record) => serde_json::to_string(&record)?,
            None => "nothing has tried to finalize it; is composefs-finalize.service enabled in the image?".to_owned(),
        };
        let tail = std::fs::read(&self.machine.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&tail).replace('\r', "");
        let lines: Vec<_> = tail.lines().collect();
        let tail = lines[lines.len().saturating_sub(40)..].join("\n");
        bail!("the shutdown did not finalize the update {}: {record}\nthe console's last words:\n{tail}", to.short());
    }
}

/// A port of 127.0.0.1 that nobody uses now.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("looking for a free port")?;
    let port = listener.local_addr().context("looking for a free port")?.port();
    ensure!(port != 0, "looking for a free port: there is none");
    Ok(port)
}
