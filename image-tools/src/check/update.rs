//! What updates: the program that finalizes at shutdown, and the units that run it.

use anyhow::Result;

use super::{About::Update, Looker, PACKAGE};
use crate::store::At;

const UNITS: [&str; 2] = ["composefs-finalize.service", "composefs-finalize-report.service"];

/// Where units are enabled.
const AT: [&str; 2] = ["etc/systemd/system", "usr/lib/systemd/system"];

/// Looks for both.
pub fn look(looker: &mut Looker<'_>) -> Result<()> {
    // bootc finalizes by itself, on the same layout.
    if looker.has_file("usr/bin/bootc")? && !looker.has_file("usr/bin/composefs-finalize")? {
        let why = "bootc has to finalize updates then, and does not merge accounts by record";
        looker.advise("usr/bin/composefs-finalize", (why, PACKAGE));
        return Ok(());
    }
    if !looker.has_file("usr/bin/composefs-finalize")? {
        let why = "nobody finalizes a staged update at shutdown";
        looker.missing(Update, "usr/bin/composefs-finalize", (why, PACKAGE));
    }
    for unit in UNITS {
        let there = looker.has_file(format!("usr/lib/systemd/system/{unit}"))?;
        if !there {
            looker.missing(Update, format!("usr/lib/systemd/system/{unit}"), ("it runs the program", PACKAGE));
        } else if !enabled(looker, unit)? {
            let remedy = format!("RUN systemctl enable {unit}");
            looker.missing(Update, format!("{unit} is not enabled"), ("so it does not run", &remedy));
        }
    }
    Ok(())
}

/// Whether some unit wants `unit`.
fn enabled(looker: &Looker<'_>, unit: &str) -> Result<bool> {
    for dir in AT {
        for wants in looker.names(dir)?.iter().filter(|name| name.ends_with(".wants") || name.ends_with(".requires")) {
            if looker.at(format!("{dir}/{wants}/{unit}"))? != At::Nothing {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
