//! The log of a disk's writes and flushes that QEMU's block driver `blklogwrites` keeps, in the format of Linux's
//! dm-log-writes (`Documentation/admin-guide/device-mapper/log-writes.rst`): a sector with magic, version, number of
//! entries and sector size; then per entry a sector with place, length and flags, and the data.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, ensure};

const MAGIC: u64 = 0x006a_7366_7773_6872;
const VERSION: u64 = 1;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;
/// What the kernel and disks call a sector: what a power cut writes as a whole, or not.
pub const SECTOR: u64 = 512;

/// An opened log.
#[derive(Debug)]
pub struct Log {
    file: File,
    /// What happened, in its order.
    pub entries: Vec<Entry>,
}

/// One thing that happened to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it was.
    pub kind: Kind,
    /// The first byte on the disk.
    pub at: u64,
    /// How many bytes.
    pub length: u64,
    /// The sector of it that is on the disk exactly when the one before it is: the second one of an ext4 superblock.
    pub joined: Option<u64>,
    /// The first byte of its data in the log.
    data: u64,
    /// The first byte behind it in the log.
    end: u64,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes that may stay in the disk's cache until the next flush.
    Write,
    /// Bytes that were on the disk when the write ended (FUA).
    DurableWrite,
    /// Everything before it is on the disk.
    Flush,
    /// Blocks that nobody needs: their content is anybody's guess, and nobody's business.
    Discard,
}

impl Log {
    /// Reads a log that QEMU has finished. `superblocks` are the places on the disk of ext4's superblocks, which are never
    /// torn: Linux writes their two sectors at once, refuses to mount one of which only a half is new (its checksum), and
    /// does so at every mount and unmount, whoever has written to the file system in between.
    ///
    /// # Errors
    ///
    /// When it is no such log, or ends in the middle of an entry: names the file.
    pub fn open(path: &Path, superblocks: &[u64]) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("opening the log of writes {}", path.display()))?;
        let mut entries = entries(&file).with_context(|| format!("reading the log of writes {}", path.display()))?;
        for entry in &mut entries {
            let second = superblocks.iter().map(|superblock| superblock + SECTOR);
            let mut inside = second.filter(|second| (entry.at + 1..entry.at + entry.length).contains(second));
            entry.joined = inside.next().map(|second| (second - entry.at) / SECTOR);
        }
        Ok(Self { file, entries })
    }

    /// The bytes that an entry wrote.
    ///
    /// # Errors
    ///
    /// Those of pread(2).
    pub fn data(&self, entry: &Entry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(entry.length)?];
        self.file.read_exact_at(&mut bytes, entry.data).context("reading the log of writes")?;
        Ok(bytes)
    }

    /// How many entries lie in the first `size` bytes of the log.
    pub fn within(&self, size: u64) -> usize {
        self.entries.partition_point(|entry| entry.end <= size)
    }
}

fn entries(file: &File) -> Result<Vec<Entry>> {
    let [magic, version, count, sector] = fields(file, 0)?;
    ensure!(magic == MAGIC && version == VERSION, "it is no log of blklogwrites");
    let sector = sector & 0xffff_ffff;
    ensure!(sector >= SECTOR && sector.is_power_of_two(), "its sectors of {sector} bytes make no sense");
    let size = file.metadata()?.len();
    let mut at = sector;
    let mut found = vec![];
    for number in 0..count {
        let [first, sectors, flags, _] = fields(file, at)?;
        let bytes = |sectors: u64| sectors.checked_mul(sector).filter(|bytes| *bytes < 1 << 48);
        let (Some(place), Some(length)) = (bytes(first), bytes(sectors)) else {
            anyhow::bail!("its entry {number} makes no sense");
        };
        let kind = match flags {
            _ if flags & DISCARD != 0 => Kind::Discard,
            _ if length == 0 => Kind::Flush,
            _ if flags & FUA != 0 => Kind::DurableWrite,
            _ => Kind::Write,
        };
        let logged = if kind == Kind::Discard { 0 } else { length };
        let end = at + sector + logged;
        ensure!(end <= size, "it ends in the middle of entry {number}");
        if flags & FLUSH != 0 && length > 0 {
            found.push(Entry { kind: Kind::Flush, at: 0, length: 0, joined: None, data: at, end: at });
        }
        found.push(Entry { kind, at: place, length, joined: None, data: at + sector, end });
        at = end;
    }
    Ok(found)
}

fn fields(file: &File, at: u64) -> Result<[u64; 4]> {
    let mut bytes = [0; 32];
    file.read_exact_at(&mut bytes, at)?;
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
    Ok(std::array::from_fn(|_| words.next().unwrap_or_default()))
}

#[cfg(test)]
/// How a test writes a log.
pub mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    /// A log of these entries: first sector, bytes, flags.
    pub fn written(entries: &[(u64, &[u8], u64)]) -> tempfile::NamedTempFile {
        let padded = |words: &[u64]| {
            let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            bytes.resize(512, 0);
            bytes
        };
        let mut all = padded(&[MAGIC, VERSION, entries.len() as u64, SECTOR]);
        for (first, data, flags) in entries {
            all.extend(padded(&[*first, data.len() as u64 / SECTOR, *flags, 0]));
            all.extend(*data);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), all).unwrap();
        file
    }

    #[test]
    fn a_log_is_read_in_its_order() {
        let file = written(&[(8, &[1; 1024], 0), (0, &[], FLUSH), (2, &[2; 512], FUA)]);
        let log = Log::open(file.path(), &[]).unwrap();
        let kinds: Vec<_> = log.entries.iter().map(|entry| (entry.kind, entry.at, entry.length)).collect();
        assert_eq!(kinds, [(Kind::Write, 4096, 1024), (Kind::Flush, 0, 0), (Kind::DurableWrite, 1024, 512)]);
        assert_eq!(log.data(&log.entries[2]).unwrap(), [2; 512]);
        assert_eq!([0, 512, 2047, 2048, 9999].map(|size| log.within(size)), [0, 0, 0, 1, 3]);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let file = written(&[(8, &[1; 1024], 0)]);
        let bytes = std::fs::read(file.path()).unwrap();
        let refused = |bytes: &[u8], why: &str| {
            std::fs::write(file.path(), bytes).unwrap();
            let said = format!("{:#}", Log::open(file.path(), &[]).unwrap_err());
            assert!(said.contains(why), "{said}");
        };
        refused(b"", "reading the log");
        refused(&bytes[..bytes.len() - 1], "in the middle of entry 0");
        let mut other = bytes.clone();
        other[0] = 0;
        refused(&other, "no log of blklogwrites");
        other = bytes.clone();
        other[512 + 15] = 0xff;
        refused(&other, "entry 0 makes no sense");
    }
}
