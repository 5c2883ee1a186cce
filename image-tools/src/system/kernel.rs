//! The kernel and the initrd of an image.

use std::{ffi::OsString, path::Path};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use super::{CannotBoot, must_find};
use crate::{
    node::HostFile,
    store::{Store, Tree, find, names},
};

const MODULES: &str = "usr/lib/modules";

/// A kernel and its initrd.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `vmlinuz`.
    pub vmlinuz: HostFile,
    /// `initramfs.img`.
    pub initrd: HostFile,
    /// SHA-256 over both, in hex.
    pub digest: String,
}

impl Kernel {
    pub(super) fn find(store: &Store, tree: &Tree) -> Result<Self> {
        let path = |version: &OsString| Path::new(MODULES).join(version);
        let mut versions = names(tree, Path::new(MODULES))?;
        let mut why = Ok(());
        versions.retain(|version| match find(tree, &path(version).join("vmlinuz")) {
            Ok(found) => found.is_some(),
            Err(error) => {
                why = Err(error);
                false
            }
        });
        if versions.is_empty() {
            why?;
        }
        ensure!(
            versions.len() == 1,
            CannotBoot(format!("the image must have one kernel, {MODULES}/<version>/vmlinuz; it has {versions:?}"))
        );
        let at = path(&versions[0]);
        let mut hasher = Sha256::new();
        let mut file = |name: &str| -> Result<HostFile> {
            let file = must_find(store, tree, &at.join(name))?;
            let bytes = std::fs::File::open(&file.path).and_then(|mut bytes| std::io::copy(&mut bytes, &mut hasher));
            bytes.with_context(|| format!("reading {}", file.path.display()))?;
            Ok(file)
        };
        let (vmlinuz, initrd) = (file("vmlinuz")?, file("initramfs.img")?);
        Ok(Self { vmlinuz, initrd, digest: hex::encode(hasher.finalize()) })
    }
}
