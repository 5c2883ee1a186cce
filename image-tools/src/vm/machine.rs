//! A machine as it is asked for.

use std::{path::PathBuf, time::Duration};

use super::accel::Asked;
use crate::arch::Arch;

/// What to boot, and how.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The kind of machine.
    pub arch: &'static Arch,
    /// The disk image, raw or qcow2.
    pub disk: PathBuf,
    /// Whether the disk keeps what the guest writes.
    pub changes: Changes,
    /// Where all of its writes and flushes are logged; for raw disks.
    pub write_log: Option<PathBuf>,
    /// The firmware's variables, kept between boots; made when it is not there.
    pub vars: Option<PathBuf>,
    /// Which firmware it has.
    pub firmware: Firmware,
    /// Where the console is logged.
    pub log: PathBuf,
    /// Whether the console is shown.
    pub show: Show,
    /// The port of the loopback address that leads to the guest's ssh.
    pub ssh: Option<u16>,
    /// The public key that may log in as root.
    pub authorized_key: Option<PathBuf>,
    /// The port of 127.0.0.1 that the guest reaches, as 10.0.2.100:5000.
    pub reach: Option<u16>,
    /// What else it reaches.
    pub network: Network,
    /// How it says that it is ready.
    pub asks: Asks,
    /// What a panic of its kernel is.
    pub panic: Panic,
    /// The saved machine to go on from, see [`Vm::save`](super::Vm::save).
    pub resume: Option<PathBuf>,
    /// What runs it.
    pub accel: Asked,
    /// How long it may live; for ever where nothing is said.
    pub timeout: Option<Duration>,
    /// A socket at which QEMU listens to others as well (QMP).
    pub monitor: Option<PathBuf>,
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

/// What a machine starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Firmware {
    /// UEFI that starts everything.
    Open,
    /// UEFI that starts what is signed, once it has keys; new variables have none.
    SecureBoot,
}

/// What a guest with a network card reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Nothing but what leads to its ssh, and [`Machine::reach`].
    Restricted,
    /// What this machine reaches.
    Open,
}

/// What becomes of a guest whose kernel panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Panic {
    /// That is the end of it.
    Ends,
    /// Whatever its kernel does then (`panic=` on the command line): it starts over, or hangs.
    GoesOn,
}

/// What a guest is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// That systemd says when the system is up, see [`Vm::wait_ready`](super::Vm::wait_ready).
    Systemd,
    /// Nothing.
    Nothing,
}

/// Whether the console goes to standard output as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// It does.
    Terminal,
    /// It does, and root is logged in on it: what is typed here goes there. Ctrl-A X ends the machine.
    Interactive,
    /// It is only logged.
    Nothing,
}
