//! A file system as GRUB sees it: its own code reads it (grub-fstest, of Debian's grub-common), without replaying a
//! journal or log.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use xshell::cmd;

use crate::program;

/// What GRUB counts in.
const SECTOR: u64 = 512;

/// The file system.
#[derive(Debug, Clone)]
pub struct GrubFs {
    disk: PathBuf,
    device: String,
}

impl GrubFs {
    /// The one in a file.
    pub fn at(file: &Path) -> Self {
        Self { disk: file.to_owned(), device: "(loop0)".to_owned() }
    }

    /// The one in partition `number`, counted from 1, of a disk image.
    pub fn partition(disk: &Path, number: u32) -> Self {
        Self { disk: disk.to_owned(), device: format!("(loop0,gpt{number})") }
    }

    /// What GRUB's command prints, as text; nothing where there is no such file.
    fn run(&self, what: &str, path: &str) -> Result<Option<String>> {
        let printed = self.run_for_bytes(what, path)?;
        Ok(printed.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn run_for_bytes(&self, what: &str, path: &str) -> Result<Option<Vec<u8>>> {
        let path = format!("{}/{}", self.device, path.trim_start_matches('/'));
        let (shell, disk) = (program::shell()?, &self.disk);
        let output = program::output(cmd!(shell, "grub-fstest {disk} {what} -- {path}").env("LC_ALL", "C"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        match output.status.success() {
            true => Ok(Some(output.stdout)),
            false if said.contains("file `") && said.contains("' not found") => Ok(None),
            false => bail!("GRUB cannot read {path}: {}", said.trim()),
        }
    }

    /// Whether there is something at `path`.
    ///
    /// # Errors
    ///
    /// When GRUB cannot be asked.
    pub fn exists(&self, path: &str) -> Result<bool> {
        Ok(self.run("ls", path)?.is_some_and(|said| !said.trim().is_empty()))
    }

    /// The text of a file; nothing where there is none.
    ///
    /// # Errors
    ///
    /// When GRUB cannot read it.
    pub fn read(&self, path: &str) -> Result<Option<String>> {
        self.run("cat", path)
    }

    /// The files of a directory: name and content; none where there is no such directory.
    ///
    /// # Errors
    ///
    /// When GRUB cannot read one.
    pub fn files(&self, dir: &str) -> Result<Vec<(String, String)>> {
        let names = self.run("ls", &format!("{dir}/"))?.unwrap_or_default();
        let files = names.split_whitespace().filter(|name| !name.ends_with('/') && !name.starts_with('.'));
        let read = |name: &str| {
            let path = format!("{dir}/{name}");
            let text = self.read(&path)?.with_context(|| format!("GRUB lists {path}, and does not find it"))?;
            Ok((name.to_owned(), text))
        };
        files.map(read).collect()
    }

    /// Those of them that are text (UTF-8): a menu is generated from these.
    ///
    /// # Errors
    ///
    /// As [`GrubFs::files`].
    pub fn text_files(&self, dir: &str) -> Result<Vec<(String, String)>> {
        let mut files = self.files(dir)?;
        let mut odd = vec![];
        for (name, _) in files.iter().filter(|(_, text)| text.contains('\u{fffd}')) {
            let bytes = self.run_for_bytes("cat", &format!("{dir}/{name}"))?.unwrap_or_default();
            odd.extend(std::str::from_utf8(&bytes).is_err().then(|| name.clone()));
        }
        files.retain(|(name, _)| !odd.contains(name));
        Ok(files)
    }

    /// Where the bytes of a file are in the file system.
    ///
    /// # Errors
    ///
    /// When GRUB cannot read it.
    pub fn blocks(&self, path: &str) -> Result<Vec<Range<u64>>> {
        let said = self.run("blocklist", path)?.with_context(|| format!("GRUB does not find {path}"))?;
        // Sectors: `first+count`, and at the end of a file `sector[from-to]`.
        let range = |text: &str| {
            if let Some((sector, part)) = text.split_once('[') {
                let (from, to) = part.trim_end_matches(']').split_once('-')?;
                let at = sector.parse::<u64>().ok()? * SECTOR;
                return Some(at + from.parse::<u64>().ok()?..at + to.parse::<u64>().ok()?);
            }
            let (first, count) = text.split_once('+')?;
            let first = first.parse::<u64>().ok()?;
            Some(first * SECTOR..(first + count.parse::<u64>().ok()?) * SECTOR)
        };
        let found: Option<Vec<_>> = said.trim().split(',').map(range).collect();
        found.with_context(|| format!("{path}: grub-fstest says {said:?}"))
    }
}

/// What GRUB's parser says of a configuration that it cannot read; nothing of one that it can.
///
/// # Errors
///
/// When the parser (grub-script-check, of Debian's grub-common) cannot be asked.
pub fn parse(text: &str) -> Result<Option<String>> {
    let shell = program::shell()?;
    // One that ends before it has read all of the text has something to say of it.
    let output = program::answer(cmd!(shell, "grub-script-check"), |stdin| Ok(stdin.write_all(text.as_bytes())?))?;
    let said = String::from_utf8_lossy(&output.stderr).replace('\n', " ");
    let is_empty = said.contains("contains no commands");
    Ok((!output.status.success() && !is_empty).then(|| said.trim().to_owned()))
}
