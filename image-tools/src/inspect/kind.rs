//! What a partition is for, by its type, and what is in it, by its magic: names and labels are anybody's.

use std::{fmt, fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result};
use serde::{Serialize, Serializer};

/// What a partition is for, by its type GUID in the table (UEFI specification, 5.3.3; UAPI.2 Discoverable Partitions
/// Specification).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// An EFI system partition.
    Esp,
    /// An extended boot loader partition.
    Boot,
    /// A root file system for this architecture, as that specification calls it.
    Root(&'static str),
    /// Data of Linux, whatever it is: older tools make boot and root partitions of this type.
    Linux,
    /// Something that no machine of ours is booted from, by its name.
    Other(&'static str),
    /// A type that is not known here.
    Unknown,
}

const ROLES: &[(&str, Role)] = &[
    ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", Role::Esp),
    ("BC13C2FF-59E6-4262-A352-B275FD6F7172", Role::Boot),
    ("0FC63DAF-8483-4772-8E79-3D69D8477DE4", Role::Linux),
    ("4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709", Role::Root("x86-64")),
    ("44479540-F297-41B2-9AF7-D131D5F0458A", Role::Root("x86")),
    ("B921B045-1DF0-41C3-AF44-4C6F280D3FAE", Role::Root("arm64")),
    ("69DAD710-2CE4-4E3C-B16C-21A1D49ABED3", Role::Root("arm")),
    ("72EC70A6-CF74-40E6-BD49-4BDA08E8F224", Role::Root("riscv64")),
    ("60D5A7FE-8E7D-435C-B714-3DD8162144E1", Role::Root("riscv32")),
    ("77055800-792C-4F94-B39A-98C91B762BB6", Role::Root("loongarch64")),
    ("C31C45E6-3F39-412E-80FB-4809C4980599", Role::Root("ppc64-le")),
    ("912ADE1D-A839-4913-8964-A10EEE08FBD2", Role::Root("ppc64")),
    ("5EEAD9A9-FE09-4A1E-A1D7-520D00531306", Role::Root("s390x")),
    ("21686148-6449-6E6F-744E-656564454649", Role::Other("BIOS boot")),
    ("0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", Role::Other("swap")),
    ("933AC7E1-2EB4-4F13-B844-0E14E2AEF915", Role::Other("home")),
    ("3B8F8425-20E0-4F3B-907F-1A25A76F98E8", Role::Other("srv")),
    ("4D21B016-B534-45C2-A9FB-5C16E091FD2D", Role::Other("var")),
    ("7EC6F557-3BC5-4ACA-B293-16EF5DF639D1", Role::Other("tmp")),
    ("8484680C-9521-48C6-9C11-B0720656F69E", Role::Other("usr x86-64")),
    ("B0E01050-EE5F-4390-949A-9101B17104E9", Role::Other("usr arm64")),
    ("2C7357ED-EBD2-46D9-AEC1-23D437EC2BF5", Role::Other("root x86-64 verity")),
    ("DF3300CE-D69F-4C92-978C-9BFB0F38D820", Role::Other("root arm64 verity")),
    ("E6D6D379-F507-44C2-A23C-238F2A3DF928", Role::Other("LVM")),
    ("A19D880F-05FC-4D3B-A006-743F0F84911E", Role::Other("RAID")),
    ("CA7D7CCB-63ED-4C53-861C-1742536059CC", Role::Other("LUKS")),
    ("EBD0A0A2-B9E5-4433-87C0-68B6B72699C7", Role::Other("Microsoft data")),
    ("E3C9E316-0B5C-4DB8-817D-F92DF00215AE", Role::Other("Microsoft reserved")),
];

impl Role {
    /// Of a type GUID, in hex with dashes.
    pub fn of(guid: &str) -> Self {
        ROLES.iter().find(|(known, _)| known.eq_ignore_ascii_case(guid)).map_or(Self::Unknown, |(_, role)| *role)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Esp => f.write_str("ESP"),
            Self::Boot => f.write_str("XBOOTLDR"),
            Self::Root(arch) => write!(f, "root {arch}"),
            Self::Linux => f.write_str("Linux data"),
            Self::Other(name) => f.write_str(name),
            Self::Unknown => f.write_str("of an unknown type"),
        }
    }
}

impl Serialize for Role {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Content {
    /// FAT of any size.
    Fat,
    /// ext4, or an older ext.
    Ext4,
    /// XFS.
    Xfs,
    /// btrfs, which is not read.
    Btrfs,
    /// An encrypted volume, which is not read.
    Luks,
    /// A physical volume of LVM, which is not read.
    Lvm,
    /// EROFS, which is not read here: a root of that kind has no repository.
    Erofs,
    /// squashfs, the same.
    Squashfs,
    /// f2fs, which is not read.
    F2fs,
    /// bcachefs, which is not read.
    Bcachefs,
    /// dm-verity's hashes.
    Verity,
    /// Swap space.
    Swap,
    /// Zeros where each of the others has its magic.
    Empty,
    /// Something else.
    Unknown,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fat => "FAT",
            Self::Ext4 => "ext4",
            Self::Xfs => "XFS",
            Self::Btrfs => "btrfs",
            Self::Luks => "LUKS",
            Self::Lvm => "LVM",
            Self::Erofs => "EROFS",
            Self::Squashfs => "squashfs",
            Self::F2fs => "f2fs",
            Self::Bcachefs => "bcachefs",
            Self::Verity => "dm-verity",
            Self::Swap => "swap",
            Self::Empty => "empty",
            Self::Unknown => "something unknown",
        })
    }
}

/// Where each has its magic, as libblkid knows it. That of FAT is text which nobody but people should rely on (Microsoft's FAT
/// specification, BS_FilSysType); but a file system without it is made by nobody either.
const MAGICS: &[(usize, &[u8], Content)] = &[
    (0, b"LUKS\xba\xbe", Content::Luks),
    (0, b"XFSB", Content::Xfs),
    (0, b"hsqs", Content::Squashfs),
    (0, b"verity\0\0", Content::Verity),
    (82, b"FAT32", Content::Fat),
    (54, b"FAT1", Content::Fat),
    (512, b"LABELONE", Content::Lvm),
    (1024, b"\xe2\xe1\xf5\xe0", Content::Erofs),
    (1024, b"\x10\x20\xf5\xf2", Content::F2fs),
    (1080, b"\x53\xef", Content::Ext4),
    (4086, b"SWAPSPACE2", Content::Swap),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", Content::Bcachefs),
    (65600, b"_BHRfS_M", Content::Btrfs),
];

/// What is in the `size` bytes from byte `start` of `disk`; what lies behind its end is zeros.
///
/// # Errors
///
/// Those of reading.
pub fn probe(disk: &Path, start: u64, size: u64) -> Result<Content> {
    let mut head = vec![0; usize::try_from(size.min(128 << 10))?];
    let file = File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
    let mut at = 0;
    while at < head.len() {
        match file.read_at(&mut head[at..], start.saturating_add(at as u64)) {
            Ok(0) => break,
            Ok(read) => at += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).with_context(|| format!("reading {} at {start}", disk.display())),
        }
    }
    let is_there = |at: usize, magic: &[u8]| head.get(at..at + magic.len()) == Some(magic);
    let found = MAGICS.iter().find(|(at, magic, _)| is_there(*at, magic)).map(|(_, _, content)| *content);
    let nothing = if head.iter().all(|byte| *byte == 0) { Content::Empty } else { Content::Unknown };
    Ok(found.unwrap_or(nothing))
}
