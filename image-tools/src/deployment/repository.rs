//! The repository as nodes of the root file system, with fs-verity where it is sealed.

use std::path::Path;

use anyhow::{Context, Result};
use finalize::layout;
use walkdir::WalkDir;

use super::{Deployments, Sealing};
use crate::node::{Content, HostFile, Meta, Node};

/// All nodes of the repository. Sealed means every object, and `meta.json`.
pub fn nodes(of: &Deployments<'_>) -> Result<Vec<Node>> {
    let mtime = of.time;
    let mut nodes = vec![Node::new(layout::REPOSITORY, Meta::root(0o700, mtime), Content::Dir)];
    for entry in WalkDir::new(&of.store.path).min_depth(1).sort_by_file_name() {
        nodes.push(node(of, &entry.context("reading the repository")?)?);
    }
    nodes.push(Node::dir(Path::new(layout::REPOSITORY).join("bootc"), mtime));
    Ok(nodes)
}

fn node(of: &Deployments<'_>, entry: &walkdir::DirEntry) -> Result<Node> {
    let mtime = of.time;
    let host = entry.path();
    let named = || format!("reading {}", host.display());
    let relative = host.strip_prefix(&of.store.path).with_context(named)?;
    let path = Path::new(layout::REPOSITORY).join(relative);
    let kind = entry.file_type();
    if kind.is_dir() {
        return Ok(Node::dir(path, mtime));
    }
    if kind.is_symlink() {
        let target = std::fs::read_link(host).with_context(named)?;
        return Ok(Node::new(path, Meta::root(0o777, mtime), Content::Link(target)));
    }
    let must_be_sealed = relative.starts_with("objects") || relative == Path::new("meta.json");
    let size = entry.metadata().with_context(named)?.len();
    let file = HostFile { path: host.to_owned(), size };
    let content = match of.choice.sealing {
        Sealing::Sealed if must_be_sealed => Content::Sealed(file),
        _ => Content::File(file),
    };
    Ok(Node::file(path, content, mtime))
}
