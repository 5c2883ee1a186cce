//! What an image says of itself in os-release(5).

use std::path::Path;

use anyhow::{Context, Result};
use composefs_boot::os_release::OsReleaseInfo;

use super::CannotBoot;
use crate::store::{Store, Tree};

/// Where it is said.
pub const OS_RELEASE: &str = "usr/lib/os-release";

/// What an image says of itself.
#[derive(Debug, Clone)]
pub struct Os {
    /// `ID`
    pub id: String,
    /// `VERSION_ID`
    pub version: String,
    /// `PRETTY_NAME`
    pub title: String,
}

impl Os {
    /// What the image with the files `tree` says.
    ///
    /// # Errors
    ///
    /// When it says nothing.
    pub fn find(store: &Store, tree: &Tree) -> Result<Self> {
        let text = store.read(tree, Path::new(OS_RELEASE))?;
        let text = text.ok_or_else(|| CannotBoot(format!("the image has no {OS_RELEASE}")))?;
        let text = String::from_utf8(text).with_context(|| format!("{OS_RELEASE} is not UTF-8"))?;
        let info = OsReleaseInfo::parse(&text);
        let or = |value: Option<String>, default: &str| value.unwrap_or_else(|| default.to_owned());
        Ok(Self {
            id: or(info.get_value(&["ID"]), "linux"),
            version: or(info.get_version(), "0"),
            title: or(info.get_pretty_name(), "Linux"),
        })
    }
}
