//! Deployments as nodes of the root file system: their state directories, the shared /var, and what says that one of
//! them is staged.

use std::{
    collections::HashMap,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use composefs::{
    fsverity::Sha512HashValue,
    generic_tree::{Inode, LeafContent, LeafId, Stat},
    tree::{Directory, RegularFile},
};
use finalize::{
    layout,
    staged::{BootType, Marker, Origin},
};

use super::Deployments;
use crate::{
    node::{Content, Device, Meta, Node},
    store::{Store, Tree},
    system::System,
};

/// What stands before the name of an image in an origin file, as bootc has it.
pub const UNVERIFIED: &str = "ostree-unverified-image:";

/// The state directory of a deployment: its /etc, its origin, its link to /var.
///
/// # Errors
///
/// When the image's /etc holds what an image cannot ship.
pub fn of(all: &Deployments<'_>, system: &System) -> Result<Vec<Node>> {
    let (choice, mtime) = (all.choice, all.time);
    let dir = PathBuf::from(layout::deployment(&system.id));
    let origin = origin(system, choice.way.boot_type, choice.target.as_deref());
    let mut nodes = vec![
        Node::dir(&dir, mtime),
        Node::new(dir.join("var"), Meta::root(0o777, mtime), Content::Link(layout::VAR_LINK.into())),
        Node::file(dir.join(layout::origin(&system.id)), Content::Bytes(origin.to_string().into_bytes()), mtime),
    ];
    nodes.extend(etc(all.store, system, &dir.join(layout::ETC))?);
    Ok(nodes)
}

/// Where a deployment comes from; `target` is what the machine takes its updates from.
pub fn origin(system: &System, boot_type: BootType, target: Option<&str>) -> Origin {
    let from = target.map_or_else(|| local(system), str::to_owned);
    Origin {
        image_reference: Some(format!("{UNVERIFIED}{from}")),
        boot_type,
        boot_digest: Some(system.boots.digest().to_owned()),
        manifest_digest: Some(system.image.digest()),
    }
}

/// The image's /etc, at `to`.
///
/// # Errors
///
/// When it holds what an image cannot ship.
pub fn etc(store: &Store, system: &System, to: &Path) -> Result<Vec<Node>> {
    copy(store, system, "etc", to)
}

/// What an image is called where nobody has said where its successors come from: not the path of a build host, but what
/// `podman build --tag` would call it on the machine itself.
fn local(system: &System) -> String {
    let is_of_tag = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let tag: String = system.os.version.chars().map(|c| if is_of_tag(c) { c } else { '-' }).take(128).collect();
    format!("containers-storage:localhost/{}:{}", system.os.id, tag.trim_start_matches(['.', '-']))
}

/// The shared /var, as the image has it.
pub fn var(store: &Store, system: &System) -> Result<Vec<Node>> {
    copy(store, system, "var", Path::new(layout::SHARED_VAR))
}

/// The file that says which deployment is staged; the marker in /run is restored from it.
pub fn staged(system: &System, mtime: u64) -> [Node; 2] {
    let marker = Marker { depl_id: system.id.clone(), finalization_locked: false };
    [
        Node::dir(layout::FINALIZE_STATE, mtime),
        Node::file(layout::STAGED, Content::Bytes(marker.to_string().into_bytes()), mtime),
    ]
}

/// The directory `from` of the image, at `to`.
fn copy(store: &Store, system: &System, from: &str, to: &Path) -> Result<Vec<Node>> {
    let root = system.labelled.as_dir();
    let Some(dir) = root.get_directory_opt(from.as_ref())? else { return Ok(vec![Node::dir(to, 0)]) };
    let mut copier = Copier { store, tree: &system.labelled, seen: HashMap::new(), nodes: vec![] };
    copier.dir(dir, to).with_context(|| format!("copying /{from} of {}", system.image.reference))?;
    Ok(copier.nodes)
}

struct Copier<'a> {
    store: &'a Store,
    tree: &'a Tree,
    /// The first path of each leaf.
    seen: HashMap<LeafId, PathBuf>,
    nodes: Vec<Node>,
}

impl Copier<'_> {
    fn dir(&mut self, dir: &Directory<Sha512HashValue>, to: &Path) -> Result<()> {
        self.nodes.push(Node::new(to, meta(&dir.stat), Content::Dir));
        for (name, inode) in dir.sorted_entries() {
            let to = below(to, name);
            match inode {
                Inode::Directory(dir) => self.dir(dir, &to)?,
                Inode::Leaf(id, _) => self.leaf(*id, to)?,
            }
        }
        Ok(())
    }

    fn leaf(&mut self, id: LeafId, to: PathBuf) -> Result<()> {
        let leaf = self.tree.leaf(id);
        let content = match self.seen.get(&id) {
            Some(first) => Content::HardLink(first.clone()),
            None => match &leaf.content {
                LeafContent::Symlink(target) => Content::Link(target.into()),
                LeafContent::Regular(RegularFile::External(id, size)) => self.store.content(id, *size)?,
                LeafContent::Regular(file) => Content::Bytes(self.store.bytes(file)?),
                LeafContent::Fifo => Content::Fifo,
                LeafContent::BlockDevice(number) => Content::Device(Device::Block, *number),
                LeafContent::CharacterDevice(number) => Content::Device(Device::Character, *number),
                LeafContent::Socket => bail!("{} is a socket, which an image cannot ship", to.display()),
            },
        };
        self.seen.insert(id, to.clone());
        self.nodes.push(Node::new(to, meta(&leaf.stat), content));
        Ok(())
    }
}

fn meta(stat: &Stat) -> Meta {
    let xattrs = stat.xattrs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.to_vec())).collect();
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtim_sec.try_into().unwrap_or(0),
        xattrs,
    }
}

/// `name` below `dir`.
fn below(dir: &Path, name: &OsStr) -> PathBuf {
    if dir.as_os_str().as_bytes().is_empty() { PathBuf::from(name) } else { dir.join(name) }
}
