//! The command line of QEMU.

use std::{
    fs::{self, File},
    io::Read,
    os::unix::fs::FileTypeExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xshell::cmd;

use super::{Changes, Firmware, Machine, Network, Panic, Show, accel::Accel, guest};
use crate::{
    arch::{Arch, Qemu, Secure},
    program,
};

/// By which QEMU ends with whoever has started it, however that ends.
pub const STARTER: &str = "setpriv";

/// The command that runs `machine`: console on standard output, QMP on the socket `qmp` below `scratch`.
///
/// # Errors
///
/// When the disk, the key or the firmware cannot be read, or QEMU is too old.
pub fn command(machine: &Machine, accel: Accel, scratch: &Path) -> Result<Command> {
    let qemu = &machine.arch.qemu;
    check_version(qemu)?;
    let vars = variables(qemu, machine.vars.as_deref(), scratch)?;
    let mut command = firmware((machine.arch, machine.firmware), accel, &vars, scratch)?;
    // With its monitor on the same terminal, behind Ctrl-A.
    command.args(["-serial", if machine.show == Show::Interactive { "mon:stdio" } else { "stdio" }]);
    command.args(["-smp", &machine.processors.to_string(), "-m", &machine.memory.to_string()]);
    command.args(["-device", "virtio-rng-pci"]);
    // Always there, so that saved machines are alike.
    command.arg("-chardev").arg(format!("socket,id=words,path={},server=off", scratch.join(guest::PORT).display()));
    command.args(["-device", "virtio-serial-pci", "-device"]);
    command.arg(format!("virtserialport,chardev=words,name={}", guest::PORT));
    if let Some(socket) = &machine.monitor {
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
    }
    command.arg("-blockdev").arg(disk(machine, scratch)?.to_string());
    // A guest must not be told of the host's troubles: whatever it makes of them is no result.
    command.args(["-device", "virtio-blk-pci,drive=disk,bootindex=1,werror=stop,rerror=stop"]);
    if let Some(port) = machine.ssh {
        // Without its option ROM: nobody boots from the network.
        command.args(["-device", "virtio-net-pci,netdev=net,romfile=", "-netdev"]);
        let reached = machine.reach.map_or_else(String::new, reach);
        let restrict = if machine.network == Network::Open { "off" } else { "on" };
        command.arg(format!("user,id=net,restrict={restrict},hostfwd=tcp:127.0.0.1:{port}-:22{reached}"));
    }
    for value in guest::credentials(machine)? {
        command.arg("-smbios").arg(format!("type=11,value={value}"));
    }
    if machine.panic == Panic::GoesOn {
        command.args(["-action", "panic=none"]);
    }
    if machine.resume.is_some() {
        command.args(["-incoming", "defer"]);
    }
    Ok(command)
}

/// Where the guest finds the port of this machine that it may reach.
pub const REACHED: &str = "10.0.2.100:5000";

/// What leads the guest from there to `port` of 127.0.0.1: QEMU itself would serve one connection only, and none after a reboot.
fn reach(port: u16) -> String {
    let program = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{port}; {{ cat <&3; kill $$; }} & cat >&3'");
    format!(",guestfwd=tcp:{REACHED}-cmd:{program}")
}

/// The firmware alone under KVM: what asks whether KVM works.
///
/// # Errors
///
/// As [`command`].
pub fn firmware_under_kvm(arch: &Arch, scratch: &Path) -> Result<Command> {
    let qemu = &arch.qemu;
    check_version(qemu)?;
    let vars = variables(qemu, None, scratch)?;
    let mut command = firmware((arch, Firmware::Open), Accel::Kvm, &vars, scratch)?;
    command.args(["-serial", "stdio"]);
    Ok(command)
}

/// A machine without anything but firmware, console and monitor.
fn firmware((arch, kind): (&Arch, Firmware), accel: Accel, vars: &Path, scratch: &Path) -> Result<Command> {
    let qemu = &arch.qemu;
    let secure = if kind == Firmware::SecureBoot { Some(secure(arch)?) } else { None };
    let (accel, processor) = match accel {
        Accel::Kvm => ("kvm", "host"),
        Accel::Tcg => ("tcg,thread=multi", qemu.processor),
    };
    let file_of_code = file(Path::new(secure.map_or(qemu.firmware, |secure| secure.firmware)));
    let code = json!({ "driver": "raw", "node-name": "code", "read-only": true, "file": file_of_code }).to_string();
    let vars = json!({ "driver": format_of(vars)?, "node-name": "vars", "file": file(vars) }).to_string();
    // The guest's kernel can say by `panic` that it has panicked.
    let Qemu { program, machine, panic, .. } = qemu;
    let (shell, qmp) = (program::shell()?, scratch.join("qmp"));
    let machine = secure.map_or_else(|| (*machine).to_owned(), |secure| format!("{machine},{}", secure.machine));
    let globals = secure.map_or(&[][..], |secure| secure.globals).iter().flat_map(|global| ["-global", global]);
    let command = cmd!(
        shell,
        "{STARTER} --pdeathsig KILL {program} -machine {machine},pflash0=code,pflash1=vars
         -nodefaults -no-user-config -display none -accel {accel} -cpu {processor} -device {panic}
         -qmp unix:{qmp},server=off -blockdev {code} -blockdev {vars}"
    );
    Ok(command.args(globals).into())
}

/// What the machine needs for Secure Boot.
fn secure(arch: &Arch) -> Result<&Secure> {
    let secure = arch.qemu.secure.as_ref();
    let secure =
        secure.with_context(|| format!("booting with Secure Boot: no firmware is known for {arch} that has it"))?;
    is_there(secure, arch.qemu.firmware_package).map(|()| secure)
}

fn is_there(secure: &Secure, package: &str) -> Result<()> {
    let opening = || format!("opening {}, the firmware with Secure Boot: install {package}", secure.firmware);
    File::open(secure.firmware).with_context(opening).map(drop)
}

/// The node `disk`: the image, an overlay that is dropped, or the image with a log of its writes.
fn disk(machine: &Machine, scratch: &Path) -> Result<Value> {
    let image = fs::canonicalize(&machine.disk).with_context(|| format!("opening {}", machine.disk.display()))?;
    let format = format_of(&image)?;
    let mut node = json!({ "driver": format, "discard": "unmap", "file": file(&image) });
    if machine.changes == Changes::Drop {
        let overlay = scratch.join("overlay.qcow2");
        let shell = program::shell()?;
        program::run(cmd!(shell, "qemu-img create -q -f qcow2 -F {format} -b {image} {overlay}"))?;
        node = json!({ "driver": "qcow2", "file": file(&overlay) });
    }
    if let Some(log) = &machine.write_log {
        File::create(log).with_context(|| format!("creating {}", log.display()))?;
        node = json!({ "driver": "blklogwrites", "file": node, "log": file(log) });
    }
    node["node-name"] = json!("disk");
    Ok(node)
}

fn file(path: &Path) -> Value {
    json!({ "driver": "file", "filename": path })
}

/// The firmware's variables: the given file, made from the firmware's own at first; without one, a copy for this run.
fn variables(qemu: &Qemu, given: Option<&Path>, scratch: &Path) -> Result<PathBuf> {
    let path = given.map_or_else(|| scratch.join("vars"), Path::to_owned);
    if !path.exists() {
        let (from, package) = (qemu.variables, qemu.firmware_package);
        fs::copy(from, &path).with_context(|| format!("copying {from}: is {package} installed?"))?;
    }
    Ok(path)
}

/// `raw`, or `qcow2` by its magic.
fn format_of(path: &Path) -> Result<&'static str> {
    let mut magic = [0; 4];
    let found = fs::metadata(path).with_context(|| format!("opening {}", path.display()))?.file_type();
    let is_disk = found.is_file() || found.is_block_device();
    ensure!(is_disk, "opening {}: a disk is a file or a block device", path.display());
    let mut image = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let is_qcow2 = image.read_exact(&mut magic).is_ok() && &magic == b"QFI\xfb";
    Ok(if is_qcow2 { "qcow2" } else { "raw" })
}

/// QEMU 7 corrupts flags under TCG: its guests crash at random. Files of saved machines came with 8.2.
fn check_version(qemu: &Qemu) -> Result<()> {
    let (shell, program) = (program::shell()?, qemu.program);
    let said = program::run(cmd!(shell, "{program} --version"))?;
    let version = said.split("version ").nth(1).and_then(|rest| rest.split('.').next()).unwrap_or_default();
    let major: u32 = version.parse().unwrap_or(0);
    ensure!(major >= 9, "QEMU {version} is too old, 9 is needed: install it from Debian's backports");
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    #[test]
    fn firmware_that_is_not_installed_is_named_with_its_package() {
        let secure = Secure { machine: "smm=on", globals: &[], firmware: "/nowhere/secboot.fd" };
        let said = is_there(&secure, "ovmf").unwrap_err().to_string();
        assert_eq!(said, "opening /nowhere/secboot.fd, the firmware with Secure Boot: install ovmf");
    }
}
