//! What people stumble over: directories that they write to, identities that all machines would share, and ssh.

use anyhow::Result;

use super::Looker;
use crate::store::At;

/// Directories that people write to, and where they are in /var, which is writable and outlives updates.
const WRITTEN: [(&str, &str, &str); 5] = [
    ("root", "var/roothome", "0700"),
    ("home", "var/home", "0755"),
    ("opt", "var/opt", "0755"),
    ("srv", "var/srv", "0755"),
    ("mnt", "var/mnt", "0755"),
];

/// Looks for all of them.
pub fn look(looker: &mut Looker<'_>) -> Result<()> {
    for (dir, to, mode) in WRITTEN {
        let remedy = format!(
            "RUN rm -rf /{dir} && ln -s {to} /{dir} && echo 'd /{to} {mode} root root' >>/usr/lib/tmpfiles.d/links.conf"
        );
        if !matches!(looker.at(dir)?, At::Link(_)) {
            looker.advise(format!("/{dir} is no link into /var"), ("nobody can write to it", &remedy));
        }
    }
    if !looker.read("etc/machine-id")?.trim_ascii().is_empty() {
        let why = "all machines would have the same identity";
        looker.advise("/etc/machine-id is not empty", (why, "RUN : >/etc/machine-id"));
    }
    if looker.at("var/lib/dpkg")? == At::Directory {
        let why = "it belongs to the image, and /var stays as it is when the image changes";
        let to = "/usr/lib/sysimage";
        let remedy = format!("RUN mkdir -p {to} && mv /var/lib/dpkg {to}/ && ln -s ../..{to}/dpkg /var/lib/dpkg");
        looker.advise("/var/lib/dpkg is in /var", (why, &remedy));
    }
    ssh(looker)
}

fn ssh(looker: &mut Looker<'_>) -> Result<()> {
    if !looker.has_file("usr/sbin/sshd")? {
        let why = "image-tools run and test work by ssh";
        looker.advise("there is no usr/sbin/sshd", (why, "RUN apt-get install -y openssh-server"));
        return Ok(());
    }
    let keys = looker.names("etc/ssh")?.iter().any(|name| name.starts_with("ssh_host_"));
    let dir = "/usr/lib/systemd/system/ssh.service.d";
    let made = format!(
        "RUN mkdir -p {dir} && printf '[Service]\\nExecStartPre=\\nExecStartPre=/usr/bin/ssh-keygen -A\\n' >{dir}/host-keys.conf"
    );
    if keys {
        let why = "all machines would have the same host keys";
        looker.advise("/etc/ssh has host keys", (why, &format!("RUN rm -f /etc/ssh/ssh_host_*\n{made}")));
    } else if !makes_keys(looker)? {
        looker.advise("no unit makes ssh host keys", ("sshd does not start without them", &made));
    }
    Ok(())
}

/// Whether some unit, or a part of one, runs ssh-keygen.
fn makes_keys(looker: &Looker<'_>) -> Result<bool> {
    for top in ["usr/lib/systemd/system", "etc/systemd/system"] {
        for name in looker.names(top)?.iter().filter(|name| name.contains("ssh")) {
            let at = format!("{top}/{name}");
            let inside = looker.names(&at)?.into_iter().map(|name| format!("{at}/{name}"));
            for file in inside.chain([at.clone()]) {
                if looker.read(&file)?.windows(10).any(|word| word == b"ssh-keygen") {
                    return Ok(true);
                }
            }
        }
    }
    Ok(false)
}
