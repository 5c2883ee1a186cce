//! The state of the machine, for `status`: what anybody may know without privileges is always there, what needs root
//! is there for root.

use std::{fmt, io};

use anyhow::Result;
use serde::Serialize;

use crate::{
    boot::Loader,
    cmdline::Verity,
    deployment::Deployment,
    digest::DeploymentId,
    failed::{self, Failed},
    host::{Host, menu, place},
    outlook::Outlook,
    record::Record,
    staged::BootType,
};

/// The state of the machine.
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
    /// The last finalization.
    pub record: Option<Record>,
    /// The finalized deployment, where the boot loader has given it up.
    pub failed: Option<Failed>,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
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

impl Status {
    /// Looks at the machine.
    ///
    /// # Errors
    ///
    /// None: what cannot be read is listed in [`Status::unknown`].
    pub fn read(host: &Host) -> Result<Self> {
        let mut unknown = vec![];
        let mut known = |what: Result<()>| {
            if let Err(error) = what {
                unknown.push(format!("{error:#}"));
            }
        };
        let mut outlook = None;
        if let Ok(Some(marker)) = host.marker() {
            known(Outlook::read(host, &marker.depl_id).map(|found| outlook = found));
        }
        let (mut staged, mut loader, mut record, mut boot_type) = (None, None, None, None);
        known(host.marker().map(|marker| {
            staged = marker.map(|marker| Staged {
                complete: completeness(&Deployment::open(&host.sysroot, &marker.depl_id)),
                id: marker.depl_id,
                locked: marker.finalization_locked,
                outlook,
            });
        }));
        known(place::loader(host).map(|found| loader = Some(found)));
        known(Record::read(&host.sysroot).map(|found| record = found));
        known(Deployment::open(&host.sysroot, &host.booted.id).map(|d| boot_type = Some(d.origin.boot_type)));
        let to = record.as_ref().and_then(|record: &Record| record.to.as_ref());
        let failed = to.and_then(|id| failed::of(&host.sysroot, id).ok().flatten());
        let (mut next, mut fallback, mut pinned) = (None, vec![], None);
        known(bootable(host, boot_type.unwrap_or(BootType::Bls)).map(|found| (next, fallback, pinned) = found));
        let verity_required = host.booted.verity == Verity::Required;
        let booted = Booted { id: host.booted.id.clone(), verity_required };
        Ok(Self { schema: 1, booted, staged, next, fallback, pinned, loader, boot_type, record, failed, unknown })
    }
}

/// What an attempt to open a deployment says of it: where one may not look, nothing is missing.
fn completeness<T>(opened: &Result<T>) -> Option<bool> {
    let denied = |cause: &(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
    };
    match opened {
        Ok(_) => Some(true),
        Err(error) => (!error.chain().any(denied)).then_some(false),
    }
}

/// What starts next, the other deployments of the menu in its order, each once, and what pins the next one.
type Bootable = (Option<DeploymentId>, Vec<DeploymentId>, Option<String>);

fn bootable(host: &Host, boot_type: BootType) -> Result<Bootable> {
    let places = place::find(host, boot_type)?;
    let Some(decision) = menu::decision(host, &places)? else { return Ok((None, vec![], None)) };
    let next = decision.deployment().cloned();
    let mut others = vec![];
    for id in decision.order.iter().filter_map(|item| item.deployment.as_ref()) {
        others.extend((Some(id) != next.as_ref() && !others.contains(id)).then(|| id.clone()));
    }
    let pinned = decision.pinned.as_ref().map(|pinned| format!("{pinned}; {}", pinned.undo()));
    Ok((next, others, pinned))
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sealed = if self.booted.verity_required { "sealed" } else { "verity not required" };
        writeln!(f, "booted    {} ({sealed})", self.booted.id)?;
        match &self.staged {
            None => writeln!(f, "staged    nothing")?,
            Some(Staged { id, locked, complete, outlook }) => {
                let locked = if *locked { ", locked" } else { "" };
                let complete = match complete {
                    Some(true) => "complete",
                    Some(false) => "incomplete",
                    None => "only root sees whether it is complete",
                };
                writeln!(f, "staged    {id} ({complete}{locked})")?;
                let attention = outlook.iter().flat_map(|outlook| &outlook.attention);
                attention.into_iter().try_for_each(|line| writeln!(f, "attention {line}"))?;
            }
        }
        self.failed.iter().try_for_each(|failed| writeln!(f, "attention {failed}"))?;
        if let Some(next) = &self.next {
            writeln!(f, "next      {next}")?;
        }
        for id in &self.fallback {
            writeln!(f, "fallback  {id}")?;
        }
        if let Some(pinned) = &self.pinned {
            writeln!(f, "pinned    by {pinned}")?;
        }
        let or_unknown = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
        writeln!(f, "loader    {}", or_unknown(self.loader.map(|l| l.to_string())))?;
        writeln!(f, "boot type {}", or_unknown(self.boot_type.map(|b| b.to_string())))?;
        match &self.record {
            None => writeln!(f, "record    none")?,
            Some(record) => writeln!(f, "record    {}: {record}", record.finished)?,
        }
        self.unknown.iter().try_for_each(|line| writeln!(f, "unknown   {line}"))
    }
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
