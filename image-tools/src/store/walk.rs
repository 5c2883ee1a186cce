//! Paths in an image, as Linux finds them there (path_resolution(7)): links are followed, and the image is the root.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::PathBuf,
};

use anyhow::{Result, ensure};
use composefs::{
    fsverity::Sha512HashValue,
    tree::{Directory, Inode, LeafContent},
};

use super::Tree;
use crate::oci::Corrupt;

/// How many links a path may lead through: what Linux allows.
pub const LINKS: usize = 40;

/// A directory by the names that lead to it, none of them a link, and a name in it.
pub type Place = (Vec<OsString>, OsString);

/// How far a path leads.
pub enum Walked {
    /// To a place; whether there is anything is another question.
    Found(Place),
    /// To this place, where no directory is, though the path goes on.
    Ends(Place),
}

/// The names of a path, without those that mean nothing.
pub fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

/// Follows a path of an archive up to its last name, which may be a link.
///
/// # Errors
///
/// When the path has `..` or no name at all, or leads through too many links.
pub fn walk(tree: &Tree, path: &[u8]) -> Result<Walked> {
    let names: Vec<_> = components(path).map(owned).collect();
    let leads_out = || Corrupt(format!("the path {} leads out of the image", OsStr::from_bytes(path).display()));
    ensure!(!names.is_empty() && names.iter().all(|name| name != ".."), leads_out());
    follow(tree, names)
}

/// Where a link in the directory at `dirs` leads, up to the last name, which may be a link again.
///
/// # Errors
///
/// When it leads through too many links.
pub fn beside(tree: &Tree, mut dirs: Vec<OsString>, target: &OsStr) -> Result<Walked> {
    if target.as_bytes().starts_with(b"/") {
        dirs.clear();
    }
    dirs.extend(components(target.as_bytes()).map(owned));
    follow(tree, dirs)
}

fn follow(tree: &Tree, names: Vec<OsString>) -> Result<Walked> {
    let mut rest: Vec<_> = names.into_iter().rev().collect();
    // Of a link to the root itself: there is no file of that name.
    let name = if rest.is_empty() { OsString::new() } else { rest.remove(0) };
    let (mut at, mut links) = (vec![], 0);
    // Names below which nothing can be looked up: a link may lead there and, by `..`, away again.
    let mut nowhere: Vec<OsString> = vec![];
    while let Some(next) = rest.pop() {
        if next == ".." {
            if nowhere.pop().is_none() {
                at.pop();
            }
            continue;
        }
        let found = if nowhere.is_empty() { dir(tree, &at)?.lookup(&next) } else { None };
        let link = match found {
            Some(Inode::Directory(_)) => {
                at.push(next);
                continue;
            }
            Some(Inode::Leaf(id, _)) => match &tree.leaf(*id).content {
                LeafContent::Symlink(target) => Some(target),
                _ => None,
            },
            None => None,
        };
        let Some(target) = link else {
            nowhere.push(next);
            continue;
        };
        links += 1;
        ensure!(links <= LINKS, Corrupt("its path leads through too many links".to_owned()));
        if target.as_bytes().starts_with(b"/") {
            at.clear();
        }
        rest.extend(components(target.as_bytes()).rev().map(owned));
    }
    nowhere.truncate(1);
    Ok(match nowhere.pop() {
        None => Walked::Found((at, name)),
        Some(first) => Walked::Ends((at, first)),
    })
}

fn owned(name: &[u8]) -> OsString {
    OsString::from_vec(name.to_vec())
}

/// The directory of a place.
///
/// # Errors
///
/// When there is none.
pub fn dir<'a>(tree: &'a Tree, dirs: &[OsString]) -> Result<&'a Directory<Sha512HashValue>> {
    Ok(tree.root.get_directory(dirs.iter().collect::<PathBuf>().as_os_str())?)
}
