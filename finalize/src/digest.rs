//! The name of a deployment: the fs-verity digest of its EROFS image.
//!
//! Everything that belongs to a deployment carries this digest in its name (`state/deploy/<D>`, `images/<D>`,
//! `bootc_composefs-<D>`), so it is parsed once, at the edge, and from then on cannot be a path with a `/` in it.

use std::{fmt, str::FromStr};

/// The fs-verity digest that names a deployment, as lower-case hex: 128 characters (SHA-512) or 64 (SHA-256).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeploymentId(String);

/// A text that is not a deployment's digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no deployment id: expected 64 or 128 lower-case hex digits")]
pub struct NotADeploymentId(String);

impl DeploymentId {
    /// The digest in hex, as every file name spells it.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The first twelve digits, for messages to people.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl FromStr for DeploymentId {
    type Err = NotADeploymentId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match (hex, text.len()) {
            (true, 64 | 128) => Ok(Self(text.to_owned())),
            _ => Err(NotADeploymentId(text.chars().take(160).collect())),
        }
    }
}

/// Why a text names no deployment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNamed {
    /// It could be anything.
    #[error("\"{0}\" names no deployment: at least four digits of its id are needed")]
    TooShort(String),
    /// There is none.
    #[error("no deployment that boots has an id that begins with {0}: see composefs-finalize status")]
    Unknown(String),
    /// There are several.
    #[error("{1} deployments have ids that begin with {0}: name more digits")]
    Several(String, usize),
}

/// The one deployment among `all` whose id begins with `text`.
///
/// # Errors
///
/// When there is none, or more than one.
pub fn named<'a>(text: &str, all: impl Iterator<Item = &'a DeploymentId>) -> Result<DeploymentId, NotNamed> {
    let mut found: Vec<_> = all.filter(|id| id.as_str().starts_with(text)).collect();
    found.sort();
    found.dedup();
    let text: String = text.chars().take(160).flat_map(char::escape_debug).collect();
    match found[..] {
        _ if text.len() < 4 => Err(NotNamed::TooShort(text)),
        [one] => Ok(one.clone()),
        [] => Err(NotNamed::Unknown(text)),
        _ => Err(NotNamed::Several(text, found.len())),
    }
}

impl fmt::Display for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DeploymentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "~{}", self.short())
    }
}

impl serde::Serialize for DeploymentId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for DeploymentId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hex_of_the_two_lengths_is_an_id() {
        for good in ["a".repeat(64), "0".repeat(128)] {
            assert_eq!(good.parse::<DeploymentId>().unwrap().as_str(), good);
        }
        for bad in [String::new(), "a".repeat(63), "A".repeat(64), "g".repeat(64), "../".repeat(43), "é".repeat(32)] {
            assert!(bad.parse::<DeploymentId>().is_err(), "{bad}");
        }
    }
}
