//! An image of an OCI layout: found once, by its name, and never looked up again.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest};

use super::{
    Corrupt, Kind, Layer, Reference,
    blob::Blobs,
    select::{self, Wanted},
};
use crate::progress::Progress;

/// The types of layers, but for what is behind `+`, the compression, which is seen from the bytes.
const LAYERS: [&str; 4] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// An image that was found in a layout, unpacked if that was an archive. Its manifest and configuration are what their
/// digests say; each layer is checked when it is read.
#[derive(Debug)]
pub struct Image {
    /// What it was asked for by.
    pub reference: Reference,
    /// The manifest, byte for byte.
    pub manifest_json: Vec<u8>,
    /// The configuration, byte for byte.
    pub config_json: Vec<u8>,
    /// What machine it is for.
    pub arch: Arch,
    /// When it was created, as its configuration says, in seconds since 1970; 0 where that says nothing, or a time before.
    pub created: u64,
    /// The layers, the lowest one first.
    pub layers: Vec<Layer>,
    pub(super) blobs: Blobs,
    pub(super) manifest: ImageManifest,
    descriptor: Descriptor,
}

impl Image {
    /// Finds the image, in an archive by unpacking that below `scratch`; where there are several of its name, the one for
    /// `arch`, or for the build host.
    ///
    /// # Errors
    ///
    /// When there is no layout, or no such image in it: names what there is.
    pub fn resolve(reference: Reference, arch: Option<&Arch>, scratch: &Path) -> Result<Self> {
        let dir = match reference.kind {
            Kind::Directory => reference.path.clone(),
            Kind::Archive => unpack(&reference.path, scratch)?,
        };
        let (marker, index) = (dir.join("oci-layout"), dir.join("index.json"));
        ensure!(marker.is_file(), "opening the OCI layout {}: it has no file oci-layout", dir.display());
        let index = ImageIndex::from_file(index).with_context(|| format!("reading the index of {reference}"))?;
        Self::find(reference.clone(), &index, arch, Blobs::of(&dir))
            .with_context(|| format!("looking into {reference}"))
    }

    fn find(reference: Reference, index: &ImageIndex, arch: Option<&Arch>, blobs: Blobs) -> Result<Self> {
        let descriptor = select::choose(&blobs, index, Wanted { tag: reference.tag.as_deref(), arch })?;
        let (manifest_json, manifest) = select::manifest(&blobs, &descriptor)?;
        let (config_json, config) = select::configuration(&blobs, &manifest)?;
        let (layers, diff_ids) = (manifest.layers(), config.rootfs().diff_ids());
        ensure!(
            layers.len() == diff_ids.len(),
            Corrupt(format!("its manifest has {} layers, its configuration {}", layers.len(), diff_ids.len()))
        );
        let layer = |(descriptor, diff_id): (&Descriptor, &String)| {
            let kind = descriptor.media_type().as_ref();
            let base = ["+gzip", "+zstd", ".gzip", ".zstd"].iter().find_map(|suffix| kind.strip_suffix(suffix));
            ensure!(
                LAYERS.contains(&base.unwrap_or(kind)),
                Corrupt(format!("the layer {} has the type {kind}, which is none of an image", descriptor.digest()))
            );
            Ok(Layer { descriptor: descriptor.clone(), diff_id: diff_id.clone() })
        };
        let layers = layers.iter().zip(diff_ids).map(layer).collect::<Result<_>>()?;
        let arch = config.architecture().clone();
        let created = config.created().as_deref().and_then(|time| time.parse::<jiff::Timestamp>().ok());
        let created = created.and_then(|time| time.as_second().try_into().ok()).unwrap_or(0);
        Ok(Self { reference, manifest_json, config_json, arch, created, layers, blobs, manifest, descriptor })
    }

    /// The digest of its manifest, `sha256:…`.
    pub fn digest(&self) -> String {
        self.descriptor.digest().to_string()
    }

    /// The bytes of all its layers, as they are stored.
    pub fn size(&self) -> u64 {
        self.layers.iter().map(|layer| layer.descriptor.size()).sum()
    }

    /// Hands the archive of a layer to `each`, as [`Layer::read`].
    ///
    /// # Errors
    ///
    /// Those of [`Layer::read`], with the layer's digest.
    pub fn read<T>(
        &self,
        layer: &Layer,
        progress: &Progress,
        each: impl FnOnce(&mut dyn std::io::Read) -> Result<T>,
    ) -> Result<T> {
        layer
            .read(&self.blobs, progress, each)
            .with_context(|| format!("reading the layer {}", layer.descriptor.digest()))
    }
}

fn unpack(archive: &Path, scratch: &Path) -> Result<PathBuf> {
    let unpacked = tempfile::Builder::new().prefix("layout-").tempdir_in(scratch)?.keep();
    let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    tar::Archive::new(file).unpack(&unpacked).with_context(|| format!("unpacking {}", archive.display()))?;
    Ok(unpacked)
}
