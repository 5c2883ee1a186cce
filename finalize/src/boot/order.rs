//! What starts next, and why: the one answer for every boot loader, from what lies on the disks and in the firmware.
//!
//! The rules are the boot loaders' own, from their manuals: systemd-boot(7), loader.conf(5), the Boot Loader
//! Specification ("Sorting", "Boot Counting") and the GNU GRUB manual ("default", "Environment block"). Nothing is read
//! here: the caller hands over entries and settings as values.

mod counter;
mod file_name;
mod grub;
mod item;
mod pin;
mod systemd_boot;
mod titles;
mod version;

use std::cmp::Ordering;

pub use self::{
    counter::Counter,
    grub::{Environment, GrubDefault},
    item::{Item, Kind},
    pin::{Pin, Pinned},
    systemd_boot::{Variables, loader_conf_default},
    titles::titles,
    version::compare_versions,
};
use super::loader::{Loader, Version};
use crate::digest::DeploymentId;

/// Everything beside the entries that takes part in the choice. What a boot loader does not read is not looked at.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// systemd-boot's version, where the firmware's variables tell it; else it is taken for a new one.
    pub version: Option<Version>,
    /// `loader/loader.conf` of the ESP.
    pub loader_conf: String,
    /// The EFI variables of the Boot Loader Interface.
    pub variables: Variables,
    /// GRUB's environment block.
    pub environment: Environment,
    /// GRUB's main `grub.cfg`: whether its default comes from the environment block.
    pub grub_cfg: String,
}

/// The menu of a boot loader, and which of its lines starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The lines in the order of the menu.
    pub order: Vec<Item>,
    /// The line that starts, by its place in `order`; none in an empty menu.
    next: Option<usize>,
    /// What chose a line, where it is not just the first one; also a choice that happens to be the first line.
    pub pinned: Option<Pinned>,
}

impl Decision {
    /// What `loader` does with `items` and `settings`.
    pub fn of(loader: Loader, items: Vec<Item>, settings: &Settings) -> Self {
        let mut order: Vec<_> = items.into_iter().filter(|item| item.is_shown(loader, settings.version)).collect();
        if order.iter().all(|item| item.kind != Kind::Menu) {
            order.sort_by(|one, other| compare(loader, one, other));
        }
        let chosen = match loader {
            Loader::SystemdBoot => systemd_boot::chosen(&order, settings),
            Loader::Grub => grub::chosen(&order, settings),
            // Its own default is not documented to come from anywhere.
            Loader::GrubCc => None,
        };
        let is_spent = |item: &Item| item.counter.is_some_and(|counter| counter.left == 0);
        let (next, pinned) = match chosen {
            // A menu that counts overrules a default that means what it counts.
            Some((at, pinned))
                if loader == Loader::SystemdBoot || pinned.is_for_one_boot() || !is_spent(&order[at]) =>
            {
                (at, Some(pinned))
            }
            // GRUB's order does not depend on counters: what starts does.
            _ => (
                order
                    .iter()
                    .position(|item| item.ours && !is_spent(item))
                    .filter(|_| order.first().is_some_and(is_spent))
                    .unwrap_or(0),
                None,
            ),
        };
        let next = (next < order.len()).then_some(next);
        Self { order, next, pinned }
    }

    /// The line that starts next; none in an empty menu.
    pub fn next(&self) -> Option<&Item> {
        self.order.get(self.next?)
    }

    /// The deployment that starts next; none where something else does.
    pub fn deployment(&self) -> Option<&DeploymentId> {
        self.next()?.deployment.as_ref()
    }

    /// The deployment to fall back on: the first line that boots another one than the next.
    pub fn fallback(&self) -> Option<&DeploymentId> {
        let next = self.deployment();
        self.order.iter().filter_map(|item| item.deployment.as_ref()).find(|id| Some(*id) != next)
    }

    /// The deployment that would start if nothing were pinned.
    pub fn first_deployment(&self) -> Option<&DeploymentId> {
        self.order.first()?.deployment.as_ref()
    }

    /// Why `id` does not start next, and how to undo that; nothing where it does.
    pub fn why_not(&self, id: &DeploymentId) -> Option<String> {
        if self.deployment() == Some(id) {
            return None;
        }
        let name = |item: &Item| match &item.deployment {
            Some(id) => format!("{} ({})", item.name, id.short()),
            None => item.name.clone(),
        };
        Some(match (&self.pinned, self.next()) {
            (_, None) => "the boot loader has no entry to start".to_owned(),
            (Some(pinned), Some(next)) => {
                format!("{} starts {} next, not {}; {}", pinned, name(next), id.short(), pinned.undo())
            }
            (None, Some(next)) if next.counter.is_some_and(|counter| counter.left == 0) => {
                format!("no entry has tries left; {} is the first of them", name(next))
            }
            (None, Some(next)) => match self.order.iter().find(|item| item.deployment.as_ref() == Some(id)) {
                Some(item) if item.counter.is_some_and(|counter| counter.left == 0) => {
                    format!(
                        "{} has no tries left, so {} starts next; composefs-finalize try-again {}, then stage it again",
                        item.name,
                        name(next),
                        id.short()
                    )
                }
                Some(item) => format!("{} stands before {} in the boot menu", name(next), item.name),
                None => format!("no entry boots {}; {} starts next", id.short(), name(next)),
            },
        })
    }
}

/// Which of two lines `loader` shows first. With GRUB and GrubCC: the file names, descending; neither looks inside.
pub fn compare(loader: Loader, one: &Item, other: &Item) -> Ordering {
    match loader {
        Loader::Grub | Loader::GrubCc => file_name::compare(&other.name, &one.name),
        Loader::SystemdBoot => systemd_boot::compare(one, other),
    }
}
