//! Which image of a layout is meant: by its name, through indexes in the index, by its platform.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};

use sha2::{Digest, Sha256};

use super::{Corrupt, blob::Blobs};

/// How many indexes may lie in each other.
const DEPTH: usize = 8;

/// The name of an image in an index, as skopeo, buildah and podman write it, and as docker does.
const NAMES: [&str; 2] = ["org.opencontainers.image.ref.name", "io.containerd.image.name"];

/// Docker's list of manifests: an index, byte for byte.
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Docker's manifest, and Docker's configuration.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The name; where there is none, the layout must hold one image only.
    pub tag: Option<&'a str>,
    /// The architecture; where there is none, the only image is taken whatever it is for, and else the build host's.
    pub arch: Option<&'a Arch>,
}

/// The manifest of the image that is wanted.
///
/// # Errors
///
/// Names what there is, and how to choose.
pub fn choose(blobs: &Blobs, index: &ImageIndex, wanted: Wanted<'_>) -> Result<Descriptor> {
    let named = by_name(index, wanted.tag)?;
    let mut found = vec![];
    expand(blobs, &named, DEPTH, &mut found)?;
    ensure!(!found.is_empty(), "there is no image");
    if let ([one], None) = (&found[..], wanted.arch) {
        return Ok(one.clone());
    }
    let host = Arch::default();
    let arch = wanted.arch.unwrap_or(&host);
    let platforms = found.iter().map(|image| platform(blobs, image)).collect::<Result<Vec<_>>>()?;
    let fitting: Vec<_> = found.iter().zip(&platforms).filter(|(_, (os, is))| *os == Os::Linux && is == arch).collect();
    match &fitting[..] {
        [(one, _)] => Ok((*one).clone()),
        [] => {
            let there: BTreeSet<_> = platforms.iter().map(|(os, arch)| format!("{os}/{arch}")).collect();
            let there = there.into_iter().collect::<Vec<_>>().join(", ");
            bail!("there is no image for linux/{arch}, only for {there}: choose with --arch")
        }
        several => {
            let digests: Vec<_> = several.iter().map(|(image, _)| image.digest().to_string()).collect();
            bail!("there are several images for linux/{arch}: {}; copy one of them alone", digests.join(", "))
        }
    }
}

fn by_name(index: &ImageIndex, tag: Option<&str>) -> Result<Vec<Descriptor>> {
    let all = index.manifests();
    let names = |image: &Descriptor| -> Vec<String> {
        let annotation = |key: &&str| image.annotations().as_ref().and_then(|all| all.get(*key).cloned());
        NAMES.iter().filter_map(annotation).collect()
    };
    let first: BTreeSet<_> = all.iter().filter_map(|image| names(image).into_iter().next()).collect();
    let Some(tag) = tag else {
        ensure!(first.len() < 2, "there are several images, {first:?}: add the name of one, oci:DIR:NAME");
        return Ok(all.clone());
    };
    let tagged: Vec<_> = all.iter().filter(|image| names(image).iter().any(|name| name == tag)).cloned().collect();
    ensure!(!tagged.is_empty(), "no image is tagged {tag:?}; there is {first:?}");
    Ok(tagged)
}

/// The images among `descriptors`, and in the indexes among them, each once. What is attached to an image is none.
fn expand(blobs: &Blobs, descriptors: &[Descriptor], depth: usize, found: &mut Vec<Descriptor>) -> Result<()> {
    ensure!(depth > 0, Corrupt(format!("more than {DEPTH} indexes lie in each other")));
    for descriptor in descriptors {
        let is = |kind: &str| descriptor.media_type().as_ref() == kind;
        if *descriptor.media_type() == MediaType::ImageIndex || is(DOCKER_LIST) {
            let bytes = blobs.document(descriptor)?;
            let named = || format!("reading the index {}", descriptor.digest());
            let index = ImageIndex::from_reader(&bytes[..]).with_context(named)?;
            expand(blobs, index.manifests(), depth - 1, found)?;
        } else if (*descriptor.media_type() == MediaType::ImageManifest || is(DOCKER_MANIFEST))
            && !is_attached(descriptor)
            && !found.iter().any(|other| other.digest() == descriptor.digest())
        {
            found.push(descriptor.clone());
        }
    }
    Ok(())
}

/// An attestation, as docker buildx writes it, or an artifact.
fn is_attached(descriptor: &Descriptor) -> bool {
    let annotated = |key: &str| descriptor.annotations().as_ref().is_some_and(|all| all.contains_key(key));
    let unknown = |kind: &str| kind == "unknown";
    let platform = descriptor.platform().as_ref();
    annotated("vnd.docker.reference.type")
        || descriptor.artifact_type().is_some()
        || platform.is_some_and(|platform| unknown(&platform.os().to_string()))
}

/// What an image is for: as its descriptor says, or its configuration.
fn platform(blobs: &Blobs, image: &Descriptor) -> Result<(Os, Arch)> {
    if let Some(platform) = image.platform() {
        return Ok((platform.os().clone(), platform.architecture().clone()));
    }
    let manifest = manifest(blobs, image)?.1;
    let config = configuration(&blobs.document(configuration_of(&manifest)?)?)?;
    Ok((config.os().clone(), config.architecture().clone()))
}

/// The bytes of a manifest, and the manifest.
///
/// # Errors
///
/// When it is corrupt, or no manifest.
pub fn manifest(blobs: &Blobs, descriptor: &Descriptor) -> Result<(Vec<u8>, ImageManifest)> {
    let bytes = blobs.document(descriptor)?;
    let named = || format!("reading the manifest {}", descriptor.digest());
    let manifest = ImageManifest::from_reader(&bytes[..]).with_context(named)?;
    Ok((bytes, manifest))
}

/// The descriptor of an image's configuration.
///
/// # Errors
///
/// When what the manifest describes is no operating system but something else that registries keep.
pub fn configuration_of(manifest: &ImageManifest) -> Result<&Descriptor> {
    let kind = manifest.config().media_type();
    ensure!(
        *kind == MediaType::ImageConfig || kind.as_ref() == DOCKER_CONFIG,
        Corrupt(format!("it is no image of a system: its configuration has the type {kind}"))
    );
    Ok(manifest.config())
}

/// An image's configuration.
///
/// # Errors
///
/// When it is none.
pub fn configuration(bytes: &[u8]) -> Result<ImageConfiguration> {
    let digest = || hex::encode(Sha256::digest(bytes));
    ImageConfiguration::from_reader(bytes).with_context(|| format!("reading the configuration sha256:{}", digest()))
}
