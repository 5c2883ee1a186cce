//! An ext4 file system inside a disk image, read by debugfs.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use super::table::Partition;
use crate::program;

/// The file system.
#[derive(Debug)]
pub struct Ext4 {
    image: String,
    /// The first byte of it on the disk.
    pub start: u64,
}

/// A name in a directory.
#[derive(Debug, Clone)]
pub struct Node {
    /// The name.
    pub name: String,
    /// The type and mode bits, as stat(2) has them.
    pub mode: u32,
}

impl Node {
    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.mode & 0o170_000 == 0o040_000
    }

    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.mode & 0o170_000 == 0o100_000
    }
}

/// Where the blocks of a file are.
#[derive(Debug, Clone, Default)]
pub struct Inode {
    /// The size of its data.
    pub size: u64,
    /// Its flags.
    pub flags: u32,
    /// First logical block, first physical block, number of blocks.
    pub extents: Vec<(u64, u64, u64)>,
}

impl Ext4 {
    /// The file system that begins at byte `start` of `disk`.
    pub fn at(disk: &Path, start: u64) -> Self {
        Self { image: format!("{}?offset={start}", disk.display()), start }
    }

    /// Runs one command for each of `paths`; the output of each, or nothing where it failed.
    fn each(&self, command: &str, paths: &[String]) -> Result<Vec<Option<String>>> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("commands");
        let quoted = |path: &String| match path.contains(['"', '\n']) {
            true => bail!("the name {path:?} cannot be looked up"),
            false => Ok(format!("{command} \"{path}\"\n")),
        };
        std::fs::write(&file, paths.iter().map(quoted).collect::<Result<String>>()?)?;
        let (shell, image) = (program::shell()?, &self.image);
        let output = program::output(cmd!(shell, "debugfs -f {file} {image}"))?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        if complaint.contains("Filesystem not open") {
            // After its name and version comes why.
            let why = complaint.lines().find(|line| !line.starts_with("debugfs 1.")).unwrap_or_default();
            bail!("opening the ext4 file system: {why}");
        }
        let said = String::from_utf8_lossy(&output.stdout);
        let prompt = format!("debugfs: {command} ");
        let mut answers = vec![None; paths.len()];
        let mut at = None;
        for line in said.split_inclusive('\n') {
            if let Some(rest) = line.strip_prefix(&prompt) {
                let next = at.map_or(0, |at| at + 1);
                if paths.get(next).is_some_and(|path| rest.trim_end() == format!("\"{path}\"")) {
                    at = Some(next);
                    continue;
                }
            }
            if let Some(answer) = at.and_then(|at| answers.get_mut(at)) {
                answer.get_or_insert_with(String::new).push_str(line);
            }
        }
        if at.is_none_or(|at| at + 1 != paths.len()) && !paths.is_empty() {
            bail!("reading the ext4 file system: {}", complaint.trim());
        }
        Ok(answers)
    }

    /// The names in each of the directories.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn lists(&self, dirs: &[String]) -> Result<Vec<Vec<Node>>> {
        let parse = |line: &str| {
            let mut fields = line.strip_prefix('/')?.splitn(6, '/');
            let mode = u32::from_str_radix(fields.nth(1)?, 8).ok()?;
            // Owner and group, then the name; a name holds no slash, and the size follows it.
            let name = fields.nth(2)?.to_owned();
            Some(Node { name, mode }).filter(|node| node.name != "." && node.name != "..")
        };
        let answers = self.each("ls -p", dirs)?;
        Ok(answers.into_iter().map(|text| text.unwrap_or_default().lines().filter_map(parse).collect()).collect())
    }

    /// The names in a directory; none where there is no such directory.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn list(&self, dir: &str) -> Result<Vec<Node>> {
        Ok(self.lists(&[dir.to_owned()])?.pop().unwrap_or_default())
    }

    /// Whether there is something at `path`; a symlink is not followed.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn exists(&self, path: &str) -> Result<bool> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok(self.list(if dir.is_empty() { "/" } else { dir })?.iter().any(|node| node.name == name))
    }

    /// The text of a file; nothing where there is none.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn read(&self, path: &str) -> Result<Option<String>> {
        if !self.exists(path)? {
            return Ok(None);
        }
        Ok(Some(self.each("cat", &[path.to_owned()])?.pop().flatten().unwrap_or_default()))
    }

    /// The files of a directory: name and content.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn files(&self, dir: &str) -> Result<Vec<(String, String)>> {
        let files = self.list(dir)?.into_iter().filter(Node::is_file);
        files
            .map(|node| Ok((node.name.clone(), self.read(&format!("{dir}/{}", node.name))?.unwrap_or_default())))
            .collect()
    }

    /// The inodes of files.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn inodes(&self, paths: &[String]) -> Result<Vec<Inode>> {
        Ok(self.each("stat", paths)?.into_iter().map(|text| parse_inode(&text.unwrap_or_default())).collect())
    }

    /// What e2fsck finds wrong with the file system, which is in `partition`.
    pub fn fsck(&self, partition: &Partition) -> Vec<String> {
        let image = &self.image;
        match program::shell().and_then(|shell| program::run(cmd!(shell, "e2fsck -f -n {image}"))) {
            Ok(_) => vec![],
            Err(error) => vec![format!("the file system of {} is not clean: {error:#}", partition.spoken())],
        }
    }
}

/// Where the superblock of the ext4 is that begins at byte `start` of `disk`; nothing where there is no ext4, by its magic
/// (`Documentation/filesystems/ext4/super.rst`).
///
/// # Errors
///
/// Those of reading.
pub fn superblock(disk: &Path, start: u64) -> Result<Option<u64>> {
    let (at, mut magic) = (start + 1024, [0; 2]);
    File::open(disk)?.read_exact_at(&mut magic, at + 0x38)?;
    Ok((u16::from_le_bytes(magic) == 0xef53).then_some(at))
}

/// What the superblock says (`Documentation/filesystems/ext4/super.rst`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// The size of a block in bytes.
    pub block: u64,
    /// Bytes that are free, but for those that are reserved.
    pub free: u64,
    /// The UUID.
    pub uuid: [u8; 16],
    /// Its features: compatible, incompatible, compatible for who only reads.
    pub features: [u32; 3],
}

impl Superblock {
    /// That of the file system that begins at byte `start` of `disk`.
    ///
    /// # Errors
    ///
    /// Those of reading, and when there is no ext4.
    pub fn read(disk: &Path, start: u64) -> Result<Self> {
        let at = superblock(disk, start)?.context("there is no ext4")?;
        let mut bytes = [0; 1024];
        File::open(disk)?.read_exact_at(&mut bytes, at)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        // s_log_block_size, of which 6 is the largest that Linux has.
        let block = 1024 << word(0x18).min(6);
        // s_free_blocks_count and s_r_blocks_count, low halves and high ones; the latter mean something with 64bit.
        let wide = |low: usize, high: usize| {
            u64::from(word(low)) | if word(0x60) & 0x80 == 0 { 0 } else { u64::from(word(high)) << 32 }
        };
        let free = wide(0xc, 0x158).saturating_sub(wide(0x8, 0x154)).saturating_mul(block);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&bytes[0x68..0x78]);
        Ok(Self { block, free, uuid, features: [word(0x5c), word(0x60), word(0x64)] })
    }
}

/// The fields that debugfs's `stat` prints.
fn parse_inode(text: &str) -> Inode {
    let mut inode = Inode::default();
    for line in text.lines() {
        if let Some((_, flags)) = line.split_once("Flags: 0x") {
            inode.flags = u32::from_str_radix(flags.trim(), 16).unwrap_or(0);
        }
        if let Some((_, size)) = line.split_once("   Size: ").filter(|_| line.starts_with("User:")) {
            inode.size = size.trim().parse().unwrap_or(0);
        }
        if line.starts_with('(') {
            inode.extents.extend(line.split(", ").filter_map(parse_extent));
        }
    }
    inode
}

/// `(0-3):33100-33103` or `(16):33101`; `(ETB0):…` is a block of the tree itself.
fn parse_extent(text: &str) -> Option<(u64, u64, u64)> {
    let (logical, physical) = text.trim().strip_prefix('(')?.split_once("):")?;
    let range = |text: &str| -> Option<(u64, u64)> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Some((first.parse().ok()?, last.trim_end_matches("[u]").parse().ok()?))
    };
    let ((first, last), (start, _)) = (range(logical)?, range(physical)?);
    Some((first, start, last.checked_sub(first)? + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_is_read_from_what_debugfs_prints() {
        let text = "Inode: 19   Type: regular    Mode:  0644   Flags: 0x180000\nUser:     0   Group:     0   Project:     0   \
                    Size: 197\nEXTENTS:\n(ETB0):77, (0-3):8908-8911, (16):8909\n";
        let inode = parse_inode(text);
        assert_eq!((inode.size, inode.flags), (197, 0x18_0000));
        assert_eq!(inode.extents, [(0, 8908, 4), (16, 8909, 1)]);
    }
}
