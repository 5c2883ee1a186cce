//! A disk as a boot loader sees it: FAT as it is, and ext4 and XFS as GRUB reads them, without replaying their journals.

use std::ops::Range;

use anyhow::{Context, Result, bail};
use finalize::{
    boot::{Loader, bls::id_of_uki, entries::Entries, grub},
    cmdline::Target,
    digest::DeploymentId,
    layout,
};

use crate::inspect::{Disk, fat::Fat, grub::GrubFs};

/// What a boot loader reads its entries from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Menu {
    /// Type #1 entries on the ESP.
    Esp,
    /// GRUB's `user.cfg`.
    UserCfg,
    /// Menuentries that were generated from Type #1 entries.
    Generated,
    /// Type #1 entries, read by a module of GRUB.
    Blsuki,
}

impl Menu {
    /// What `loader` reads on this machine.
    ///
    /// # Errors
    ///
    /// When GRUB has no configuration.
    pub fn of(disk: &Disk, loader: Loader) -> Result<Self> {
        if loader == Loader::SystemdBoot {
            return Ok(Self::Esp);
        }
        let boot = disk.boot()?;
        let config = format!("{}/{}/grub.cfg", boot.prefix, layout::GRUB);
        let text = boot.grub.read(&config)?.context("there is no grub.cfg")?;
        Ok(match text {
            text if text.contains(layout::USER_CFG) => Self::UserCfg,
            text if text.contains("blscfg") => Self::Blsuki,
            _ => Self::Generated,
        })
    }
}

/// An entry, and the files that it boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The deployment.
    pub id: DeploymentId,
    /// Kernel and initrds, or the UKI.
    pub files: Vec<String>,
}

/// Both file systems that a boot loader may read.
#[derive(Debug)]
pub struct Eyes {
    /// What there is to read.
    pub menu: Menu,
    /// The ESP.
    pub esp: Fat,
    /// What GRUB was told is its root.
    pub grub: GrubFs,
    /// Where the boot directory is in it.
    pub prefix: &'static str,
}

impl Eyes {
    /// The entries of deployments, in the boot loader's order; fails when the very first one is none.
    ///
    /// # Errors
    ///
    /// When nothing can be booted: says why.
    pub fn choices(&self) -> Result<Vec<Choice>> {
        let entries = format!("{}/{}/{}", self.prefix, layout::LOADER, layout::ENTRIES);
        let generated = format!("{entries}/{}", grub::GENERATED);
        let choices = match self.menu {
            Menu::Esp => {
                let entries = self.esp.readable_entries(&format!("{}/{}", layout::LOADER, layout::ENTRIES))?;
                of_entries(&entries.into_iter().collect(), Loader::SystemdBoot)
            }
            Menu::Blsuki => of_entries(&self.grub.files(&entries)?.into_iter().collect(), Loader::Grub),
            Menu::Generated => of_menuentries(&self.text(&generated)?),
            Menu::UserCfg => {
                let text = self.text(&format!("{}/{}/{}", self.prefix, layout::GRUB, layout::USER_CFG))?;
                let ukis = grub::chainloaded(&text).into_iter();
                ukis.map(|(_, uki)| Some(Choice { id: id_of_uki(&uki)?, files: vec![uki] })).collect()
            }
        };
        match choices.first() {
            None => bail!("there is no entry"),
            Some(None) => bail!("the first entry boots no deployment"),
            Some(Some(_)) => Ok(choices.into_iter().flatten().collect()),
        }
    }

    /// What GRUB cannot do without.
    fn text(&self, path: &str) -> Result<String> {
        self.grub.read(path)?.with_context(|| format!("GRUB does not find {path}"))
    }

    /// Where the bytes of a file that an entry names are, in its file system. Where they are as before, and nothing has
    /// written there, the file is whole.
    ///
    /// # Errors
    ///
    /// When the boot loader cannot read it.
    pub fn blocks(&self, path: &str) -> Result<Vec<Range<u64>>> {
        match self.menu {
            Menu::Esp | Menu::UserCfg => self.esp.blocks(path),
            Menu::Generated | Menu::Blsuki => self.grub.blocks(path),
        }
    }
}

/// What each entry boots; nothing where it is no deployment.
fn of_entries(entries: &Entries, loader: Loader) -> Vec<Option<Choice>> {
    let choice = |(_, entry): (&str, finalize::boot::bls::Entry)| {
        let id = entry.deployment()?;
        Some(Choice { id, files: entry.files().map(str::to_owned).collect() })
    };
    entries.ordered(loader).into_iter().map(choice).collect()
}

/// The same, of menuentries in GRUB's own language.
fn of_menuentries(text: &str) -> Vec<Option<Choice>> {
    let mut found: Vec<Option<Choice>> = vec![];
    for line in text.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("linux") => {
                let kernel: Vec<_> = words.next().map(str::to_owned).into_iter().collect();
                found.push(Target::find(line).map(|target| Choice { id: target.id, files: kernel }));
            }
            Some("chainloader") => found.push(None),
            Some("initrd") => {
                if let Some(Some(choice)) = found.last_mut() {
                    choice.files.extend(words.map(str::to_owned));
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn menuentries_are_read_in_their_order() {
        let (a, b) = ("ab".repeat(64), "cd".repeat(64));
        let text = format!(
            "menuentry X --id x {{\n  linux /boot/k composefs={b} rw\n  initrd /boot/i /boot/j\n}}\n\
             menuentry rescue {{\n  linux /rescue quiet\n  initrd /r\n}}\nmenuentry Y {{\n  linux /k composefs={a}\n}}\n"
        );
        let found = of_menuentries(&text);
        let files: Vec<_> = found.iter().map(|choice| choice.as_ref().map(|choice| choice.files.join(" "))).collect();
        assert_eq!(files, [Some("/boot/k /boot/i /boot/j".to_owned()), None, Some("/k".to_owned())]);
        assert_eq!(found[2].as_ref().map(|choice| choice.id.as_str()), Some(a.as_str()));
    }
}
