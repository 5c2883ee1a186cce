//! Layers on top of each other, as the OCI image specification ("Image Layer Filesystem Changeset") and the container
//! engines have them.
//!
//! A whiteout hides what lower layers have, never its own layer's entries, wherever in the archive it stands. Names are
//! relative to the image, with or without a slash before them. A parent that is missing is a directory of root's, 0755; one
//! that is a link is followed, inside the image, as containerd, Docker and umoci do; one that is a file gives way.

use std::{
    collections::HashSet,
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};

use anyhow::{Context, Result, ensure};
use composefs::{
    fsverity::Sha512HashValue,
    generic_tree::LeafId,
    tree::{Directory, Inode, Stat},
};

use super::{
    Tree,
    entry::{Entry, Item},
    walk::{Place, Walked, components, dir, walk},
};
use crate::oci::Corrupt;

const WHITEOUT: &[u8] = b".wh.";
/// What is behind that in the name that hides a whole directory.
const OPAQUE: &[u8] = b".wh..opq";

/// Puts a layer on top of a tree.
///
/// # Errors
///
/// Names the entry: it leads out of the image, or is one more name of nothing.
pub fn apply(tree: &mut Tree, entries: &[Entry]) -> Result<()> {
    let in_entry = |entry: &Entry| format!("applying the entry {}", OsStr::from_bytes(&entry.path).display());
    let hides = |entry: &&Entry| name(&entry.path).starts_with(WHITEOUT);
    let is_dir = |entry: &&Entry| matches!(entry.item, Item::Directory);
    let dirs: HashSet<_> = entries.iter().filter(is_dir).map(|entry| lexical(&entry.path)).collect();
    for entry in entries.iter().filter(hides) {
        hide(tree, &entry.path, &dirs).with_context(|| in_entry(entry))?;
    }
    let mut early = vec![];
    for entry in entries.iter().filter(|entry| !hides(entry)) {
        if !place(tree, entry).with_context(|| in_entry(entry))? {
            early.push(entry);
        }
    }
    // Names of what stands behind them in the archive, or of such names.
    while !early.is_empty() {
        let before = early.len();
        let mut waiting = vec![];
        for entry in early {
            let (dirs, name) = make_parents(tree, &entry.path)?;
            // Whatever has taken the name since stands behind it too.
            let is_taken = dir(tree, &dirs)?.lookup(&name).is_some();
            if !is_taken && !place(tree, entry).with_context(|| in_entry(entry))? {
                waiting.push(entry);
            }
        }
        if let (Some(entry), true) = (waiting.first(), waiting.len() == before) {
            let Item::Link(target) = &entry.item else { break };
            let target = OsStr::from_bytes(target).display();
            let why = Corrupt(format!("it is one more name of {target}, which is not in the image"));
            return Err(why).with_context(|| in_entry(entry));
        }
        early = waiting;
    }
    Ok(())
}

/// The last component of a path; empty for the image's own root.
fn name(path: &[u8]) -> &[u8] {
    components(path).next_back().unwrap_or_default()
}

/// A path without what means nothing in it.
fn lexical(path: &[u8]) -> Vec<u8> {
    components(path).collect::<Vec<_>>().join(&b'/')
}

/// Takes away what lower layers have; nothing where one of `dirs`, the directories of this layer, takes the place of a link to
/// that.
fn hide(tree: &mut Tree, path: &[u8], dirs: &HashSet<Vec<u8>>) -> Result<()> {
    let names: Vec<_> = components(path).collect();
    let above = (1..names.len()).map(|count| names[..count].join(&b'/'));
    for parent in above.filter(|parent| dirs.contains(parent)) {
        let Walked::Found((at, name)) = walk(tree, &parent)? else { return Ok(()) };
        if !matches!(dir(tree, &at)?.lookup(&name), Some(Inode::Directory(_))) {
            return Ok(());
        }
    }
    let Walked::Found((at, name)) = walk(tree, path)? else { return Ok(()) };
    let hidden = &name.as_bytes()[WHITEOUT.len()..];
    let dir = dir_mut(tree, &at)?;
    match hidden {
        OPAQUE => dir.clear(),
        // The notes of AUFS.
        _ if hidden.starts_with(WHITEOUT) => {}
        _ => dir.remove(OsStr::from_bytes(hidden)),
    }
    Ok(())
}

/// Puts an entry into the tree; false where it is one more name of what is not there yet.
fn place(tree: &mut Tree, entry: &Entry) -> Result<bool> {
    if name(&entry.path).is_empty() {
        ensure!(matches!(entry.item, Item::Directory), Corrupt("the root of the image is no directory".to_owned()));
        tree.set_root_stat(entry.status.stat());
        return Ok(true);
    }
    let inode = match (&entry.item, entry.item.leaf()) {
        (_, Some(content)) => Some(Inode::leaf(tree.push_leaf(entry.status.stat(), content))),
        (Item::Link(target), None) => named(tree, target)?.map(Inode::leaf),
        (_, None) => Some(Inode::Directory(Directory::new(entry.status.stat()).into())),
    };
    let (dirs, name) = make_parents(tree, &entry.path)?;
    let dir = dir_mut(tree, &dirs)?;
    match inode {
        Some(inode) => dir.merge(&name, inode),
        None => {
            dir.remove(&name);
            return Ok(false);
        }
    }
    Ok(true)
}

/// The inode that a hard link names; a link at the end of its path is that inode itself.
fn named(tree: &Tree, target: &[u8]) -> Result<Option<LeafId>> {
    let Walked::Found((dirs, name)) = walk(tree, target)? else { return Ok(None) };
    Ok(dir(tree, &dirs)?.leaf_id(&name).ok())
}

/// Where a path is; a parent that is missing, or a file, becomes a directory.
fn make_parents(tree: &mut Tree, path: &[u8]) -> Result<Place> {
    loop {
        match walk(tree, path)? {
            Walked::Found(place) => return Ok(place),
            Walked::Ends((dirs, name)) => dir_mut(tree, &dirs)?.insert(&name, new_dir()),
        };
    }
}

/// A directory that no layer describes, as the container engines make it.
fn new_dir() -> Inode<Sha512HashValue> {
    Inode::Directory(Directory::new(Stat { st_mode: 0o755, ..Stat::default() }).into())
}

fn dir_mut<'a>(tree: &'a mut Tree, dirs: &[OsString]) -> Result<&'a mut Directory<Sha512HashValue>> {
    Ok(tree.root.get_directory_mut(dirs.iter().collect::<PathBuf>().as_os_str())?)
}
