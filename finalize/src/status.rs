//! The state of the machine, for `status`: what anybody may know without privileges is always there, what needs root
//! is there for root. Nothing odd on a disk is an error here: it is listed as what needs attention.

mod deployed;
mod metrics;
mod show;

use std::{collections::BTreeSet, io};

use serde::Serialize;

use crate::{
    boot::{Loader, Place},
    cmdline::Verity,
    deployment::Deployment,
    digest::DeploymentId,
    failed::{self, Failed},
    host::{Host, menu, place},
    layout::{DEPLOYMENTS, ROLLBACK, STAGED},
    outlook::Outlook,
    pending,
    pin::Pins,
    record::Record,
    staged::BootType,
};

pub use deployed::{Deployed, Role};
pub use metrics::Metrics;

/// The state of the machine. `schema/status.schema.json` describes the JSON.
#[derive(Debug, Serialize)]
pub struct Status {
    /// 1.
    pub schema: u32,
    /// What is booted.
    pub booted: Booted,
    /// What is staged.
    pub staged: Option<Staged>,
    /// The deployment that boots next, when the boot entries can be read.
    pub next: Option<DeploymentId>,
    /// The other deployments that the boot loader can start, in its order.
    pub fallback: Vec<DeploymentId>,
    /// What makes another entry start next than the first one, and how to undo that.
    pub pinned: Option<String>,
    /// The boot loader, when it can be told.
    pub loader: Option<Loader>,
    /// How the booted deployment boots.
    pub boot_type: Option<BootType>,
    /// All deployments that are here, or that an entry names: the booted one, the staged one, those of the boot menu in its order,
    /// and the others.
    pub deployments: Vec<Deployed>,
    /// The last finalization.
    pub record: Option<Record>,
    /// The finalized deployment, where the boot loader has given it up.
    pub failed: Option<Failed>,
    /// What a person should look at, a sentence each; also what could not be found out, and why.
    pub attention: Vec<String>,
}

/// The booted deployment.
#[derive(Debug, Serialize)]
pub struct Booted {
    /// Its name.
    pub id: DeploymentId,
    /// Whether its files must be verified.
    pub verity_required: bool,
}

/// The staged deployment.
#[derive(Debug, Serialize)]
pub struct Staged {
    /// Its name.
    pub id: DeploymentId,
    /// Whether it must not be finalized yet.
    pub locked: bool,
    /// Whether all its parts are there, when it can be seen.
    pub complete: Option<bool>,
    /// What will become of it, where somebody has looked ahead.
    pub outlook: Option<Outlook>,
}

/// What is wrong, as it is found.
#[derive(Debug, Default)]
struct Attention {
    lines: Vec<String>,
    /// Whether something is root's to see.
    is_root_only: bool,
}

impl Attention {
    /// The value, or nothing, and why.
    fn known<T>(&mut self, what: anyhow::Result<T>) -> Option<T> {
        match what {
            Ok(value) => Some(value),
            Err(error) => {
                self.fails(&error);
                None
            }
        }
    }

    fn fails(&mut self, error: &anyhow::Error) {
        match is_denied(error) {
            true => self.is_root_only = true,
            false => self.say(format!("{error:#}")),
        }
    }

    fn say(&mut self, line: String) {
        if !self.lines.contains(&line) {
            self.lines.push(line);
        }
    }

    fn into_lines(mut self) -> Vec<String> {
        if self.is_root_only {
            self.lines.push("some of this only root may read: run it as root to see all".to_owned());
        }
        self.lines
    }
}

impl Status {
    /// Looks at the machine; what cannot be read is listed in [`Status::attention`].
    pub fn read(host: &Host) -> Self {
        let mut attention = Attention::default();
        let staged = staged(host, &mut attention);
        let loader = attention.known(place::loader(host));
        let record = attention.known(Record::read(&host.sysroot)).flatten();
        let to = record.as_ref().and_then(|record| record.to.as_ref());
        let failed = to.and_then(|id| attention.known(failed::of(&host.sysroot, id)).flatten());
        failed.iter().for_each(|failed| attention.say(failed.to_string()));
        let booted = attention.known(Deployment::open(&host.sysroot, &host.booted.id));
        let boot_type = booted.map(|booted| booted.origin.boot_type);
        let places = attention
            .known(place::find(host, boot_type.unwrap_or_else(|| place::likely_kind(host))))
            .unwrap_or_default();
        let Menu { next, fallback, pinned } = menu(host, &places, &mut attention);
        let pins = attention.known(Pins::read(&host.sysroot));
        look_at_leftovers(host, (&places, staged.as_ref()), &mut attention);
        let mut order = vec![host.booted.id.clone()];
        order.extend(staged.as_ref().map(|staged| staged.id.clone()));
        order.extend(next.iter().chain(&fallback).cloned());
        order.extend(pins.iter().flat_map(|pins| &pins.pins).map(|kept| kept.deployment.clone()));
        order.extend(states(host, &mut attention));
        let mut seen = BTreeSet::new();
        order.retain(|id| seen.insert(id.clone()));
        let has = |id: &DeploymentId, role: Role| match role {
            Role::Booted => *id == host.booted.id,
            Role::Staged => staged.as_ref().is_some_and(|staged| staged.id == *id),
            Role::Next => next.as_ref() == Some(id),
            Role::Fallback => fallback.contains(id),
            Role::Pinned => pins.as_ref().is_some_and(|pins| pins.get(id).is_some()),
        };
        let deployments = order.into_iter().map(|id| {
            let roles = Role::ALL.into_iter().filter(|role| has(&id, *role)).collect();
            let kept = pins.as_ref().and_then(|pins| pins.get(&id)).map(|kept| kept.entry.as_str());
            Deployed::read(host, (id, roles), (&places, kept), &mut attention)
        });
        let deployments = deployments.collect();
        attention.lines.extend(staged.iter().flat_map(|it| &it.outlook).flat_map(|outlook| outlook.attention.clone()));
        let booted = Booted { id: host.booted.id.clone(), verity_required: host.booted.verity == Verity::Required };
        let attention = attention.into_lines();
        Self {
            schema: 1,
            booted,
            staged,
            next,
            fallback,
            pinned,
            loader,
            boot_type,
            failed,
            deployments,
            record,
            attention,
        }
    }
}

fn staged(host: &Host, attention: &mut Attention) -> Option<Staged> {
    let marker = attention.known(host.marker()).flatten()?;
    let outlook = attention.known(Outlook::read(host, &marker.depl_id)).flatten();
    let opened = Deployment::open(&host.sysroot, &marker.depl_id);
    let complete = completeness(&opened);
    if let Err(error) =
        opened.map_err(|error| error.context(format!("{} is staged, and is not whole", marker.depl_id.short())))
    {
        attention.fails(&error);
    }
    Some(Staged { complete, id: marker.depl_id, locked: marker.finalization_locked, outlook })
}

/// What the boot loader shows.
#[derive(Default)]
struct Menu {
    next: Option<DeploymentId>,
    fallback: Vec<DeploymentId>,
    pinned: Option<String>,
}

/// What starts next, the other deployments of the menu in its order, each once, and what pins the next one.
fn menu(host: &Host, places: &[Place], attention: &mut Attention) -> Menu {
    let Some(decision) = attention.known(menu::decision(host, places)).flatten() else { return Menu::default() };
    let next = decision.deployment().cloned();
    let mut fallback = vec![];
    for id in decision.order.iter().filter_map(|item| item.deployment.as_ref()) {
        fallback.extend((Some(id) != next.as_ref() && !fallback.contains(id)).then(|| id.clone()));
    }
    let pinned = decision.pinned.as_ref().map(|pinned| format!("{pinned}; {}", pinned.undo()));
    if next.is_none() && fallback.is_empty() {
        attention.say("no boot entry boots a deployment".to_owned());
    }
    Menu { next, fallback, pinned }
}

/// What a run that was stopped, or another program, has left.
fn look_at_leftovers(host: &Host, (places, staged): (&[Place], Option<&Staged>), attention: &mut Attention) {
    let reminded = attention.known(pending::remembered(&host.sysroot)).flatten();
    let is_odd = host.marker().is_err() || (reminded.is_none() && host.sysroot.symlink_metadata(STAGED).is_ok());
    if staged.is_none() && !is_odd {
        let is_staged = places.iter().any(Place::has_staged);
        match reminded.filter(|marker| marker.depl_id != host.booted.id) {
            Some(marker) => attention.say(format!(
                "{} was staged, and its marker is gone: the next start of composefs-finalize.service decides",
                marker.depl_id.short()
            )),
            None if is_staged => attention.say(
                "boot entries are staged that belong to no update: composefs-finalize unstage removes them".to_owned(),
            ),
            None => {}
        }
    }
    if host.sysroot.symlink_metadata(ROLLBACK).is_ok() {
        attention.say("a rollback was interrupted: run it again; the next boot removes what it has left".to_owned());
    }
}

/// The deployments that have a state directory.
fn states(host: &Host, attention: &mut Attention) -> Vec<DeploymentId> {
    let read = || -> io::Result<Vec<DeploymentId>> {
        let mut found = vec![];
        for entry in host.sysroot.read_dir(DEPLOYMENTS)? {
            found.extend(entry?.file_name().to_str().and_then(|name| name.parse().ok()));
        }
        found.sort();
        Ok(found)
    };
    let named = |error: io::Error| anyhow::Error::from(error).context(format!("reading {DEPLOYMENTS}"));
    attention.known(read().map_err(named)).unwrap_or_default()
}

/// What an attempt to open a deployment says of it: where one may not look, nothing is missing.
fn completeness<T>(opened: &anyhow::Result<T>) -> Option<bool> {
    match opened {
        Ok(_) => Some(true),
        Err(error) => (!is_denied(error)).then_some(false),
    }
}

fn is_denied(error: &anyhow::Error) -> bool {
    let denied = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    error.chain().any(denied)
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn where_nobody_may_look_nothing_is_missing() {
        let failed = |kind: io::ErrorKind| Err::<(), _>(io::Error::from(kind)).context("looking for the image");
        assert_eq!(completeness(&Ok(())), Some(true));
        assert_eq!(completeness(&failed(io::ErrorKind::NotFound)), Some(false));
        assert_eq!(completeness(&failed(io::ErrorKind::PermissionDenied)), None);
    }
}
