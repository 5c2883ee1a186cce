//! The archive of a layer becomes objects, a split stream from which composefs makes the archive again, byte for byte, and
//! a list of its entries. All in one reading; and from the split stream the list comes again, without the contents.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    sync::Arc,
};

use anyhow::{Context, Result, bail, ensure};
use composefs::{
    INLINE_CONTENT_MAX_V0, fsverity::Sha512HashValue, repository::Repository, splitstream::SplitStreamWriter,
};
use composefs_oci::LAYER_CONTENT_TYPE;
use tar_core::{
    EntryType, HEADER_SIZE, PaxExtensions, SparseEntry,
    parse::{ParseEvent, ParsedEntry, Parser},
};

use super::entry::{Digest, Entry, Item, Status};
use crate::oci::Corrupt;

/// Where the contents of files go.
pub trait Contents {
    /// Adds the next `size` bytes of `from`, unless they are there already; their digest.
    ///
    /// # Errors
    ///
    /// [`Corrupt`] where there are fewer, and those of reading and writing.
    fn add(&mut self, from: &mut dyn Read, size: u64) -> Result<Sha512HashValue>;
}

/// An archive that is read from its beginning to its end.
pub trait Archive {
    /// At most `count` bytes of it, behind `buffer`: as many as there are.
    fn read(&mut self, buffer: &mut Vec<u8>, count: usize) -> Result<usize>;

    /// These bytes, which were read, belong to the archive as they are.
    fn keep(&mut self, bytes: &[u8]);

    /// The next `size` bytes, as an object.
    fn object(&mut self, size: u64) -> Result<Sha512HashValue>;

    /// An object that is made from what was read.
    fn made(&mut self, content: &mut dyn Read, size: u64) -> Result<Sha512HashValue>;

    /// The next `size` bytes, kept.
    fn exactly(&mut self, size: u64) -> Result<Vec<u8>>;
}

/// What of an entry is kept in memory at most, in bytes: the data of a file with holes, or what stands where nothing should.
const IN_MEMORY: u64 = 256 << 20;

/// How large a file with holes may be, in bytes: its digest is computed over all of it.
const WITH_HOLES: u64 = 1 << 30;

/// Reads an archive: what is too large for an inode goes into `contents`, the rest into a split stream of the repository. The
/// digest of that, and the entries in their order.
///
/// # Errors
///
/// Names the entry: cut off, of a type that an image cannot hold, or too large.
pub fn import(
    repository: &Arc<Repository<Sha512HashValue>>,
    contents: &mut dyn Contents,
    archive: &mut dyn Read,
) -> Result<(Sha512HashValue, Vec<Entry>)> {
    let stream = repository.create_stream(LAYER_CONTENT_TYPE)?;
    let mut fresh = Fresh { contents, archive, stream };
    let entries = entries(&mut fresh)?;
    // What is behind the last entry belongs to the digest.
    while !fresh.exactly_at_most(1 << 16)?.is_empty() {}
    Ok((fresh.stream.done()?, entries))
}

/// The entries of an archive, in their order.
///
/// # Errors
///
/// Names the entry.
pub fn entries(archive: &mut dyn Archive) -> Result<Vec<Entry>> {
    let mut import = Import { archive };
    let (mut parser, mut header, mut entries) = (parser(), vec![], vec![]);
    let mut need = HEADER_SIZE;
    while import.fill(&mut header, need)? {
        let last = || last(&entries);
        let consumed = match parser.parse(&header).with_context(last)? {
            ParseEvent::NeedData { min_bytes } => {
                need = min_bytes;
                continue;
            }
            // Container engines pass over these too: git puts a commit there.
            ParseEvent::GlobalExtensions { consumed, .. } => {
                import.archive.keep(&header[..consumed]);
                consumed
            }
            ParseEvent::End { consumed } => {
                import.archive.keep(&header[..consumed]);
                break;
            }
            ParseEvent::Entry { consumed, entry } => {
                import.archive.keep(&header[..consumed]);
                entries.push(import.entry(&entry).with_context(|| named(&entry.path))?);
                consumed
            }
            ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                import.archive.keep(&header[..consumed]);
                let made = import.sparse(&entry, &sparse_map, real_size);
                entries.push(made.with_context(|| named(&entry.path))?);
                consumed
            }
        };
        header.drain(..consumed);
        need = HEADER_SIZE;
    }
    Ok(entries)
}

/// It passes over numbers that are none, for a time before 1970 is one to it; [`status`] looks at all of them.
fn parser() -> Parser {
    let mut parser = Parser::with_defaults();
    parser.set_ignore_pax_errors(true);
    parser
}

fn named(path: &[u8]) -> String {
    format!("reading the entry {}", OsStr::from_bytes(path).display())
}

fn last(entries: &[Entry]) -> String {
    entries.last().map_or_else(
        || "reading its first entry".to_owned(),
        |entry| format!("reading the entry behind {}", OsStr::from_bytes(&entry.path).display()),
    )
}

/// An archive that nobody has read before.
struct Fresh<'a> {
    contents: &'a mut dyn Contents,
    archive: &'a mut dyn Read,
    stream: SplitStreamWriter<Sha512HashValue>,
}

impl Fresh<'_> {
    fn exactly_at_most(&mut self, size: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![];
        self.archive.take(size).read_to_end(&mut bytes)?;
        self.stream.write_inline(&bytes);
        Ok(bytes)
    }
}

impl Archive for Fresh<'_> {
    fn read(&mut self, buffer: &mut Vec<u8>, count: usize) -> Result<usize> {
        Ok(self.archive.take(count as u64).read_to_end(buffer)?)
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.stream.write_inline(bytes);
    }

    fn object(&mut self, size: u64) -> Result<Sha512HashValue> {
        let id = self.contents.add(self.archive, size)?;
        self.stream.add_external_size(size);
        self.stream.write_reference(id.clone())?;
        Ok(id)
    }

    fn made(&mut self, content: &mut dyn Read, size: u64) -> Result<Sha512HashValue> {
        let id = self.contents.add(content, size)?;
        // So that whoever collects garbage keeps it.
        self.stream.add_object_ref(&id);
        Ok(id)
    }

    fn exactly(&mut self, size: u64) -> Result<Vec<u8>> {
        let bytes = self.exactly_at_most(size)?;
        ensure!(bytes.len() as u64 == size, Corrupt("the archive ends in its content".to_owned()));
        Ok(bytes)
    }
}

struct Import<'a> {
    archive: &'a mut dyn Archive,
}

impl Import<'_> {
    /// Makes `buffer` at least `need` bytes long; false where the archive has ended, without the blocks that say so.
    fn fill(&mut self, buffer: &mut Vec<u8>, need: usize) -> Result<bool> {
        let missing = need.saturating_sub(buffer.len());
        let was_empty = buffer.is_empty();
        let count = self.archive.read(buffer, missing)?;
        if count == 0 && was_empty && missing > 0 {
            return Ok(false);
        }
        ensure!(count == missing, Corrupt("the archive ends in the middle of an entry".to_owned()));
        Ok(true)
    }

    fn entry(&mut self, entry: &ParsedEntry<'_>) -> Result<Entry> {
        let entry_of = |item| Ok(Entry { path: entry.path.to_vec(), status: status(entry)?, item });
        let is_file = matches!(entry.entry_type, EntryType::Regular | EntryType::Continuous);
        if is_file && entry.size > INLINE_CONTENT_MAX_V0 as u64 {
            return entry_of(Item::Object(Digest(self.object(entry.size)?), entry.size));
        }
        let bytes = self.inline(entry.size)?;
        let link = entry.link_target.as_deref().unwrap_or_default();
        entry_of(match entry.entry_type {
            EntryType::Directory => Item::Directory,
            EntryType::Link => Item::Link(link.to_vec()),
            EntryType::Symlink => Item::Symlink(link.to_vec()),
            EntryType::Char => Item::Character(device(entry)?),
            EntryType::Block => Item::Block(device(entry)?),
            EntryType::Fifo => Item::Fifo,
            _ if is_file => Item::Inline(bytes),
            other => bail!(Corrupt(format!("it has the type {other:?}, which no image can hold"))),
        })
    }

    fn object(&mut self, size: u64) -> Result<Sha512HashValue> {
        let id = self.archive.object(size)?;
        self.archive.exactly(size.next_multiple_of(HEADER_SIZE as u64) - size)?;
        Ok(id)
    }

    /// The next `size` bytes, in the stream itself; what fills their last block goes there too.
    fn inline(&mut self, size: u64) -> Result<Vec<u8>> {
        ensure!(size <= IN_MEMORY, Corrupt(format!("it has {size} bytes, where none belong")));
        let mut bytes = self.archive.exactly(size.next_multiple_of(HEADER_SIZE as u64))?;
        bytes.truncate(usize::try_from(size)?);
        Ok(bytes)
    }

    /// A file with holes: its data follows, and lies where the map says. The data is in the stream, the file is an
    /// object without holes.
    fn sparse(&mut self, entry: &ParsedEntry<'_>, map: &[SparseEntry], real_size: u64) -> Result<Entry> {
        let entry_of = |item| Ok(Entry { path: entry.path.to_vec(), status: status(entry)?, item });
        ensure!(
            real_size <= WITH_HOLES && entry.size <= IN_MEMORY,
            Corrupt(format!(
                "it is a file with holes of {real_size} bytes: remove it in the step of the image that makes it"
            ))
        );
        let data = self.inline(entry.size)?;
        let wrong = || Corrupt("its map of holes makes no sense".to_owned());
        let (mut at, mut rest, mut parts) = (0_u64, &data[..], vec![]);
        for part in map {
            let gap = part.offset.checked_sub(at).with_context(wrong)?;
            let (bytes, behind) = rest.split_at_checked(usize::try_from(part.length)?).with_context(wrong)?;
            parts.push((gap, bytes));
            (at, rest) = (part.offset.checked_add(part.length).with_context(wrong)?, behind);
        }
        parts.push((real_size.checked_sub(at).with_context(wrong)?, &[]));
        let mut content = Holes { parts: parts.into_iter(), gap: 0, bytes: &[] };
        if real_size <= INLINE_CONTENT_MAX_V0 as u64 {
            let mut bytes = vec![];
            content.read_to_end(&mut bytes)?;
            return entry_of(Item::Inline(bytes));
        }
        let id = self.archive.made(&mut content, real_size)?;
        entry_of(Item::Object(Digest(id), real_size))
    }
}

/// The content of a file with holes: zeros, then bytes, and so on.
struct Holes<'a> {
    parts: std::vec::IntoIter<(u64, &'a [u8])>,
    gap: u64,
    bytes: &'a [u8],
}

impl Read for Holes<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.gap == 0 && self.bytes.is_empty() {
            let Some(part) = self.parts.next() else { return Ok(0) };
            (self.gap, self.bytes) = part;
        }
        if self.gap == 0 {
            return self.bytes.read(buffer);
        }
        let count = buffer.len().min(usize::try_from(self.gap).unwrap_or(usize::MAX));
        buffer[..count].fill(0);
        self.gap -= count as u64;
        Ok(count)
    }
}

fn device(entry: &ParsedEntry<'_>) -> Result<u64> {
    let numbers = entry.dev_major.zip(entry.dev_minor);
    let (major, minor) = numbers.context("it is a device without numbers")?;
    Ok(rustix::fs::makedev(major, minor))
}

fn status(entry: &ParsedEntry<'_>) -> Result<Status> {
    let id = |id: u64| u32::try_from(id).ok().with_context(|| Corrupt(format!("the owner {id} is no owner on Linux")));
    let time = entry.pax.map(numbers).transpose()?.flatten();
    let (seconds, nanoseconds) = time.unwrap_or((i64::try_from(entry.mtime).unwrap_or(i64::MAX), 0));
    // The last one of a name counts.
    let xattrs: BTreeMap<_, _> = entry.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect();
    let xattrs = xattrs.into_iter().collect();
    Ok(Status { mode: entry.mode & 0o7777, uid: id(entry.uid)?, gid: id(entry.gid)?, seconds, nanoseconds, xattrs })
}

/// The modification time in an extended header (pax(1)), where it has one. Sizes and owners in it must be numbers.
fn numbers(pax: &[u8]) -> Result<Option<(i64, u32)>> {
    let mut found = None;
    for field in PaxExtensions::new(pax) {
        let field = field?;
        let (key, text) = (field.key().unwrap_or_default(), field.value().unwrap_or_default());
        let wrong = || Corrupt(format!("its extended header says {key}={text:?}, which is no number"));
        match key {
            "mtime" => found = Some(time(text).with_context(wrong)?),
            "size" | "uid" | "gid" => ensure!(text.parse::<u64>().is_ok(), wrong()),
            _ => {}
        }
    }
    Ok(found)
}

/// Seconds since 1970, also before, with a fraction.
fn time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let (seconds, nanoseconds): (i64, u32) = (seconds.parse().ok()?, digits.parse().ok()?);
    // A fraction counts away from zero, nanoseconds forward.
    Some(match text.starts_with('-') && nanoseconds > 0 {
        true => (seconds - 1, 1_000_000_000 - nanoseconds),
        false => (seconds, nanoseconds),
    })
}
