//! An operating system image in a composefs repository: pulled from its layout, made bootable, and looked into.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, Result, bail};
use composefs::{
    erofs::format::{FormatConfig, FormatVersion},
    fsverity::{Algorithm, FsVerityHashValue, Sha512HashValue},
    generic_tree::OciTransformOptions,
    repository::{Repository, RepositoryConfig},
    tree::{FileSystem, RegularFile},
};
use composefs_boot::os_release::OsReleaseInfo;
use composefs_oci::{PullOptions, boot::generate_boot_image, oci_image::tag_image};
use finalize::{digest::DeploymentId, staged::BootType};
use rustix::fs::CWD;
use sha2::{Digest, Sha256};

use crate::{
    oci::{Layout, Source},
    uki::Uki,
};

/// The repository that a disk image will carry.
#[derive(Debug)]
pub struct Store {
    repository: Arc<Repository<Sha512HashValue>>,
    /// Its directory on the build host.
    pub path: PathBuf,
    runtime: tokio::runtime::Runtime,
}

/// What boots.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// `vmlinuz`.
    pub vmlinuz: PathBuf,
    /// `initramfs.img`.
    pub initrd: PathBuf,
    /// SHA-256 over both, in hex.
    pub digest: String,
}

/// What the boot loader starts: as the image brings it.
#[derive(Debug, Clone)]
pub enum Boots {
    /// A kernel and an initrd.
    Kernel(Kernel),
    /// Both in one, with a command line.
    Uki(Uki),
}

impl Boots {
    /// SHA-256 over kernel and initrd, in hex.
    pub fn digest(&self) -> &str {
        match self {
            Self::Kernel(kernel) => &kernel.digest,
            Self::Uki(uki) => &uki.digest,
        }
    }
}

/// What the image says of itself in os-release(5).
#[derive(Debug, Clone)]
pub struct Os {
    /// `ID`
    pub id: String,
    /// `VERSION_ID`
    pub version: String,
    /// `PRETTY_NAME`
    pub title: String,
}

/// An image in the repository.
#[derive(Debug)]
pub struct Payload {
    /// The digest of its EROFS image.
    pub id: DeploymentId,
    /// Where it came from.
    pub source: Source,
    /// The digest of its manifest, `sha256:…`.
    pub manifest: String,
    /// Its files.
    pub tree: FileSystem<Sha512HashValue>,
    /// What boots it.
    pub boots: Boots,
    /// What it says of itself.
    pub os: Os,
}

impl Store {
    /// A new repository at `path`, without fs-verity: the build host may have none.
    ///
    /// # Errors
    ///
    /// Those of creating it.
    pub fn create(path: &Path) -> Result<Self> {
        let mut config = RepositoryConfig::new(Algorithm::for_hash::<Sha512HashValue>()).set_insecure();
        config.erofs_formats = FormatConfig::single(FormatVersion::V2);
        let (repository, _) = Repository::init_path(CWD, path, config)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        Ok(Self { repository: Arc::new(repository), path: path.to_owned(), runtime })
    }

    /// Pulls the image, tags it as bootc does, and makes its bootable EROFS image.
    ///
    /// # Errors
    ///
    /// When the layout is not what its digests say, or the image is not bootable: names what is missing.
    pub fn pull(&self, source: &Source, boot_type: BootType, scratch: &Path) -> Result<Payload> {
        let layout = Layout::open(source, scratch)?;
        layout.verify().with_context(|| format!("checking {source}"))?;
        self.pull_verified(source, boot_type, &layout).with_context(|| format!("pulling {source}"))
    }

    fn pull_verified(&self, source: &Source, boot_type: BootType, layout: &Layout) -> Result<Payload> {
        let reference = match &source.tag {
            Some(tag) => format!("oci:{}:{tag}", layout.path.display()),
            None => format!("oci:{}", layout.path.display()),
        };
        let pull = composefs_oci::pull(&self.repository, &reference, None, PullOptions::default());
        let pulled = self.runtime.block_on(pull)?;
        let manifest = pulled.manifest_digest.to_string();
        tag_image(&self.repository, &pulled.manifest_digest, &format!("localhost/bootc-{manifest}"))?;
        let options = OciTransformOptions::default();
        let id = generate_boot_image(&self.repository, &pulled.manifest_digest, &options)?;
        let config = (&pulled.config_digest, Some(&pulled.config_verity));
        let tree = composefs_oci::image::create_filesystem(&self.repository, config.0, config.1, &options)?;
        let id = id.to_hex().parse()?;
        let boots = match boot_type {
            BootType::Bls => Boots::Kernel(self.kernel(&tree)?),
            BootType::Uki => Boots::Uki(Uki::find(self, &tree, &id)?),
        };
        let os = self.os(&tree)?;
        Ok(Payload { id, source: source.clone(), manifest, tree, boots, os })
    }

    fn kernel(&self, tree: &FileSystem<Sha512HashValue>) -> Result<Kernel> {
        const MODULES: &str = "usr/lib/modules";
        let root = tree.as_dir();
        let modules = root.get_directory_ref_opt(MODULES.as_ref())?;
        let versions = modules.iter().flat_map(|dir| dir.sorted_entries().map(|(name, _)| name.to_owned()));
        let has_kernel = |name: &std::ffi::OsString| {
            find(tree, &Path::new(MODULES).join(name).join("vmlinuz")).is_ok_and(|found| found.is_some())
        };
        let versions: Vec<_> = versions.filter(has_kernel).collect();
        let [version] = &versions[..] else {
            bail!("the image must have one kernel, {MODULES}/<version>/vmlinuz; it has {versions:?}");
        };
        let mut hasher = Sha256::new();
        let mut file = |name: &str| -> Result<PathBuf> {
            let host = self.file(tree, &Path::new(MODULES).join(version).join(name))?;
            std::io::copy(&mut std::fs::File::open(&host)?, &mut hasher)?;
            Ok(host)
        };
        let (vmlinuz, initrd) = (file("vmlinuz")?, file("initramfs.img")?);
        Ok(Kernel { vmlinuz, initrd, digest: hex::encode(hasher.finalize()) })
    }

    /// A file of the build host with the bytes of the image's file at `path`.
    ///
    /// # Errors
    ///
    /// When the image has no such file.
    pub fn file(&self, tree: &FileSystem<Sha512HashValue>, path: &Path) -> Result<PathBuf> {
        let found = find(tree, path)?.with_context(|| format!("the image has no {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        self.host_file(found, &name)
    }

    /// Small files are in the tree itself.
    fn host_file(&self, file: &RegularFile<Sha512HashValue>, name: &str) -> Result<PathBuf> {
        match file {
            RegularFile::External(id, _) | RegularFile::ExternalNoVerity(id, _) => Ok(self.object(id)),
            RegularFile::Inline(bytes) => {
                let digest = hex::encode(Sha256::digest(bytes));
                let path = self.path.with_file_name(format!("inline-{digest}-{name}"));
                std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
                Ok(path)
            }
            RegularFile::Sparse(_) => bail!("{name} is an empty sparse file"),
        }
    }

    fn os(&self, tree: &FileSystem<Sha512HashValue>) -> Result<Os> {
        let text = match find(tree, Path::new("usr/lib/os-release"))? {
            Some(file) => String::from_utf8(self.bytes(file)?).context("usr/lib/os-release is not UTF-8")?,
            None => bail!("the image has no usr/lib/os-release"),
        };
        let info = OsReleaseInfo::parse(&text);
        let or = |value: Option<String>, default: &str| value.unwrap_or_else(|| default.to_owned());
        Ok(Os {
            id: or(info.get_value(&["ID"]), "linux"),
            version: or(info.get_version(), "0"),
            title: or(info.get_pretty_name(), "Linux"),
        })
    }

    /// The content of a file of the image at `path`; nothing where there is none.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub fn read(&self, payload: &Payload, path: &str) -> Result<Option<Vec<u8>>> {
        let found = find(&payload.tree, Path::new(path));
        let found = found.with_context(|| format!("looking for {path} in {}", payload.source))?;
        found.map(|file| self.bytes(file)).transpose()
    }

    /// The content of a file of an image.
    ///
    /// # Errors
    ///
    /// Those of reading its object.
    pub fn bytes(&self, file: &RegularFile<Sha512HashValue>) -> Result<Vec<u8>> {
        match file {
            RegularFile::Inline(bytes) => Ok(bytes.to_vec()),
            RegularFile::External(id, size) | RegularFile::ExternalNoVerity(id, size) => {
                let mut bytes = vec![];
                std::fs::File::open(self.object(id))?.take(*size).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            RegularFile::Sparse(size) => Ok(vec![0; usize::try_from(*size)?]),
        }
    }

    /// Where an object is on the build host.
    pub fn object(&self, id: &Sha512HashValue) -> PathBuf {
        let hex = id.to_hex();
        self.path.join("objects").join(&hex[..2]).join(&hex[2..])
    }
}

/// The regular file at `path`; nothing where there is none.
fn find<'a>(tree: &'a FileSystem<Sha512HashValue>, path: &Path) -> Result<Option<&'a RegularFile<Sha512HashValue>>> {
    let parent = path.parent().unwrap_or(Path::new(""));
    let (Some(name), Some(dir)) = (path.file_name(), tree.as_dir().get_directory_ref_opt(parent.as_os_str())?) else {
        return Ok(None);
    };
    Ok(dir.get_file_opt(name)?)
}
