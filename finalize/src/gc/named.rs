//! What the boot entries of this machine name: every file that a boot loader reads, or will after the next exchange, as bytes.
//!
//! Whoever has written them, and whether we understand them or not: a deployment whose digest stands in one of them is named,
//! unless it stands there as the directory of a kernel. That names the kernel only, which deployments may share.

use std::io;

use anyhow::{Context, Result};
use cap_std::fs::Dir;

use crate::{
    boot::uki,
    digest::DeploymentId,
    layout::{EFI_LINUX, EFI_LINUX_BOOTC, ENTRIES, ENTRIES_STAGED, LOADER, USER_CFG, USER_CFG_STAGED},
    sys,
};

/// No configuration of a boot loader is larger.
const LIMIT: u64 = 16 << 20;

/// Everything that names deployments and kernels.
#[derive(Debug, Default)]
pub struct Named {
    texts: Vec<Vec<u8>>,
    /// By UKIs that boot loaders find themselves, or that wait for their names.
    by_ukis: Vec<DeploymentId>,
}

impl Named {
    /// Reads what lies in the file systems `roots`.
    ///
    /// # Errors
    ///
    /// When something is there and cannot be read: it may name anything.
    pub fn read(roots: &[Dir]) -> Result<Self> {
        let mut named = Self::default();
        for root in roots {
            for name in [ENTRIES, ENTRIES_STAGED] {
                named.add_dir(root, &format!("{LOADER}/{name}"))?;
            }
            for dir in ["grub2", "grub"] {
                for name in [USER_CFG, USER_CFG_STAGED, "grub.cfg", "custom.cfg"] {
                    named.add_file(root, &format!("{dir}/{name}"))?;
                }
            }
            named.add_ukis(root, EFI_LINUX, |name| uki::is_uki(name) || is_waiting(name))?;
            named.add_ukis(root, EFI_LINUX_BOOTC, is_waiting)?;
        }
        Ok(named)
    }

    /// Another entry, from elsewhere.
    pub fn add(&mut self, text: &str) {
        self.texts.push(text.as_bytes().to_vec());
    }

    /// Whether anything boots the deployment, or may.
    pub fn deployment(&self, id: &DeploymentId) -> bool {
        self.by_ukis.contains(id) || self.any(id, |before, after| !is_kernel_dir(before, after))
    }

    /// Whether anything names a kernel directory or a UKI with this digest in its name.
    pub fn kernel(&self, id: &DeploymentId) -> bool {
        self.by_ukis.contains(id) || self.any(id, |_, _| true)
    }

    /// Whether the digest stands anywhere so that `is_it`, which gets what is before it and behind it.
    fn any(&self, id: &DeploymentId, is_it: impl Fn(&[u8], &[u8]) -> bool) -> bool {
        let id = id.as_str().as_bytes();
        self.texts.iter().any(|text| {
            let mut places = text.windows(id.len()).enumerate().filter(|(_, part)| part.eq_ignore_ascii_case(id));
            places.any(|(at, _)| is_it(&text[..at], &text[at + id.len()..]))
        })
    }

    fn add_dir(&mut self, root: &Dir, path: &str) -> Result<()> {
        for name in names(root, path)? {
            self.add_file(root, &format!("{path}/{name}"))?;
        }
        Ok(())
    }

    fn add_file(&mut self, root: &Dir, path: &str) -> Result<()> {
        let is_dir = root.symlink_metadata(path).is_ok_and(|found| found.is_dir());
        if !is_dir {
            let text = sys::file::read_bytes(root, path, LIMIT).with_context(|| format!("reading {path}"))?;
            self.texts.extend(text);
        }
        Ok(())
    }

    fn add_ukis(&mut self, root: &Dir, path: &str, is_one: impl Fn(&str) -> bool) -> Result<()> {
        for name in names(root, path)?.iter().filter(|name| is_one(name)) {
            self.add(name);
            let dir = root.open_dir(path).with_context(|| format!("opening {path}"))?;
            self.by_ukis.extend(uki::deployment(&dir, name));
        }
        Ok(())
    }
}

fn is_waiting(name: &str) -> bool {
    name.to_ascii_lowercase().ends_with(".efi.staged")
}

/// Whether a digest between these stands as the name of a directory with a kernel.
fn is_kernel_dir(before: &[u8], after: &[u8]) -> bool {
    let starts = before.ends_with(b"/") || before.ends_with(b"\\") || before.ends_with(b"bootc_composefs-");
    starts && matches!(after.first(), Some(b'/' | b'\\'))
}

/// The names in a directory; none where it is not there, or is none.
///
/// # Errors
///
/// Those of openat2(2) and getdents(2).
pub fn names(root: &Dir, path: &str) -> Result<Vec<String>> {
    let dir = match root.open_dir(path) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(vec![]);
        }
        dir => dir.with_context(|| format!("opening {path}"))?,
    };
    let mut names = vec![];
    for entry in dir.entries().with_context(|| format!("reading {path}"))? {
        // A name in another encoding is nobody's whom we know.
        names.extend(entry.with_context(|| format!("reading {path}"))?.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_names_a_deployment_unless_it_is_the_directory_of_a_kernel() {
        let id: DeploymentId = "ab".repeat(32).parse().unwrap();
        let check = |text: &str, want: [bool; 2]| {
            let mut named = Named::default();
            named.add(&text.replace("ID", id.as_str()));
            assert_eq!([named.deployment(&id), named.kernel(&id)], want, "{text}");
        };
        check("options composefs=ID", [true, true]);
        check("options composefs=?ID rw", [true, true]);
        check("options composefs.digest=v1-sha256-12:ID", [true, true]);
        check("efi /EFI/Linux/bootc/bootc_composefs-ID.efi", [true, true]);
        check("efi /EFI/Linux/bootc/ID+3.efi", [true, true]);
        check("linux /EFI/Linux/bootc_composefs-ID/vmlinuz", [false, true]);
        check("linux /boot/ID/vmlinuz", [false, true]);
        check("linux \\EFI\\Linux\\bootc_composefs-ID\\vmlinuz", [false, true]);
        check("menuentry 'A: (ID)' {", [true, true]);
        check("\u{1}\u{2}ID", [true, true]);
        check("options composefs=IC", [false, false]);
        let mut named = Named::default();
        named.texts.push([&b"\xff\xfe="[..], id.as_str().to_uppercase().as_bytes()].concat());
        assert!(named.deployment(&id));
    }
}
