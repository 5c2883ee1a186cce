//! The repository as nodes of the root file system, with fs-verity where it is sealed.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use finalize::layout;
use walkdir::WalkDir;

use super::{Deployments, Sealing};
use crate::node::{Content, HostFile, Meta, Node, Packed};

/// All nodes of the repository. Sealed means every object, and `meta.json`.
pub fn nodes(of: &Deployments<'_>) -> Result<Vec<Node>> {
    let (store, choice, mtime) = (of.store, of.choice, of.time);
    let at = |path: &Path| Path::new(layout::REPOSITORY).join(path);
    // By path, in whose order parents stand before their children.
    let mut nodes = BTreeMap::new();
    let mut add = |node: Node| nodes.insert(node.path.clone(), node);
    let mut to_be_sealed = vec![];
    for entry in WalkDir::new(&store.path).min_depth(1).sort_by_file_name() {
        let entry = entry.context("reading the repository")?;
        let relative = entry.path().strip_prefix(&store.path).context("reading the repository")?;
        let must_be_sealed = relative.starts_with("objects") || relative == Path::new("meta.json");
        match choice.sealing {
            Sealing::Sealed if must_be_sealed && entry.file_type().is_file() => {
                to_be_sealed.push((at(relative), entry.path().to_owned()));
            }
            _ => drop(add(node(&entry, at(relative), mtime)?)),
        }
    }
    let content = |packed: Packed| match choice.sealing {
        Sealing::Sealed => Content::Sealed(packed),
        Sealing::Unsealed => Content::Packed(packed),
    };
    let objects = store.objects()?.into_iter().map(|(path, packed)| (at(&path), packed));
    let (paths, files): (Vec<_>, Vec<_>) = to_be_sealed.into_iter().unzip();
    let packed = paths.into_iter().zip(store.pack(&files)?);
    for (path, packed) in objects.chain(packed) {
        if let Some(dir) = path.parent() {
            add(Node::dir(dir, mtime));
        }
        add(Node::file(path, content(packed), mtime));
    }
    add(Node::new(layout::REPOSITORY, Meta::root(0o700, mtime), Content::Dir));
    add(Node::dir(at(Path::new("bootc")), mtime));
    Ok(nodes.into_values().collect())
}

/// What composefs has written itself.
fn node(entry: &walkdir::DirEntry, path: PathBuf, mtime: u64) -> Result<Node> {
    let host = entry.path();
    let named = || format!("reading {}", host.display());
    let kind = entry.file_type();
    if kind.is_dir() {
        return Ok(Node::dir(path, mtime));
    }
    if kind.is_symlink() {
        let target = std::fs::read_link(host).with_context(named)?;
        return Ok(Node::new(path, Meta::root(0o777, mtime), Content::Link(target)));
    }
    let size = entry.metadata().with_context(named)?.len();
    Ok(Node::file(path, Content::File(HostFile { path: host.to_owned(), size }), mtime))
}
