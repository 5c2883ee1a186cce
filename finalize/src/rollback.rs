//! Another deployment that is here boots next, with the /etc that it has: the order of the entries changes, and nothing else.
//!
//! What a finalization does at a shutdown is done here with entries that a person asks for: they are written to the staged
//! place, and exchanged. An update that is staged is cancelled first, for the next shutdown would undo the rollback, and its
//! entries lie where those of the rollback go. `state/finalize/rollback.json` says that one is under way: the next boot
//! ([`recover`]) removes what a power cut has left of it.

use anyhow::{Context, Error, Result, anyhow};

use crate::{
    boot::{self, Place, Wanted, order::Decision, swap},
    config::Config,
    deployment::Deployment,
    digest::{DeploymentId, named},
    host::{Host, menu, pins, place},
    layout::{FINALIZE_STATE, ROLLBACK, STAGED, name_of},
    lock::Lock,
    next::{Next, booted_kind},
    pin::Pins,
    record::{Durably, Ending, Record},
    staged::Marker,
    stop::Stop,
    sys, unstage,
};

/// What a rollback does, or has done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rollback {
    /// The deployment that boots next.
    pub to: DeploymentId,
    /// The one that booted next before.
    pub from: DeploymentId,
    /// The staged update that is cancelled.
    pub cancelled: Option<DeploymentId>,
    /// Whether the entries had that order before.
    pub is_first: bool,
    /// What a person should know.
    pub notes: Vec<String>,
}

/// A rollback that is refused, and why; nothing was written.
#[derive(Debug)]
pub struct Refused(pub Error);

/// What is known before the first write.
struct Plan {
    to: Deployment,
    /// The text of the entry that the deployment had, where it is pinned.
    kept: Option<String>,
    cancels: bool,
    told: Rollback,
}

/// What a rollback to `wanted`, the beginning of a deployment's id, would do; without it, to the deployment that would boot if
/// the first one were not there. Writes nothing.
///
/// # Errors
///
/// When entries cannot be read.
pub fn look(host: &Host, wanted: Option<&str>, stop: &Stop) -> Result<Result<Rollback, Refused>> {
    Ok(plan(host, wanted, stop)?.map(|plan| plan.told))
}

/// Makes the deployment boot next. Safe to stop and to run again: at every moment a deployment boots that is here as a whole.
///
/// # Errors
///
/// When another finalization keeps the lock, and those of reading and writing. The outermost message says what boots next.
pub fn rollback(host: &Host, wanted: Option<&str>, stop: &Stop) -> Result<Result<Rollback, Refused>> {
    let _lock = Lock::take(&host.sysroot, stop)?;
    let mut plan = match plan(host, wanted, stop)? {
        Ok(plan) => plan,
        Err(refused) => return Ok(Err(refused)),
    };
    if let Err(error) = write(host, &mut plan, stop) {
        let next = match find(host, &plan.to) {
            Ok(places) => Next::of(host, &places),
            Err(why) => Next::Unknown(why),
        };
        return Err(error.context(next.after_rollback(&plan.to.id)));
    }
    Ok(Ok(plan.told))
}

fn find(host: &Host, to: &Deployment) -> Result<Vec<Place>> {
    place::find(host, to.origin.boot_type)
}

fn plan(host: &Host, wanted: Option<&str>, stop: &Stop) -> Result<Result<Plan, Refused>> {
    let refuse = |error: Error| Ok(Err(Refused(error)));
    let pins = Pins::read(&host.sysroot)?;
    let booted = booted_kind(host);
    let mut order = vec![];
    for place in place::find(host, booted)?.iter().rev() {
        order.extend(place.deployments()?);
    }
    let Some(from) = order.first().cloned() else {
        return refuse(anyhow!("no boot entry boots a deployment, so there is no order to change"));
    };
    let (staged, is_odd) = unstage::waiting(host);
    let to = match wanted {
        None => match order.iter().find(|id| **id != from) {
            Some(id) => id.clone(),
            None => {
                return refuse(anyhow!("the boot entries boot {} only: there is nothing to go back to", from.short()));
            }
        },
        Some(text) => {
            match named(text, order.iter().chain(pins.pins.iter().map(|kept| &kept.deployment)).chain(&staged)) {
                Ok(id) => id,
                Err(error) => return refuse(error.into()),
            }
        }
    };
    if staged.as_ref() == Some(&to) && !order.contains(&to) {
        return refuse(anyhow!("{} is staged, and boots after the next shutdown finalizes it", to.short()));
    }
    let deployment = match Deployment::open(&host.sysroot, &to) {
        Ok(deployment) => deployment,
        Err(error) => return refuse(error.context(format!("{} is not whole", to.short()))),
    };
    let kept = pins.get(&to).map(|kept| kept.entry.clone());
    let mut is_first = true;
    for place in find(host, &deployment)? {
        let entry = place.entry(&to)?.or_else(|| place.kept_entry(kept.as_deref()?, &to));
        let Some(entry) = entry else {
            return refuse(match order.contains(&to) {
                true => anyhow!(
                    "{} is a UKI that systemd-boot finds by itself: choose it with bootctl set-default",
                    to.short()
                ),
                false => {
                    anyhow!("no boot entry boots {}: only a pinned deployment can come back without one", to.short())
                }
            });
        };
        let wanted = Wanted { id: &to, digest: deployment.origin.boot_digest.as_deref(), stop };
        if let Err(error) = place.verify(&entry, &wanted) {
            stop.check()?;
            return refuse(error.context(format!("{} would not boot", to.short())));
        }
        is_first &= place.deployments()?.first() == Some(&to);
    }
    let cancelled = staged.filter(|staged| *staged != to && *staged != from);
    let cancels = is_odd || unstage::waiting(host).0.is_some();
    let told = Rollback { to, from, cancelled, is_first, notes: vec![] };
    Ok(Ok(Plan { to: deployment, kept, cancels, told }))
}

fn write(host: &Host, plan: &mut Plan, stop: &Stop) -> Result<()> {
    let config = host.config(&mut plan.told.notes);
    let to = &plan.to.id;
    if plan.cancels {
        unstage::forget(host)?;
    }
    let places = find(host, &plan.to)?;
    for place in places.iter().filter(|place| place.has_staged() || place.is_in_transit()) {
        swap::settle_live(place).context("removing the entries that were staged")?;
    }
    // Some may have waited for what was staged on others.
    let places = find(host, &plan.to)?;
    begin(host, to)?;
    sys::fault::step("rollback");
    let exchanged = exchange(&places, plan, &config, stop);
    if exchanged.is_err() {
        for place in places.iter().filter(|place| place.has_staged()) {
            if let Err(error) = swap::settle_live(place) {
                plan.told.notes.push(format!("removing what was staged for the rollback: {error:#}"));
            }
        }
    }
    end(host)?;
    exchanged?;
    tell_pins(host, &places, plan, &config);
    keep_record(host, plan)
}

/// The entries change places, where they are not in that order already.
fn exchange(places: &[Place], plan: &Plan, config: &Config, stop: &Stop) -> Result<()> {
    let to = &plan.to.id;
    for place in places {
        if place.deployments()?.first() != Some(to) {
            place.stage(to, plan.kept.as_deref())?;
        }
    }
    stop.check()?;
    let wanted = Wanted { id: to, digest: plan.to.origin.boot_digest.as_deref(), stop };
    let synced = boot::probe(places, &wanted, &[])?.staged.sync()?;
    stop.check()?;
    let durable = synced.exchange().and_then(swap::Exchanged::settle).map_err(|failed| {
        let swap::Failed { error, undo } = failed;
        match config.rollback_on_failure.then(|| undo.take_back()) {
            Some(Err(why)) => error.context(format!("taking back what was done: {why:#}")),
            _ => error,
        }
    })?;
    durable.clean_up()
}

/// Says on the disk that a rollback to `to` is under way.
fn begin(host: &Host, to: &DeploymentId) -> Result<()> {
    let marker = Marker { depl_id: to.clone(), finalization_locked: false };
    let write = || {
        sys::file::create_dir_all(&host.sysroot, FINALIZE_STATE)?;
        let dir = host.sysroot.open_dir(FINALIZE_STATE)?;
        sys::file::write_atomic(&dir, name_of(ROLLBACK), marker.to_string().as_bytes())
    };
    write().with_context(|| format!("writing {ROLLBACK}"))
}

fn end(host: &Host) -> Result<()> {
    sys::remove::file(&host.sysroot, ROLLBACK).with_context(|| format!("removing {ROLLBACK}"))
}

/// Lets a pinned default follow, and says what starts next where it does not.
fn tell_pins(host: &Host, places: &[Place], plan: &mut Plan, config: &Config) {
    let notes = &mut plan.told.notes;
    let to = &plan.to.id;
    let mut look = || -> Result<Option<Decision>> {
        let Some(decision) = menu::decision(host, places)? else { return Ok(None) };
        match pins::follow(host, &decision, to, config.unpin)? {
            None => Ok(Some(decision)),
            Some(followed) => {
                notes.push(followed);
                menu::decision(host, places)
            }
        }
    };
    match look() {
        Ok(decision) => notes.extend(decision.and_then(|decision| decision.why_not(to))),
        Err(error) => notes.push(format!("whether something pins another boot entry is not known: {error:#}")),
    }
}

/// The record of a finalization that nobody has booted yet says what boots next instead.
fn keep_record(host: &Host, plan: &Plan) -> Result<()> {
    let Ok(Some(mut record)) = Record::read(&host.sysroot) else { return Ok(()) };
    if record.next_boot.is_some() || record.outcome != Ending::Finalized || record.next.as_ref() == Some(&plan.to.id) {
        return Ok(());
    }
    record.next = Some(plan.to.id.clone());
    record.write(&host.sysroot, Durably::Name)
}

/// What a power cut has left of a rollback is removed, or brought to its end where its deployment boots first already. Says what
/// was done; nothing where no rollback was under way.
///
/// # Errors
///
/// Those of reading and writing; the next boot tries again.
pub fn recover(host: &Host, stop: &Stop) -> Result<Option<String>> {
    if host.sysroot.symlink_metadata(ROLLBACK).is_err() {
        return Ok(None);
    }
    let _lock = Lock::take(&host.sysroot, stop)?;
    let Some(text) = sys::file::read(&host.sysroot, ROLLBACK).with_context(|| format!("reading {ROLLBACK}"))? else {
        return Ok(None);
    };
    let marker: Option<Marker> = text.parse().ok();
    let mut first = None;
    // Somebody has staged an update since: what lies in the staged place is that.
    let is_staged = host.marker()?.is_some() || host.sysroot.try_exists(STAGED)?;
    let deployment = marker.as_ref().map(|marker| Deployment::open(&host.sysroot, &marker.depl_id));
    let kind = deployment.and_then(Result::ok).map_or_else(|| place::likely_kind(host), |it| it.origin.boot_type);
    for place in place::find(host, kind)? {
        if !is_staged && (place.has_staged() || place.is_in_transit()) {
            swap::settle_live(&place).context("removing what a rollback has left")?;
        }
        first = place.deployments()?.into_iter().next();
    }
    end(host)?;
    Ok(marker.map(|Marker { depl_id: to, .. }| match first {
        Some(first) if first == to => format!("the rollback to {} was interrupted, and is complete", to.short()),
        _ => format!("the rollback to {} was interrupted, and was not made: run it again", to.short()),
    }))
}
