//! Boot counting on this machine: armed with the exchange, ended by [`bless`] once the new deployment is found good, or by the
//! boot loader, which goes back to the old one; then [`fallen`] says so.
//!
//! Three places. What is counted, and how far, is the boot loader's ([`crate::boot::count`]). `state/finalize/counted.json`
//! remembers that there is a count at all, so that a machine without one does nothing. `/run/composefs/trial` is there while a
//! boot that is counted was not found good yet: the units that reboot a failed boot depend on it.

use std::{fmt, path::Path};

use anyhow::{Context, Result, ensure};
use cap_std::fs::Dir;
use jiff::Timestamp;

use crate::{
    boot::{
        Loader, Place,
        count::{self, Trial, script},
        order::Item,
        swap::Staged,
    },
    config::Config,
    deployment::Deployment,
    digest::DeploymentId,
    failed::{self, Failed},
    host::{Host, menu, open, pins, place},
    layout::{COUNTED, FINALIZE_STATE, MARKER_DIR, TRIAL, name_of},
    lock::Lock,
    pending,
    staged::BootType,
    stop::Stop,
    sys,
};

/// What is counted; nothing where no boot is.
///
/// # Errors
///
/// When the file cannot be read or is malformed.
pub fn counted(sysroot: &Dir) -> Result<Option<Trial>> {
    let text = sys::file::read(sysroot, COUNTED).with_context(|| format!("reading {COUNTED}"))?;
    text.map(|text| serde_json::from_str(&text))
        .transpose()
        .with_context(|| format!("reading {COUNTED}: remove the file"))
}

/// Has the boot loader count the boots of deployment `id` from the exchange of `staged` on (`[boot] tries`), and writes down
/// that it does. Says why it cannot; then nothing is armed.
///
/// # Errors
///
/// Those of writing.
pub fn arm(host: &Host, id: &DeploymentId, config: &Config, staged: &mut Staged) -> Result<Option<String>> {
    if config.tries == 0 || staged.is_exchanged() {
        return Ok(None);
    }
    let trial = Trial::new(id.clone(), config.tries, host.boot_id.as_deref());
    let why_not = grub_cannot_count(host).map_or_else(|| staged.count(&trial), Err);
    if let Err(why) = why_not {
        return Ok(Some(format!("[boot] tries = {}: the boots of this update are not counted: {why}", config.tries)));
    }
    remember(host, &trial).map(|()| None)
}

fn remember(host: &Host, trial: &Trial) -> Result<()> {
    let text = format!("{:#}\n", serde_json::to_value(trial)?);
    let write = || {
        sys::file::create_dir_all(&host.sysroot, FINALIZE_STATE)?;
        sys::file::write_atomic(&host.sysroot.open_dir(FINALIZE_STATE)?, name_of(COUNTED), text.as_bytes())
    };
    write().with_context(|| format!("writing {COUNTED}"))
}

/// Why GRUB cannot write its environment block, where GRUB is the loader and cannot.
fn grub_cannot_count(host: &Host) -> Option<String> {
    match place::loader(host) {
        Ok(Loader::Grub) => pins::grub_cannot_write(host).unwrap_or_else(|error| Some(format!("{error:#}"))),
        Ok(_) => None,
        Err(error) => Some(format!("{error:#}")),
    }
}

/// Where the entries of the trial's deployment are, and its lines of the menu.
fn look(host: &Host, trial: &Trial) -> Result<(Vec<Place>, Vec<Item>)> {
    let boot_type = |id| Deployment::open(&host.sysroot, id).ok().map(|deployment| deployment.origin.boot_type);
    let boot_type = boot_type(&trial.deployment).or_else(|| boot_type(&host.booted.id)).unwrap_or(BootType::Bls);
    let places = place::find(host, boot_type)?;
    let mut items = menu::decision(host, &places)?.map_or(vec![], |decision| decision.order);
    items.retain(|item| item.deployment.as_ref() == Some(&trial.deployment));
    Ok((places, items))
}

/// Whether this boot is one that the boot loader has counted.
///
/// # Errors
///
/// When entries or variables cannot be read.
pub fn is_counted(host: &Host, trial: &Trial) -> Result<bool> {
    if trial.deployment != host.booted.id {
        return Ok(false);
    }
    match place::loader(host)? {
        Loader::SystemdBoot => Ok(is_selected(&host.ambient.sys)),
        Loader::GrubCc => Ok(false),
        Loader::Grub => {
            let (places, items) = look(host, trial)?;
            let has_begun = items.iter().filter_map(|item| item.counter).any(|counter| counter.done > 0);
            // A UKI has its own command line, which nobody can add a word to.
            let is_uki = places.iter().any(|place| matches!(place, Place::Menu { .. }));
            Ok(has_begun && (is_uki || host.has_word(script::WORD)))
        }
    }
}

/// Whether systemd-boot has counted what it has started.
pub fn is_selected(sys: &Path) -> bool {
    let variable = |name| menu::variable(sys, name);
    count::is_counted(variable("LoaderEntrySelected").as_deref(), variable("LoaderBootCountPath").as_deref())
}

/// A boot begins: where it is counted, the units that end a boot that fails are told. A deployment that the boot loader has
/// given up is remembered.
///
/// # Errors
///
/// Those of reading and writing.
pub fn begin(host: &Host) -> Result<()> {
    let Some(trial) = counted(&host.sysroot)? else { return Ok(()) };
    if is_counted(host, &trial)? {
        let run = open(&host.ambient.run)?;
        if run.try_exists(TRIAL)? {
            return Ok(());
        }
        let write = || {
            sys::file::create_dir_all(&run, MARKER_DIR)?;
            sys::file::write_volatile(&run.open_dir(MARKER_DIR)?, name_of(TRIAL), 0o644, trial.token.as_bytes())
        };
        write().with_context(|| format!("writing {}/{TRIAL}", host.ambient.run.display()))?;
        tracing::info!("this boot of {} is counted: it has to reach boot-complete.target", host.booted.id.short());
    } else if let Some(fallen) = fallen(host)? {
        failed::add(&host.sysroot, &fallen)?;
    }
    Ok(())
}

/// The deployment that the boot loader has given up, where it has, and nobody has been told yet.
///
/// # Errors
///
/// When the boot entries cannot be read.
pub fn fallen(host: &Host) -> Result<Option<Failed>> {
    let Some(trial) = counted(&host.sysroot)?.filter(|trial| trial.deployment != host.booted.id) else {
        return Ok(None);
    };
    let (_, items) = look(host, &trial)?;
    let counters: Option<Vec<_>> = items.iter().map(|item| item.counter.filter(|counter| counter.left == 0)).collect();
    let boots = counters.and_then(|counters| counters.iter().map(|counter| counter.done).max());
    Ok(boots.map(|boots| Failed { deployment: trial.deployment, boots, at: Timestamp::now() }))
}

/// The count has come to its end.
///
/// # Errors
///
/// Those of unlink(2).
pub fn forget(sysroot: &Dir) -> Result<()> {
    sys::remove::file(sysroot, COUNTED).with_context(|| format!("removing {COUNTED}"))
}

/// Forgets that deployment `id` has failed: it may be staged again. GRUB's menu names it first, though it is passed over, so it is
/// taken out of the menu: else it would be taken for one that has been exchanged already.
///
/// # Errors
///
/// When `id` is booted, and those of reading and writing.
pub fn try_again(host: &Host, id: &DeploymentId) -> Result<()> {
    ensure!(*id != host.booted.id, "{} is booted", id.short());
    if place::loader(host)? == Loader::Grub {
        let trial = Trial::new(id.clone(), 0, None);
        for place in look(host, &trial)?.0 {
            count::forgo::forgo(&place, id).with_context(|| format!("taking {} out of GRUB's menu", id.short()))?;
        }
    }
    failed::remove(&host.sysroot, id)?;
    Ok(())
}

/// What [`bless`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Blessed {
    /// No boot of the booted deployment is counted.
    Nothing,
    /// It has a counter, and is not what the boot loader has counted: chosen in the menu, say.
    NotCounted(DeploymentId),
    /// It is found good: it boots from now on.
    Good(DeploymentId),
}

impl fmt::Display for Blessed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("no boot is counted"),
            Self::NotCounted(id) => write!(f, "this boot of {} was not counted, so it says nothing", id.short()),
            Self::Good(id) => {
                write!(f, "{} has reached boot-complete.target: its boots are not counted any more", id.short())
            }
        }
    }
}

/// Ends the count of the booted deployment, durably: it is good. First of all this boot is safe from the units that would end
/// it, whatever happens to the rest.
///
/// # Errors
///
/// Those of reading and writing; then the next boot is counted as well.
pub fn bless(host: &Host, stop: &Stop) -> Result<Blessed> {
    pending::remove(host, TRIAL)?;
    let id = &host.booted.id;
    let _lock = Lock::take(&host.sysroot, stop)?;
    let Some(trial) = counted(&host.sysroot)?.filter(|trial| trial.deployment == *id) else {
        return Ok(Blessed::Nothing);
    };
    if !is_counted(host, &trial)? {
        return Ok(Blessed::NotCounted(id.clone()));
    }
    match place::loader(host)? {
        Loader::Grub => pins::set_grub(host, script::LEFT, Some(script::GOOD))?,
        _ => {
            for place in &look(host, &trial)?.0 {
                if let Place::Entries(place) = place {
                    count::bless::bless(place, id)?;
                }
            }
        }
    }
    if let Err(error) = failed::remove(&host.sysroot, id) {
        tracing::warn!("{error:#}");
    }
    forget(&host.sysroot)?;
    Ok(Blessed::Good(id.clone()))
}
