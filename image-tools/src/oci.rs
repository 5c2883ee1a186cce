//! OCI image layouts as input: where they are, and that everything in them is what its digest says.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};
use oci_spec::image::{Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Platform};
use ocidir::{OciDir, OciRead as _, cap_std::fs::Dir};

/// An image in an OCI layout: `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`, as containers-transports(5) has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// A directory, or a tar archive of one.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// The name of the image in it; needed where it holds several.
    pub tag: Option<String>,
}

/// The form of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `oci:`
    Directory,
    /// `oci-archive:`
    Archive,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, rest) = match text.split_once(':') {
            Some(("oci", rest)) => (Kind::Directory, rest),
            Some(("oci-archive", rest)) => (Kind::Archive, rest),
            _ => return Err(format!("{text:?} is no image: expected oci:DIR[:TAG] or oci-archive:FILE[:TAG]")),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(format!("{text:?} names no path"));
        }
        Ok(Self { kind, path: path.into(), tag })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Directory => "oci",
            Kind::Archive => "oci-archive",
        };
        write!(f, "{kind}:{}", self.path.display())?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

/// An opened layout, unpacked if it was an archive.
#[derive(Debug)]
pub struct Layout {
    /// The directory.
    pub path: PathBuf,
    /// The image that was asked for.
    pub manifest: Descriptor,
}

impl Layout {
    /// Opens `source`, an archive by unpacking it below `scratch`.
    ///
    /// # Errors
    ///
    /// When there is no layout, or no such image in it: names what there is.
    pub fn open(source: &Source, scratch: &Path) -> Result<Self> {
        let path = match source.kind {
            Kind::Directory => source.path.clone(),
            Kind::Archive => unpack(&source.path, scratch)?,
        };
        let open = || -> Result<OciDir> {
            let dir = Dir::open_ambient_dir(&path, ocidir::cap_std::ambient_authority())?;
            Ok(OciDir::open(dir)?)
        };
        let dir = open().with_context(|| format!("opening the OCI layout {}", path.display()))?;
        let index = dir.read_index().with_context(|| format!("reading the index of {source}"))?;
        let manifest = choose(&index, source.tag.as_deref()).with_context(|| format!("looking into {source}"))?;
        Ok(Self { path, manifest })
    }

    /// Checks every blob of the image against its digest, and every path in its layers.
    ///
    /// # Errors
    ///
    /// Names the blob or the path: missing, corrupt, absolute, or leading out of the image.
    pub fn verify(&self) -> Result<()> {
        let manifest: ImageManifest = self.json(&self.manifest)?;
        self.check_blob(manifest.config())?;
        for layer in manifest.layers() {
            self.check_blob(layer)?;
            self.check_paths(layer).with_context(|| format!("reading the layer {}", layer.digest()))?;
        }
        Ok(())
    }

    fn json(&self, descriptor: &Descriptor) -> Result<ImageManifest> {
        self.check_blob(descriptor)?;
        let named = || format!("reading the manifest {}", descriptor.digest());
        serde_json::from_reader(self.blob(descriptor)?).with_context(named)
    }

    fn blob(&self, descriptor: &Descriptor) -> Result<File> {
        let digest = descriptor.digest();
        let path = self.path.join("blobs").join(digest.algorithm().as_ref()).join(digest.digest());
        File::open(&path).with_context(|| format!("opening the blob {digest} in {}", self.path.display()))
    }

    fn check_blob(&self, descriptor: &Descriptor) -> Result<()> {
        use sha2::{Digest, Sha256};
        let digest = descriptor.digest();
        ensure!(digest.algorithm().as_ref() == "sha256", "the blob {digest} has no SHA-256 digest");
        let mut hasher = Sha256::new();
        let size = std::io::copy(&mut self.blob(descriptor)?, &mut hasher)?;
        let found = hex::encode(hasher.finalize());
        ensure!(
            found == digest.digest() && size == descriptor.size(),
            "the blob {digest} in {} is corrupt: it has {size} bytes and the digest sha256:{found}",
            self.path.display()
        );
        Ok(())
    }

    fn check_paths(&self, layer: &Descriptor) -> Result<()> {
        let blob = std::io::BufReader::new(self.blob(layer)?);
        let tar: Box<dyn Read> = match layer.media_type() {
            MediaType::ImageLayer => Box::new(blob),
            MediaType::ImageLayerGzip => Box::new(flate2::read::MultiGzDecoder::new(blob)),
            MediaType::ImageLayerZstd => Box::new(zstd::Decoder::new(blob)?),
            other => bail!("layers of type {other} are not supported; expected tar, gzip or zstd"),
        };
        for entry in tar::Archive::new(tar).entries()? {
            let entry = entry?;
            let path = entry.path()?;
            let leads_out = path.components().any(|c| !matches!(c, Component::Normal(_) | Component::CurDir));
            ensure!(!leads_out, "the path {:?} leads out of the image", path);
        }
        Ok(())
    }

    /// Makes a layout at `output` that holds this image with one more layer: the file `from` at the path `name`. The
    /// directory at the top of `name` must be in the image already, and is left as it is there.
    ///
    /// # Errors
    ///
    /// Those of reading and writing, named.
    pub fn with_file(&self, output: &Path, tag: &str, (name, from): (&str, &Path)) -> Result<()> {
        let mut manifest: ImageManifest = self.json(&self.manifest)?;
        let config = manifest.config().digest();
        let mut config: ImageConfiguration = serde_json::from_reader(self.blob(manifest.config())?)
            .with_context(|| format!("reading the configuration {config}"))?;
        std::fs::create_dir(output).with_context(|| format!("creating {}", output.display()))?;
        let made = OciDir::ensure(Dir::open_ambient_dir(output, ocidir::cap_std::ambient_authority())?)?;
        for layer in manifest.layers() {
            let mut blob = made.create_blob()?;
            std::io::copy(&mut self.blob(layer)?, &mut blob)?;
            blob.complete_verified_as(layer)?;
        }
        let mut tar = tar::Builder::new(made.create_uncompressed_layer()?);
        let parents: Vec<_> = Path::new(name).ancestors().skip(1).collect();
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
        tar.append_data(&mut header, name, file).with_context(|| format!("adding {name}"))?;
        let layer = tar.into_inner()?.complete()?;
        made.push_layer_with_history(&mut manifest, &mut config, layer, None);
        let mut platform = Platform::default();
        platform.set_architecture(config.architecture().clone()).set_os(config.os().clone());
        made.insert_manifest_and_config(manifest, config, Some(tag), platform)?;
        Ok(())
    }
}

fn choose(index: &ImageIndex, tag: Option<&str>) -> Result<Descriptor> {
    let name =
        |d: &Descriptor| d.annotations().as_ref().and_then(|a| a.get("org.opencontainers.image.ref.name").cloned());
    let all = index.manifests();
    let names: Vec<_> = all.iter().filter_map(name).collect();
    match tag {
        Some(tag) => match all.iter().find(|d| name(d).as_deref() == Some(tag)) {
            Some(found) => Ok(found.clone()),
            None => bail!("no image is tagged {tag:?}; there is {names:?}"),
        },
        None => match &all[..] {
            [one] => Ok(one.clone()),
            [] => bail!("the layout holds no image"),
            _ => bail!("the layout holds several images, {names:?}: add a tag"),
        },
    }
}

fn unpack(archive: &Path, scratch: &Path) -> Result<PathBuf> {
    let unpacked = tempfile::Builder::new().prefix("layout-").tempdir_in(scratch)?.keep();
    let file = File::open(archive).with_context(|| format!("opening {}", archive.display()))?;
    tar::Archive::new(file).unpack(&unpacked).with_context(|| format!("unpacking {}", archive.display()))?;
    Ok(unpacked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_spelled_as_other_tools_spell_them() {
        for text in ["oci:/a/b", "oci:b:v1", "oci-archive:x.tar:latest"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        for text in ["", "docker://x", "oci:", "/a/b"] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
