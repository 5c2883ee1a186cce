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
}

/// A text that names no boot loader.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no boot loader; expected systemd-boot or grub")]
pub struct NotALoader(String);

impl Loader {
    /// The loader that the content of the EFI variable `LoaderInfo` names: four bytes of attributes, then UTF-16LE
    /// (systemd's "Boot Loader Interface").
    pub fn from_loader_info(variable: &[u8]) -> Option<Self> {
        let info = utf16(variable)?.to_ascii_lowercase();
        match (info.contains("systemd-boot"), info.contains("grub")) {
            (true, _) => Some(Self::SystemdBoot),
            (_, true) => Some(Self::Grub),
            _ => None,
        }
    }
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
            other => Err(NotALoader(other.to_owned())),
        }
    }
}

impl fmt::Display for Loader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SystemdBoot => "systemd-boot",
            Self::Grub => "grub",
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
        assert_eq!(Loader::from_loader_info(&variable("rEFInd")), None);
        assert_eq!(Loader::from_loader_info(&[1, 2, 3]), None);
    }
}
