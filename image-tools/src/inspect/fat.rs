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

use super::table::Partition;
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
        let (shell, image) = (shell()?, self.image());
        let listed = program::output(cmd!(shell, "mdir -/ -b -i {image} ::/"))?;
        let complaint = String::from_utf8_lossy(&listed.stderr);
        // Of an empty one it says that it does not find it.
        let is_read = listed.status.success() || complaint.contains("File \"::/\" not found");
        ensure!(is_read, "reading the FAT at byte {} of {}: {}", self.start, self.disk.display(), complaint.trim());
        let said = String::from_utf8_lossy(&listed.stdout);
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

    /// Whether there is a directory at `path`.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn has_dir(&self, path: &str) -> Result<bool> {
        Ok(self.paths()?.contains(&format!("{}/", path.trim_matches('/').to_ascii_lowercase())))
    }

    /// The programs that a firmware starts when it has been told of none, `EFI/BOOT/BOOT*.EFI`, in lower case (UEFI specification,
    /// 3.5.1.1).
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn programs(&self) -> Result<Vec<String>> {
        let is_program = |path: &&String| path.starts_with("efi/boot/boot") && path.ends_with(".efi");
        Ok(self.paths()?.iter().filter(is_program).cloned().collect())
    }

    /// How many bytes are free.
    ///
    /// # Errors
    ///
    /// When the file system cannot be read.
    pub fn free(&self) -> Result<u64> {
        let (shell, image) = (shell()?, self.image());
        let said = program::run(cmd!(shell, "mdir -i {image} ::/"))?;
        let line = said.lines().rev().find_map(|line| line.trim().strip_suffix("bytes free"));
        let digits: String = line.unwrap_or_default().chars().filter(char::is_ascii_digit).collect();
        digits.parse().with_context(|| format!("mdir says {said:?}"))
    }

    /// BPB_HiddSec: how many sectors the file system says are before it.
    ///
    /// # Errors
    ///
    /// Those of reading.
    pub fn hidden(&self) -> Result<u64> {
        Ok(Bpb::read(&self.disk, self.start)?.dword(28) * Bpb::read(&self.disk, self.start)?.word(11))
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
        let (shell, image) = (shell()?, self.image());
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
        let (shell, image) = (shell()?, self.image());
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
        let (shell, image) = (shell()?, self.image());
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
        let (shell, image) = (shell()?, self.image());
        let said = program::run(cmd!(shell, "mshowfat -i {image} ::{path}"))?;
        // BPB_BytsPerSec, BPB_SecPerClus, BPB_RsvdSecCnt, BPB_NumFATs, BPB_RootEntCnt, and BPB_FATSz16 or BPB_FATSz32.
        let bpb = Bpb::read(&self.disk, self.start)?;
        let sector = bpb.word(11);
        let cluster = bpb.byte(13) * sector;
        let table = if bpb.word(22) > 0 { bpb.word(22) } else { bpb.dword(36) };
        let data = (bpb.word(14) + bpb.byte(16) * table) * sector + bpb.word(17) * 32;
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let at = |number: &str| number.parse::<u64>().ok()?.checked_sub(2).map(|number| data + number * cluster);
            Some(at(first)?..at(last)? + cluster)
        };
        let clusters = said.split('<').skip(1).filter_map(|rest| rest.split_once('>'));
        let found: Option<Vec<_>> = clusters.map(|(text, _)| range(text)).collect();
        found.filter(|found| !found.is_empty()).with_context(|| format!("{path}: mshowfat says {said:?}"))
    }

    /// What fsck.fat finds wrong with the file system, which is in `partition`.
    ///
    /// # Errors
    ///
    /// When the file system cannot be copied out of the image.
    pub fn fsck(&self, partition: &Partition) -> Result<Vec<String>> {
        // BPB_TotSec16 or BPB_TotSec32, in sectors of BPB_BytsPerSec.
        let bpb = Bpb::read(&self.disk, self.start)?;
        let sectors = if bpb.word(19) > 0 { bpb.word(19) } else { bpb.dword(32) };
        let size = sectors * bpb.word(11);
        if size > partition.size {
            return Ok(vec![format!("the FAT of {} is larger than that", partition.spoken())]);
        }
        let copy = tempfile::NamedTempFile::new()?;
        sparse::part(&self.disk, self.start..self.start + size, copy.path())?;
        let (shell, copy) = (shell()?, copy.path());
        match program::run(cmd!(shell, "fsck.fat -n {copy}")) {
            Ok(_) => Ok(vec![]),
            Err(error) => Ok(vec![format!("{} is not clean: {error:#}", partition.spoken())]),
        }
    }
}

/// The BIOS parameter block, with which each FAT begins (Microsoft's FAT specification).
struct Bpb([u8; 64]);

impl Bpb {
    fn read(disk: &Path, start: u64) -> Result<Self> {
        let mut bytes = [0; 64];
        let file = std::fs::File::open(disk).with_context(|| format!("opening {}", disk.display()))?;
        file.read_exact_at(&mut bytes, start).with_context(|| format!("reading the FAT at {start}"))?;
        Ok(Self(bytes))
    }

    fn byte(&self, at: usize) -> u64 {
        u64::from(self.0[at])
    }

    fn word(&self, at: usize) -> u64 {
        self.byte(at) | self.byte(at + 1) << 8
    }

    fn dword(&self, at: usize) -> u64 {
        self.word(at) | self.word(at + 2) << 16
    }
}

/// Mtools, which read what others have made, whatever geometry that speaks of.
fn shell() -> Result<xshell::Shell> {
    let shell = program::shell()?;
    shell.set_var("MTOOLS_SKIP_CHECK", "1");
    Ok(shell)
}
