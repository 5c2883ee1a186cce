//! Runs the well-kept programs: in the words in which one would type them ([`xshell::cmd`]), with what they say in the
//! error.

use std::{
    io::{self, Write},
    os::fd::AsFd,
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Result};
use xshell::{Cmd, Shell};

use crate::arch;

/// Which package of Debian has a program, where that has another name.
const PACKAGES: &[(&str, &str)] = &[
    ("debugfs", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("e2undo", "e2fsprogs"),
    ("fsck.fat", "dosfstools"),
    ("grub-fstest", "grub-common"),
    ("grub-script-check", "grub-common"),
    ("mcopy", "mtools"),
    ("mdir", "mtools"),
    ("mkfs.vfat", "dosfstools"),
    ("mkfs.xfs", "xfsprogs"),
    ("mke2fs", "e2fsprogs"),
    ("mmd", "mtools"),
    ("mmove", "mtools"),
    ("mshowfat", "mtools"),
    ("mtype", "mtools"),
    ("qemu-img", "qemu-utils"),
    ("setpriv", "util-linux"),
    ("sbsiglist", "sbsigntool"),
    ("sbsign", "sbsigntool"),
    ("sbvarsign", "sbsigntool"),
    ("sbverify", "sbsigntool"),
    ("ssh-keygen", "openssh-client"),
    ("ukify", "systemd-ukify"),
    ("unshare", "util-linux"),
    ("xfs_db", "xfsprogs"),
    ("xfs_repair", "xfsprogs"),
];

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there.
    #[error("{name} not found in PATH or /usr/sbin: is it installed?{}", package(name))]
    Missing {
        /// Its name.
        name: String,
    },
    /// It was started, and has failed.
    #[error("{name} failed ({how}): {said}")]
    Failed {
        /// Its name.
        name: String,
        /// Its exit status.
        how: String,
        /// Its own words.
        said: String,
    },
}

fn package(name: &str) -> String {
    let machines = arch::TABLE.iter().map(|arch| (arch.qemu.program, arch.qemu.package));
    let found = PACKAGES.iter().copied().chain(machines).find(|(program, _)| *program == name);
    found.map_or_else(String::new, |(_, package)| format!(" The package is {package}"))
}

/// Where programs are run from: this directory, /usr/sbin searched too.
pub fn shell() -> Result<Shell> {
    let shell = Shell::new()?;
    let path = shell.var_os("PATH").unwrap_or_default();
    shell.set_var("PATH", format!("{}:/usr/sbin:/sbin", path.to_string_lossy()));
    Ok(shell)
}

/// Runs a program to its end; returns what it printed.
///
/// # Errors
///
/// When it cannot be started or fails: names it, with what it said.
pub fn run(cmd: Cmd<'_>) -> Result<String> {
    feed(cmd, |_| Ok(()))
}

/// Runs a program, and feeds its standard input by `feed`.
pub fn feed(cmd: Cmd<'_>, feed: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<String> {
    let name = name(&cmd);
    let (output, fed) = finish(cmd, feed)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Failed { name, how: output.status.to_string(), said }.into());
    }
    fed.with_context(|| format!("writing to {name}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a program that people want to see at work: what it says goes to standard error as it comes.
///
/// # Errors
///
/// When it cannot be started or fails: names it.
pub fn aloud(cmd: Cmd<'_>) -> Result<()> {
    let _span = tracing::info_span!("program", command = %cmd).entered();
    let name = name(&cmd);
    let said = io::stderr().as_fd().try_clone_to_owned().context("writing to standard error")?;
    let status = Command::from(cmd).stdin(Stdio::null()).stdout(said).status();
    let status = status.map_err(|error| not_started(&name, error))?;
    anyhow::ensure!(status.success(), "{name} failed ({status})");
    Ok(())
}

/// Runs a program whose exit status and words mean something to the caller.
pub fn output(cmd: Cmd<'_>) -> Result<Output> {
    answer(cmd, |_| Ok(()))
}

/// The same, for a program that is fed, and may end before it has read all of that.
pub fn answer(cmd: Cmd<'_>, feed: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Output> {
    Ok(finish(cmd, feed)?.0)
}

/// What a program printed, and whether it could be fed.
fn finish(cmd: Cmd<'_>, feed: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<(Output, Result<()>)> {
    let span = tracing::info_span!("program", command = %cmd, ended = tracing::field::Empty).entered();
    let name = name(&cmd);
    let mut command = Command::from(cmd);
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.map_err(|error| not_started(&name, error))?;
    let stdin = child.stdin.take();
    // The program's own words are read while it is fed, or both would wait for each other.
    let (fed, output) = std::thread::scope(|scope| {
        let waiting = scope.spawn(move || Child::wait_with_output(child));
        let fed = match stdin {
            Some(stdin) => {
                let mut buffered = io::BufWriter::with_capacity(1 << 20, stdin);
                feed(&mut buffered).and_then(|()| Ok(buffered.flush()?))
            }
            None => Ok(()),
        };
        (fed, waiting.join())
    });
    let output =
        output.map_err(|_| anyhow::anyhow!("waiting for {name}"))?.with_context(|| format!("running {name}"))?;
    span.record("ended", tracing::field::display(output.status));
    Ok((output, fed))
}

/// The error of a program that could not be started.
pub fn not_started(name: &str, error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::Missing { name: name.to_owned() }.into(),
        _ => anyhow::Error::new(error).context(format!("starting {name}")),
    }
}

/// The first word of a command.
fn name(cmd: &Cmd<'_>) -> String {
    let words = cmd.to_string();
    words.split(' ').next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use xshell::cmd;

    use super::*;

    #[test]
    fn what_a_program_says_is_in_the_error() {
        let shell = shell().unwrap();
        let check = |cmd: Cmd<'_>, want: &str| assert_eq!(run(cmd).unwrap_err().to_string(), want);
        check(cmd!(shell, "sh -c 'echo no >&2; exit 4'"), "sh failed (exit status: 4): no");
        shell.set_var("PATH", "/nowhere");
        let missing = "mkfs.vfat not found in PATH or /usr/sbin: is it installed? The package is dosfstools";
        check(cmd!(shell, "mkfs.vfat x"), missing);
        check(cmd!(shell, "nobodys"), "nobodys not found in PATH or /usr/sbin: is it installed?");
    }

    #[test]
    fn a_program_is_fed_more_than_a_pipe_holds() {
        let shell = shell().unwrap();
        let fed = feed(cmd!(shell, "cat"), |stdin| Ok(stdin.write_all(&[b'x'; 1 << 20])?)).unwrap();
        assert_eq!(fed.len(), 1 << 20);
        let closed = feed(cmd!(shell, "true"), |stdin| Ok(stdin.write_all(&vec![b'x'; 8 << 20])?));
        assert!(closed.unwrap_err().to_string().starts_with("writing to true"));
    }
}
