//! Running the well-kept programs: what they say is part of the error.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs a program to its end; returns what it printed.
///
/// # Errors
///
/// When it cannot be started or fails: names it, with what it said.
pub fn run(command: &mut Command) -> Result<String> {
    run_with(command, |_| Ok(()))
}

/// Runs a program, and feeds its standard input by `feed`.
///
/// # Errors
///
/// As [`run`], and those of `feed` when the program itself did not complain.
pub fn run_with(command: &mut Command, feed: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| format!("starting {name}: is it installed?"))?;
    let stdin = child.stdin.take();
    // The program's own words are read while it is fed, or both would wait for each other.
    let (fed, output) = std::thread::scope(|scope| {
        let waiting = scope.spawn(move || child.wait_with_output());
        let fed = match stdin {
            Some(stdin) => {
                let mut buffered = std::io::BufWriter::with_capacity(1 << 20, stdin);
                feed(&mut buffered).and_then(|()| Ok(buffered.flush()?))
            }
            None => Ok(()),
        };
        (fed, waiting.join())
    });
    let output =
        output.map_err(|_| anyhow::anyhow!("waiting for {name}"))?.with_context(|| format!("running {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{name} failed ({}): {}", output.status, said.trim());
    }
    fed.with_context(|| format!("writing to {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    if name == "debugfs" {
        // It exits with 0 whatever happens, and complains on stderr, after its name and version.
        let complaints: Vec<_> = said.lines().filter(|line| !line.starts_with("debugfs 1.")).collect();
        if !complaints.is_empty() {
            bail!("debugfs failed: {}", complaints.join("; "));
        }
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
