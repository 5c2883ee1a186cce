//! An XFS file system inside a disk image, by mkfs.xfs: files and directories, which is what a boot partition has.

use std::{ffi::OsStr, fmt::Write, os::unix::fs::symlink, path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::{ext4::Names, layout::Extent};
use crate::{
    cmd, sparse,
    tree::{Content, Node},
};

/// Makes the file system at `at` of `disk`, with these nodes.
///
/// # Errors
///
/// When they do not fit or mkfs.xfs cannot be told of them, and those of the program.
pub fn create(disk: &Path, at: Extent, names: Names<'_>, nodes: &[Node]) -> Result<()> {
    let beside = disk.parent().context("a disk image has a directory")?;
    let scratch = tempfile::tempdir_in(beside)?;
    let scratch = scratch.path();
    let mut prototype = String::from("/\n0 0\nd--755 0 0\n");
    describe(nodes, Path::new(""), scratch, &mut prototype)?;
    std::fs::write(scratch.join("prototype"), prototype)?;
    std::fs::File::create(scratch.join("image"))?.set_len(at.size)?;
    let mut mkfs = Command::new("mkfs.xfs");
    // GRUB reads no 64-bit extent counters before 2.12.
    mkfs.args(["-q", "-L", names.label, "-m", &format!("uuid={}", names.uuid), "-i", "nrext64=0"]);
    cmd::run(mkfs.args(["-p", "prototype", "image"]).current_dir(scratch))
        .with_context(|| format!("making the {} file system", names.label))?;
    sparse::into(&scratch.join("image"), disk, at.start)
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
            Content::File(from) => std::path::absolute(from).and_then(|from| symlink(from, &content)),
            _ => bail!("{} cannot be on a boot partition with XFS", path.display()),
        }
        .with_context(|| format!("writing {}", content.display()))?;
        writeln!(text, "{name} ---{owner} {number}")?;
    }
    Ok(writeln!(text, "$")?)
}
