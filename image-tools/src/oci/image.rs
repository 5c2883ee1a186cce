//! An image: found once, by its name, and never looked up again.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc as Shared,
};

use anyhow::{Context, Result, ensure};
use oci_spec::image::{Arch, Descriptor, ImageIndex, ImageManifest};

use tokio::runtime::Handle;

use super::{
    Corrupt, Layer, Reference, Remote,
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

/// What it takes to look for an image.
#[derive(Debug, Clone, Copy)]
pub struct Means<'a> {
    /// Where an archive is unpacked.
    pub scratch: &'a Path,
    /// What an image is fetched by; without, only layouts are looked into.
    pub runtime: Option<&'a Handle>,
}

impl<'a> From<&'a Path> for Means<'a> {
    fn from(scratch: &'a Path) -> Self {
        Self { scratch, runtime: None }
    }
}

/// An image that was found, unpacked if it was in an archive. Its manifest and configuration are what their
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
    /// Finds the image; where there are several of its name, the one for `arch`, or for this machine.
    ///
    /// # Errors
    ///
    /// When there is no layout, or no such image in it: names what there is. Those of [`Remote::open`].
    pub fn resolve<'a>(reference: Reference, arch: Option<&Arch>, means: impl Into<Means<'a>>) -> Result<Self> {
        let means = means.into();
        let (dir, tag) = match &reference {
            Reference::Directory(layout) => (layout.path.clone(), layout.tag.clone()),
            Reference::Archive(layout) => (unpack(&layout.path, means.scratch)?, layout.tag.clone()),
            Reference::Remote(name) => {
                let named = || format!("looking for {name}");
                let runtime = means.runtime.context("nobody fetches images here").with_context(named)?;
                return Self::fetch(&reference, Remote::open(runtime, name, arch).with_context(named)?, arch)
                    .with_context(named);
            }
        };
        let (marker, index) = (dir.join("oci-layout"), dir.join("index.json"));
        ensure!(marker.is_file(), "opening the OCI layout {}: it has no file oci-layout", dir.display());
        let index = ImageIndex::from_file(index).with_context(|| format!("reading the index of {reference}"))?;
        let found = || {
            let blobs = Blobs::of(&dir);
            let descriptor = select::choose(&blobs, &index, Wanted { tag: tag.as_deref(), arch })?;
            let (json, manifest) = select::manifest(&blobs, &descriptor)?;
            let config = blobs.document(select::configuration_of(&manifest)?)?;
            Self::of(reference.clone(), (descriptor, json), config, blobs)
        };
        found().with_context(|| format!("looking into {reference}"))
    }

    fn fetch(reference: &Reference, remote: Remote, arch: Option<&Arch>) -> Result<Self> {
        let (json, descriptor) = remote.manifest()?;
        let manifest = ImageManifest::from_reader(&json[..]).context("reading the manifest")?;
        let remote = Shared::new(remote);
        let config = remote.configuration(select::configuration_of(&manifest)?)?;
        let this = Self::of(reference.clone(), (descriptor, json), config, Blobs::Remote(remote))?;
        ensure!(arch.is_none_or(|arch| *arch == this.arch), "there is no image for {arch:?}, only for {}", this.arch);
        Ok(this)
    }

    fn of(
        reference: Reference,
        (descriptor, manifest_json): (Descriptor, Vec<u8>),
        config_json: Vec<u8>,
        blobs: Blobs,
    ) -> Result<Self> {
        let manifest = ImageManifest::from_reader(&manifest_json[..]).context("reading the manifest")?;
        let config = select::configuration(&config_json)?;
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
