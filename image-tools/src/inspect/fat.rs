//! A FAT file system inside a disk image, read by mtools.

use std::{
    collections::BTreeSet,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use anyhow::{Context, Result, ensure};
use xshell::cmd;

use crate::{program, sparse};

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
        let (shell, image) = (program::shell()?, self.image());
        let said = program::run(cmd!(shell, "mdir -/ -b -i {image} ::/"));
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

    /// The bytes of the file at `path`; nothing where there is none.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn bytes(&self, path: &str) -> Result<Option<Vec<u8>>> {
        if !self.exists(path)? {
            return Ok(None);
        }
        let (shell, image) = (program::shell()?, self.image());
        let output = program::output(cmd!(shell, "mtype -i {image} ::/{path}"))?;
        ensure!(output.status.success(), "reading {path}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(Some(output.stdout))
    }

    /// The files of the directory `dir`: name and content; none where there is no such directory. Hidden ones are nobody's
    /// business: a file on its way to its name.
    ///
    /// # Errors
    ///
    /// When a file cannot be read.
    pub fn files(&self, dir: &str) -> Result<Vec<(String, String)>> {
        let (shell, image) = (program::shell()?, self.image());
        let said = program::run(cmd!(shell, "mdir -b -i {image} ::/{dir}"));
        if !self.paths()?.contains(&format!("{}/", dir.to_ascii_lowercase())) {
            return Ok(vec![]);
        }
        let mut files = vec![];
        for path in said?.lines().filter(|line| !line.ends_with('/') && !line.contains("/.")) {
            let content = program::run(cmd!(shell, "mtype -i {image} {path}"))?;
            let name = path.rsplit('/').next().unwrap_or(path);
            files.push((name.to_owned(), content));
        }
        Ok(files)
    }

    /// The entries of the directory `dir` that can be read, after a power cut: name and content. A file that is being
    /// removed may still have its name when its clusters are free already; a firmware reads it as it was, or not at all. And
    /// a directory that grows may lead to a cluster that is still free, behind what it had before: mtools read that, and
    /// fail, so what counts is what they have read.
    ///
    /// # Errors
    ///
    /// When mtools cannot be started.
    pub fn readable_entries(&self, dir: &str) -> Result<Vec<(String, String)>> {
        let (shell, image) = (program::shell()?, self.image());
        let listed = program::output(cmd!(shell, "mdir -b -i {image} ::/{dir}"))?;
        let mut files = vec![];
        for path in String::from_utf8_lossy(&listed.stdout).lines().filter(|path| path.ends_with(".conf")) {
            let read = program::output(cmd!(shell, "mtype -i {image} {path}"))?;
            if !read.stdout.is_empty() {
                let name = path.rsplit('/').next().unwrap_or(path);
                files.push((name.to_owned(), String::from_utf8_lossy(&read.stdout).into_owned()));
            }
        }
        Ok(files)
    }

    /// Where the bytes of a file or directory are, from the first byte of the file system.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn blocks(&self, path: &str) -> Result<Vec<Range<u64>>> {
        let (shell, image) = (program::shell()?, self.image());
        let said = program::run(cmd!(shell, "mshowfat -i {image} ::{path}"))?;
        let mut boot_sector = [0; 48];
        std::fs::File::open(&self.disk)?.read_exact_at(&mut boot_sector, self.start)?;
        // BPB_BytsPerSec, BPB_SecPerClus, BPB_RsvdSecCnt, BPB_NumFATs, BPB_FATSz32 (Microsoft's FAT specification).
        let word = |at: usize| u64::from(u16::from_le_bytes([boot_sector[at], boot_sector[at + 1]]));
        let sector = word(11);
        let cluster = u64::from(boot_sector[13]) * sector;
        let data = (word(14) + u64::from(boot_sector[16]) * (word(36) | word(38) << 16)) * sector;
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let at = |number: &str| number.parse::<u64>().ok()?.checked_sub(2).map(|number| data + number * cluster);
            Some(at(first)?..at(last)? + cluster)
        };
        let clusters = said.split('<').skip(1).filter_map(|rest| rest.split_once('>'));
        let found: Option<Vec<_>> = clusters.map(|(text, _)| range(text)).collect();
        found.filter(|found| !found.is_empty()).with_context(|| format!("{path}: mshowfat says {said:?}"))
    }

    /// What fsck.fat finds wrong.
    ///
    /// # Errors
    ///
    /// When the file system cannot be copied out of the image.
    pub fn fsck(&self) -> Result<Vec<String>> {
        let mut boot_sector = [0; 512];
        std::fs::File::open(&self.disk)?.read_exact_at(&mut boot_sector, self.start)?;
        // BPB_TotSec32 (Microsoft's FAT specification), in sectors of 512 bytes.
        let sectors = u32::from_le_bytes([boot_sector[32], boot_sector[33], boot_sector[34], boot_sector[35]]);
        let copy = tempfile::NamedTempFile::new()?;
        sparse::part(&self.disk, self.start..self.start + u64::from(sectors) * 512, copy.path())?;
        let (shell, copy) = (program::shell()?, copy.path());
        match program::run(cmd!(shell, "fsck.fat -n {copy}")) {
            Ok(_) => Ok(vec![]),
            Err(error) => Ok(vec![format!("the ESP is not clean: {error:#}")]),
        }
    }
}
