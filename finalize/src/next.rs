//! What boots next, as the boot entries say, and how a failure says so.

use anyhow::{Context, Result};

use crate::{
    boot::Place,
    deployment::Deployment,
    digest::DeploymentId,
    host::{Host, place},
    record::Record,
    staged::BootType,
};

/// What boots next.
#[derive(Debug)]
pub enum Next {
    /// This deployment.
    Is(DeploymentId),
    /// It depends on the disk that is started.
    Differs,
    /// The boot entries could not be read, and why.
    Unknown(anyhow::Error),
    /// Another finalization is still running, and decides.
    Undecided,
}

impl Next {
    /// By the entries at `places`.
    pub fn of(places: &[Place]) -> Self {
        let first = |place: &Place| Ok(place.deployments()?.into_iter().next());
        match places.iter().map(first).collect::<Result<Vec<_>>>() {
            Err(error) => Self::Unknown(error),
            Ok(mut first) => {
                first.dedup();
                match first.pop() {
                    Some(Some(id)) if first.is_empty() => Self::Is(id),
                    Some(Some(_)) => Self::Differs,
                    _ => Self::Unknown(anyhow::anyhow!("no boot entry names a deployment")),
                }
            }
        }
    }

    /// By the entries of `host`, where those of its deployment `id` are, or else those of the booted one.
    pub fn find(host: &Host, id: Option<&DeploymentId>) -> Self {
        let boot_type = |id| Deployment::open(&host.sysroot, id).ok().map(|deployment| deployment.origin.boot_type);
        let boot_type = id.and_then(boot_type).or_else(|| boot_type(&host.booted.id)).unwrap_or(BootType::Bls);
        match place::find(host, boot_type).context("looking for the boot entries") {
            Ok(places) => Self::of(&places),
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
            Self::Differs | Self::Unknown(_) | Self::Undecided => true,
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
            Self::Differs => format!("{failed}, which deployment boots next depends on the disk that is started"),
            Self::Undecided => format!("{failed}, another finalization is running and decides what boots next"),
            Self::Unknown(_) if !record.step.may_have_exchanged() => format!("{failed}, what boots next is unchanged"),
            Self::Unknown(why) => format!("{failed}, what boots next is not known ({why:#})"),
        }
    }
}
