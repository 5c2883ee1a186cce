//! A new layout: an image with one more layer.

use std::{fs::File, path::Path};

use anyhow::{Context, Result};
use oci_spec::image::{ImageConfiguration, Platform};
use ocidir::{OciDir, cap_std::fs::Dir};

use super::Image;

/// A file that is added to an image.
#[derive(Debug, Clone, Copy)]
pub struct Added<'a> {
    /// Its path in the image. The directory at the top of it must be there already, and is left as it is.
    pub path: &'a str,
    /// Where its bytes are on the build host.
    pub from: &'a Path,
}

impl Image {
    /// Makes a layout at `output` that holds this image with one more layer, under the name `tag`.
    pub fn with_file(&self, added: Added<'_>, output: &Path, tag: &str) -> Result<()> {
        let mut manifest = self.manifest.clone();
        let mut config = ImageConfiguration::from_reader(&self.config_json[..])?;
        std::fs::create_dir(output).with_context(|| format!("creating {}", output.display()))?;
        let made = OciDir::ensure(open(output)?)?;
        for layer in manifest.layers() {
            let mut blob = made.create_blob()?;
            std::io::copy(&mut self.blobs.open(layer)?, &mut blob)?;
            blob.complete_verified_as(layer)?;
        }
        let mut tar = tar::Builder::new(made.create_uncompressed_layer()?);
        let Added { path, from } = added;
        let parents: Vec<_> = Path::new(path).ancestors().skip(1).collect();
        // Neither the empty path nor the directory at the top.
        for dir in parents.iter().rev().skip(2) {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(0o755);
            header.set_size(0);
            tar.append_data(&mut header, dir, std::io::empty())?;
        }
        let file = File::open(from).with_context(|| format!("opening {}", from.display()))?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(file.metadata()?.len());
        tar.append_data(&mut header, path, file).with_context(|| format!("adding {path}"))?;
        let layer = tar.into_inner()?.complete()?;
        made.push_layer_with_history(&mut manifest, &mut config, layer, None);
        let mut platform = Platform::default();
        platform.set_architecture(config.architecture().clone()).set_os(config.os().clone());
        made.insert_manifest_and_config(manifest, config, Some(tag), platform)?;
        Ok(())
    }
}

/// Where a path of the machine becomes a directory.
fn open(dir: &Path) -> std::io::Result<Dir> {
    Dir::open_ambient_dir(dir, ocidir::cap_std::ambient_authority())
}
