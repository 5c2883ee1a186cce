//! Deployments as nodes of the root file system: their state directories, the shared /var, and what says that one of
//! them is staged.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use composefs::{
    fsverity::Sha512HashValue,
    generic_tree::{Inode, LeafContent, LeafId, Stat},
    tree::{Directory, FileSystem, RegularFile},
};
use finalize::{
    layout,
    staged::{BootType, Marker, Origin},
};

use crate::{
    payload::{Payload, Store},
    tree::{Content, Meta, Node, below},
};

/// The state directory of a deployment: its /etc, its origin, its link to /var.
///
/// # Errors
///
/// When the image's /etc holds what an image cannot ship.
pub fn state(store: &Store, payload: &Payload, boot_type: BootType, mtime: u64) -> Result<Vec<Node>> {
    let dir = PathBuf::from(layout::deployment(&payload.id));
    let origin = Origin {
        image_reference: Some(format!("ostree-unverified-image:{}", payload.source)),
        boot_type,
        boot_digest: Some(payload.boots.digest().to_owned()),
        manifest_digest: Some(payload.manifest.clone()),
    };
    let mut nodes = vec![
        Node::new(&dir, Meta::root(0o755, mtime), Content::Dir),
        Node::new(dir.join("var"), Meta::root(0o777, mtime), Content::Link(layout::VAR_LINK.into())),
        Node::new(
            dir.join(layout::origin(&payload.id)),
            Meta::root(0o644, mtime),
            Content::Bytes(origin.to_string().into_bytes()),
        ),
    ];
    copy(store, payload, "etc", &dir.join(layout::ETC), &mut nodes)?;
    Ok(nodes)
}

/// The shared /var, as the image has it.
///
/// # Errors
///
/// As [`state`].
pub fn var(store: &Store, payload: &Payload) -> Result<Vec<Node>> {
    let mut nodes = vec![];
    copy(store, payload, "var", Path::new(layout::SHARED_VAR), &mut nodes)?;
    Ok(nodes)
}

/// The file that says which deployment is staged; the marker in /run is restored from it.
pub fn staged(payload: &Payload, mtime: u64) -> [Node; 2] {
    let marker = Marker { depl_id: payload.id.clone(), finalization_locked: false };
    [
        Node::new(layout::FINALIZE_STATE, Meta::root(0o755, mtime), Content::Dir),
        Node::new(layout::STAGED, Meta::root(0o644, mtime), Content::Bytes(marker.to_string().into_bytes())),
    ]
}

/// Copies the directory `from` of the image to `to`.
fn copy(store: &Store, payload: &Payload, from: &str, to: &Path, nodes: &mut Vec<Node>) -> Result<()> {
    let root = payload.tree.as_dir();
    let dir = match root.get_directory_opt(from.as_ref())? {
        Some(dir) => dir,
        None => {
            nodes.push(Node::new(to, Meta::root(0o755, 0), Content::Dir));
            return Ok(());
        }
    };
    let mut copier = Copier { store, tree: &payload.tree, seen: HashMap::new(), nodes };
    copier.dir(dir, to).with_context(|| format!("copying /{from} of {}", payload.source))
}

struct Copier<'a> {
    store: &'a Store,
    tree: &'a FileSystem<Sha512HashValue>,
    /// The first path of each leaf.
    seen: HashMap<LeafId, PathBuf>,
    nodes: &'a mut Vec<Node>,
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
                LeafContent::Regular(RegularFile::External(id, _)) => Content::File(self.store.object(id)),
                LeafContent::Regular(file) => Content::Bytes(self.store.bytes(file)?),
                _ => bail!("{} is a device, fifo or socket, which an image cannot ship there", to.display()),
            },
        };
        self.seen.insert(id, to.clone());
        self.nodes.push(Node::new(to, meta(&leaf.stat), content));
        Ok(())
    }
}

fn meta(stat: &Stat) -> Meta {
    use std::os::unix::ffi::OsStrExt;
    let xattrs = stat.xattrs.iter().map(|(key, value)| (key.as_bytes().to_vec(), value.to_vec())).collect();
    Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: stat.st_mtim_sec.try_into().unwrap_or(0),
        xattrs,
    }
}
