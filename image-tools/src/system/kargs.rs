//! The words for the kernel command line that an image brings: `usr/lib/bootc/kargs.d/*.toml`, as bootc reads them (its manual,
//! "Kernel arguments").

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::CannotBoot;
use crate::{
    oci::Arch,
    store::{Store, Tree, names},
};

const DIR: &str = "usr/lib/bootc/kargs.d";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    kargs: Vec<String>,
    /// As Linux calls them; all where nothing is said.
    match_architectures: Option<Vec<String>>,
}

/// The words of all files for the architecture, in the order of their names.
///
/// # Errors
///
/// Names the file that makes no sense.
pub fn find(store: &Store, tree: &Tree, arch: &Arch) -> Result<Vec<String>> {
    let arch = linux_name(arch);
    let mut words = vec![];
    for name in names(tree, Path::new(DIR))?.into_iter().filter_map(|name| name.into_string().ok()) {
        let path = Path::new(DIR).join(&name);
        let Some(bytes) = store.read(tree, &path)?.filter(|_| name.ends_with(".toml")) else { continue };
        let file: File = toml::from_str(&String::from_utf8_lossy(&bytes))
            .map_err(|why| CannotBoot(format!("{why:#}")))
            .with_context(|| format!("reading {}", path.display()))?;
        if file.match_architectures.is_none_or(|all| all.contains(&arch)) {
            words.extend(file.kargs);
        }
    }
    Ok(words)
}

/// What Linux calls an architecture of Go's.
fn linux_name(arch: &Arch) -> String {
    match arch {
        Arch::Amd64 => "x86_64".to_owned(),
        Arch::ARM64 => "aarch64".to_owned(),
        Arch::PowerPC64le => "powerpc64".to_owned(),
        other => other.to_string(),
    }
}
