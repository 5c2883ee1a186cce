//! Type #1 boot entries: one file, one entry (the Boot Loader Specification, "Type #1 Boot Loader Specification
//! Entries", and systemd's `loader.conf(5)`).
//!
//! An entry is kept line by line, so that what we do not know (comments, unknown keys, their order) survives a round trip.

use std::{fmt, str::FromStr};

use super::order::Counter;
use crate::{
    cmdline::Target,
    digest::DeploymentId,
    layout::{BOOT_PREFIX, EFI_LINUX, EFI_LINUX_BOOTC},
};

/// A Type #1 entry. Any text is one; an entry without the right keys just does not boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    lines: Vec<String>,
    ends_with_newline: bool,
}

impl Entry {
    /// An entry with these keys in this order.
    pub fn new<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let lines = pairs.into_iter().map(|(k, v)| format!("{k} {v}")).collect();
        Self { lines, ends_with_newline: true }
    }

    /// The values of `key`, in order; `initrd` and `options` may stand several times.
    pub fn values<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |line| {
            let (k, value) = line.trim().split_once(|c: char| c.is_ascii_whitespace())?;
            (k == key).then(|| value.trim())
        })
    }

    /// The last value of `key`: what a boot loader takes where a key stands twice.
    pub fn value<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.values(key).last()
    }

    /// All kernel options, joined as boot loaders do.
    pub fn options(&self) -> String {
        self.values("options").collect::<Vec<_>>().join(" ")
    }

    /// The files that the entry boots (`linux`, `initrd`, `efi`, `uki`), absolute within their partition.
    pub fn files(&self) -> impl Iterator<Item = &str> {
        let keys = ["linux", "initrd", "efi", "uki"];
        keys.into_iter().flat_map(|key| self.values(key))
    }

    /// The deployment that the entry boots: the one on its command line, else the one in its UKI's name.
    /// The name of a kernel *directory* says nothing, since deployments may share one.
    pub fn deployment(&self) -> Option<DeploymentId> {
        let named = || ["efi", "uki"].into_iter().filter_map(|key| self.value(key)).find_map(id_of_uki);
        Target::find(&self.options()).map(|target| target.id).or_else(named)
    }

    /// Whether the entry belongs to a composefs deployment, and so may be replaced with it. All others are somebody
    /// else's and are never changed.
    pub fn is_ours(&self) -> bool {
        let names_composefs = |word: &str| word.starts_with("composefs=") || word.starts_with("composefs.digest=");
        self.files().any(|path| path.contains(BOOT_PREFIX) || is_of_an_older_bootc(path))
            || crate::cmdline::words(&self.options()).any(names_composefs)
    }

    /// The same entry with `key` set to `value`, in its old place, or at the end.
    pub fn with(mut self, key: &str, value: &str) -> Self {
        let is_key = |line: &String| line.split_ascii_whitespace().next() == Some(key);
        let place = self.lines.iter().position(is_key);
        let line = format!("{key} {value}");
        match place {
            Some(place) => self.lines[place] = line,
            None => self.lines.push(line),
        }
        self
    }
}

/// The deployment in the name of a UKI, `…/bootc_composefs-<D>.efi`; of an older bootc `EFI/Linux/bootc/<D>.efi`. A boot
/// counter is no part of the name.
pub fn id_of_uki(path: &str) -> Option<DeploymentId> {
    let (above, name) = path.rsplit_once(['/', '\\']).unwrap_or(("", path));
    let (name, _) = Counter::split(name);
    let stem = name.strip_suffix(".efi")?;
    match stem.strip_prefix(BOOT_PREFIX) {
        Some(id) => id.parse().ok(),
        None => is_below(above, EFI_LINUX_BOOTC).then(|| stem.parse().ok())?,
    }
}

/// Kernel directories and UKIs had no prefix in an older bootc: `EFI/Linux/<D>/vmlinuz`, `EFI/Linux/bootc/<D>.efi`.
fn is_of_an_older_bootc(path: &str) -> bool {
    let dir = path.rsplit_once('/').and_then(|(dir, _)| dir.rsplit_once('/'));
    let in_dir = dir.is_some_and(|(above, name)| is_below(above, EFI_LINUX) && name.parse::<DeploymentId>().is_ok());
    in_dir || id_of_uki(path).is_some()
}

/// Whether two directories of an ESP are the same; FAT knows no case.
fn is_below(dir: &str, wanted: &str) -> bool {
    dir.trim_matches(['/', '\\']).replace('\\', "/").eq_ignore_ascii_case(wanted)
}

impl FromStr for Entry {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lines = text.split('\n').map(str::to_owned).collect::<Vec<_>>();
        let ends_with_newline = text.ends_with('\n');
        let keep = lines.len() - usize::from(ends_with_newline);
        Ok(Self { lines: lines.into_iter().take(keep).collect(), ends_with_newline })
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines.join("\n"))?;
        if self.ends_with_newline { f.write_str("\n") } else { Ok(()) }
    }
}

/// Whether a deployment boots next, or is the one to fall back on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Boots next.
    Primary,
    /// The deployment booted now.
    Secondary,
}

impl Role {
    /// The name of the entry's file. GRUB sorts by file name, descending, so the priority is 1 for the primary.
    ///
    /// `version` counts before the priority in that order: entries that shall stand in the order of their roles must
    /// have the same version in their names.
    pub fn file_name(self, os_id: &str, version: &str) -> String {
        let priority = match self {
            Self::Primary => 1,
            Self::Secondary => 0,
        };
        format!("bootc_{}-{}-{priority}.conf", file_name_safe(os_id).replace('-', "_"), file_name_safe(version))
    }

    /// The key by which systemd-boot sorts, ascending.
    pub fn sort_key(self, os_id: &str) -> String {
        let place = match self {
            Self::Primary => 0,
            Self::Secondary => 1,
        };
        format!("bootc-{os_id}-{place}")
    }
}

/// Characters that the specification allows in a file name (and FAT in any directory); others become `_`.
fn file_name_safe(text: &str) -> String {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '_' | '.');
    text.chars().map(|c| if allowed(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOTC: &str = "title A\nversion 1\nsort-key bootc-debian-0\nlinux /EFI/Linux/bootc_composefs-x/vmlinuz\n\
                         initrd /EFI/Linux/bootc_composefs-x/initrd\noptions rw composefs=ID\n";

    fn entry(text: &str) -> Entry {
        text.parse().unwrap()
    }

    #[test]
    fn every_text_survives_the_round_trip() {
        for text in ["", "\n", "a", "a\n\n", "# c\n\nfoo\tbar \r\nlinux", BOOTC] {
            assert_eq!(entry(text).to_string(), text);
        }
    }

    #[test]
    fn a_deployment_is_found_on_the_command_line_then_in_the_name_of_a_uki() {
        let (one, two) = ("ab".repeat(64), "cd".repeat(64));
        let bls = entry(&BOOTC.replace("ID", &one));
        assert_eq!(bls.deployment().unwrap().as_str(), one);
        for key in ["efi", "uki"] {
            let uki = entry(&format!("title x\n{key} /EFI/Linux/bootc/bootc_composefs-{two}.efi\n"));
            assert_eq!(uki.deployment().unwrap().as_str(), two);
            assert!(uki.is_ours());
        }
        assert_eq!(entry(&format!("linux /bootc_composefs-{one}/vmlinuz")).deployment(), None);
    }

    #[test]
    fn foreign_entries_are_not_ours() {
        assert!(!entry("title rescue\nlinux /vmlinuz\noptions root=/dev/sda1 x=composefs=1\n").is_ours());
        assert!(!entry("").is_ours());
        assert!(entry("options composefs=?zz").is_ours());
        assert!(entry("options composefs.digest=v1-sha512-12:zz").is_ours());
    }

    #[test]
    fn entries_of_an_older_bootc_are_ours() {
        let (long, short) = ("ab".repeat(64), "cd".repeat(32));
        for id in [&long, &short] {
            let uki = entry(&format!("title x\nefi /EFI/Linux/bootc/{id}.efi\nsort-key bootc-x-0\n"));
            assert!(uki.is_ours());
            assert_eq!(uki.deployment().unwrap().as_str(), id);
            assert!(entry(&format!("linux /EFI/Linux/{id}/vmlinuz\ninitrd /EFI/Linux/{id}/initrd")).is_ours());
        }
        assert_eq!(id_of_uki(&format!("/EFI/Linux/bootc/bootc_composefs-{long}+2-1.efi")).unwrap().as_str(), long);
        assert_eq!(id_of_uki(&format!("\\efi\\linux\\BOOTC\\{long}.efi")).unwrap().as_str(), long);
        for path in [
            format!("/EFI/Linux/{long}.efi"),
            format!("/EFI/other/{long}.efi"),
            format!("/{short}/vmlinuz"),
            format!("/EFI/Linux/x{short}/vmlinuz"),
            "/EFI/Linux/vmlinuz".to_owned(),
            "efi".to_owned(),
        ] {
            assert!(!entry(&format!("linux {path}")).is_ours() && id_of_uki(&path).is_none(), "{path}");
        }
    }

    #[test]
    fn setting_a_key_keeps_the_others() {
        let changed = entry("title A\n# c\nsort-key x\nversion 1\n").with("sort-key", "y").with("new", "z");
        assert_eq!(changed.to_string(), "title A\n# c\nsort-key y\nversion 1\nnew z\n");
    }

    #[test]
    fn names_are_those_of_bootc() {
        assert_eq!(Role::Primary.file_name("debian", "13"), "bootc_debian-13-1.conf");
        assert_eq!(Role::Secondary.file_name("my-os", "1/2 é"), "bootc_my_os-1_2__-0.conf");
        assert_eq!(Role::Primary.sort_key("my-os"), "bootc-my-os-0");
    }
}
