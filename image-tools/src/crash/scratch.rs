//! The partitions of a disk on which power cuts are tried one after another: each is applied to them, judged, and undone.
//!
//! Every partition is a file of its own, for e2fsck forgets where in a file a file system begins once it has replayed its
//! journal (e2fsprogs 1.47.2).

use std::{
    fs::File,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use xshell::cmd;

use super::{
    case::{Case, Part},
    log::{Kind, Log},
};
use crate::{
    inspect::{Disk, ext4, table, xfs},
    program, sparse,
    verity::BLOCK,
};

/// A partition.
#[derive(Debug)]
struct Partition {
    name: String,
    path: PathBuf,
    file: File,
    /// Where it is on the disk.
    range: Range<u64>,
}

/// The partitions.
#[derive(Debug)]
pub struct Scratch {
    partitions: Vec<Partition>,
    /// What was there before: partition, place and bytes, the last one first to be put back.
    undo: Vec<(usize, u64, Vec<u8>)>,
    /// What was applied: where this is equal, so are the bytes.
    pub applied: Applied,
    for_grub: ForGrub,
}

/// What GRUB reads.
#[derive(Debug, Clone, Default)]
pub struct ForGrub {
    /// The partition with its files.
    pub partition: String,
    /// Where the journal is in that file system, which it does not read.
    pub journal: Vec<Range<u64>>,
}

impl ForGrub {
    /// Where GRUB's files are on a disk, and the journal there: inode 8 of ext4. XFS's log is taken for something that it reads.
    ///
    /// # Errors
    ///
    /// When there is no file system that GRUB could read.
    pub fn of(disk: &Disk) -> Result<Self> {
        let mut inode = ext4::Inode::default();
        let partition = &disk.boot()?.partition;
        if !xfs::is_at(&disk.path, partition.start)? {
            let ext4 = ext4::Ext4::at(&disk.path, partition.start);
            inode = ext4.inodes(&["<8>".to_owned()])?.pop().unwrap_or_default();
        }
        let bytes = |(_, first, count): &(u64, u64, u64)| first * BLOCK as u64..(first + count) * BLOCK as u64;
        Ok(Self { partition: partition.name.clone(), journal: inode.extents.iter().map(bytes).collect() })
    }
}

/// What was applied, by what it may change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// The ESP.
    pub esp: Vec<Part>,
    /// All others.
    pub rest: Vec<Part>,
    /// What GRUB may see of it.
    pub grub: Vec<Part>,
}

/// What is done with a part of an entry: where it goes on the disk, and its bytes.
pub type Each<'a> = &'a mut dyn FnMut(&Part, u64, &[u8]) -> Result<()>;

/// The writes of a power cut behind the first `mark` entries of the log: place on the disk and bytes, in their order.
///
/// # Errors
///
/// Those of reading the log.
pub fn writes(log: &Log, mark: usize, case: &Case, each: Each<'_>) -> Result<()> {
    for part in case.parts(&log.entries) {
        let entry = &log.entries[part.0];
        if part.0 >= mark && matches!(entry.kind, Kind::Write | Kind::DurableWrite) {
            let bytes = log.data(entry)?;
            let range = usize::try_from(part.1.start)?..usize::try_from(part.1.end)?;
            each(&part, entry.at + part.1.start, &bytes[range])?;
        }
    }
    Ok(())
}

impl Scratch {
    /// Copies of the partitions of `disk`, in the directory `dir`.
    ///
    /// # Errors
    ///
    /// Those of reading the partition table and of copying.
    pub fn copy(disk: &Path, dir: &Path, for_grub: &ForGrub) -> Result<Self> {
        let mut partitions = vec![];
        for partition in table::read(disk)? {
            let path = dir.join(&partition.name);
            let range = partition.start..partition.start + partition.size;
            let file = sparse::part(disk, range.clone(), &path)?;
            partitions.push(Partition { name: partition.name, path, file, range });
        }
        Ok(Self { partitions, undo: vec![], applied: Applied::default(), for_grub: for_grub.clone() })
    }

    /// The file with the partition `name`, if there is one.
    pub fn partition(&self, name: &str) -> Option<&Path> {
        self.partitions.iter().find(|partition| partition.name == name).map(|partition| &*partition.path)
    }

    /// Makes the partitions what they are after the power cut.
    ///
    /// # Errors
    ///
    /// Those of reading the log and writing.
    pub fn apply(&mut self, log: &Log, mark: usize, case: &Case) -> Result<()> {
        writes(log, mark, case, &mut |part, at, bytes| {
            let found = self.partitions.iter().position(|partition| partition.range.contains(&at));
            // Nobody writes to the partition table.
            let Some(number) = found else { return Ok(()) };
            let Partition { name, file, range, .. } = &self.partitions[number];
            let at = at - range.start;
            let mut before = vec![0; bytes.len()];
            file.read_exact_at(&mut before, at).context("reading what a write replaces")?;
            file.write_all_at(bytes, at).context("repeating a write")?;
            if name == "esp" {
                self.applied.esp.push(part.clone());
            } else {
                self.applied.rest.push(part.clone());
                let for_grub = &self.for_grub;
                if *name == for_grub.partition && !for_grub.journal.iter().any(|journal| journal.contains(&at)) {
                    self.applied.grub.push(part.clone());
                }
            }
            self.undo.push((number, at, before));
            Ok(())
        })
    }

    /// Makes them what they were.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn undo(&mut self) -> Result<()> {
        while let Some((number, at, bytes)) = self.undo.pop() {
            self.partitions[number].file.write_all_at(&bytes, at).context("undoing a write")?;
        }
        self.applied = Applied::default();
        Ok(())
    }

    /// A copy of the ESP, after what a boot does to it: one pass of fsck.fat -a. If another one would find something, the kernel
    /// meets that: a directory without a cluster, say, with which it makes the file system read-only.
    ///
    /// # Errors
    ///
    /// What fsck.fat says when it gives up, or finds something again.
    pub fn repaired_esp(&self) -> Result<PathBuf> {
        let esp = self.partition("esp").context("the disk has no ESP")?;
        let copy = esp.with_extension("repaired");
        sparse::copy(esp, &copy)?;
        let shell = program::shell()?;
        let pass = |what: &str| -> Result<(Option<i32>, String)> {
            let output = program::output(cmd!(shell, "fsck.fat {what} {copy}"))?;
            Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned()))
        };
        // 1: something was mended (fsck.fat(8), "EXIT STATUS").
        let (code, said) = pass("-a")?;
        ensure!(matches!(code, Some(0 | 1)), "fsck.fat -a gives up: {said}");
        let (code, said) = pass("-n")?;
        ensure!(code == Some(0), "after fsck.fat -a there is something left: {said}");
        Ok(copy)
    }

    /// Lets e2fsck repair the ext4 file system in the partition `name`, as a boot does (`-p`), and calls `judge` in between
    /// that and undoing it. XFS is mounted, which is all that a boot does to it. A partition that does not exist needs no
    /// repair.
    ///
    /// # Errors
    ///
    /// What e2fsck says when it wants a person, or mount, and the errors of `judge`.
    pub fn repaired<T>(&self, name: &str, judge: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(path) = self.partition(name) else { return judge() };
        if xfs::is_at(path, 0)? {
            let aside = path.with_extension("aside");
            std::fs::rename(path, &aside)?;
            sparse::copy(&aside, path)?;
            let judged = xfs::replay(path).and_then(|()| judge());
            std::fs::rename(&aside, path)?;
            return judged;
        }
        let notes = path.with_extension("e2undo");
        _ = std::fs::remove_file(&notes);
        let shell = program::shell()?;
        let output = program::output(cmd!(shell, "e2fsck -p -z {notes} {path}"))?;
        let judged = match output.status.code() {
            // Clean, or repaired (e2fsck(8), "EXIT CODE").
            Some(0..=2) => judge(),
            _ => bail!("e2fsck -p of {name} gives up: {}", String::from_utf8_lossy(&output.stdout).trim()),
        };
        if notes.exists() {
            program::run(cmd!(shell, "e2undo {notes} {path}"))?;
        }
        judged
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::{super::log::tests::written, *};

    #[test]
    fn a_power_cut_is_applied_and_undone() {
        let log = written(&[(0, &[1; 512], 0), (0, &[2; 1024], 0), (1, &[3; 512], 0), (2, &[4; 512], 0)]);
        let log = Log::open(log.path(), &[]).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("root");
        std::fs::write(&path, [0; 1024]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        // The last write is behind the partition.
        let partition = Partition { name: "root".to_owned(), path: path.clone(), file, range: 0..1024 };
        let mut disk = Scratch {
            partitions: vec![partition],
            undo: vec![],
            applied: Applied::default(),
            for_grub: ForGrub { partition: "root".to_owned(), journal: vec![0..256, 256..512] },
        };
        let is = |bytes: [u8; 2]| {
            let disk = std::fs::read(&path).unwrap();
            assert_eq!([disk[0], disk[512]], bytes);
        };
        disk.apply(&log, 0, &Case { moment: 4, chance: None }).unwrap();
        is([2, 3]);
        let Applied { esp, rest, grub } = &disk.applied;
        assert_eq!([esp, rest, grub].map(Vec::len), [0, 3, 1]);
        disk.undo().unwrap();
        is([0, 0]);
        disk.apply(&log, 1, &Case { moment: 2, chance: None }).unwrap();
        is([2, 2]);
    }
}
