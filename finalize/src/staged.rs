//! What staging leaves for us: the marker and the origin file, as values.
//!
//! Both are bootc's formats. Parsing never panics; keys and sections that we do not know are ignored, as bootc does.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::digest::DeploymentId;

/// The content of `/run/composefs/staged-deployment` and of `state/finalize/staged.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The staged deployment.
    pub depl_id: DeploymentId,
    /// Downloaded only: must not be finalized yet. Absent means no.
    #[serde(default)]
    pub finalization_locked: bool,
}

impl FromStr for Marker {
    type Err = serde_json::Error;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        serde_json::from_str(text)
    }
}

impl fmt::Display for Marker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// What a deployment boots with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootType {
    /// A kernel and an initrd, named by a Type #1 entry of the Boot Loader Specification.
    Bls,
    /// A unified kernel image.
    Uki,
}

impl FromStr for BootType {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "bls" => Ok(Self::Bls),
            "uki" => Ok(Self::Uki),
            other => Err(OriginError::BootType(other.to_owned())),
        }
    }
}

impl fmt::Display for BootType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bls => "bls",
            Self::Uki => "uki",
        })
    }
}

/// The content of `<D>.origin`; its [`fmt::Display`] is what bootc 1.16 accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// `[origin] container-image-reference`
    pub image_reference: Option<String>,
    /// `[boot] boot_type`
    pub boot_type: BootType,
    /// `[boot] digest`: SHA-256 over vmlinuz then initrd (or over the UKI), in hex.
    pub boot_digest: Option<String>,
    /// `[image] manifest_digest`, with its `sha256:`.
    pub manifest_digest: Option<String>,
}

/// Why an origin file says nothing about how its deployment boots.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OriginError {
    /// No `boot_type` in `[boot]`.
    #[error("no boot_type in the section [boot]; expected bls or uki")]
    NoBootType,
    /// A `boot_type` of another name.
    #[error("boot_type is {0:?}; expected bls or uki")]
    BootType(String),
}

impl FromStr for Origin {
    type Err = OriginError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let get = |section: &str, key: &str| ini_value(text, section, key).map(str::to_owned);
        Ok(Self {
            image_reference: get("origin", "container-image-reference"),
            boot_type: get("boot", "boot_type").ok_or(OriginError::NoBootType)?.parse()?,
            boot_digest: get("boot", "digest"),
            manifest_digest: get("image", "manifest_digest"),
        })
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(reference) = &self.image_reference {
            writeln!(f, "[origin]\ncontainer-image-reference = {reference}\n")?;
        }
        writeln!(f, "[boot]\nboot_type = {}", self.boot_type)?;
        if let Some(digest) = &self.boot_digest {
            writeln!(f, "digest = {digest}")?;
        }
        if let Some(digest) = &self.manifest_digest {
            writeln!(f, "\n[image]\nmanifest_digest = {digest}")?;
        }
        Ok(())
    }
}

/// The last value of `key` in `[section]`; white space around both is not part of them.
fn ini_value<'a>(text: &'a str, section: &str, key: &str) -> Option<&'a str> {
    let mut inside = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            inside = name.trim() == section;
        } else if let Some((k, v)) = line.split_once('=').filter(|_| inside)
            && k.trim() == key
        {
            found = Some(v.trim());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_as_bootc_writes_it() {
        let id = "ab".repeat(64);
        let text = format!("{{\"depl_id\":\"{id}\",\"finalization_locked\":true}}");
        let marker: Marker = text.parse().unwrap();
        assert!(marker.finalization_locked);
        assert_eq!(marker.to_string(), text);
        let bare: Marker = format!("{{\"depl_id\":\"{id}\", \"x\": 1}}\n").parse().unwrap();
        assert!(!bare.finalization_locked);
        for bad in ["", "{}", "[]", "{\"depl_id\":\"../../x\"}", "null"] {
            assert!(bad.parse::<Marker>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_origin_file_survives_the_round_trip() {
        let text = "[origin]\ncontainer-image-reference = ostree-unverified-image:oci:/x:c\n\n\
                    [boot]\nboot_type = bls\ndigest = 5b47\n\n[image]\nmanifest_digest = sha256:f246\n";
        let origin: Origin = text.parse().unwrap();
        assert_eq!(origin.boot_type, BootType::Bls);
        assert_eq!(origin.to_string(), text);
    }

    #[test]
    fn an_origin_file_without_boot_type_says_so() {
        assert_eq!("".parse::<Origin>(), Err(OriginError::NoBootType));
        assert_eq!("[origin]\nboot_type = bls".parse::<Origin>(), Err(OriginError::NoBootType));
        let other = "[boot]\nboot_type=floppy".parse::<Origin>();
        assert_eq!(other, Err(OriginError::BootType("floppy".into())));
    }
}
