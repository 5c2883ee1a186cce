//! Which line of the menu starts, as far as a disk tells it: entries, loader.conf and GRUB's environment block. Variables of
//! the firmware, and UKIs that systemd-boot finds by itself, are not looked at.

use anyhow::Result;
use finalize::{
    boot::{
        Loader,
        bls::Entry,
        order::{Decision, Environment, Item, Settings},
    },
    layout,
};

use super::{Disk, Report};

impl Disk {
    /// Why the first deployment of the menu is not the one that starts next; nothing where the two are the same.
    ///
    /// # Errors
    ///
    /// When a file system cannot be read.
    pub fn check_next(&self, loader: Loader, report: &Report) -> Result<Option<String>> {
        let entries = self.entries(loader, layout::ENTRIES)?;
        let of_entry = |name: &str, entry: &Entry| match self.arch {
            Some(arch) => Item::of_entry_on(arch.efi, name, entry),
            None => Item::of_entry(name, entry),
        };
        let mut items: Vec<_> =
            self.ordered(&entries, loader).into_iter().map(|(name, entry)| of_entry(name, &entry)).collect();
        if items.is_empty() {
            let menu = report.entries.iter().filter(|entry| entry.title.is_some());
            let item = |entry: &super::BootEntry| {
                Item::of_menuentry("", entry.title.as_deref().unwrap_or_default(), entry.deployment.clone())
            };
            items.extend(menu.map(item));
        }
        let decision = Decision::of(loader, items, &self.settings(loader)?);
        Ok(decision.pinned.as_ref().and(decision.first_deployment()).and_then(|first| decision.why_not(first)))
    }

    fn settings(&self, loader: Loader) -> Result<Settings> {
        let mut settings = Settings::default();
        match loader {
            Loader::SystemdBoot => {
                let files = self.esp()?.files(layout::LOADER)?.into_iter();
                let conf = files.filter(|(name, _)| name.eq_ignore_ascii_case("loader.conf"));
                settings.loader_conf = conf.map(|(_, text)| text).next().unwrap_or_default();
            }
            Loader::Grub => {
                let grub = &self.boot()?.grub;
                let read = |name| grub.read(&self.in_boot(&format!("{}/{name}", layout::GRUB)));
                settings.environment = Environment::parse(read("grubenv")?.unwrap_or_default().as_bytes());
                settings.grub_cfg = read("grub.cfg")?.unwrap_or_default();
            }
            Loader::GrubCc => {}
        }
        Ok(settings)
    }
}
