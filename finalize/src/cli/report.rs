//! The commands that tell: `staged`, `plan` and `status`, as lines for people or as JSON.

use std::{io::Write, process::ExitCode};

use anyhow::Result;

use super::etc::Form;
use crate::{
    finalize,
    host::{Ambient, Host},
    preview,
    record::Outcome,
    status::Status,
};

/// Finalizes, and says how it ended.
///
/// # Errors
///
/// Those of the finalization.
pub fn staged(ambient: &Ambient, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let finished = finalize(ambient);
    match (&finished.record, json) {
        (Some(record), true) => writeln!(out, "{:#}", serde_json::to_value(record)?)?,
        (Some(record), false) if finished.result.is_ok() => writeln!(out, "{record}")?,
        _ => {}
    }
    Ok(match finished.result? {
        Outcome::Refused => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    })
}

/// Prints what a finalization would do to /etc.
///
/// # Errors
///
/// Those of reading.
pub fn plan(host: &Host, form: Form, out: &mut dyn Write) -> Result<()> {
    let Some(marker) = host.marker()? else {
        return Ok(writeln!(out, "nothing is staged")?);
    };
    preview(host, &marker, &mut |merge| form.print(merge, out))
}

/// Prints the state of the machine.
///
/// # Errors
///
/// Those of writing.
pub fn status(host: &Host, json: bool, out: &mut dyn Write) -> Result<()> {
    let status = Status::read(host)?;
    match json {
        true => writeln!(out, "{:#}", serde_json::to_value(&status)?)?,
        false => write!(out, "{status}")?,
    }
    Ok(())
}
