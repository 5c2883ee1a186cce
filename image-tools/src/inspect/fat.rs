//! A FAT file system inside a disk image, read by mtools.

use std::{
    collections::BTreeSet,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result};

use crate::cmd;

/// The file system.
#[derive(Debug)]
pub struct Fat {
    disk: PathBuf,
    start: u64,
    paths: OnceLock<BTreeSet<String>>,
}

impl Fat {
    /// The file system that begins at byte `start` of `disk`.
    pub fn at(disk: &Path, start: u64) -> Self {
        Self { disk: disk.to_owned(), start, paths: OnceLock::new() }
    }

    fn image(&self) -> String {
        format!("{}@@{}", self.disk.display(), self.start)
    }

    /// All paths, in lower case, for FAT compares so; directories end in `/`.
    fn paths(&self) -> Result<&BTreeSet<String>> {
        if let Some(paths) = self.paths.get() {
            return Ok(paths);
        }
        let said = cmd::run(Command::new("mdir").args(["-/", "-b", "-i", &self.image(), "::/"]));
        let said = said.context("reading the ESP")?;
        let paths = said.lines().map(|line| line.trim_start_matches("::/").to_ascii_lowercase()).collect();
        Ok(self.paths.get_or_init(|| paths))
    }

    /// Whether there is a file at `path`.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.paths()?.contains(&path.trim_start_matches('/').to_ascii_lowercase()))
    }

    /// The files of the directory `dir`: name and content; none where there is no such directory.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn files(&self, dir: &str) -> Result<Vec<(String, String)>> {
        let said = cmd::run(Command::new("mdir").args(["-b", "-i", &self.image(), &format!("::/{dir}")]));
        if !self.paths()?.contains(&format!("{}/", dir.to_ascii_lowercase())) {
            return Ok(vec![]);
        }
        let mut files = vec![];
        for path in said?.lines().filter(|line| !line.ends_with('/')) {
            let content = cmd::run(Command::new("mtype").args(["-i", &self.image(), path]))?;
            let name = path.rsplit('/').next().unwrap_or(path);
            files.push((name.to_owned(), content));
        }
        Ok(files)
    }

    /// What fsck.fat finds wrong.
    ///
    /// # Errors
    ///
    /// When the file system cannot be copied out of the image.
    pub fn fsck(&self) -> Result<Vec<String>> {
        let mut disk = std::fs::File::open(&self.disk)?;
        disk.seek(SeekFrom::Start(self.start))?;
        let mut boot_sector = [0; 512];
        disk.read_exact(&mut boot_sector)?;
        // BPB_TotSec32 (Microsoft's FAT specification), in sectors of 512 bytes.
        let sectors = u32::from_le_bytes([boot_sector[32], boot_sector[33], boot_sector[34], boot_sector[35]]);
        disk.seek(SeekFrom::Start(self.start))?;
        let mut copy = tempfile::NamedTempFile::new()?;
        copy_sparse(&mut disk.take(u64::from(sectors) * 512), copy.as_file_mut())?;
        match cmd::run(Command::new("fsck.fat").arg("-n").arg(copy.path())) {
            Ok(_) => Ok(vec![]),
            Err(error) => Ok(vec![format!("the ESP is not clean: {error:#}")]),
        }
    }
}

/// Copies, and leaves holes where there are only zeros.
fn copy_sparse(from: &mut dyn Read, to: &mut std::fs::File) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let mut filled = 0;
        while filled < buffer.len() {
            match from.read(&mut buffer[filled..])? {
                0 => break,
                n => filled += n,
            }
        }
        if filled == 0 {
            return Ok(to.set_len(length)?);
        }
        if buffer[..filled].iter().any(|byte| *byte != 0) {
            to.seek(SeekFrom::Start(length))?;
            to.write_all(&buffer[..filled])?;
        }
        length += filled as u64;
    }
}
