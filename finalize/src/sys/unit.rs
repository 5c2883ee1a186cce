//! What is asked of systemd.

use std::{io, process::Command};

/// Runs systemctl(1).
///
/// # Errors
///
/// `NotFound` where there is no systemctl; what it said, when it fails.
pub fn systemctl(arguments: &[&str]) -> io::Result<()> {
    let output = Command::new("systemctl").args(arguments).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("systemctl {} failed ({}): {}", arguments.join(" "), output.status, said.trim())))
}
