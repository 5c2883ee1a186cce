//! The nodes of a file system as the tar archive that `mke2fs -d -` reads.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::ffi::OsStrExt,
    path::Path,
};

use anyhow::{Context, Result};

use super::fill::Marked;
use crate::node::{Content, Device, Node};

/// Writes the archive. Nodes that are completed later are marked, and files that are filled later empty.
pub fn write(nodes: &[Node], marked: Marked<'_>, out: &mut dyn Write) -> Result<()> {
    let mut archive = tar::Builder::new(out);
    for (number, node) in nodes.iter().enumerate() {
        let owner = match Marked::is_marked(node) {
            true => (number as u64, marked.group.into()),
            false => (node.meta.uid.into(), node.meta.gid.into()),
        };
        append(&mut archive, node, owner).with_context(|| format!("adding {}", node.path.display()))?;
    }
    archive.finish().context("finishing the archive")
}

fn append(archive: &mut tar::Builder<&mut dyn Write>, node: &Node, (uid, gid): (u64, u64)) -> Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(node.meta.mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mtime(node.meta.mtime);
    header.set_size(if Marked::is_packed(node) { 0 } else { node.size() });
    let open = |path: &Path| File::open(path).with_context(|| format!("opening {}", path.display()));
    let path = &node.path;
    match &node.content {
        Content::Dir => {
            header.set_entry_type(tar::EntryType::Directory);
            archive.append_data(&mut header, path, std::io::empty())?;
        }
        Content::Bytes(bytes) => archive.append_data(&mut header, path, &bytes[..])?,
        Content::Packed(_) | Content::Sealed(_) => archive.append_data(&mut header, path, std::io::empty())?,
        Content::File(from) => archive.append_data(&mut header, path, open(&from.path)?)?,
        Content::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            append_link(archive, header, path.as_os_str().as_bytes(), target.as_os_str().as_bytes())?;
        }
        Content::Fifo => {
            header.set_entry_type(tar::EntryType::Fifo);
            archive.append_data(&mut header, path, std::io::empty())?;
        }
        Content::Device(kind, number) => {
            header.set_entry_type(match kind {
                Device::Block => tar::EntryType::Block,
                Device::Character => tar::EntryType::Char,
            });
            header.set_device_major(rustix::fs::major(*number))?;
            header.set_device_minor(rustix::fs::minor(*number))?;
            archive.append_data(&mut header, path, std::io::empty())?;
        }
        Content::HardLink(target) => {
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
