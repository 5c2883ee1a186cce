//! What is in the tree of an image.

use std::{collections::HashMap, ffi::OsString, os::unix::ffi::OsStrExt, path::Path};

use anyhow::{Result, bail};
use composefs::{
    fsverity::Sha512HashValue,
    tree::{Inode, Leaf, LeafContent, RegularFile},
};

use super::{
    Incomplete, Tree,
    walk::{self, Walked, walk},
};

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

/// What is at a path of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum At {
    /// Nothing.
    Nothing,
    /// A directory.
    Directory,
    /// A link, to there.
    Link(OsString),
    /// A file of another kind.
    Other,
}

/// What is at `path`; links are followed inside the image, but for the last name.
///
/// # Errors
///
/// When the path leads through too many links.
pub fn at(tree: &Tree, path: &Path) -> Result<At> {
    let Walked::Found((dirs, name)) = walk(tree, path.as_os_str().as_bytes())? else { return Ok(At::Nothing) };
    Ok(match walk::dir(tree, &dirs)?.lookup(&name) {
        None => At::Nothing,
        Some(Inode::Directory(_)) => At::Directory,
        Some(Inode::Leaf(id, _)) => match &tree.leaf(*id).content {
            LeafContent::Symlink(target) => At::Link(target.as_ref().to_owned()),
            _ => At::Other,
        },
    })
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
