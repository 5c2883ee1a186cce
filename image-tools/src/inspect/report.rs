//! What is on a disk, read from it, and printed.

use std::fmt;

use anyhow::Result;
use finalize::{
    boot::{self, Loader, bls::Entry, entries::Entries},
    digest::DeploymentId,
    layout,
    staged::{Marker, Origin},
};

use super::{BootEntry, Deployment, Disk, Report, ext4::Ext4, fat::Fat, kind::Content};

impl Disk {
    /// What is on it.
    ///
    /// # Errors
    ///
    /// When a file system cannot be read.
    pub fn report(&self) -> Result<Report> {
        let loader = self.loader()?;
        let read = |path: &str| self.root().ok().map_or(Ok(None), |root| root.read(&format!("/{path}")));
        let staged = read(layout::STAGED)?;
        let staged = staged.and_then(|text| text.parse::<Marker>().ok()).map(|marker| marker.depl_id);
        let mut notes = self.found.notes.clone();
        notes.extend(self.peculiar()?);
        Ok(Report {
            schema: 1,
            arch: self.arch,
            partitions: self.partitions.clone(),
            loader,
            entries: self.boot_entries(loader, layout::ENTRIES)?,
            staged_entries: self.boot_entries(loader, layout::ENTRIES_STAGED)?,
            deployments: self.deployments()?,
            staged,
            record: read(layout::RECORD)?.and_then(|text| serde_json::from_str(&text).ok()),
            notes,
        })
    }

    /// By whose files there are. GRUB's own tools are asked only where nobody else reads the file system.
    fn loader(&self) -> Result<Option<Loader>> {
        if let Some(boot) = &self.found.boot {
            let config = format!("{}/{}/grub.cfg", boot.prefix, layout::GRUB);
            let (path, start) = (&self.path, boot.partition.start);
            let is_grub = match boot.partition.content {
                Content::Ext4 => Ext4::at(path, start).exists(&config)?,
                Content::Fat => Fat::at(path, start).exists(&config)?,
                _ => boot.grub.exists(&config)?,
            };
            if is_grub {
                return Ok(Some(Loader::Grub));
            }
        }
        for esp in self.fats() {
            for dir in [layout::LOADER, "EFI/systemd"] {
                if esp.has_dir(dir)? {
                    return Ok(Some(Loader::SystemdBoot));
                }
            }
        }
        Ok(None)
    }

    /// What systemd-boot reads: the ESP, and a boot partition with FAT.
    pub(super) fn fats(&self) -> Vec<Fat> {
        let boot = self.found.boot.as_ref().filter(|boot| boot.partition.content == Content::Fat);
        let partitions =
            self.found.esps.first().map(|(esp, _)| esp).into_iter().chain(boot.map(|boot| &boot.partition));
        partitions.map(|partition| Fat::at(&self.path, partition.start)).collect()
    }

    pub(super) fn in_boot(&self, path: &str) -> String {
        format!("{}/{path}", self.found.boot.as_ref().map_or("", |boot| boot.prefix))
    }

    /// The entries of a directory in `loader/`, wherever the boot loader reads them.
    pub(super) fn entries(&self, loader: Loader, dir: &str) -> Result<Entries> {
        let dir = format!("{}/{dir}", layout::LOADER);
        if loader == Loader::Grub {
            return Ok(self.boot()?.grub.files(&self.in_boot(&dir))?.into_iter().collect());
        }
        let files: Vec<_> = self.fats().iter().map(|fat| fat.files(&dir)).collect::<Result<_>>()?;
        Ok(files.into_iter().flatten().collect())
    }

    /// The entries in the order in which the loader shows them on the machine that the disk is for.
    pub(super) fn ordered<'a>(&self, entries: &'a Entries, loader: Loader) -> Vec<(&'a str, Entry)> {
        match self.arch {
            Some(arch) => entries.ordered_on(arch.efi, loader),
            None => entries.ordered(loader),
        }
    }

    fn boot_entries(&self, loader: Option<Loader>, dir: &str) -> Result<Vec<BootEntry>> {
        let Some(loader) = loader else { return Ok(vec![]) };
        let entries = self.entries(loader, dir)?;
        let list = self.ordered(&entries, loader).into_iter().map(|(file, entry)| BootEntry {
            file: file.to_owned(),
            deployment: entry.deployment(),
            title: entry.value("title").map(str::to_owned),
            files: entry.files().map(str::to_owned).collect(),
            options: entry.value("options").map(str::to_owned),
        });
        let mut list: Vec<_> = list.collect();
        if loader == Loader::Grub {
            let file = if dir == layout::ENTRIES { layout::USER_CFG } else { layout::USER_CFG_STAGED };
            let text = self.boot()?.grub.read(&self.in_boot(&format!("{}/{file}", layout::GRUB)))?.unwrap_or_default();
            list.extend(boot::grub::chainloaded(&text).into_iter().map(|(title, uki)| BootEntry {
                file: file.to_owned(),
                deployment: boot::bls::id_of_uki(&uki),
                title: Some(title),
                files: vec![uki],
                options: None,
            }));
        }
        Ok(list)
    }

    fn deployments(&self) -> Result<Vec<Deployment>> {
        let mut all = vec![];
        let Ok(root) = self.root() else { return Ok(all) };
        for node in root.list(&format!("/{}", layout::DEPLOYMENTS))? {
            let Ok(id) = node.name.parse::<DeploymentId>() else { continue };
            let state = format!("/{}", layout::deployment(&id));
            let origin = root.read(&format!("{state}/{}", layout::origin(&id)))?;
            let names = root.list(&state)?.into_iter().map(|node| node.name).collect();
            all.push(Deployment {
                boot_type: origin.and_then(|text| text.parse::<Origin>().ok()).map(|origin| origin.boot_type),
                state: names,
                has_image: root.exists(&format!("/{}", layout::image(&id)))?,
                id,
            });
        }
        Ok(all)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.partitions {
            let (name, role, size, content) = (&part.name, part.role, part.size >> 20, part.content);
            writeln!(f, "partition   {} {name} {size} MiB, {role}, {content}", part.number)?;
        }
        writeln!(f, "machine     {}", self.arch.map_or("unknown", |arch| arch.linux))?;
        let loader = self.loader.map_or_else(|| "none that is known".to_owned(), |loader| loader.to_string());
        writeln!(f, "boot loader {loader}")?;
        for (what, list) in [("entry", &self.entries), ("staged", &self.staged_entries)] {
            for entry in list {
                let id = entry.deployment.as_ref().map_or("not ours", DeploymentId::short);
                writeln!(f, "{what:11} {} ({id})", entry.file)?;
            }
        }
        for deployment in &self.deployments {
            let staged = if self.staged.as_ref() == Some(&deployment.id) { ", staged" } else { "" };
            writeln!(f, "deployment  {} ({}{staged})", deployment.id.short(), deployment.state.join(" "))?;
        }
        if self.deployments.is_empty() {
            writeln!(f, "deployment  none")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note        {note}"))?;
        let outcome = self.record.as_ref().map_or("none", |record| record["outcome"].as_str().unwrap_or("unreadable"));
        writeln!(f, "record      {outcome}")
    }
}
