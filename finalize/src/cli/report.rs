//! The commands that tell: `staged`, `report`, `plan` and `status`, as lines for people or as JSON.

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result, bail};

use super::etc::Form;
use crate::{
    Preview,
    arm::{self, Report, Verdict},
    failed, finalize,
    host::{Ambient, Host},
    journal::{
        ATTENTION, BOOTED, FAILED, FELL_BACK, FINALIZED, GOOD, MessageId, NOT_BOOTED, REFUSED, UNFINISHED, Weight, say,
        tell,
    },
    layout,
    lock::Lock,
    outcome::Outcome,
    prepare, preview,
    record::{Ending, Step},
    rollback,
    staged::Marker,
    status::{Metrics, Status},
    stop::{Limit, Stop},
    trial::{self, Blessed},
};

/// What `arm` and `report` take at most, in seconds: a boot waits for them.
const BOOT: u64 = 60;

/// What `prepare` takes at most, in seconds: nobody waits for it, but it holds the lock.
const AHEAD: u64 = 600;

/// Finalizes, and says how it ended. The journal is told in every form; neither outcome nor exit code depend on `out`.
///
/// # Errors
///
/// Those of the finalization.
pub fn staged(ambient: &Ambient, json: bool, out: &mut dyn Write) -> Result<ExitCode> {
    let mut stop = Stop::at_signal().context("listening for signals")?;
    let outcome = finalize(ambient, &mut stop);
    let mut sink = std::io::sink();
    let people: &mut dyn Write = if json { &mut sink } else { out };
    let told = message(&outcome);
    match told.id {
        // Failures are main's to write: standard error is theirs.
        Some(FAILED) => tell(&mut std::io::sink(), FAILED, told.weight, &told.text),
        Some(id) => tell(people, id, told.weight, &told.text),
        None => say(people, &told.text),
    }
    if json {
        say(out, &format!("{:#}", outcome.to_json()?));
    }
    let code = ExitCode::from(outcome.exit_code());
    match outcome {
        Outcome::Failed(failure) => Err(failure.error),
        _ => Ok(code),
    }
}

/// A message for people and the journal.
struct Message {
    id: Option<MessageId>,
    weight: Weight,
    text: String,
}

/// The words for every outcome.
fn message(outcome: &Outcome) -> Message {
    let plain = |text: String| Message { id: None, weight: Weight::Info, text };
    match outcome {
        Outcome::NothingStaged => plain("nothing is staged".to_owned()),
        Outcome::Locked(id) => plain(format!("update {} is staged but locked: not finalized", id.short())),
        Outcome::Cancelled(id) => {
            plain(format!("forgot update {}: its marker was removed, so the update is cancelled", id.short()))
        }
        Outcome::Failed(failure) => {
            let text = format!("{:#}", failure.error);
            Message { id: Some(FAILED), weight: Weight::Warning, text }
        }
        Outcome::Recorded(record) => {
            let (id, weight) = match (&record.outcome, &record.step) {
                (Ending::Finalized, Step::Done) if record.next == record.to => (Some(FINALIZED), Weight::Info),
                (Ending::Finalized, _) => (Some(FINALIZED), Weight::Warning),
                (Ending::Refused, _) => (Some(REFUSED), Weight::Warning),
                _ => (None, Weight::Info),
            };
            Message { id, weight, text: record.to_string() }
        }
    }
}

/// Resumes an interrupted update, and says which.
///
/// # Errors
///
/// Those of [`arm::arm`].
pub fn arm(host: &Host, out: &mut dyn Write) -> Result<()> {
    let armed = arm::arm(host, &in_time(host)?)?;
    if armed.is_warning() {
        tell(out, UNFINISHED, Weight::Warning, &armed.to_string());
    } else {
        say(out, &armed.to_string());
    }
    Ok(())
}

/// Writes down that an update is staged, does ahead what can be done, and says what is wrong with the update.
///
/// # Errors
///
/// Those of [`arm::arm`] and [`prepare::prepare`].
pub fn prepare(host: &Host, out: &mut dyn Write) -> Result<()> {
    arm(host, out)?;
    let mut stop = Stop::at_signal().context("listening for signals")?;
    stop.set_deadline(Limit::Fixed(AHEAD));
    let outlook = match host.marker()? {
        Some(marker) => prepare::prepare(host, &marker, &stop).context("preparing the finalization")?,
        None => return prepare::forget(host, &stop),
    };
    match outlook {
        Some(outlook) if outlook.attention.is_empty() => say(out, outlook.to_string().trim_end()),
        Some(outlook) => tell(out, ATTENTION, Weight::Warning, outlook.to_string().trim_end()),
        None => {}
    }
    Ok(())
}

fn in_time(host: &Host) -> Result<Stop> {
    let mut stop = Stop::at_signal().context("listening for signals")?;
    stop.set_deadline(match host.config(&mut vec![]).timeout_seconds {
        less @ ..BOOT => Limit::Configured(less),
        _ => Limit::Fixed(BOOT),
    });
    Ok(stop)
}

/// Says what became of the last finalization.
///
/// # Errors
///
/// Those of [`arm::report`].
pub fn report(host: &Host, out: &mut dyn Write) -> Result<()> {
    match rollback::recover(host, &in_time(host)?) {
        Ok(said) => said.iter().for_each(|text| tell(out, UNFINISHED, Weight::Warning, text)),
        Err(error) => tracing::warn!("{error:#}; the next boot tries again"),
    }
    let Report { verdict, left } = arm::report(host, &in_time(host)?)?;
    for error in left {
        tracing::warn!("{error:#}; the next boot tries again");
    }
    let text = verdict.to_string();
    match verdict {
        Verdict::Nothing
        | Verdict::NotRestarted(_)
        | Verdict::RolledBack(_)
        | Verdict::Merged(_)
        | Verdict::Waiting(_) => say(out, &text),
        Verdict::Booted(_) => tell(out, BOOTED, Weight::Info, &text),
        Verdict::FellBack(_) => tell(out, FELL_BACK, Weight::Warning, &text),
        Verdict::NotBooted(_) => tell(out, NOT_BOOTED, Weight::Warning, &text),
        Verdict::Unfinished { .. } => tell(out, UNFINISHED, Weight::Warning, &text),
    }
    Ok(())
}

/// Ends the count of boots, and says so.
///
/// # Errors
///
/// Those of [`trial::bless`].
pub fn bless(host: &Host, out: &mut dyn Write) -> Result<()> {
    match trial::bless(host, &in_time(host)?)? {
        good @ Blessed::Good(_) => tell(out, GOOD, Weight::Info, &good.to_string()),
        other => say(out, &other.to_string()),
    }
    Ok(())
}

/// Whether systemd-boot has counted what it has started, as an exit code: 0 or 1 (`ExecCondition=`, systemd.service(5)).
pub fn is_counted(ambient: &Ambient, out: &mut dyn Write) -> ExitCode {
    match trial::is_selected(&ambient.sys) {
        true => ExitCode::SUCCESS,
        false => {
            say(out, "the boot loader has counted another entry than the one it has started: nothing is found good");
            ExitCode::from(1)
        }
    }
}

/// Forgets that a deployment has failed, by its name or the beginning of it.
///
/// # Errors
///
/// When no such deployment has failed, and those of writing.
pub fn try_again(host: &Host, name: &str, out: &mut dyn Write) -> Result<()> {
    let stop = in_time(host)?;
    let _lock = Lock::take(&host.sysroot, &stop)?;
    let whole = name.parse().ok();
    let all = failed::all(&host.sysroot)?.into_iter().map(|failed| failed.deployment);
    let mut found =
        all.filter(|id| !name.is_empty() && id.as_str().starts_with(name) && whole.is_none()).chain(whole.clone());
    let (Some(id), None) = (found.next(), found.next()) else {
        bail!("no deployment, or more than one, whose name begins with {name:?} has failed: see {}", layout::FAILED);
    };
    trial::try_again(host, &id)?;
    say(out, &format!("{} may be staged again", id.short()));
    Ok(())
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
    let status = Status::read(host);
    match json {
        true => writeln!(out, "{:#}", serde_json::to_value(&status)?)?,
        false => write!(out, "{status}")?,
    }
    Ok(())
}

/// Prints the numbers of the machine.
///
/// # Errors
///
/// Those of writing.
pub fn metrics(host: &Host, out: &mut dyn Write) -> Result<()> {
    Ok(write!(out, "{}", Metrics(&Status::read(host)))?)
}
