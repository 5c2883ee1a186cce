//! The numbers of a machine for Prometheus: the text format 0.0.4, as node_exporter's textfile collector reads it. Names of
//! files in /etc are never in it.

use std::fmt::{self, Display, Write};

use super::{Role, Status};
use crate::record::Ending;

/// [`Status`] as a Prometheus textfile.
#[derive(Debug)]
pub struct Metrics<'a>(pub &'a Status);

impl Display for Metrics<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.0;
        family(f, "deployment_info", "A deployment, with the version and the image that it was made from")?;
        for deployed in &status.deployments {
            let version = deployed.version.as_deref().unwrap_or_default();
            let image = deployed.image_reference.as_deref().unwrap_or_default();
            sample(f, "deployment_info", &[("id", deployed.id.as_str()), ("version", version), ("image", image)])?;
        }
        family(f, "deployment_role", "What a deployment is to the machine: booted, staged, next, fallback, pinned")?;
        for deployed in &status.deployments {
            for role in &deployed.roles {
                sample(f, "deployment_role", &[("id", deployed.id.as_str()), ("role", name(*role))])?;
            }
        }
        let staged = status.staged.as_ref();
        number(f, "staged", "Whether an update is staged", u64::from(staged.is_some()))?;
        number(
            f,
            "staged_locked",
            "Whether the staged update must not be finalized yet",
            u64::from(staged.is_some_and(|staged| staged.locked)),
        )?;
        if let Some(next) = &status.next {
            number(
                f,
                "next_is_booted",
                "Whether a restart starts what is booted",
                u64::from(*next == status.booted.id),
            )?;
        }
        number(f, "attention", "How many things a person should look at", status.attention.len() as u64)?;
        let Some(record) = &status.record else { return Ok(()) };
        number(f, "last_finished_timestamp_seconds", "When the last finalization ended", record.finished.as_second())?;
        number(
            f,
            "last_success",
            "Whether the last finalization came to its end",
            u64::from(record.outcome == Ending::Finalized),
        )?;
        number(
            f,
            "last_booted",
            "Whether what was finalized has booted",
            u64::from(record.next_boot.as_ref().is_some_and(|next| Some(&next.booted) == record.to.as_ref())),
        )?;
        number(
            f,
            "last_duration_milliseconds",
            "How long the last finalization took",
            record.metrics.execution_time_ms,
        )?;
        number(
            f,
            "last_conflicts",
            "Paths of /etc that both sides had changed in different ways",
            record.counts.conflicts,
        )
    }
}

const PREFIX: &str = "composefs_finalize_";

fn family(f: &mut fmt::Formatter<'_>, name: &str, help: &str) -> fmt::Result {
    writeln!(f, "# HELP {PREFIX}{name} {help}.\n# TYPE {PREFIX}{name} gauge")
}

fn number(f: &mut fmt::Formatter<'_>, name: &str, help: &str, value: impl Display) -> fmt::Result {
    family(f, name, help)?;
    writeln!(f, "{PREFIX}{name} {value}")
}

fn sample(f: &mut fmt::Formatter<'_>, name: &str, labels: &[(&str, &str)]) -> fmt::Result {
    let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
    writeln!(f, "{PREFIX}{name}{{{}}} 1", labels.join(","))
}

fn name(role: Role) -> &'static str {
    match role {
        Role::Booted => "booted",
        Role::Staged => "staged",
        Role::Next => "next",
        Role::Fallback => "fallback",
        Role::Pinned => "pinned",
    }
}

/// A label's value: backslash, quote and line break are escaped, and nothing else can be.
fn escaped(value: &str) -> String {
    let mut text = String::new();
    for char in value.chars() {
        match char {
            '\n' => text.push_str("\\n"),
            '\\' | '"' => _ = write!(text, "\\{char}"),
            other => text.push(other),
        }
    }
    text
}
