//! The composefs repository that a disk image will carry, on the build host: images are read into it, and files out of it.

mod cache;
mod entry;
mod import;
mod layers;
mod pack;
mod walk;

use std::{
    cell::RefCell,
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
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
    BOOT_IMAGE_REF_KEY, BOOT_IMAGE_REF_KEY_V1, OciDigest, layer_content_id,
    oci_image::{manifest_identifier, tag_image},
};
use finalize::{cmdline::Format, digest::DeploymentId};
use rustix::fs::CWD;
use sha2::{Digest, Sha256};

pub use self::cache::Cache;
use self::{
    entry::Entry,
    pack::{Packs, Writer},
    walk::{Walked, walk},
};
use crate::{
    node::{HostFile, Packed, PackedAt},
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

/// The repository. The contents of files are in packs; its directory has what composefs writes itself.
#[derive(Debug)]
pub struct Store {
    repository: Arc<Repository<Sha512HashValue>>,
    packs: RefCell<Packs>,
    cache: Option<Cache>,
    /// Layers that were read, by their digest: another image may have them too.
    layers: RefCell<HashMap<String, Rc<Imported>>>,
    /// Its directory on the build host.
    pub path: PathBuf,
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
        let (packs, layers) = (RefCell::default(), RefCell::default());
        Ok(Self { repository: Arc::new(repository), packs, cache: None, layers, path: path.to_owned(), format })
    }

    /// The same; layers that `cache` has are taken from there, and others are put there.
    #[must_use]
    pub fn with_cache(self, cache: Option<Cache>) -> Self {
        Self { cache, ..self }
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
        let progress = Progress::of_step(image.size());
        for layer in &image.layers {
            let imported = self.import(image, layer, &progress)?;
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
        self.unpack_policy(&tree)?;
        labelled.transform_for_boot(&self.repository)?;
        let id = labelled.commit_image(&self.repository, None)?;
        self.describe(image, &streams, &id)?;
        Ok(Pulled { id: id.to_hex().parse()?, tree, labelled })
    }

    fn import(&self, image: &Image, layer: &Layer, progress: &Progress) -> Result<Rc<Imported>> {
        let key = format!("{} {}", layer.descriptor.digest(), layer.diff_id);
        if let Some(imported) = self.layers.borrow().get(&key) {
            progress.add(layer.descriptor.size());
            return Ok(imported.clone());
        }
        let diff_id = &layer.diff_id;
        let cached = self.cache.as_ref().map(|cache| cache.load(diff_id)).transpose()?.flatten();
        let (stream, entries) = match cached {
            Some((file, places, read)) => {
                progress.add(layer.descriptor.size());
                self.packs.borrow_mut().insert((file, false), &places);
                (self.repository.ensure_object(&read.stream)?, read.entries)
            }
            None => self.read_layer(image, layer, progress)?,
        };
        let name = layer_content_id(&diff_id.parse()?);
        self.name(&name, &stream)?;
        let imported = Rc::new(Imported { stream, entries });
        self.layers.borrow_mut().insert(key, imported.clone());
        Ok(imported)
    }

    /// Reads a layer into a pack, which the cache keeps.
    fn read_layer(&self, image: &Image, layer: &Layer, progress: &Progress) -> Result<(Sha512HashValue, Vec<Entry>)> {
        let file = match &self.cache {
            Some(cache) => cache.create()?,
            None => tempfile::tempfile_in(&self.path).context("creating a file beside the repository")?,
        };
        let mut pack = Writer::new(file);
        let (stream, entries) =
            image.read(layer, progress, |archive| import::import(&self.repository, &mut pack, archive))?;
        let (file, places) = pack.finish()?;
        let Some(cache) = &self.cache else {
            self.packs.borrow_mut().insert((file, true), &places);
            return Ok((stream, entries));
        };
        let read = cache::Read { stream: self.repository.read_object(&stream)?, entries };
        let read = cache.save(&file, (&layer.diff_id, &places), read)?;
        self.packs.borrow_mut().insert((file, false), &places);
        Ok((stream, read.entries))
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
        self.name(&format!("oci-config-{digest}"), &config)?;
        let mut manifest = self.repository.create_stream(MANIFEST)?;
        manifest.add_named_stream_ref(&format!("config:{digest}"), &config);
        for (name, stream) in streams {
            manifest.add_named_stream_ref(name, stream);
        }
        manifest.write_external(&image.manifest_json)?;
        let digest = image.digest();
        let name: OciDigest = digest.parse()?;
        self.name(&manifest_identifier(&name), &manifest.done()?)?;
        tag_image(&self.repository, &name, &format!("localhost/bootc-{digest}"))
    }

    /// Gives a stream its name. Not through composefs, which syncs the whole file system of the build host first.
    fn name(&self, name: &str, stream: &Sha512HashValue) -> Result<()> {
        self.repository.symlink(format!("streams/{name}"), format!("objects/{}", stream.to_object_pathname()))
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
        let path = self.path.with_file_name(format!("file-{id:.64}-{name}"));
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
            RegularFile::External(id, _) | RegularFile::ExternalNoVerity(id, _) => pack::copy(&self.packed(id)?, to)?,
            RegularFile::Sparse(size) => io::copy(&mut io::repeat(0).take(*size), to).map(drop)?,
        }
        Ok(())
    }

    /// The content of an object of a layer.
    pub fn packed(&self, id: &Sha512HashValue) -> Result<Packed> {
        let packs = self.packs.borrow();
        Ok(packs.get(id).with_context(|| format!("no layer has the object {}", id.to_hex()))?.clone())
    }

    /// All objects of the layers, and their paths in the repository.
    pub fn objects(&self) -> Vec<(PathBuf, Packed)> {
        let path = |id: &Sha512HashValue| Path::new("objects").join(id.to_object_pathname());
        self.packs.borrow().iter().map(|(id, packed)| (path(id), packed.clone())).collect()
    }

    /// Packs files of the build host, in order.
    ///
    /// # Errors
    ///
    /// Names the file that cannot be read.
    pub fn pack(&self, paths: &[PathBuf]) -> Result<Vec<Packed>> {
        let mut pack = Writer::new(tempfile::tempfile_in(&self.path)?);
        let mut add = |path: &PathBuf| -> Result<Sha512HashValue> {
            let mut file = File::open(path)?;
            let size = file.metadata()?.len();
            pack.add(&mut file, size)
        };
        let ids = paths.iter().map(|path| add(path).with_context(|| format!("reading {}", path.display())));
        let ids = ids.collect::<Result<Vec<_>>>()?;
        let (file, places) = pack.finish()?;
        self.packs.borrow_mut().insert((file, true), &places);
        ids.iter().map(|id| self.packed(id)).collect()
    }
}

/// The objects that an image's files are, each with its size in bytes.
pub fn object_sizes(tree: &Tree) -> HashMap<Sha512HashValue, u64> {
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
