//! The commands that tell: `staged`, `report`, `plan` and `status`, as lines for people or as JSON.

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};

use super::etc::Form;
use crate::{
    Preview,
    arm::{self, Verdict},
    finalize,
    host::{Ambient, Host},
    journal::{BOOTED, FAILED, FINALIZED, NOT_BOOTED, REFUSED, UNFINISHED, Weight, tell},
    preview,
    record::{Outcome, Step},
    staged::Marker,
    status::Status,
    stop::Stop,
};

/// Finalizes, and says how it ended.
///
/// # Errors
///
/// Those of the finalization, which the journal is told as well.
pub fn staged(ambient: &Ambient, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let mut stop = Stop::at_signal().context("listening for signals")?;
    let finished = finalize(ambient, &mut stop);
    match (&finished.record, &finished.result) {
        (Some(record), _) if json => writeln!(out, "{:#}", serde_json::to_value(record)?)?,
        (Some(record), Ok(outcome)) => {
            let text = record.to_string();
            match outcome {
                Outcome::Finalized if record.step == Step::Done => tell(out, FINALIZED, Weight::Info, &text)?,
                Outcome::Finalized => tell(out, FINALIZED, Weight::Warning, &text)?,
                Outcome::Refused => tell(out, REFUSED, Weight::Warning, &text)?,
                _ => writeln!(out, "{text}")?,
            }
        }
        (_, Err(error)) => tell(&mut std::io::sink(), FAILED, Weight::Warning, &format!("{error:#}"))?,
        _ => {}
    }
    Ok(match finished.result? {
        Outcome::Refused => ExitCode::from(3),
        _ => ExitCode::SUCCESS,
    })
}

/// Says what became of the last finalization.
///
/// # Errors
///
/// Those of [`arm::report`].
pub fn report(host: &Host, out: &mut dyn Write) -> Result<()> {
    let verdict = arm::report(host, &Stop::at_signal().context("listening for signals")?)?;
    let text = verdict.to_string();
    match verdict {
        Verdict::Nothing => Ok(writeln!(out, "{text}")?),
        Verdict::Booted(_) => tell(out, BOOTED, Weight::Info, &text),
        Verdict::NotBooted(_) => tell(out, NOT_BOOTED, Weight::Warning, &text),
        Verdict::Unfinished(_) => tell(out, UNFINISHED, Weight::Warning, &text),
    }
}

/// Prints what a finalization would do to /etc, also where the deployment is still locked.
///
/// # Errors
///
/// Those of reading.
pub fn plan(host: &Host, form: Form, out: &mut dyn Write) -> Result<ExitCode> {
    let Some(marker) = host.marker()? else {
        form.nothing("nothing-staged", "nothing is staged", out)?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut code = ExitCode::SUCCESS;
    let locked = marker.finalization_locked;
    if locked && !form.json {
        writeln!(out, "note   {}", is_locked(&marker))?;
    }
    preview(host, &marker, &mut |preview| {
        match preview {
            Preview::Merge(merge) => code = form.print(merge, serde_json::json!({ "locked": locked }), out)?,
            Preview::Nothing(reason, text) => form.nothing(reason, &text, out)?,
        }
        Ok(())
    })?;
    Ok(code)
}

/// Prints what `staged` would do to /etc now.
///
/// # Errors
///
/// Those of reading.
pub fn dry_run(host: &Host, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let form = Form { json, ..Form::default() };
    match host.marker()? {
        Some(marker) if marker.finalization_locked => form.nothing("locked", &is_locked(&marker), out)?,
        _ => return plan(host, form, out),
    }
    Ok(ExitCode::SUCCESS)
}

fn is_locked(marker: &Marker) -> String {
    format!("{} is staged but locked: not finalized", marker.depl_id.short())
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
