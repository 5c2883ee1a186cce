//! The nodes of a file system as the tar archive that `mke2fs -d -` reads: a sealed file is followed by its fs-verity
//! metadata, behind a hole.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use crate::{
    node::{Content, Device, Node},
    verity::{Algorithm, BLOCK, Metadata},
};

/// A node, with its fs-verity metadata where it is sealed.
#[derive(Debug)]
pub struct Sealed<'a> {
    node: &'a Node,
    metadata: Option<Metadata>,
}

/// Computes the metadata of all nodes.
pub fn sealed(nodes: &[Node]) -> Result<Vec<Sealed<'_>>> {
    let seal = |node| Ok(Sealed { node, metadata: metadata(node)? });
    nodes.par_iter().map(seal).collect()
}

fn metadata(node: &Node) -> Result<Option<Metadata>> {
    let Content::Sealed(file) = &node.content else { return Ok(None) };
    let compute = || Metadata::compute(&mut File::open(&file.path)?, Algorithm::Sha512);
    let metadata = compute().with_context(|| format!("reading {}", file.path.display()))?;
    ensure!(metadata.size == file.size, "{} has changed while it was read", file.path.display());
    Ok(Some(metadata))
}

/// Writes the archive.
pub fn write(nodes: &[Sealed<'_>], out: &mut dyn Write) -> Result<()> {
    let mut archive = tar::Builder::new(out);
    for node in nodes {
        append(&mut archive, node).with_context(|| format!("adding {}", node.node.path.display()))?;
    }
    archive.finish().context("finishing the archive")
}

fn append(archive: &mut tar::Builder<&mut dyn Write>, Sealed { node, metadata }: &Sealed<'_>) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(node.meta.mode);
    header.set_uid(node.meta.uid.into());
    header.set_gid(node.meta.gid.into());
    header.set_mtime(node.meta.mtime);
    header.set_size(node.size());
    let open = |path: &Path| File::open(path).with_context(|| format!("opening {}", path.display()));
    let path = &node.path;
    match (&node.content, metadata) {
        (Content::Dir, _) => {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, path, std::io::empty())?;
        }
        (Content::Bytes(bytes), _) => archive.append_data(&mut header, path, &bytes[..])?,
        (Content::Sealed(from), Some(metadata)) => {
            let tail = metadata.tail(BLOCK);
            let gap = metadata.offset() - metadata.size;
            header.set_size(metadata.offset() + tail.len() as u64);
            let data = open(&from.path)?.take(metadata.size).chain(std::io::repeat(0).take(gap)).chain(&tail[..]);
            archive.append_data(&mut header, path, data)?;
        }
        (Content::File(from) | Content::Sealed(from), _) => {
            archive.append_data(&mut header, path, open(&from.path)?)?;
        }
        (Content::Link(target), _) => {
            header.set_entry_type(tar::EntryType::Symlink);
            append_link(archive, header, path.as_os_str().as_bytes(), target.as_os_str().as_bytes())?;
        }
        (Content::Fifo, _) => {
            header.set_entry_type(tar::EntryType::Fifo);
            archive.append_data(&mut header, path, std::io::empty())?;
        }
        (Content::Device(kind, number), _) => {
            header.set_entry_type(match kind {
                Device::Block => tar::EntryType::Block,
                Device::Character => tar::EntryType::Char,
            });
            header.set_device_major(rustix::fs::major(*number))?;
            header.set_device_minor(rustix::fs::minor(*number))?;
            archive.append_data(&mut header, path, std::io::empty())?;
        }
        (Content::HardLink(target), _) => {
            header.set_entry_type(tar::EntryType::Link);
            archive.append_link(&mut header, path, target)?;
        }
    }
    Ok(())
}

/// A link whose target is kept byte for byte, for that is how a merge of /etc compares it; the crate `tar` would tidy it up.
fn append_link(
    archive: &mut tar::Builder<&mut dyn Write>,
    mut header: tar::Header,
    path: &[u8],
    to: &[u8],
) -> Result<()> {
    let names = header.as_gnu_mut().context("the header is none of GNU tar")?;
    // What is longer stands in an entry before it, as GNU tar has it: the path first, or mke2fs (1.47.2) crashes.
    let long =
        [(&mut names.name, path, tar::EntryType::GNULongName), (&mut names.linkname, to, tar::EntryType::GNULongLink)];
    for (field, name, kind) in long {
        let length = name.len().min(field.len());
        field[..length].copy_from_slice(&name[..length]);
        if length < name.len() {
            let mut header = tar::Header::new_gnu();
            header.set_path("././@LongLink")?;
            header.set_entry_type(kind);
            header.set_size(name.len() as u64 + 1);
            header.set_cksum();
            archive.append(&header, name.chain(&[0][..]))?;
        }
    }
    header.set_cksum();
    Ok(archive.append(&header, std::io::empty())?)
}
