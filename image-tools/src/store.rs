//! The composefs repository that a disk image will carry, on the build host: images are read into it, and files out of it.

mod import;
mod layers;
mod walk;

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{OsStr, OsString},
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use composefs::{
    erofs::format::{FormatConfig, FormatVersion},
    fsverity::{Algorithm, FsVerityHashValue, Sha512HashValue},
    generic_tree::is_allowed_container_xattr,
    repository::{Repository, RepositoryConfig},
    tree::{FileSystem, Inode, Leaf, LeafContent, RegularFile, Stat},
};
use composefs_boot::BootOps as _;
use composefs_oci::{
    BOOT_IMAGE_REF_KEY, OciDigest, layer_content_id,
    oci_image::{manifest_identifier, tag_image},
    write_config_raw,
};
use finalize::digest::DeploymentId;
use rustix::fs::CWD;
use sha2::{Digest, Sha256};
use tokio::runtime::Handle;

use self::{
    import::Entry,
    walk::{Walked, walk},
};
use crate::{
    node::HostFile,
    oci::{Image, Layer},
};

/// The directories without which an image becomes no root file system: composefs copies the metadata of /usr to the root
/// itself; the others are where things are mounted.
const MUST_HAVE: [&str; 3] = ["usr", "boot", "sysroot"];

/// An image lacks what every system has.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Incomplete(String);

/// The files of an image.
pub type Tree = FileSystem<Sha512HashValue>;

/// The repository.
#[derive(Debug)]
pub struct Store {
    repository: Arc<Repository<Sha512HashValue>>,
    /// Layers that were read, by their digest: another image may have them too.
    layers: RefCell<HashMap<String, Rc<Imported>>>,
    /// Its directory on the build host.
    pub path: PathBuf,
    runtime: Handle,
}

/// Which extended attributes of an image survive: what composefs keeps (capabilities), and what people have put on files,
/// access lists included. Not SELinux's labels, which come from the policy in the image, nor what container engines and the
/// kernel of the build host leave behind (overlayfs, IMA, EVM).
fn is_carried(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let is_people = bytes.starts_with(b"user.") && !bytes.starts_with(b"user.overlay.");
    is_allowed_container_xattr(name) || is_people || bytes.starts_with(b"system.posix_acl_")
}

/// A layer that was read into the repository.
#[derive(Debug)]
struct Imported {
    /// The digest of its split stream.
    stream: Sha512HashValue,
    entries: Vec<Entry>,
}

/// An image that was read into the repository.
#[derive(Debug)]
pub struct Pulled {
    /// The digest of its EROFS image.
    pub id: DeploymentId,
    /// Its files.
    pub tree: Tree,
    /// The same as the EROFS image has them: labelled as the SELinux policy in the image says, nothing in /boot and /sysroot.
    pub labelled: Tree,
}

impl Store {
    /// A new repository at `path`, without fs-verity: the build host may have none.
    pub fn create(path: &Path, runtime: Handle) -> Result<Self> {
        let mut config = RepositoryConfig::new(Algorithm::for_hash::<Sha512HashValue>()).set_insecure();
        config.erofs_formats = FormatConfig::single(FormatVersion::V2);
        let (repository, _) = Repository::init_path(CWD, path, config)?;
        Ok(Self { repository: Arc::new(repository), layers: RefCell::default(), path: path.to_owned(), runtime })
    }

    /// Reads the image, tags it as bootc does, and makes its bootable EROFS image. Each layer is read once, and is what its
    /// digests say; one that another image has brought already is not read again.
    ///
    /// # Errors
    ///
    /// Names the layer and the entry, or the directory that the image lacks.
    pub fn pull(&self, image: &Image) -> Result<Pulled> {
        let mut tree = Tree::new(Stat::uninitialized());
        let mut streams = vec![];
        for layer in &image.layers {
            let imported = self.import(image, layer)?;
            let digest = layer.descriptor.digest();
            layers::apply(&mut tree, &imported.entries).with_context(|| format!("applying the layer {digest}"))?;
            streams.push((layer.diff_id.clone(), imported.stream.clone()));
        }
        for name in MUST_HAVE {
            let found = matches!(tree.root.lookup(name.as_ref()), Some(Inode::Directory(_)));
            ensure!(found, Incomplete(format!("the image has no directory /{name}: add `RUN mkdir -p /{name}` to it")));
        }
        tree.copy_root_metadata_from_usr()?;
        tree.canonicalize_run()?;
        tree.filter_xattrs(is_carried);
        tree.compact();
        let mut labelled = tree.clone();
        labelled.transform_for_boot(&self.repository)?;
        let id = labelled.commit_image(&self.repository, None)?;
        self.describe(image, &streams, &id)?;
        Ok(Pulled { id: id.to_hex().parse()?, tree, labelled })
    }

    fn import(&self, image: &Image, layer: &Layer) -> Result<Rc<Imported>> {
        let key = format!("{} {}", layer.descriptor.digest(), layer.diff_id);
        if let Some(imported) = self.layers.borrow().get(&key) {
            return Ok(imported.clone());
        }
        let (stream, entries) = image.read(layer, |archive| import::import(&self.repository, archive))?;
        let name = layer_content_id(&layer.diff_id.parse()?);
        self.runtime.block_on(self.repository.register_stream(&stream, &name, None))?;
        let imported = Rc::new(Imported { stream, entries });
        self.layers.borrow_mut().insert(key, imported.clone());
        Ok(imported)
    }

    /// Writes configuration and manifest of an image down, as composefs-oci has them: what they need is what they name.
    fn describe(&self, image: &Image, streams: &[(String, Sha512HashValue)], id: &Sha512HashValue) -> Result<()> {
        /// `OCI_MANIFEST_CONTENT_TYPE` of composefs-oci.
        const MANIFEST: u64 = u64::from_le_bytes(*b"ocimanif");
        let by_name = || streams.iter().map(|(name, stream)| (name.as_str().into(), stream.clone())).collect();
        let boots = HashMap::from([(BOOT_IMAGE_REF_KEY.into(), id.clone())]);
        let (config, stream) = write_config_raw(&self.repository, &image.config_json, by_name(), None, None, &boots)?;
        let mut manifest = self.repository.create_stream(MANIFEST)?;
        manifest.add_named_stream_ref(&format!("config:{config}"), &stream);
        for (name, stream) in streams {
            manifest.add_named_stream_ref(name, stream);
        }
        manifest.write_external(&image.manifest_json)?;
        let digest = image.digest();
        let name: OciDigest = digest.parse()?;
        self.repository.write_stream(manifest, &manifest_identifier(&name), None)?;
        tag_image(&self.repository, &name, &format!("localhost/bootc-{digest}"))
    }

    /// A file of the build host with the bytes of the image's file at `path`; nothing where there is none.
    pub fn file(&self, tree: &Tree, path: &Path) -> Result<Option<HostFile>> {
        let Some(found) = find(tree, path)? else { return Ok(None) };
        Ok(Some(match found {
            RegularFile::External(id, size) | RegularFile::ExternalNoVerity(id, size) => self.object(id, *size),
            RegularFile::Inline(bytes) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let name = format!("inline-{}-{name}", hex::encode(Sha256::digest(bytes)));
                let path = self.path.with_file_name(name);
                std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
                HostFile { path, size: bytes.len() as u64 }
            }
            RegularFile::Sparse(_) => bail!("{} is an empty sparse file", path.display()),
        }))
    }

    /// The content of the image's file at `path`; nothing where there is none.
    pub fn read(&self, tree: &Tree, path: &Path) -> Result<Option<Vec<u8>>> {
        find(tree, path)?.map(|file| self.bytes(file)).transpose()
    }

    /// The content of a file of an image.
    pub fn bytes(&self, file: &RegularFile<Sha512HashValue>) -> Result<Vec<u8>> {
        match file {
            RegularFile::Inline(bytes) => Ok(bytes.to_vec()),
            RegularFile::External(id, size) | RegularFile::ExternalNoVerity(id, size) => {
                let mut bytes = vec![];
                std::fs::File::open(self.object(id, *size).path)?.take(*size).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
            RegularFile::Sparse(size) => Ok(vec![0; usize::try_from(*size)?]),
        }
    }

    /// An object, on the build host.
    pub fn object(&self, id: &Sha512HashValue, size: u64) -> HostFile {
        let hex = id.to_hex();
        HostFile { path: self.path.join("objects").join(&hex[..2]).join(&hex[2..]), size }
    }
}

/// The objects that an image's files are, each with its size in bytes.
pub fn objects(tree: &Tree) -> HashMap<Sha512HashValue, u64> {
    let object = |leaf: &Leaf<Sha512HashValue>| match &leaf.content {
        LeafContent::Regular(RegularFile::External(id, size)) => Some((id.clone(), *size)),
        _ => None,
    };
    tree.leaves.iter().filter_map(object).collect()
}

/// The names in a directory of an image, in order; none where there is no directory.
pub fn names(tree: &Tree, dir: &Path) -> Result<Vec<OsString>> {
    let found = tree.as_dir().get_directory_ref_opt(dir.as_os_str())?;
    Ok(found.map_or_else(Vec::new, |dir| dir.sorted_entries().map(|(name, _)| name.to_owned()).collect()))
}

/// The regular file at `path`, links followed inside the image; nothing where there is none.
///
/// # Errors
///
/// When there is something else, or the path leads through too many links.
pub fn find<'a>(tree: &'a Tree, path: &Path) -> Result<Option<&'a RegularFile<Sha512HashValue>>> {
    let mut walked = walk(tree, path.as_os_str().as_bytes())?;
    for _ in 0..walk::LINKS {
        let Walked::Found((dirs, name)) = walked else { return Ok(None) };
        match walk::dir(tree, &dirs)?.lookup(&name) {
            None => return Ok(None),
            Some(Inode::Leaf(id, _)) => match &tree.leaf(*id).content {
                LeafContent::Regular(file) => return Ok(Some(file)),
                LeafContent::Symlink(target) => walked = walk::beside(tree, dirs, target)?,
                _ => bail!(Incomplete(format!("{} is no regular file", path.display()))),
            },
            Some(Inode::Directory(_)) => bail!(Incomplete(format!("{} is a directory", path.display()))),
        }
    }
    bail!(Incomplete(format!("{} leads through too many links", path.display())))
}
