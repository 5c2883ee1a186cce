//! Looks into a disk image without mounting it: what is on it, and whether all of it is as it must be.

pub mod ext4;
pub mod fat;
pub mod grub;
pub mod machine;
mod next;
pub mod objects;
pub mod table;
pub mod xfs;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use finalize::{
    boot::{self, Loader, bls::Entry, entries::Entries},
    digest::DeploymentId,
    layout,
    staged::{BootType, Marker, Origin},
};
use serde::Serialize;
use xshell::cmd;

use self::{ext4::Ext4, fat::Fat, grub::GrubFs, table::Partition};
use crate::{arch::Arch, program};

/// An opened disk image; another format is converted to raw for as long as this lives.
#[derive(Debug)]
pub struct Disk {
    /// The raw image.
    pub path: PathBuf,
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// What machine it is for, where somebody says so or the disk tells.
    pub arch: Option<&'static Arch>,
    /// The ESP.
    pub esp: Fat,
    /// The physical root.
    pub root: Ext4,
    /// The partition that holds GRUB's files: a boot partition, or the physical root.
    pub boot: Partition,
    /// Its file system.
    pub grub: GrubFs,
    /// Where the boot directory is in it.
    pub prefix: &'static str,
    _scratch: Option<tempfile::TempDir>,
}

/// What is on a disk.
#[derive(Debug, Serialize)]
pub struct Report {
    /// 1.
    pub schema: u32,
    /// What machine it is for, by the name that OCI images have it by.
    pub arch: Option<&'static Arch>,
    /// The partitions.
    pub partitions: Vec<Partition>,
    /// Who boots it.
    pub loader: Loader,
    /// What boots next, the first one first.
    pub entries: Vec<BootEntry>,
    /// What is staged to take its place.
    pub staged_entries: Vec<BootEntry>,
    /// The deployments.
    pub deployments: Vec<Deployment>,
    /// The staged one.
    pub staged: Option<DeploymentId>,
    /// The record of the last finalization.
    pub record: Option<serde_json::Value>,
}

/// A boot entry.
#[derive(Debug, Serialize)]
pub struct BootEntry {
    /// Its file.
    pub file: String,
    /// What it boots, if that is a deployment.
    pub deployment: Option<DeploymentId>,
    /// What it is called.
    pub title: Option<String>,
    /// The files that it boots.
    pub files: Vec<String>,
}

/// A deployment.
#[derive(Debug, Serialize)]
pub struct Deployment {
    /// Its name.
    pub id: DeploymentId,
    /// How it boots, when its origin says so.
    pub boot_type: Option<BootType>,
    /// What is in its state directory.
    pub state: Vec<String>,
    /// Whether its EROFS image is in the repository.
    pub has_image: bool,
}

impl Disk {
    /// Opens an image in any format that qemu-img reads, which is for a machine of the kind `arch`; for what it tells itself
    /// where nothing is said.
    ///
    /// # Errors
    ///
    /// When it has no partition table of ours: names what is missing.
    pub fn open(image: &Path, arch: Option<&'static Arch>) -> Result<Self> {
        let mut scratch = None;
        let mut path = image.to_owned();
        let shell = program::shell()?;
        if format(image)? != "raw" {
            let dir = tempfile::tempdir()?;
            path = dir.path().join("disk.raw");
            program::run(cmd!(shell, "qemu-img convert -U -O raw {image} {path}"))?;
            scratch = Some(dir);
        }
        let partitions =
            table::read(&path).with_context(|| format!("reading the partitions of {}", image.display()))?;
        let find = |name: &str| {
            let found = partitions.iter().find(|partition| partition.name == name);
            found.with_context(|| format!("{} has no partition {name:?}", image.display()))
        };
        let (esp, root) = (find("esp")?, find("root")?);
        let (boot, prefix) = find("boot").map_or((root, "/boot"), |boot| (boot, ""));
        let (boot, grub) = (boot.clone(), GrubFs::partition(&path, boot.number));
        let (esp, root) = (Fat::at(&path, esp.start), Ext4::at(&path, root.start));
        let arch = match arch {
            None => machine::of(&partitions, &esp)?,
            said => said,
        };
        Ok(Self { path, partitions, arch, esp, root, boot, grub, prefix, _scratch: scratch })
    }

    /// What is on it.
    ///
    /// # Errors
    ///
    /// When a file system cannot be read.
    pub fn report(&self) -> Result<Report> {
        let loader = match self.grub.exists(&self.in_boot("grub2/grub.cfg"))? {
            true => Loader::Grub,
            false => Loader::SystemdBoot,
        };
        let record = self.root.read(&format!("/{}", layout::RECORD))?;
        let staged = self.root.read(&format!("/{}", layout::STAGED))?;
        let staged = staged.and_then(|text| text.parse::<Marker>().ok()).map(|marker| marker.depl_id);
        Ok(Report {
            schema: 1,
            arch: self.arch,
            partitions: self.partitions.clone(),
            loader,
            entries: self.boot_entries(loader, layout::ENTRIES)?,
            staged_entries: self.boot_entries(loader, layout::ENTRIES_STAGED)?,
            deployments: self.deployments()?,
            staged,
            record: record.and_then(|text| serde_json::from_str(&text).ok()),
        })
    }

    fn in_boot(&self, path: &str) -> String {
        format!("{}/{path}", self.prefix)
    }

    /// The entries of a directory in `loader/`, wherever the boot loader reads them.
    fn entries(&self, loader: Loader, dir: &str) -> Result<Entries> {
        let dir = format!("{}/{dir}", layout::LOADER);
        let files = match loader {
            Loader::SystemdBoot | Loader::GrubCc => self.esp.files(&dir)?,
            Loader::Grub => self.grub.files(&self.in_boot(&dir))?,
        };
        Ok(files.into_iter().collect())
    }

    /// The entries in the order in which the loader shows them on the machine that the disk is for.
    fn ordered<'a>(&self, entries: &'a Entries, loader: Loader) -> Vec<(&'a str, Entry)> {
        match self.arch {
            Some(arch) => entries.ordered_on(arch.efi, loader),
            None => entries.ordered(loader),
        }
    }

    fn boot_entries(&self, loader: Loader, dir: &str) -> Result<Vec<BootEntry>> {
        let entries = self.entries(loader, dir)?;
        let list = self.ordered(&entries, loader).into_iter().map(|(file, entry)| BootEntry {
            file: file.to_owned(),
            deployment: entry.deployment(),
            title: entry.value("title").map(str::to_owned),
            files: entry.files().map(str::to_owned).collect(),
        });
        let mut list: Vec<_> = list.collect();
        if loader == Loader::Grub {
            let file = if dir == layout::ENTRIES { layout::USER_CFG } else { layout::USER_CFG_STAGED };
            let text = self.grub.read(&self.in_boot(&format!("{}/{file}", layout::GRUB)))?.unwrap_or_default();
            list.extend(boot::grub::chainloaded(&text).into_iter().map(|(title, uki)| BootEntry {
                file: file.to_owned(),
                deployment: boot::bls::id_of_uki(&uki),
                title: Some(title),
                files: vec![uki],
            }));
        }
        Ok(list)
    }

    fn deployments(&self) -> Result<Vec<Deployment>> {
        let mut all = vec![];
        for node in self.root.list(&format!("/{}", layout::DEPLOYMENTS))? {
            let Ok(id) = node.name.parse::<DeploymentId>() else { continue };
            let state = format!("/{}", layout::deployment(&id));
            let origin = self.root.read(&format!("{state}/{}", layout::origin(&id)))?;
            let names = self.root.list(&state)?.into_iter().map(|node| node.name).collect();
            all.push(Deployment {
                boot_type: origin.and_then(|text| text.parse::<Origin>().ok()).map(|origin| origin.boot_type),
                state: names,
                has_image: self.root.exists(&format!("/{}", layout::image(&id)))?,
                id,
            });
        }
        Ok(all)
    }

    /// Everything that is not as it must be, one line each.
    ///
    /// # Errors
    ///
    /// When a file system cannot be read at all.
    pub fn check(&self, report: &Report) -> Result<Vec<String>> {
        let mut wrong = self.check_boot(report)?;
        wrong.extend(self.check_next(report)?);
        wrong.extend(self.check_machine()?);
        wrong.extend(self.check_configuration(report.loader)?);
        wrong.extend(self.esp.fsck()?);
        for partition in self.partitions.iter().filter(|found| ["boot", "root"].contains(&found.name.as_str())) {
            wrong.extend(match xfs::is_at(&self.path, partition.start)? {
                true => xfs::fsck(&self.path, partition)?,
                false => Ext4::at(&self.path, partition.start).fsck(&partition.name),
            });
        }
        let images: Vec<_> = report.deployments.iter().map(|deployment| deployment.id.clone()).collect();
        wrong.extend(objects::check(&self.root, &self.path, &images)?);
        Ok(wrong)
    }

    /// Configurations that GRUB cannot read: it goes on behind them as well as it can.
    fn check_configuration(&self, loader: Loader) -> Result<Vec<String>> {
        let mut wrong = vec![];
        let generated = format!("{}/{}/{}", layout::LOADER, layout::ENTRIES, boot::grub::GENERATED);
        let names = [format!("{}/grub.cfg", layout::GRUB), format!("{}/{}", layout::GRUB, layout::USER_CFG), generated];
        for name in names.iter().filter(|_| loader == Loader::Grub) {
            let Some(text) = self.grub.read(&self.in_boot(name))? else { continue };
            wrong.extend(grub::parse(&text)?.map(|said| format!("GRUB cannot read {name}: {said}")));
        }
        if loader == Loader::Grub {
            wrong.extend(self.check_home()?);
        }
        Ok(wrong)
    }

    /// A GRUB that does not find its configuration on the ESP.
    fn check_home(&self) -> Result<Option<String>> {
        let Some(arch) = self.arch else { return Ok(None) };
        let homes = boot::grub::homes(&self.esp.bytes(&arch.default_loader())?.unwrap_or_default());
        for home in &homes {
            if self.esp.exists(&format!("EFI/{home}/grub.cfg"))? {
                return Ok(None);
            }
        }
        Ok(homes
            .first()
            .map(|home| format!("GRUB looks for EFI/{home}/grub.cfg, which is not there: it ends at its prompt")))
    }

    /// Where GRUB reads generated entries: whether they are those of the files beside them.
    fn check_generated(&self, loader: Loader) -> Result<Vec<String>> {
        let mut wrong = vec![];
        let dirs =
            [layout::ENTRIES, layout::ENTRIES_STAGED].map(|name| self.in_boot(&format!("{}/{name}", layout::LOADER)));
        for dir in dirs.iter().filter(|_| loader == Loader::Grub) {
            let entries: Entries = self.grub.text_files(dir)?.into_iter().collect();
            let text = entries.get(boot::grub::GENERATED);
            let main = self.grub.read(&self.in_boot(&format!("{}/grub.cfg", layout::GRUB)))?.unwrap_or_default();
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
            if text.is_some_and(|text| text != boot::grub::menuentries(&entries)) {
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
        if !report.entries.iter().any(|entry| entry.deployment.is_some()) {
            wrong.push("no entry in loader/entries boots a deployment".to_owned());
        }
        for entry in report.entries.iter().chain(&report.staged_entries) {
            for path in &entry.files {
                let found = match report.loader {
                    Loader::SystemdBoot | Loader::GrubCc => self.esp.exists(path)?,
                    Loader::Grub if path.ends_with(".efi") => self.esp.exists(path)?,
                    Loader::Grub => self.grub.exists(path)?,
                };
                if !found && entry.deployment.is_some() {
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
}

/// What qemu-img calls the format of an image.
fn format(image: &Path) -> Result<String> {
    let shell = program::shell()?;
    let info = program::run(cmd!(shell, "qemu-img info -U --output=json {image}"))?;
    let info: serde_json::Value = serde_json::from_str(&info).context("reading what qemu-img says")?;
    info["format"].as_str().map(str::to_owned).context("reading what qemu-img says: it names no format")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in &self.partitions {
            writeln!(f, "partition   {} {} MiB", part.name, part.size >> 20)?;
        }
        writeln!(f, "machine     {}", self.arch.map_or("unknown", |arch| arch.linux))?;
        writeln!(f, "boot loader {}", self.loader)?;
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
        let outcome = self.record.as_ref().map_or("none", |record| record["outcome"].as_str().unwrap_or("unreadable"));
        writeln!(f, "record      {outcome}")
    }
}
