//! One deployment, as far as it can be seen: its roles, what its origin says, and what its boot entry says.

use anyhow::Context;
use serde::Serialize;

use super::{Attention, completeness};
use crate::{
    boot::{Place, live::Booting, uki},
    cmdline::{Target, Verity},
    deployment::Deployment,
    digest::DeploymentId,
    host::Host,
    layout,
    staged::{BootType, Origin},
    sys,
};

/// What a deployment is to the machine; it may be several things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It runs.
    Booted,
    /// The next shutdown finalizes it, unless it is locked.
    Staged,
    /// The boot loader starts it next.
    Next,
    /// The boot loader can start it.
    Fallback,
    /// A person keeps it.
    Pinned,
}

impl Role {
    /// In the order in which they are said.
    pub const ALL: [Self; 5] = [Self::Booted, Self::Staged, Self::Next, Self::Fallback, Self::Pinned];
}

/// A deployment.
#[derive(Debug, Serialize)]
pub struct Deployed {
    /// Its name.
    pub id: DeploymentId,
    /// None where only its directory is here.
    pub roles: Vec<Role>,
    /// The title of its boot entry.
    pub title: Option<String>,
    /// The version in its boot entry.
    pub version: Option<String>,
    /// The image that it was made from.
    pub image_reference: Option<String>,
    /// The digest of that image's manifest.
    pub manifest_digest: Option<String>,
    /// How it boots.
    pub boot_type: Option<BootType>,
    /// The files that its boot entry names, absolute within their file system: kernel and initrds, or a UKI.
    pub boots: Vec<String>,
    /// Whether its files must be verified, by its boot entry.
    pub verity_required: Option<bool>,
    /// Whether state and image are there, where it can be seen.
    pub complete: Option<bool>,
}

impl Deployed {
    /// What is known of the deployment, with its entry at one of `places`, or that which a pin has `kept`.
    pub(super) fn read(
        host: &Host,
        (id, roles): (DeploymentId, Vec<Role>),
        (places, kept): (&[Place], Option<&str>),
        attention: &mut Attention,
    ) -> Self {
        let opened = Deployment::open(&host.sysroot, &id);
        let complete = completeness(&opened);
        // The booted and the staged one are looked at elsewhere.
        let is_told = roles.iter().any(|role| matches!(role, Role::Booted | Role::Staged));
        let origin = match opened {
            Ok(deployment) => Some(deployment.origin),
            Err(error) => {
                if !is_told {
                    attention.fails(&error.context(format!("{} is not whole", id.short())));
                }
                origin(host, &id)
            }
        };
        let (place, entry) = entry(&id, (places, kept), attention);
        let boots = entry.as_ref().map(|entry| entry.boots.clone()).unwrap_or_default();
        if let (Some(place), Some(entry)) = (place, &entry)
            && let Err(error) = place.finds(entry)
        {
            attention.fails(&error.context(format!("{} would not boot", id.short())));
        }
        let verity = entry.as_ref().and_then(|entry| verity(place, entry));
        let verity = if id == host.booted.id { Some(host.booted.verity) } else { verity };
        let (title, version) = entry.map(|entry| (entry.title, entry.version)).unwrap_or_default();
        let (image_reference, manifest_digest, boot_type) = match origin {
            Some(origin) => (origin.image_reference, origin.manifest_digest, Some(origin.boot_type)),
            None => (None, None, None),
        };
        let verity_required = verity.map(|verity| verity == Verity::Required);
        Self {
            id,
            roles,
            title,
            version,
            image_reference,
            manifest_digest,
            boot_type,
            boots,
            verity_required,
            complete,
        }
    }
}

/// The entry of the deployment, and where it is; of a staged or a pinned one that no boot loader reads, the text alone.
fn entry<'a>(
    id: &DeploymentId,
    (places, kept): (&'a [Place], Option<&str>),
    attention: &mut Attention,
) -> (Option<&'a Place>, Option<Booting>) {
    for place in places.iter().rev() {
        if let Some(entry) = attention.known(place.entry(id)).flatten() {
            return (Some(place), Some(entry));
        }
    }
    let last = places.last();
    let staged = last.and_then(|place| attention.known(place.staged_entry(id)).flatten());
    let staged = staged.or_else(|| last?.kept_entry(kept?, id));
    // Whether that boots is looked at when it is wanted.
    (None, staged)
}

fn origin(host: &Host, id: &DeploymentId) -> Option<Origin> {
    let path = format!("{}/{}", layout::deployment(id), layout::origin(id));
    sys::file::read(&host.sysroot, &path).context("reading the origin").ok()??.parse().ok()
}

/// What the command line of an entry, or of its UKI, demands.
fn verity(place: Option<&Place>, entry: &Booting) -> Option<Verity> {
    let of_uki = || {
        let file = place?.root().open(entry.boots.first()?.trim_start_matches('/')).ok()?;
        Target::find(&uki::cmdline(file.into_std())?)
    };
    Target::find(&entry.text).or_else(of_uki).map(|target| target.verity)
}
