//! What boots next, and how a failure says so.

use std::slice;

use anyhow::{Context, Result, anyhow};

use crate::{
    boot::{Place, order::Decision},
    deployment::Deployment,
    digest::DeploymentId,
    host::{Host, menu, place},
    record::Record,
    staged::BootType,
};

const NONE: &str = "no boot entry names a deployment";

/// How the booted deployment boots, by its origin, or by what the boot file system has.
pub fn booted_kind(host: &Host) -> BootType {
    let booted = Deployment::open(&host.sysroot, &host.booted.id);
    booted.map_or_else(|_| place::likely_kind(host), |booted| booted.origin.boot_type)
}

/// What boots next.
#[derive(Debug)]
pub enum Next {
    /// This deployment.
    Is(DeploymentId),
    /// An entry that boots no deployment: somebody's own.
    Other(String),
    /// It depends on the disk that is started.
    Differs,
    /// The boot entries could not be read, and why.
    Unknown(anyhow::Error),
    /// Another finalization is still running, and decides.
    Undecided,
}

impl Next {
    /// By the boot loader's order and its settings, with the entries of each of `places`.
    pub fn of(host: &Host, places: &[Place]) -> Self {
        Self::agreed(places.iter().map(|place| {
            let decision = menu::decision(host, slice::from_ref(place))?;
            let next = decision.as_ref().and_then(Decision::next).context(NONE)?;
            Ok(next.deployment.clone().map_or_else(|| Self::Other(next.name.clone()), Self::Is))
        }))
    }

    /// By the order of the entries at `places` alone: what stands first of all deployments, whatever else is pinned.
    pub fn by_entries(places: &[Place]) -> Self {
        let first = |place: &Place| place.deployments()?.into_iter().next().context(NONE);
        Self::agreed(places.iter().map(|place| Ok(Self::Is(first(place)?))))
    }

    /// The one answer of all places, where there is one.
    fn agreed(answers: impl Iterator<Item = Result<Self>>) -> Self {
        let one = answers.reduce(|one, other| match (one?, other?) {
            (Self::Is(one), Self::Is(other)) if one == other => Ok(Self::Is(one)),
            (Self::Other(one), Self::Other(other)) if one == other => Ok(Self::Other(one)),
            _ => Ok(Self::Differs),
        });
        one.unwrap_or_else(|| Err(anyhow!(NONE))).unwrap_or_else(Self::Unknown)
    }

    /// By the entries of `host`, where those of its deployment `id` are, or else those of the booted one.
    pub fn find(host: &Host, id: Option<&DeploymentId>) -> Self {
        let boot_type = |id| Deployment::open(&host.sysroot, id).ok().map(|deployment| deployment.origin.boot_type);
        let boot_type = id.and_then(boot_type).or_else(|| boot_type(&host.booted.id)).unwrap_or(BootType::Bls);
        match place::find(host, boot_type).context("looking for the boot entries") {
            Ok(places) => Self::of(host, &places),
            Err(error) => Self::Unknown(error),
        }
    }

    /// The deployment, where there is one answer.
    pub fn id(&self) -> Option<&DeploymentId> {
        match self {
            Self::Is(id) => Some(id),
            _ => None,
        }
    }

    /// Whether the answer is `id`, somewhere or as far as is known.
    pub fn may_be(&self, id: &DeploymentId) -> bool {
        match self {
            Self::Is(next) => next == id,
            Self::Other(_) => false,
            Self::Differs | Self::Unknown(_) | Self::Undecided => true,
        }
    }

    /// A sentence for a rollback to `to` that failed.
    pub fn after_rollback(&self, to: &DeploymentId) -> String {
        let failed = format!("the rollback to {} failed", to.short());
        match self {
            Self::Is(next) if next == to => {
                format!("the rollback to {} did not complete, but it boots next", to.short())
            }
            Self::Is(next) => format!("{failed}, {} boots next", next.short()),
            Self::Other(name) => format!("{failed}, {name} boots next, which is no deployment"),
            Self::Differs => format!("{failed}, which deployment boots next depends on the disk that is started"),
            Self::Undecided | Self::Unknown(_) => {
                format!("{failed}, what boots next is not known: see composefs-finalize status")
            }
        }
    }

    /// A sentence for the failure of the finalization that `record` tells of.
    pub fn after_failure(&self, record: &Record) -> String {
        let failed = match &record.to {
            Some(to) => format!("{} was not finalized", to.short()),
            None => "no update was finalized".to_owned(),
        };
        match self {
            Self::Is(next) if Some(next) == record.to.as_ref() => {
                format!("{} will boot next, but finalizing it did not complete", next.short())
            }
            Self::Is(next) if *next == record.from => format!("{failed}, the old deployment boots next"),
            Self::Is(next) => format!("{failed}, {} boots next", next.short()),
            Self::Other(name) => format!("{failed}, {name} boots next, which is no deployment"),
            Self::Differs => format!("{failed}, which deployment boots next depends on the disk that is started"),
            Self::Undecided => format!("{failed}, another finalization is running and decides what boots next"),
            Self::Unknown(_) if !record.step.may_have_exchanged() => format!("{failed}, what boots next is unchanged"),
            Self::Unknown(why) => format!("{failed}, what boots next is not known ({why:#})"),
        }
    }
}
