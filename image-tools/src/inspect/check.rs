//! What is wrong with a disk: entries, kernels, configurations, file systems and objects.

use anyhow::Result;
use finalize::{
    boot::{self, Loader, entries::Entries},
    digest::DeploymentId,
    layout,
};

use super::{Disk, Report, ext4::Ext4, fat::Fat, grub, kind::Content, objects, table::Partition, xfs};

impl Disk {
    /// Everything that is not as it must be, one line each.
    ///
    /// # Errors
    ///
    /// When a file system cannot be read at all.
    pub fn check(&self, report: &Report) -> Result<Vec<String>> {
        let mut wrong = self.check_boot(report)?;
        if let Some(loader) = report.loader {
            wrong.extend(self.check_next(loader, report)?);
            wrong.extend(self.check_configuration(loader)?);
        }
        wrong.extend(self.check_firmware()?);
        wrong.extend(self.check_mirrors()?);
        wrong.extend(self.check_verity(report)?);
        wrong.extend(self.check_room(report)?);
        for partition in self.in_use() {
            wrong.extend(match partition.content {
                Content::Fat => Fat::at(&self.path, partition.start).fsck(partition)?,
                Content::Xfs => xfs::fsck(&self.path, partition)?,
                Content::Ext4 => Ext4::at(&self.path, partition.start).fsck(partition),
                _ => vec![],
            });
        }
        let images: Vec<_> = report.deployments.iter().map(|deployment| deployment.id.clone()).collect();
        if let Ok(root) = self.root() {
            wrong.extend(objects::check(root, &self.path, &images)?);
        }
        Ok(wrong)
    }

    /// The partitions that the machine is booted from.
    fn in_use(&self) -> impl Iterator<Item = &Partition> {
        let esps = self.found.esps.iter().map(|(partition, _)| partition);
        let root = self.found.root.as_ref().map(|(partition, _)| partition);
        let boot = self.found.boot.as_ref().map(|boot| &boot.partition);
        esps.chain(boot.filter(|boot| root.is_none_or(|root| root.number != boot.number))).chain(root)
    }

    /// Configurations that GRUB cannot read: it goes on behind them as well as it can.
    fn check_configuration(&self, loader: Loader) -> Result<Vec<String>> {
        let mut wrong = vec![];
        let generated = format!("{}/{}/{}", layout::LOADER, layout::ENTRIES, boot::grub::GENERATED);
        let names = [format!("{}/grub.cfg", layout::GRUB), format!("{}/{}", layout::GRUB, layout::USER_CFG), generated];
        for name in names.iter().filter(|_| loader == Loader::Grub) {
            let Some(text) = self.boot()?.grub.read(&self.in_boot(name))? else { continue };
            wrong.extend(grub::parse(&text)?.map(|said| format!("GRUB cannot read {name}: {said}")));
        }
        if loader == Loader::Grub {
            wrong.extend(self.check_home()?);
        }
        Ok(wrong)
    }

    /// A GRUB that does not find its configuration on the ESP.
    fn check_home(&self) -> Result<Option<String>> {
        let Ok(esp) = self.esp() else { return Ok(None) };
        let mut homes = vec![];
        for path in esp.programs()? {
            homes.extend(boot::grub::homes(&esp.bytes(&path)?.unwrap_or_default()));
        }
        for home in &homes {
            if esp.exists(&format!("EFI/{home}/grub.cfg"))? {
                return Ok(None);
            }
        }
        Ok(homes
            .first()
            .map(|home| format!("GRUB looks for EFI/{home}/grub.cfg, which is not there: it ends at its prompt")))
    }

    /// Where GRUB reads generated entries: whether they are those of the files beside them.
    fn check_generated(&self, loader: Option<Loader>) -> Result<Vec<String>> {
        let mut wrong = vec![];
        let dirs =
            [layout::ENTRIES, layout::ENTRIES_STAGED].map(|name| self.in_boot(&format!("{}/{name}", layout::LOADER)));
        for dir in dirs.iter().filter(|_| loader == Some(Loader::Grub)) {
            let grub = &self.boot()?.grub;
            let entries: Entries = grub.text_files(dir)?.into_iter().collect();
            let text = entries.get(boot::grub::GENERATED);
            let main = grub.read(&self.in_boot(&format!("{}/grub.cfg", layout::GRUB)))?.unwrap_or_default();
            let sourced = format!("{}/{}/{}", layout::LOADER, layout::ENTRIES, boot::grub::GENERATED);
            if text.is_none()
                && dir.ends_with(layout::ENTRIES)
                && main.contains(&sourced)
                && !main.contains(".conf; do")
            {
                wrong.push(format!(
                    "{dir}/{} is missing, and {}/grub.cfg reads nothing else: GRUB ends at its prompt",
                    boot::grub::GENERATED,
                    layout::GRUB
                ));
            }
            if text.is_some_and(|text| !boot::grub::is_menu_of(text, &entries)) {
                wrong.push(format!("{dir}/{} is not made from the entries beside it", boot::grub::GENERATED));
            }
        }
        Ok(wrong)
    }

    /// What the next boot depends on: entries, kernels, deployments with an /etc.
    ///
    /// # Errors
    ///
    /// When a file system cannot be read at all.
    pub fn check_boot(&self, report: &Report) -> Result<Vec<String>> {
        let mut wrong = self.check_generated(report.loader)?;
        if report.deployments.is_empty() {
            wrong.push("the disk has no deployments".to_owned());
        }
        if !report.entries.iter().any(|entry| entry.deployment.is_some()) {
            wrong.push("no entry in loader/entries boots a deployment".to_owned());
        }
        for entry in report.entries.iter().chain(&report.staged_entries) {
            for path in &entry.files {
                if !self.boots_from(report.loader, path)? && entry.deployment.is_some() {
                    wrong.push(format!("{} names {path}, which does not exist", entry.file));
                }
            }
            let known = |id: &DeploymentId| report.deployments.iter().any(|deployment| deployment.id == *id);
            if let Some(id) = entry.deployment.as_ref().filter(|id| !known(id)) {
                wrong.push(format!("{} boots {id}, which is not deployed", entry.file));
            }
        }
        for deployment in &report.deployments {
            let mut missing = |what: &str| wrong.push(format!("the deployment {} has no {what}", deployment.id));
            if !deployment.state.iter().any(|name| name == layout::ETC) {
                missing("etc");
            }
            if deployment.boot_type.is_none() {
                missing("origin with a boot_type");
            }
            if !deployment.has_image {
                missing("image in the repository");
            }
        }
        Ok(wrong)
    }

    /// Whether the boot loader finds the file that an entry names.
    fn boots_from(&self, loader: Option<Loader>, path: &str) -> Result<bool> {
        if loader == Some(Loader::Grub) && !path.ends_with(".efi") {
            return self.boot()?.grub.exists(path);
        }
        let found: Vec<_> = self.fats().iter().map(|fat| fat.exists(path)).collect::<Result<_>>()?;
        Ok(found.contains(&true))
    }
}
