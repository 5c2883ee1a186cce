//! The repository as nodes of the root file system, with fs-verity where it is sealed.

use std::path::Path;

use anyhow::{Context, Result};
use finalize::layout;
use rayon::prelude::*;
use walkdir::WalkDir;

use crate::{
    disk::verity::{Algorithm, Metadata},
    payload::Store,
    recipe::Sealing,
    tree::{Content, Meta, Node},
};

/// All nodes of the repository. Sealed means every object, and `meta.json`.
///
/// # Errors
///
/// Those of reading the repository, named.
pub fn repository(store: &Store, sealing: Sealing, mtime: u64) -> Result<Vec<Node>> {
    let mut nodes = vec![Node::new(layout::REPOSITORY, Meta::root(0o700, mtime), Content::Dir)];
    let entries = WalkDir::new(&store.path).min_depth(1).sort_by_file_name();
    let entries = entries.into_iter().collect::<Result<Vec<_>, _>>().context("reading the repository")?;
    let made: Result<Vec<_>> = entries.par_iter().map(|entry| node(store, sealing, entry, mtime)).collect();
    nodes.extend(made?);
    nodes.push(Node::new(Path::new(layout::REPOSITORY).join("bootc"), Meta::root(0o755, mtime), Content::Dir));
    Ok(nodes)
}

fn node(store: &Store, sealing: Sealing, entry: &walkdir::DirEntry, mtime: u64) -> Result<Node> {
    let host = entry.path();
    let named = || format!("reading {}", host.display());
    let relative = host.strip_prefix(&store.path).with_context(named)?;
    let path = Path::new(layout::REPOSITORY).join(relative);
    let kind = entry.file_type();
    if kind.is_dir() {
        return Ok(Node::new(path, Meta::root(0o755, mtime), Content::Dir));
    }
    if kind.is_symlink() {
        let target = std::fs::read_link(host).with_context(named)?;
        return Ok(Node::new(path, Meta::root(0o777, mtime), Content::Link(target)));
    }
    let must_be_sealed = relative.starts_with("objects") || relative == Path::new("meta.json");
    let content = match sealing {
        Sealing::Sealed if must_be_sealed => {
            let mut file = std::fs::File::open(host).with_context(named)?;
            Content::Sealed(host.to_owned(), Metadata::compute(&mut file, Algorithm::Sha512).with_context(named)?)
        }
        _ => Content::File(host.to_owned()),
    };
    Ok(Node::new(path, Meta::root(0o644, mtime), content))
}
