//! The words for the kernel command line that an image brings: `usr/lib/bootc/kargs.d/*.toml`, as bootc reads them (its manual,
//! "Kernel arguments").

use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::CannotBoot;
use crate::{
    arch::Arch,
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
    let mut words = vec![];
    for name in names(tree, Path::new(DIR))?.into_iter().filter_map(|name| name.into_string().ok()) {
        let path = Path::new(DIR).join(&name);
        let Some(bytes) = store.read(tree, &path)?.filter(|_| name.ends_with(".toml")) else { continue };
        let file: File = toml::from_str(&String::from_utf8_lossy(&bytes))
            .map_err(|why| CannotBoot(format!("{why:#}")))
            .with_context(|| format!("reading {}", path.display()))?;
        if file.match_architectures.is_none_or(|all| all.iter().any(|name| name == arch.linux)) {
            words.extend(file.kargs);
        }
    }
    Ok(words)
}
