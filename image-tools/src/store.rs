//! The composefs repository that a disk image will carry, on the build host: images are read into it, and files out of it.

mod cache;
mod entry;
mod import;
mod kept;
mod layers;
mod live;
mod look;
mod pack;
mod walk;

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io::{self, Read, Write},
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use composefs::{
    erofs::{
        format::{FormatConfig, FormatVersion},
        reader::erofs_to_filesystem,
    },
    fsverity::{Algorithm, FsVerityHashValue, Sha512HashValue},
    generic_tree::is_allowed_container_xattr,
    repository::{Repository, RepositoryConfig},
    tree::{FileSystem, Inode, LeafContent, RegularFile, Stat},
};
use composefs_boot::BootOps as _;
use composefs_oci::{
    BOOT_IMAGE_REF_KEY, BOOT_IMAGE_REF_KEY_V1, OciDigest, layer_content_id,
    oci_image::{manifest_identifier, tag_image},
};
use finalize::{cmdline::Format, digest::DeploymentId, layout};
use rustix::fs::CWD;
use sha2::{Digest, Sha256};

pub use self::{
    cache::Cache,
    live::NoSpace,
    look::{At, at, find, names, object_sizes},
};
use self::{entry::Entry, kept::Kept, live::Objects};
use crate::{
    node::{Content, HostFile, Packed},
    oci::{Image, Layer},
    progress::Progress,
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

/// The repository. On a build host the contents of files are in packs, and its directory has what composefs writes itself; on a
/// machine that runs they are where they belong.
#[derive(Debug)]
pub struct Store {
    repository: Arc<Repository<Sha512HashValue>>,
    kept: Kept,
    /// Layers that were read, by their digest: another image may have them too.
    layers: RefCell<HashMap<String, Rc<Imported>>>,
    /// Streams that have no name yet.
    names: RefCell<Vec<(String, Sha512HashValue)>>,
    /// Its directory.
    pub path: PathBuf,
    /// A directory of this program.
    scratch: PathBuf,
    /// The format of its EROFS images; the digest of an image is another one in another format.
    pub format: Format,
}

/// Which extended attributes of an image survive: what composefs keeps (capabilities), and what people have put on files,
/// access lists included. Not SELinux's labels, which come from the policy in the image, nor what container engines and the
/// kernel of the build host leave behind (overlayfs, IMA, EVM).
fn is_carried(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    let is_people = bytes.starts_with(b"user.") && !bytes.starts_with(b"user.overlay.");
    is_allowed_container_xattr(name) || is_people || bytes.starts_with(b"system.posix_acl_")
}

/// A layer of an image that is read, and who counts its bytes.
#[derive(Debug)]
struct Layered<'a> {
    image: &'a Image,
    layer: &'a Layer,
    progress: &'a Progress,
    /// Where files without a name are made.
    scratch: &'a Path,
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
    /// A new repository at `path`, without fs-verity: the build host may have none. Its EROFS images are of format V2, as
    /// bootc's are.
    ///
    /// # Errors
    ///
    /// Those of making it.
    pub fn create(path: &Path) -> Result<Self> {
        Self::of_format(Format::V2, path)
    }

    /// The same, with EROFS images of `format`, which the repository itself says too.
    ///
    /// # Errors
    ///
    /// Those of making it.
    pub fn of_format(format: Format, path: &Path) -> Result<Self> {
        let mut config = RepositoryConfig::new(Algorithm::for_hash::<Sha512HashValue>()).set_insecure();
        config.erofs_formats = FormatConfig::single(match format {
            Format::V1 => FormatVersion::V1,
            Format::V2 => FormatVersion::V2,
        });
        let (repository, _) = Repository::init_path(CWD, path, config)?;
        let (kept, scratch) = (Kept::default(), path.parent().unwrap_or(path).to_owned());
        Ok(Self::over(repository.into(), kept, (path, &scratch), format))
    }

    /// The repository of a machine that runs, which is the directory `path` of `sysroot`, the physical root, and is read at
    /// `visible`. It stays sealed where it is. What nobody needs any more is not removed from it as long as this lives.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or is of SHA-256.
    pub fn of_machine(sysroot: impl AsFd, visible: &Path, scratch: &Path) -> Result<Self> {
        let named = || format!("opening the repository {}", visible.display());
        let repository = Repository::open_path(sysroot, layout::REPOSITORY).with_context(named)?;
        let format = match repository.erofs_version() {
            FormatVersion::V2 => Format::V2,
            FormatVersion::V0 | FormatVersion::V1 => Format::V1,
        };
        let repository = Arc::new(repository);
        let kept = Kept::Live(Objects(repository.clone()));
        Ok(Self::over(repository, kept, (visible, scratch), format))
    }

    fn over(repository: Arc<Repository<Sha512HashValue>>, kept: Kept, at: (&Path, &Path), format: Format) -> Self {
        let (path, scratch) = (at.0.to_owned(), at.1.to_owned());
        Self { repository, kept, layers: RefCell::default(), names: RefCell::default(), path, scratch, format }
    }

    /// Whether the kernel verifies what is read from it.
    pub fn is_sealed(&self) -> bool {
        !self.repository.is_insecure()
    }

    /// Whether the layer is there already.
    pub fn has_layer(&self, layer: &Layer) -> Result<bool> {
        Ok(self.repository.has_stream(&layer_content_id(&layer.diff_id.parse()?))?.is_some())
    }

    /// The files of a deployment, as its EROFS image has them.
    pub fn image(&self, id: &DeploymentId) -> Result<Tree> {
        let bytes = self.repository.read_object(&Sha512HashValue::from_hex(id.as_str())?)?;
        erofs_to_filesystem(&bytes).with_context(|| format!("reading the image {id}"))
    }

    /// The same; layers that `cache` has are taken from there, and others are put there.
    #[must_use]
    pub fn with_cache(self, cache: Option<Cache>) -> Self {
        Self { kept: Kept::Packed { cache, packs: RefCell::default() }, ..self }
    }

    /// Reads the image, tags it as bootc does, and makes its bootable EROFS image. Each layer is read once, and is what its
    /// digests say; one that another image has brought already is not read again.
    ///
    /// # Errors
    ///
    /// Names the layer and the entry, or the directory that the image lacks.
    pub fn pull(&self, image: &Image) -> Result<Pulled> {
        let (mut tree, streams) = self.lay(image)?;
        for name in MUST_HAVE {
            let found = matches!(tree.root.lookup(name.as_ref()), Some(Inode::Directory(_)));
            ensure!(found, Incomplete(format!("the image has no directory /{name}: add `RUN mkdir -p /{name}` to it")));
        }
        tree.copy_root_metadata_from_usr()?;
        tree.canonicalize_run()?;
        tree.filter_xattrs(is_carried);
        tree.compact();
        let mut labelled = tree.clone();
        self.unpack_policy(&tree)?;
        labelled.transform_for_boot(&self.repository)?;
        let id = labelled.commit_image(&self.repository, None)?;
        self.describe(image, &streams, &id)?;
        self.publish(image)?;
        Ok(Pulled { id: id.to_hex().parse()?, tree, labelled })
    }

    /// The files of an image as its layers have them, whatever it lacks. The layers are not read again when it is pulled.
    ///
    /// # Errors
    ///
    /// Names the layer and the entry.
    pub fn look(&self, image: &Image) -> Result<Tree> {
        Ok(self.lay(image)?.0)
    }

    /// The layers on top of each other, and the stream of each.
    fn lay(&self, image: &Image) -> Result<(Tree, Vec<(String, Sha512HashValue)>)> {
        let mut tree = Tree::new(Stat::uninitialized());
        let mut streams = vec![];
        let progress = Progress::of_step(image.size());
        for layer in &image.layers {
            let imported = self.import(image, layer, &progress)?;
            let digest = layer.descriptor.digest();
            layers::apply(&mut tree, &imported.entries).with_context(|| format!("applying the layer {digest}"))?;
            streams.push((layer.diff_id.clone(), imported.stream.clone()));
        }
        Ok((tree, streams))
    }

    fn import(&self, image: &Image, layer: &Layer, progress: &Progress) -> Result<Rc<Imported>> {
        let key = format!("{} {}", layer.descriptor.digest(), layer.diff_id);
        if let Some(imported) = self.layers.borrow().get(&key) {
            progress.add(layer.descriptor.size());
            return Ok(imported.clone());
        }
        let imported =
            Rc::new(self.kept.import(&self.repository, &Layered { image, layer, progress, scratch: &self.scratch })?);
        self.name(layer_content_id(&layer.diff_id.parse()?), &imported.stream);
        self.layers.borrow_mut().insert(key, imported.clone());
        Ok(imported)
    }

    /// Makes objects of the SELinux policy's files, where composefs looks for them.
    fn unpack_policy(&self, tree: &Tree) -> Result<()> {
        let mut dirs: Vec<_> = tree.root.get_directory_opt("etc/selinux".as_ref())?.into_iter().collect();
        while let Some(dir) = dirs.pop() {
            for (_, inode) in dir.sorted_entries() {
                match inode {
                    Inode::Directory(dir) => dirs.push(dir),
                    Inode::Leaf(id, _) => {
                        if let LeafContent::Regular(file @ RegularFile::External(..)) = &tree.leaf(*id).content {
                            self.repository.ensure_object(&self.bytes(file)?)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes configuration and manifest of an image down, as composefs-oci has them: what they need is what they name.
    fn describe(&self, image: &Image, streams: &[(String, Sha512HashValue)], id: &Sha512HashValue) -> Result<()> {
        /// `OCI_CONFIG_CONTENT_TYPE` and `OCI_MANIFEST_CONTENT_TYPE` of composefs-oci.
        const CONFIG: u64 = u64::from_le_bytes(*b"ociconfg");
        const MANIFEST: u64 = u64::from_le_bytes(*b"ocimanif");
        let key = match self.format {
            Format::V1 => BOOT_IMAGE_REF_KEY_V1,
            Format::V2 => BOOT_IMAGE_REF_KEY,
        };
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&image.config_json)));
        let mut config = self.repository.create_stream(CONFIG)?;
        for (name, stream) in streams {
            config.add_named_stream_ref(name, stream);
        }
        config.add_named_stream_ref(key, id);
        config.write_external(&image.config_json)?;
        let config = config.done()?;
        self.name(format!("oci-config-{digest}"), &config);
        let mut manifest = self.repository.create_stream(MANIFEST)?;
        manifest.add_named_stream_ref(&format!("config:{digest}"), &config);
        for (name, stream) in streams {
            manifest.add_named_stream_ref(name, stream);
        }
        manifest.write_external(&image.manifest_json)?;
        self.name(manifest_identifier(&image.digest().parse()?), &manifest.done()?);
        Ok(())
    }

    /// A stream gets this name by [`Store::publish`].
    fn name(&self, name: String, stream: &Sha512HashValue) {
        self.names.borrow_mut().push((name, stream.clone()));
    }

    /// Gives streams their names, and the image its tag. On a machine that runs, what they name is on the disk then, and so are
    /// they. Not each through composefs, which syncs the whole file system of the build host first.
    fn publish(&self, image: &Image) -> Result<()> {
        let sync = || match self.kept {
            Kept::Packed { .. } => Ok(()),
            Kept::Live(_) => self.repository.sync(),
        };
        sync()?;
        for (name, stream) in self.names.borrow_mut().drain(..) {
            let object = format!("objects/{}", stream.to_object_pathname());
            self.repository.symlink(format!("streams/{name}"), object)?;
        }
        let digest = image.digest();
        tag_image(&self.repository, &digest.parse::<OciDigest>()?, &format!("localhost/bootc-{digest}"))?;
        sync()
    }

    /// A file of the build host with the bytes of the image's file at `path`; nothing where there is none.
    pub fn file(&self, tree: &Tree, path: &Path) -> Result<Option<HostFile>> {
        let Some(found) = find(tree, path)? else { return Ok(None) };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let (id, size) = match found {
            RegularFile::External(id, _) | RegularFile::ExternalNoVerity(id, _) => (id.to_hex(), found.file_size()),
            RegularFile::Inline(bytes) => (hex::encode(Sha256::digest(bytes)), found.file_size()),
            RegularFile::Sparse(_) => bail!("{} is an empty sparse file", path.display()),
        };
        if let (RegularFile::External(id, size), Kept::Live(_)) = (found, &self.kept) {
            return Ok(Some(HostFile { path: kept::object_path(&self.path, id), size: *size }));
        }
        let path = self.scratch.join(format!("file-{id:.64}-{name}"));
        let write = || self.write(found, &mut File::create(&path)?);
        write().with_context(|| format!("writing {}", path.display()))?;
        Ok(Some(HostFile { path, size }))
    }

    /// The content of the image's file at `path`; nothing where there is none.
    pub fn read(&self, tree: &Tree, path: &Path) -> Result<Option<Vec<u8>>> {
        find(tree, path)?.map(|file| self.bytes(file)).transpose()
    }

    /// The content of a file of an image.
    pub fn bytes(&self, file: &RegularFile<Sha512HashValue>) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        self.write(file, &mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, file: &RegularFile<Sha512HashValue>, to: &mut dyn Write) -> Result<()> {
        match file {
            RegularFile::Inline(bytes) => to.write_all(bytes)?,
            RegularFile::External(id, _) | RegularFile::ExternalNoVerity(id, _) => {
                self.kept.copy(&self.repository, id, to)?;
            }
            RegularFile::Sparse(size) => io::copy(&mut io::repeat(0).take(*size), to).map(drop)?,
        }
        Ok(())
    }

    /// The content of an object of a layer, as a node has it.
    pub fn content(&self, id: &Sha512HashValue, size: u64) -> Result<Content> {
        self.kept.content(&self.path, id, size)
    }

    /// All objects of the layers, and their paths in the repository.
    pub fn objects(&self) -> Result<Vec<(PathBuf, Packed)>> {
        let path = |id: &Sha512HashValue| Path::new("objects").join(id.to_object_pathname());
        Ok(self.kept.packs()?.borrow().iter().map(|(id, packed)| (path(id), packed.clone())).collect())
    }

    /// Packs files of the build host, in order.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be read.
    pub fn pack(&self, paths: &[PathBuf]) -> Result<Vec<Packed>> {
        self.kept.pack(paths, &self.scratch)
    }
}
