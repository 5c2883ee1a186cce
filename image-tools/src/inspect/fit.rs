//! Whether what is on a disk fits together: the firmware and the boot loader, mirrored ESPs, verity that is demanded and there,
//! room for the next update. And what is peculiar, which may matter to another machine, or to nobody.

use std::collections::BTreeMap;

use anyhow::Result;
use composefs_boot::uki::get_text_section;
use finalize::{
    boot::{Loader, bls::Entry},
    cmdline::{Target, Verity},
    digest::DeploymentId,
    layout,
};
use uuid::Uuid;

use super::{
    BootEntry, Disk, Report,
    ext4::{Ext4, Superblock},
    fat::Fat,
    kind::Content,
    objects::VERITY,
};

const MIB: u64 = 1 << 20;

/// How many deployments a machine has while it updates.
const DEPLOYMENTS: u64 = 3;

/// What the default seed of earlier versions has made of all root file systems.
const EVERYBODYS: &[u8] = b"composefs root file system";

/// Features of ext4 that GRUB before 2.12 and e2fsprogs before 1.47 do not know, by their place in the superblock: which of the
/// three words, and which bit.
const NEW_FEATURES: [(usize, u32, &str); 4] = [
    (0, 0x1000, "orphan_file"),
    (1, 0x2000, "metadata_csum_seed"),
    (1, 0x4000, "large_dir"),
    (1, 0x2_0000, "casefold"),
];

/// The entries of deployments in a directory, with their text.
fn deploying(fat: &Fat, dir: &str) -> Result<BTreeMap<String, String>> {
    let files = fat.files(dir)?.into_iter();
    Ok(files.filter(|(_, text)| text.parse::<Entry>().is_ok_and(|entry| entry.deployment().is_some())).collect())
}

impl Disk {
    /// What a firmware starts that knows nothing of this disk.
    pub(super) fn check_firmware(&self) -> Result<Option<String>> {
        let Ok(esp) = self.esp() else { return Ok(Some("the disk has no ESP".to_owned())) };
        let programs = esp.programs()?;
        let (is_there, path) = match self.arch {
            Some(arch) => {
                (programs.iter().any(|there| there.eq_ignore_ascii_case(&arch.default_loader())), arch.default_loader())
            }
            None => (!programs.is_empty(), "EFI/BOOT/BOOT*.EFI".to_owned()),
        };
        let other = if programs.is_empty() { String::new() } else { format!(", but {}", programs.join(", ")) };
        Ok((!is_there)
            .then(|| format!("the ESP has no {path}{other}: a firmware that knows nothing of the disk starts nothing")))
    }

    /// Whether further ESPs boot the same deployments as the first one. What other people have there is theirs.
    pub(super) fn check_mirrors(&self) -> Result<Vec<String>> {
        let Some(((first, esp), mirrors)) = self.found.esps.split_first() else { return Ok(vec![]) };
        let dirs = [layout::ENTRIES, layout::ENTRIES_STAGED].map(|dir| format!("{}/{dir}", layout::LOADER));
        let mut wrong = vec![];
        for (partition, mirror) in mirrors {
            if !mirror.has_dir(layout::LOADER)? && !mirror.has_dir(layout::EFI_LINUX)? {
                continue;
            }
            for dir in &dirs {
                if deploying(esp, dir)? != deploying(mirror, dir)? {
                    let (one, other) = (partition.spoken(), first.spoken());
                    wrong.push(format!("{one} has other entries of deployments in {dir} than {other}"));
                }
            }
        }
        Ok(wrong)
    }

    /// Entries that demand fs-verity of deployments that have none: these do not boot.
    pub(super) fn check_verity(&self, report: &Report) -> Result<Vec<String>> {
        let Ok(root) = self.root() else { return Ok(vec![]) };
        let mut wrong = vec![];
        for entry in report.entries.iter().chain(&report.staged_entries) {
            let options = self.options(entry)?.unwrap_or_default();
            let Some(Target { id, verity: Verity::Required, .. }) = Target::find(&options) else { continue };
            let image = object(&id);
            let sealed =
                root.inodes(std::slice::from_ref(&image))?.first().is_some_and(|inode| inode.flags & VERITY != 0);
            if root.exists(&image)? && !sealed {
                let (file, id) = (&entry.file, id.short());
                let remedy = "say composefs=? instead, or seal the repository";
                wrong.push(format!("{file} demands fs-verity of {id}, which has none, so it does not boot: {remedy}"));
            }
        }
        Ok(wrong)
    }

    /// The kernel command line of an entry, that of its UKI where it has one.
    fn options(&self, entry: &BootEntry) -> Result<Option<String>> {
        for path in entry.files.iter().filter(|path| path.to_ascii_lowercase().ends_with(".efi")) {
            for fat in self.fats() {
                if let Some(uki) = fat.bytes(path.trim_start_matches('/'))? {
                    return Ok(get_text_section(&uki, ".cmdline").ok().map(str::to_owned));
                }
            }
        }
        Ok(entry.options.clone())
    }

    /// Whether the file system with the kernels can take those of another update.
    pub(super) fn check_room(&self, report: &Report) -> Result<Option<String>> {
        let mut files: BTreeMap<&DeploymentId, Vec<&String>> = BTreeMap::new();
        for entry in report.entries.iter().chain(&report.staged_entries) {
            if let Some(id) = &entry.deployment {
                files.entry(id).or_default().extend(&entry.files);
            }
        }
        let mut heaviest = 0;
        for paths in files.values_mut() {
            paths.sort();
            paths.dedup();
            let sizes: Vec<_> = paths.iter().map(|path| self.size(report.loader, path)).collect::<Result<_>>()?;
            heaviest = heaviest.max(sizes.into_iter().sum());
        }
        let missing = DEPLOYMENTS.saturating_sub(files.len() as u64);
        let in_esp = report.loader != Some(Loader::Grub) || files.values().flatten().any(|path| path.ends_with(".efi"));
        let (free, what) = match (&self.found.boot, self.found.esps.first()) {
            (_, Some((partition, esp))) if in_esp => (esp.free()?, partition.spoken()),
            (Some(boot), _) if boot.partition.content == Content::Ext4 => {
                (Superblock::read(&self.path, boot.partition.start)?.free, boot.partition.spoken())
            }
            _ => return Ok(None),
        };
        let needed = missing * heaviest;
        Ok((free < needed).then(|| {
            let (free, needed) = (free / MIB, needed.div_ceil(MIB));
            format!("{what} has {free} MiB free, but the kernels of {missing} more deployments need {needed} MiB: updates will fail")
        }))
    }

    /// The size of a file that an entry names; nothing of one that is not there.
    fn size(&self, loader: Option<Loader>, path: &str) -> Result<u64> {
        if loader == Some(Loader::Grub) && !path.ends_with(".efi") {
            let Some(boot) = self.found.boot.as_ref().filter(|boot| boot.partition.content == Content::Ext4) else {
                return Ok(0);
            };
            let ext4 = Ext4::at(&self.path, boot.partition.start);
            return Ok(ext4.inodes(&[path.to_owned()])?.first().map_or(0, |inode| inode.size));
        }
        for fat in self.fats() {
            if let Some(bytes) = fat.bytes(path.trim_start_matches('/'))? {
                return Ok(bytes.len() as u64);
            }
        }
        Ok(0)
    }

    /// What is not wrong, but may be elsewhere: with another boot loader, beside another disk.
    pub(super) fn peculiar(&self) -> Result<Vec<String>> {
        let mut notes = vec![];
        let root = self.found.root.as_ref().map(|(partition, _)| partition);
        let boot = self.found.boot.as_ref().map(|boot| &boot.partition).filter(|boot| boot.content == Content::Ext4);
        for partition in boot.filter(|boot| root.is_none_or(|root| root.number != boot.number)).into_iter().chain(root)
        {
            let superblock = Superblock::read(&self.path, partition.start)?;
            let has = |(word, bit, name): &(usize, u32, &'static str)| {
                (superblock.features[*word] & bit != 0).then_some(*name)
            };
            let new: Vec<_> = NEW_FEATURES.iter().filter_map(has).collect();
            if !new.is_empty() {
                let (spoken, new) = (partition.spoken(), new.join(", "));
                notes.push(format!(
                    "{spoken} has {new}: GRUB before 2.12 may not read it, and fsck of e2fsprogs before 1.47 refuses"
                ));
            }
            if superblock.uuid == *Uuid::new_v5(&Uuid::NAMESPACE_OID, EVERYBODYS).as_bytes() {
                let spoken = partition.spoken();
                notes.push(format!("{spoken} has the UUID that --seed composefs gives all disks: two of them in one machine are mixed up"));
            }
        }
        for (partition, esp) in &self.found.esps {
            let hidden = esp.hidden()?;
            if hidden != partition.start {
                let (spoken, start) = (partition.spoken(), partition.start);
                notes.push(format!(
                    "{spoken} begins at byte {start}, but its FAT says {hidden} (BPB_HiddSec): few firmwares mind"
                ));
            }
        }
        Ok(notes)
    }
}

/// The EROFS image of a deployment, in the root file system.
fn object(id: &DeploymentId) -> String {
    let (head, tail) = id.as_str().split_at(2);
    format!("/{}/objects/{head}/{tail}", layout::REPOSITORY)
}
