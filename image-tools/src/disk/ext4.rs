//! An ext4 file system inside a disk image, with owners, modes, extended attributes and fs-verity, though neither root nor a
//! mount is involved: mke2fs makes it, [`fill`](super::fill) puts large contents into it, e2fsck checks the result.

use std::{fmt::Write as _, fs::File, path::Path};

use anyhow::{Context, Result, ensure};
use uuid::Uuid;
use xshell::{Cmd, Shell, cmd};

use super::{
    Place,
    fill::{Inodes, Marked},
    tar,
};
use crate::{node::Node, plan::NoRoom, program};

/// What mke2fs takes for granted (mke2fs.conf(5)), whatever the build host has: features that GRUB 2.06, e2fsprogs 1.46 and
/// Linux 5.15 know. Not `orphan_file` and `metadata_csum_seed`.
const CONFIG: &str = "[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = 4096
inode_size = 256
inode_ratio = 16384
[fs_types]
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
";

fn mke2fs<'a>(shell: &'a Shell, place: Place<'_>, uuid: Uuid) -> Cmd<'a> {
    let (disk, label, start) = (place.disk, place.partition.purpose.name(), place.partition.start);
    let extended = format!("offset={start},hash_seed={uuid},root_owner=0:0,lazy_itable_init=1");
    let (uuid, inodes) = (uuid.to_string(), place.partition.room.inodes.unwrap_or_default().to_string());
    let words = ["-O", "verity", "-m", "1", "-N", &inodes, "-L", label, "-U", &uuid, "-d", "-", "-E", &extended];
    let blocks = format!("{}k", place.partition.size / 1024);
    cmd!(shell, "mke2fs -q -F -t ext4 -b 4096").args(words).arg(disk).arg(blocks)
}

fn debugfs<'a>(shell: &'a Shell, place: Place<'_>, batch: &Path) -> Cmd<'a> {
    let image = image(place);
    cmd!(shell, "debugfs -w -f {batch} {image}")
}

fn e2fsck<'a>(shell: &'a Shell, place: Place<'_>) -> Cmd<'a> {
    let image = image(place);
    cmd!(shell, "e2fsck -f -n {image}")
}

/// The partition, as e2fsprogs name it.
fn image(place: Place<'_>) -> String {
    format!("{}?offset={}", place.disk.display(), place.partition.start)
}

/// The programs of [`create`].
pub fn programs(shell: &Shell, place: Place<'_>, uuid: Uuid) -> Vec<String> {
    let batch = Path::new("BATCH");
    let has_attributes = place.partition.nodes.iter().any(|node| !node.meta.xattrs.is_empty());
    let programs = [
        Some(mke2fs(shell, place, uuid)),
        has_attributes.then(|| debugfs(shell, place, batch)),
        Some(e2fsck(shell, place)),
    ];
    programs.into_iter().flatten().map(|cmd| cmd.to_string()).collect()
}

/// Makes the file system, and checks it.
///
/// # Errors
///
/// When its files do not fit, and those of the programs.
pub fn create(place: Place<'_>, uuid: Uuid, time: u64) -> Result<()> {
    let (shell, label) = (program::shell()?, place.partition.purpose.name());
    let nodes = &place.partition.nodes;
    let marked = Marked::of(nodes);
    shell.set_var("E2FSPROGS_FAKE_TIME", time.to_string());
    let scratch = tempfile::tempdir()?;
    let config = scratch.path().join("mke2fs.conf");
    std::fs::write(&config, CONFIG)?;
    shell.set_var("MKE2FS_CONFIG", config);
    program::feed(mke2fs(&shell, place, uuid), |stdin| tar::write(nodes, marked, stdin))
        .map_err(|error| too_small(place, error))
        .with_context(|| format!("making the {label} file system"))?;
    let disk = File::options().read(true).write(true).open(place.disk);
    let disk = disk.with_context(|| format!("opening {}", place.disk.display()))?;
    let inodes = marked.fill(&disk, place.partition.start);
    let inodes = inodes.with_context(|| format!("filling the {label} file system"))?;
    let inodes = inodes.ok_or_else(|| NoRoom::full(place.partition))?;
    let batch = commands(nodes, &inodes, scratch.path())?;
    if !batch.is_empty() {
        let file = scratch.path().join("batch");
        std::fs::write(&file, batch)?;
        let said = program::output(debugfs(&shell, place, &file)).context("setting extended attributes")?;
        // It exits with 0 whatever happens, and complains on stderr, after its name and version.
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        let complaints: Vec<_> = said.lines().filter(|line| !line.starts_with("debugfs 1.")).collect();
        ensure!(complaints.is_empty(), "setting extended attributes: debugfs failed: {}", complaints.join("; "));
    }
    program::run(e2fsck(&shell, place)).with_context(|| format!("checking the {label} file system"))?;
    Ok(())
}

/// What mke2fs says of a file system that is full does not say so.
fn too_small(place: Place<'_>, error: anyhow::Error) -> anyhow::Error {
    let is_full = error.chain().any(|why| why.to_string().contains("Could not allocate"));
    if is_full { NoRoom::full(place.partition).into() } else { error }
}

/// The commands for debugfs(8) that give inodes their extended attributes. Values are written to files below `scratch`.
fn commands(nodes: &[Node], inodes: &Inodes, scratch: &Path) -> Result<String> {
    let mut batch = String::new();
    let mut values = 0;
    for (place, inode) in inodes {
        let node = &nodes[*place];
        for (key, value) in &node.meta.xattrs {
            values += 1;
            let lossy = String::from_utf8_lossy(key);
            let named = || format!("setting the attribute {lossy:?} of {}", node.path.display());
            // debugfs reads names in quotes, and has no way to quote these.
            let key = std::str::from_utf8(key).ok().filter(|key| !key.contains(['"', '\n', '\r']));
            let key = key
                .context("a name with quotes, line breaks, or not in UTF-8 cannot be carried over")
                .with_context(named)?;
            let file = scratch.join(format!("xattr-{values}"));
            std::fs::write(&file, value).with_context(|| format!("writing {}", file.display()))?;
            writeln!(batch, "ea_set -f {} <{inode}> \"{key}\"", file.display())?;
        }
    }
    Ok(batch)
}
