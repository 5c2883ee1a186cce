//! What a guest is told when it starts: systemd's system credentials, which QEMU passes as SMBIOS strings of type 11
//! (systemd.system-credentials(7), and systemd's CREDENTIALS document: `io.systemd.credential.binary:NAME=BASE64`).

use anyhow::{Context, Result};
use base64::{Engine, engine::general_purpose::STANDARD};

use super::{Asks, Machine, Show};

/// The name of the port at which the guest says how far it is.
pub const PORT: &str = "image-tools";

/// Runs as soon as the guest has the port, in the system and not in the initramfs, where these credentials count too. It is no
/// part of any transaction, so that systemd is up before it has said so.
const READY: &str = include_str!("ready.service");

/// The unit pulls itself in by this, for no image enables it.
const WANTS: &str = "[Unit]\nWants=image-tools-ready.service\n";

/// What QEMU must pass on for `machine`, as values of `-smbios type=11`.
///
/// # Errors
///
/// When the key cannot be read.
pub fn credentials(machine: &Machine) -> Result<Vec<String>> {
    let mut all = vec![];
    if let Some(path) = &machine.authorized_key {
        let key = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let key = key.trim();
        // systemd-tmpfiles writes /root/.ssh/authorized_keys (`provision.conf`, since systemd 252).
        all.push(credential("ssh.authorized_keys.root", key));
        // Where sshd_config names this directory instead.
        let dir = "d /run/authorized_keys 0755 root root\n";
        all.push(credential("tmpfiles.extra", &format!("{dir}f /run/authorized_keys/root 0644 root root - {key}\n")));
    }
    if machine.asks == Asks::Systemd {
        // Since systemd 256 (systemd-debug-generator(8)); older ones ignore them.
        all.push(credential("systemd.extra-unit.image-tools-ready.service", READY));
        all.push(credential("systemd.unit-dropin.sysinit.target", WANTS));
    }
    if machine.show == Show::Interactive {
        // Of agetty(8) and login(1): whoever owns the terminal owns the machine.
        all.push(credential("agetty.autologin", "root"));
        all.push(credential("login.noauth", "yes"));
    }
    Ok(all)
}

fn credential(name: &str, value: &str) -> String {
    format!("io.systemd.credential.binary:{name}={}", STANDARD.encode(value))
}
