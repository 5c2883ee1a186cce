//! The commands by which a person leads a machine from one deployment to another: `rollback`, `unstage`, `pin` and `gc`.

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{
    gc::{self, Collected},
    host::{Access, Ambient, Host},
    journal::{FAILED, Weight, say, tell},
    pin::{self, Pinned},
    rollback::{self, Refused, Rollback},
    soft::{self, NextRoot},
    stop::Stop,
    unstage::{self, Unstaged},
};

/// What every one of these commands takes.
#[derive(Debug, clap::Args)]
pub struct Form {
    /// Say what would be done; write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub ambient: Ambient,
}

/// Which deployment is to be booted.
#[derive(Debug, clap::Args)]
pub struct To {
    /// The deployment, by the beginning of its id [default: the fallback]
    #[arg(value_name = "ID", conflicts_with = "to")]
    id: Option<String>,
    /// The same
    #[arg(long, value_name = "ID")]
    to: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// Which deployment is to be kept.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// The deployment, by the beginning of its id
    #[arg(value_name = "ID", required_unless_present = "remove", conflicts_with = "remove")]
    id: Option<String>,
    /// Keep this one no longer
    #[arg(long, value_name = "ID")]
    remove: Option<String>,
    #[command(flatten)]
    form: Form,
}

/// What a command came to, for people and for programs.
struct Told {
    text: Vec<String>,
    json: Value,
    code: u8,
}

impl Told {
    /// An outcome: a word for programs, and lines for people.
    fn new(outcome: &str, text: impl IntoIterator<Item = String>, mut json: Value) -> Self {
        json["schema"] = 1.into();
        json["outcome"] = outcome.into();
        Self { text: text.into_iter().collect(), json, code: if outcome == "refused" { 3 } else { 0 } }
    }

    fn refused(error: &anyhow::Error) -> Self {
        let chain: Vec<_> = error.chain().map(ToString::to_string).collect();
        Self::new("refused", [format!("refused, nothing was changed: {error:#}")], json!({ "error": chain }))
    }

    fn tell(self, as_json: bool, out: &mut dyn Write) -> ExitCode {
        match as_json {
            true => say(out, &format!("{:#}", self.json)),
            false => self.text.iter().for_each(|line| say(out, line)),
        }
        ExitCode::from(self.code)
    }
}

impl Form {
    fn open(&self) -> Result<(Host, Stop)> {
        let stop = Stop::at_signal().context("listening for signals")?;
        let access = if self.dry_run { Access::Read } else { Access::Write };
        Ok((Host::open(&self.ambient, access)?, stop))
    }

    /// A word for what was done, or would be.
    fn done(&self) -> &'static str {
        if self.dry_run { "would-be-done" } else { "done" }
    }

    /// A verb in the form that fits.
    fn verb(&self, done: &str, would: &str) -> String {
        if self.dry_run { format!("would {would}") } else { done.to_owned() }
    }
}

/// Begins a soft reboot into the staged deployment, where that comes to the same as a reboot.
///
/// # Errors
///
/// As [`soft::look`] and [`soft::begin`].
pub fn soft_reboot(form: &Form, out: &mut dyn Write) -> Result<ExitCode> {
    let host = Host::open(&form.ambient, Access::Read)?;
    let told = match soft::look(&host)? {
        Err(against) => {
            let text =
                format!("refused, nothing was changed: no soft reboot: {}; use: systemctl reboot", against.join("; "));
            Told::new("refused", [text], json!({ "error": against }))
        }
        Ok(target) => {
            if !form.dry_run {
                soft::begin(&host, &target)?;
            }
            let verb = form.verb("begins", "begin");
            let text = format!("a soft reboot into {} {verb}; the update is finalized on the way", target.id.short());
            Told::new(form.done(), [text], json!({ "deployment": target.id }))
        }
    };
    Ok(told.tell(form.json, out))
}

/// Mounts what a soft reboot starts, and says so.
///
/// # Errors
///
/// As [`soft::mount`].
pub fn next_root(host: &Host, out: &mut dyn Write) -> Result<()> {
    match soft::mount(host).context("mounting the next root")? {
        NextRoot::Nothing => {}
        NextRoot::Update(id) => say(out, &format!("mounted {}: user space begins anew from it", id.short())),
        NextRoot::Again(error) => {
            let booted = host.booted.id.short();
            let text = format!("{booted} begins anew, not the update: {error:#}; a reboot starts what the entries say");
            tell(out, FAILED, Weight::Warning, &text);
        }
    }
    Ok(())
}

/// Makes another deployment boot next.
///
/// # Errors
///
/// As [`rollback::rollback`].
pub fn rollback(To { id, to, form }: &To, out: &mut dyn Write) -> Result<ExitCode> {
    let (host, stop) = form.open()?;
    let wanted = id.as_deref().or(to.as_deref());
    let found = match form.dry_run {
        true => rollback::look(&host, wanted, &stop)?,
        false => rollback::rollback(&host, wanted, &stop)?,
    };
    let told = match found {
        Err(Refused(error)) => Told::refused(&error),
        Ok(done) => rolled(form, &host, &done),
    };
    Ok(told.tell(form.json, out))
}

fn rolled(form: &Form, host: &Host, done: &Rollback) -> Told {
    let Rollback { to, from, cancelled, is_first, notes } = done;
    let is_booted = if *to == host.booted.id { ", which is booted now" } else { "" };
    let mut text = vec![match is_first {
        true => format!("{} boots next already{is_booted}", to.short()),
        false => {
            let verb = form.verb("boots", "boot");
            format!("{} {verb} next{is_booted}, instead of {}; its /etc stays as it is", to.short(), from.short())
        }
    }];
    text.extend(cancelled.as_ref().map(|id| {
        let verb = form.verb("was cancelled", "be cancelled");
        format!("the staged update to {} {verb}: stage it again to have it", id.short())
    }));
    text.extend(notes.iter().map(|note| format!("note: {note}")));
    let outcome = if *is_first && cancelled.is_none() { "nothing-to-do" } else { form.done() };
    Told::new(outcome, text, json!({ "to": to, "from": from, "cancelled": cancelled, "notes": notes }))
}

/// Cancels the staged update.
///
/// # Errors
///
/// As [`unstage::unstage`].
pub fn unstage(form: &Form, out: &mut dyn Write) -> Result<ExitCode> {
    let (host, stop) = form.open()?;
    let found = if form.dry_run { unstage::look(&host)? } else { unstage::unstage(&host, &stop)? };
    let told = match &found {
        Unstaged::Nothing => {
            Told::new("nothing-to-do", ["nothing is staged".to_owned()], json!({ "deployment": null }))
        }
        Unstaged::Update(id) => {
            let text = format!(
                "the staged update to {} {}; composefs-finalize gc removes what only it has",
                id.short(),
                form.verb("was cancelled", "be cancelled")
            );
            Told::new(form.done(), [text], json!({ "deployment": id }))
        }
        Unstaged::Leftovers => {
            let text = format!("what an update has left {}", form.verb("was removed", "be removed"));
            Told::new(form.done(), [text], json!({ "deployment": null }))
        }
        Unstaged::Finalized(id) => Told::refused(&anyhow::anyhow!(
            "the update to {} is finalized already, and it boots next: composefs-finalize rollback makes another one boot",
            id.short()
        )),
    };
    Ok(told.tell(form.json, out))
}

/// Keeps a deployment, or keeps it no longer.
///
/// # Errors
///
/// As [`pin::pin`] and [`pin::unpin`].
pub fn pin(Which { id, remove, form }: &Which, out: &mut dyn Write) -> Result<ExitCode> {
    let (host, stop) = form.open()?;
    let (found, verb) = match (id, remove) {
        (Some(id), _) => (pin::pin(&host, id, &stop)?, form.verb("is pinned", "be pinned")),
        (None, text) => {
            let text = text.as_deref().unwrap_or_default();
            (pin::unpin(&host, text, &stop)?, form.verb("is no longer pinned", "no longer be pinned"))
        }
    };
    let told = match found {
        Pinned::Refused(error) => Told::refused(&error),
        Pinned::Unchanged(id) => {
            let was = if remove.is_some() { "is not pinned" } else { "is pinned already" };
            Told::new("nothing-to-do", [format!("{} {was}", id.short())], json!({ "deployment": id }))
        }
        Pinned::Changed(id) => Told::new(form.done(), [format!("{} {verb}", id.short())], json!({ "deployment": id })),
    };
    Ok(told.tell(form.json, out))
}

/// Removes what no boot entry and no person needs.
///
/// # Errors
///
/// As [`gc::collect`].
pub fn gc(form: &Form, out: &mut dyn Write) -> Result<ExitCode> {
    let (host, stop) = form.open()?;
    let collected = if form.dry_run { gc::look(&host)? } else { gc::collect(&host, &stop)? };
    let told = match collected {
        Err(error) => Told::refused(&error),
        Ok(Collected { garbage, objects, notes }) => {
            let verb = form.verb("removed", "remove");
            let mut text: Vec<_> = garbage.lines().map(|line| format!("{verb} {line}")).collect();
            let (number, bytes) = (objects.number, objects.bytes);
            text.push(format!(
                "{verb} {number} objects of the repository, {:.1} MiB",
                bytes as f64 / f64::from(1 << 20)
            ));
            text.extend(garbage.kept().map(|line| format!("kept {line}")));
            text.extend(notes.iter().map(|note| format!("note: {note}")));
            let outcome = if garbage.is_empty() && number == 0 { "nothing-to-do" } else { form.done() };
            Told::new(outcome, text, json!({ "garbage": garbage, "objects": objects, "notes": notes }))
        }
    };
    Ok(told.tell(form.json, out))
}
