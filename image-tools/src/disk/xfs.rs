//! An XFS file system inside a disk image, by mkfs.xfs: files and directories, which is what a boot partition has.

use std::{ffi::OsStr, fmt::Write, os::unix::fs::symlink, path::Path};

use anyhow::{Context, Result, bail};
use uuid::Uuid;
use xshell::{Cmd, Shell, cmd};

use super::{Place, xfs_times};
use crate::{
    node::{Content, Node},
    program, sparse,
};

/// The programs of [`create`].
pub fn programs(shell: &Shell, place: Place<'_>, uuid: Uuid) -> Vec<String> {
    [mkfs(shell, place, uuid), xfs_times::list(shell, Path::new("image"))].map(|cmd| cmd.to_string()).into()
}

/// Its program, which reads `prototype` and writes `image`.
fn mkfs<'a>(shell: &'a Shell, place: Place<'_>, uuid: Uuid) -> Cmd<'a> {
    let (label, uuid) = (place.partition.purpose.name(), uuid.to_string());
    // GRUB reads no 64-bit extent counters before 2.12.
    cmd!(shell, "mkfs.xfs -q -L {label} -m uuid={uuid} -i nrext64=0 -p prototype image")
}

/// Makes the file system.
///
/// # Errors
///
/// When mkfs.xfs cannot be told of a node, and those of the program.
pub fn create(place: Place<'_>, uuid: Uuid, time: u64) -> Result<()> {
    let beside = place.disk.parent().context("a disk image has a directory")?;
    let scratch = tempfile::tempdir_in(beside)?;
    let scratch = scratch.path();
    let mut prototype = String::from("/\n0 0\nd--755 0 0\n");
    describe(&place.partition.nodes, Path::new(""), scratch, &mut prototype)?;
    std::fs::write(scratch.join("prototype"), prototype)?;
    std::fs::File::create(scratch.join("image"))?.set_len(place.partition.size)?;
    let shell = program::shell()?;
    shell.change_dir(scratch);
    let label = place.partition.purpose.name();
    program::run(mkfs(&shell, place, uuid)).with_context(|| format!("making the {label} file system"))?;
    xfs_times::settle(&scratch.join("image"), time)
        .with_context(|| format!("setting the times of the {label} file system"))?;
    sparse::into(&scratch.join("image"), place.disk, place.partition.start)
}

/// What is in `dir`, as mkfs.xfs(8) reads it from a prototype file in `scratch`; that has no way to quote, so all content
/// is there too, under a number.
fn describe(nodes: &[Node], dir: &Path, scratch: &Path, text: &mut String) -> Result<()> {
    for (number, node) in nodes.iter().enumerate().filter(|(_, node)| node.path.parent() == Some(dir)) {
        let (path, meta) = (&node.path, &node.meta);
        let name = path.file_name().and_then(OsStr::to_str).filter(|name| !name.contains(char::is_whitespace));
        let name =
            name.with_context(|| format!("mkfs.xfs cannot be told of {path:?}: it has spaces, or is not UTF-8"))?;
        let owner = format!("{:03o} {} {}", meta.mode & 0o777, meta.uid, meta.gid);
        let content = scratch.join(number.to_string());
        match &node.content {
            Content::Dir => {
                writeln!(text, "{name} d--{owner}")?;
                describe(nodes, path, scratch, text)?;
                continue;
            }
            Content::Bytes(bytes) => std::fs::write(&content, bytes),
            Content::File(from) => std::path::absolute(&from.path).and_then(|from| symlink(from, &content)),
            _ => bail!("{} cannot be on a boot partition with XFS", path.display()),
        }
        .with_context(|| format!("writing {}", content.display()))?;
        writeln!(text, "{name} ---{owner} {number}")?;
    }
    Ok(writeln!(text, "$")?)
}
