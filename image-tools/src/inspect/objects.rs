//! Whether the repository on a disk is sealed: every object has the fs-verity metadata that its data has, and the digest
//! that its name says.

use std::{
    fs::File,
    io::{Seek, SeekFrom},
    os::unix::fs::FileExt,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use composefs::{
    erofs::reader::erofs_to_filesystem, fsverity::Sha512HashValue, generic_tree::Inode as TreeInode, tree,
};
use finalize::{digest::DeploymentId, layout};
use rayon::prelude::*;

use super::ext4::{Ext4, Inode, Node, Superblock};
use crate::verity::{Algorithm, Metadata, metadata_offset};

/// The flag of an inode with fs-verity (`Documentation/filesystems/ext4/inodes.rst`).
pub const VERITY: u32 = 0x10_0000;

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
    let mut file = File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
    let end = file.seek(SeekFrom::End(0))?;
    let block = Superblock::read(disk, root.start)?.block;
    let place = Place { disk: &file, end, start: root.start, block };
    // An unsealed repository has no metadata anywhere, and says so by meta.json, or by having none.
    let is_sealed = inodes.first().is_some_and(|meta| meta.flags & VERITY != 0);
    let digests: Vec<_> =
        paths.iter().map(|path| path.strip_prefix(&objects).map(|name| name.replace('/', ""))).collect();
    let algorithm = digests.iter().flatten().find_map(|name| Algorithm::of_hex(name)).unwrap_or(Algorithm::Sha512);
    let checked = paths.par_iter().zip(&digests).zip(&inodes).filter_map(|((path, digest), inode)| {
        let reader = Reader { place, inode };
        let checked = match digest {
            Some(digest) => reader.verify_named(digest, is_sealed),
            None if is_sealed => reader.verify(algorithm).map(drop),
            None => Ok(()),
        };
        checked.err().map(|error| format!("{path}: {error:#}"))
    });
    let mut wrong: Vec<_> = checked.collect();
    wrong.extend(etcs(root, place, deployments)?);
    Ok(wrong)
}

/// The paths that images ship in /etc and their deployments lack, where nobody can have removed them yet.
fn etcs(root: &Ext4, place: Place<'_>, deployments: &[DeploymentId]) -> Result<Vec<String>> {
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
        let image = Reader { place, inode: &inode }.data();
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
    // debugfs is asked by name, and there are names that it does not take: what is below those is not compared.
    let Ok(names) = root.list(at) else { return Ok(()) };
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

/// Where a file system is, and how large its blocks are.
#[derive(Clone, Copy)]
struct Place<'a> {
    disk: &'a File,
    end: u64,
    start: u64,
    block: u64,
}

/// A file's bytes by its blocks, also those behind its end.
struct Reader<'a> {
    place: Place<'a>,
    inode: &'a Inode,
}

impl Reader<'_> {
    fn block(&self, logical: u64) -> Result<Vec<u8>> {
        let Place { disk, start, block, .. } = self.place;
        let mut bytes = vec![0; usize::try_from(block)?];
        let found = self.inode.extents.iter().find(|(first, _, count)| (*first..first + count).contains(&logical));
        if let Some((first, physical, _)) = found {
            let at = start + (physical + logical - first) * block;
            disk.read_exact_at(&mut bytes, at).with_context(|| format!("reading at {at}"))?;
        }
        Ok(bytes)
    }

    fn bytes(&self, from: u64, length: u64) -> Result<Vec<u8>> {
        let Place { end, block, .. } = self.place;
        ensure!(length <= end, "it says that it has {length} bytes, more than the disk");
        let blocks = from / block..(from + length).div_ceil(block);
        let mut bytes = Vec::with_capacity(usize::try_from(length + block)?);
        for block in blocks {
            bytes.extend(self.block(block)?);
        }
        bytes.truncate(usize::try_from(length)?);
        Ok(bytes)
    }

    fn data(&self) -> Result<Vec<u8>> {
        self.bytes(0, self.inode.size)
    }

    /// Whether the data have the digest that their name says.
    fn verify_named(&self, name: &str, is_sealed: bool) -> Result<()> {
        let algorithm = Algorithm::of_hex(name).context("its name is no digest")?;
        let found = match is_sealed {
            true => self.verify(algorithm)?,
            false => Metadata::compute(&self.data()?, algorithm),
        };
        ensure!(hex::encode(&found.digest) == name, "its data has another digest");
        Ok(())
    }

    /// Whether the metadata are there, and those of the data.
    fn verify(&self, algorithm: Algorithm) -> Result<Metadata> {
        ensure!(self.inode.flags & VERITY != 0, "it is not sealed");
        let want = Metadata::compute(&self.data()?, algorithm);
        let tail = want.tail(usize::try_from(self.place.block)?);
        let is_same = self.bytes(metadata_offset(self.inode.size), tail.len() as u64)? == tail;
        ensure!(is_same, "its fs-verity metadata are not those of its data, which has another digest or none");
        Ok(want)
    }
}
