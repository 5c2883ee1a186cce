//! `boot`: a disk image in QEMU, and a program of the host that works with it.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;
use finalize::{cmdline::Target, digest::DeploymentId};

use crate::{
    arch::Arch,
    inspect::machine,
    vm::{
        Asks, Changes, Firmware, Machine, Network, Panic, Show, Vm,
        accel::{self, Asked, Taken},
        ready::Ready,
    },
};

/// The machine as typed.
#[derive(Debug, Args)]
pub struct Boot {
    /// The disk image, raw or qcow2
    disk: PathBuf,
    /// The architecture; what the disk is for, as far as it tells, and else this machine's
    #[arg(long, value_parser = super::arch)]
    arch: Option<&'static Arch>,
    /// Drop what the guest writes
    #[arg(long)]
    snapshot: bool,
    /// Log all writes and flushes of the disk, as dm-log-writes does
    #[arg(long, value_name = "FILE")]
    write_log: Option<PathBuf>,
    /// The firmware's variables, kept between boots [default: new ones]
    #[arg(long, value_name = "FILE")]
    vars: Option<PathBuf>,
    /// Boot with Secure Boot; new variables have no keys, and systemd-boot enrols those of `build --secureboot-keys`
    #[arg(long)]
    secure_boot: bool,
    /// Where the console is logged
    #[arg(long, default_value = "console.log")]
    log: PathBuf,
    /// Do not show the console
    #[arg(long)]
    quiet: bool,
    /// The port of 127.0.0.1 that leads to the guest's ssh
    #[arg(long, value_name = "PORT")]
    ssh: Option<u16>,
    /// The public key that may log in as root
    #[arg(long, value_name = "FILE")]
    authorized_key: Option<PathBuf>,
    /// A port of 127.0.0.1 that the guest reaches as 10.0.2.100:5000, and nothing else: a registry, say
    #[arg(long, value_name = "PORT", requires = "ssh")]
    reach: Option<u16>,
    /// Memory in MiB
    #[arg(long, default_value_t = 1024)]
    memory: u32,
    /// How many processors the machine has
    #[arg(long, default_value_t = 2)]
    processors: u32,
    /// Go on from what --save saved, on the disk as it was then
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Save the machine in FILE when the guest is ready, and end
    #[arg(long, value_name = "FILE", conflicts_with = "program")]
    save: Option<PathBuf>,
    #[command(flatten)]
    limits: Limits,
    /// Print what ran the machine as JSON
    #[arg(long, requires = "quiet")]
    json: bool,
    /// A socket at which QEMU listens to others as well (QMP)
    #[arg(long, value_name = "SOCKET", hide = true)]
    monitor: Option<PathBuf>,
    /// What the guest says on its console when it is ready [default: that is systemd's to say, 256 or later, or with --ssh
    /// its ssh answers]
    #[arg(long, value_name = "TEXT")]
    until: Option<String>,
    /// The deployment that has to be booted then; while others boot, the guest may start over
    #[arg(long, value_name = "ID", conflicts_with = "until")]
    booted: Option<DeploymentId>,
    /// Let the guest go on when its kernel panics: it starts over, or hangs until --timeout
    #[arg(long)]
    may_panic: bool,
    /// A program to run when the guest is ready; then the power button is pressed. It finds the port in GUEST_PORT
    #[arg(last = true)]
    program: Vec<String>,
}

/// What runs a machine, and for how long.
#[derive(Debug, Clone, Args)]
pub struct Limits {
    /// What runs the guest: KVM where a guest runs under it, else QEMU's translator
    #[arg(long, value_enum, default_value = "auto", env = "IMAGE_TOOLS_ACCEL")]
    accel: accel::Wanted,
    /// Where it is remembered whether guests run under KVM (the XDG Base Directory Specification)
    #[arg(long, value_name = "DIR", env = "XDG_RUNTIME_DIR", hide = true)]
    runtime_dir: Option<PathBuf>,
    /// Seconds until the machine is given up [default: none on a terminal, else 900]
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

impl Limits {
    /// What runs the machine.
    pub fn accel(&self) -> Asked {
        Asked { wanted: self.accel, answers: self.runtime_dir.clone() }
    }

    /// When a machine is given up: somebody at a terminal sees it himself.
    pub fn timeout(&self) -> Option<Duration> {
        let unattended = (!std::io::stderr().is_terminal()).then_some(900);
        self.timeout.or(unattended).map(Duration::from_secs)
    }
}

impl Boot {
    /// Boots.
    ///
    /// # Errors
    ///
    /// When QEMU fails, or the guest ends before it is ready: with its last words.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode> {
        let waits = self.resume.is_none() && (self.save.is_some() || !self.program.is_empty());
        let asks = if waits && self.until.is_none() { Asks::Systemd } else { Asks::Nothing };
        let machine = Machine {
            arch: arch_of(&self.disk, self.arch)?,
            disk: self.disk,
            changes: if self.snapshot { Changes::Drop } else { Changes::Keep },
            write_log: self.write_log,
            vars: self.vars,
            firmware: if self.secure_boot { Firmware::SecureBoot } else { Firmware::Open },
            log: self.log,
            show: if self.quiet { Show::Nothing } else { Show::Terminal },
            ssh: self.ssh,
            authorized_key: self.authorized_key,
            reach: self.reach,
            network: Network::Restricted,
            asks,
            panic: if self.may_panic { Panic::GoesOn } else { Panic::Ends },
            resume: self.resume,
            accel: self.limits.accel(),
            timeout: self.limits.timeout(),
            monitor: self.monitor,
            memory: self.memory,
            processors: self.processors,
        };
        let wanted = match (self.until, self.booted) {
            (Some(text), _) => Wanted::Text(text),
            (None, booted) => Wanted::Ready(booted),
        };
        let mut vm = Vm::start(&machine)?;
        say(&vm.accel);
        if self.json {
            writeln!(out, "{}", serde_json::to_string(&vm.accel)?)?;
        }
        if let Some(state) = self.save {
            until(&mut vm, &wanted, machine.ssh)?;
            vm.save(&state)?;
            return Ok(ExitCode::SUCCESS);
        }
        let Some((program, arguments)) = self.program.split_first() else {
            vm.wait_off()?;
            return Ok(ExitCode::SUCCESS);
        };
        if machine.resume.is_none() {
            until(&mut vm, &wanted, machine.ssh)?;
        }
        let status = vm.run(program.as_ref(), arguments, &machine, &[])?;
        vm.power_down()?;
        Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
    }
}

/// What is waited for.
enum Wanted {
    /// These words on the console.
    Text(String),
    /// That the guest is ready; with this deployment, where one is named.
    Ready(Option<DeploymentId>),
}

fn until(vm: &mut Vm, wanted: &Wanted, ssh: Option<u16>) -> Result<()> {
    let is_it = |ready: &Ready, id: &DeploymentId| {
        ready.cmdline.as_deref().and_then(Target::find).is_some_and(|target| target.id == *id)
    };
    match wanted {
        Wanted::Text(text) => vm.wait_for(text),
        Wanted::Ready(id) => {
            let ready = vm.wait_ready(ssh, |ready| id.as_ref().is_none_or(|id| is_it(ready, id)))?;
            ready.map(drop).context("the machine was off before it was ready")
        }
    }
}

/// What a disk is booted on: what somebody says, what the disk tells, or what this machine is.
pub fn arch_of(disk: &Path, said: Option<&'static Arch>) -> Result<&'static Arch> {
    match said {
        Some(arch) => Ok(arch),
        None => Ok(machine::of_disk(disk)?.map_or_else(Arch::host, Ok)?),
    }
}

/// Says once what runs the guest.
pub fn say(taken: &Taken) {
    _ = writeln!(std::io::stderr(), "{taken}");
}
