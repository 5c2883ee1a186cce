//! Whether the repository on a disk is sealed: every object has the fs-verity metadata that its data has, and the digest
//! that its name says.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};
use composefs::{
    erofs::reader::erofs_to_filesystem, fsverity::Sha512HashValue, generic_tree::Inode as TreeInode, tree,
};
use finalize::{digest::DeploymentId, layout};
use rayon::prelude::*;

use super::ext4::{Ext4, Inode, Node};
use crate::verity::{Algorithm, BLOCK, Metadata, metadata_offset};

const VERITY: u32 = 0x10_0000;

/// Everything that is wrong with objects, `meta.json`, and the /etc of deployments that have not booted.
///
/// # Errors
///
/// When the file system cannot be read at all.
pub fn check(root: &Ext4, disk: &Path, deployments: &[DeploymentId]) -> Result<Vec<String>> {
    let objects = format!("/{}/objects", layout::REPOSITORY);
    let dirs: Vec<_> =
        root.list(&objects)?.into_iter().filter(Node::is_dir).map(|n| format!("{objects}/{}", n.name)).collect();
    let mut paths = vec![format!("/{}", layout::REPOSITORY_META)];
    for (dir, nodes) in dirs.iter().zip(root.lists(&dirs)?) {
        paths.extend(nodes.iter().filter(|node| node.is_file()).map(|node| format!("{dir}/{}", node.name)));
    }
    let inodes = root.inodes(&paths)?;
    let file = File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
    // An unsealed repository has no metadata anywhere, and says so by meta.json.
    if inodes.first().is_some_and(|meta| meta.flags & VERITY == 0) {
        return etcs(root, &file, deployments);
    }
    let reader = |inode| Reader { disk: &file, start: root.start, inode };
    let checked = paths.par_iter().zip(&inodes).filter_map(|(path, inode)| {
        let digest = path.strip_prefix(&objects).map(|name| name.replace('/', ""));
        reader(inode).verify(digest.as_deref()).err().map(|error| format!("{path}: {error:#}"))
    });
    let mut wrong: Vec<_> = checked.collect();
    wrong.extend(etcs(root, &file, deployments)?);
    Ok(wrong)
}

/// The paths that images ship in /etc and their deployments lack, where nobody can have removed them yet.
fn etcs(root: &Ext4, disk: &File, deployments: &[DeploymentId]) -> Result<Vec<String>> {
    let mut wrong = vec![];
    for id in deployments.iter().filter(|id| id.as_str().len() == 128) {
        let state = format!("/{}", layout::deployment(id));
        let pristine = match root.exists(&format!("{state}/{}", layout::ETC_ORIG))? {
            true => Some(layout::ETC_ORIG),
            // The booted one may have lost any of them by its administrator's will.
            false => (root.read(&format!("/{}", layout::STAGED))?.is_some_and(|text| text.contains(id.as_str())))
                .then_some(layout::ETC),
        };
        let Some(pristine) = pristine else { continue };
        let (head, tail) = id.as_str().split_at(2);
        let inode = root.inodes(&[format!("/{}/objects/{head}/{tail}", layout::REPOSITORY)])?.pop().unwrap_or_default();
        let image = Reader { disk, start: root.start, inode: &inode }.data();
        let image = image.and_then(|bytes| erofs_to_filesystem::<Sha512HashValue>(&bytes));
        let image = match image {
            Ok(image) => image,
            Err(error) => {
                wrong.push(format!("the image of {} cannot be read: {error:#}", id.short()));
                continue;
            }
        };
        if let Some(etc) = image.as_dir().get_directory_opt("etc".as_ref())? {
            missing(root, etc, &format!("{state}/{pristine}"), &mut wrong)?;
        }
    }
    Ok(wrong)
}

fn missing(root: &Ext4, dir: &tree::Directory<Sha512HashValue>, at: &str, wrong: &mut Vec<String>) -> Result<()> {
    let names = root.list(at)?;
    for (name, inode) in dir.sorted_entries() {
        let name = name.to_string_lossy();
        if !names.iter().any(|node| node.name == name) {
            wrong.push(format!("{at}/{name} is in the image but not in the deployment"));
        } else if let TreeInode::Directory(below) = inode {
            missing(root, below, &format!("{at}/{name}"), wrong)?;
        }
    }
    Ok(())
}

/// A file's bytes by its blocks, also those behind its end.
struct Reader<'a> {
    disk: &'a File,
    start: u64,
    inode: &'a Inode,
}

impl Reader<'_> {
    fn block(&self, logical: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; BLOCK];
        let found = self.inode.extents.iter().find(|(first, _, count)| (*first..first + count).contains(&logical));
        if let Some((first, physical, _)) = found {
            let at = self.start + (physical + logical - first) * BLOCK as u64;
            self.disk.read_exact_at(&mut bytes, at).with_context(|| format!("reading at {at}"))?;
        }
        Ok(bytes)
    }

    fn bytes(&self, from: u64, length: u64) -> Result<Vec<u8>> {
        let blocks = from / BLOCK as u64..(from + length).div_ceil(BLOCK as u64);
        let mut bytes = Vec::with_capacity(usize::try_from(length)? + BLOCK);
        for block in blocks {
            bytes.extend(self.block(block)?);
        }
        bytes.truncate(usize::try_from(length)?);
        Ok(bytes)
    }

    fn data(&self) -> Result<Vec<u8>> {
        self.bytes(0, self.inode.size)
    }

    fn verify(&self, digest: Option<&str>) -> Result<()> {
        ensure!(self.inode.flags & VERITY != 0, "it is not sealed");
        let algorithm = match digest {
            Some(digest) => Algorithm::of_hex(digest).context("its name is no digest")?,
            None => Algorithm::Sha512,
        };
        let want = Metadata::compute(&self.data()?, algorithm);
        if let Some(digest) = digest {
            ensure!(hex::encode(&want.digest) == digest, "its data has another digest");
        }
        let tail = self.bytes(metadata_offset(self.inode.size), want.tail.len() as u64)?;
        ensure!(tail == want.tail, "its fs-verity metadata are not those of its data");
        Ok(())
    }
}
