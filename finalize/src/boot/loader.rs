//! Which boot loader started the machine.

use std::{fmt, str::FromStr};

/// A boot loader that we can hand a deployment to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loader {
    /// systemd-boot, entries on the ESP.
    SystemdBoot,
    /// GRUB 2, entries in the boot directory or partition.
    Grub,
    /// GRUB for confidential computing: entries and kernels on the ESP as with systemd-boot, in GRUB's order.
    GrubCc,
}

/// A text that names no boot loader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no boot loader; expected systemd-boot, grub or grub-cc")]
pub struct NotALoader(String);

impl Loader {
    /// The loader that the content of the EFI variable `LoaderInfo` names: four bytes of attributes, then UTF-16LE
    /// (systemd's "Boot Loader Interface").
    pub fn from_loader_info(variable: &[u8]) -> Option<Self> {
        let info = utf16(variable)?.to_ascii_lowercase();
        let has = |name| info.contains(name);
        match () {
            () if has("systemd-boot") => Some(Self::SystemdBoot),
            () if has("grub cc") => Some(Self::GrubCc),
            () if has("grub") => Some(Self::Grub),
            () => None,
        }
    }

    /// Whether entries and kernels lie on the ESP.
    pub fn is_on_esp(self) -> bool {
        self != Self::Grub
    }
}

/// A major and a minor version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub u32, pub u32);

/// The version in `LoaderInfo`: 257 and 9 of `systemd-boot 257.9-1`.
pub fn version(info: &str) -> Option<Version> {
    let version = info.split_ascii_whitespace().nth(1)?;
    let number = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    let minor = version.split_once('.').and_then(|(_, minor)| number(minor));
    Some(Version(number(version)?, minor.unwrap_or(0)))
}

/// The text of an EFI variable as efivarfs shows it.
pub fn utf16(variable: &[u8]) -> Option<String> {
    let units = variable.get(4..)?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
    Some(char::decode_utf16(units).map_while(Result::ok).take_while(|c| *c != '\0').collect())
}

impl FromStr for Loader {
    type Err = NotALoader;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "systemd-boot" => Ok(Self::SystemdBoot),
            "grub" => Ok(Self::Grub),
            "grub-cc" => Ok(Self::GrubCc),
            other => Err(NotALoader(other.to_owned())),
        }
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SystemdBoot => "systemd-boot",
            Self::Grub => "grub",
            Self::GrubCc => "grub-cc",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_the_loader() {
        let variable = |text: &str| {
            [6, 0, 0, 0].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect::<Vec<_>>()
        };
        assert_eq!(Loader::from_loader_info(&variable("systemd-boot 257.9\0")), Some(Loader::SystemdBoot));
        assert_eq!(Loader::from_loader_info(&variable("GRUB 2.12")), Some(Loader::Grub));
        assert_eq!(Loader::from_loader_info(&variable("GRUB CC 2.12")), Some(Loader::GrubCc));
        assert_eq!(Loader::from_loader_info(&variable("rEFInd")), None);
        assert_eq!(Loader::from_loader_info(&[1, 2, 3]), None);
    }

    #[test]
    fn names_survive_being_written() {
        for loader in [Loader::SystemdBoot, Loader::Grub, Loader::GrubCc] {
            assert_eq!(loader.to_string().parse(), Ok(loader));
        }
        assert!("lilo".parse::<Loader>().is_err());
    }

    #[test]
    fn the_version_is_the_first_number() {
        assert_eq!(version("systemd-boot 257.9-1~deb13u1"), Some(Version(257, 9)));
        assert_eq!(version("systemd-boot 262-1"), Some(Version(262, 0)));
        assert_eq!(version("systemd-boot v258"), None);
        assert_eq!(version("systemd-boot"), None);
    }
}
