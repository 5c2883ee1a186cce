//! The names in a directory: packed, sorted, and those of three directories side by side. No allocation a name.

use std::{io, mem::MaybeUninit, ops::Range, os::fd::AsFd};

use rustix::{
    fs::{FileType, RawDir},
    io::Errno,
};
use serde::{Deserialize, Serialize};

/// What reading a directory says of a name on each of the three sides.
pub type Types = [Option<FileType>; 3];

/// Names without order, one after another. None is empty, and none has a NUL.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names(Vec<u8>);

impl Names {
    /// Adds one.
    pub fn push(&mut self, name: &[u8]) {
        self.0.extend_from_slice(name);
        self.0.push(0);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Each, in the order in which they came.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == 0).filter(|name| !name.is_empty())
    }
}

/// A directory's names in order, each once, with what each is as far as reading a directory says.
#[derive(Debug, Default)]
pub struct Listing {
    bytes: Vec<u8>,
    entries: Vec<(Range<usize>, FileType)>,
}

impl Listing {
    /// All names in the directory `dir`, which nobody has read from. One that was removed has none.
    ///
    /// # Errors
    ///
    /// Those of getdents64(2).
    pub fn read(dir: impl AsFd) -> io::Result<Self> {
        let mut listing = Self::default();
        let mut buffer = [MaybeUninit::uninit(); 1 << 15];
        let mut entries = RawDir::new(dir, &mut buffer);
        while let Some(entry) = entries.next() {
            match entry {
                // What the kernel says of a directory that was removed.
                Err(Errno::NOENT) => break,
                entry => {
                    let entry = entry?;
                    listing.push(entry.file_name().to_bytes(), entry.file_type());
                }
            }
        }
        listing.sort();
        Ok(listing)
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.entries.iter().map(|(range, _)| &self.bytes[range.clone()])
    }

    fn push(&mut self, name: &[u8], kind: FileType) {
        if !matches!(name, b"." | b"..") {
            let start = self.bytes.len();
            self.bytes.extend_from_slice(name);
            self.entries.push((start..self.bytes.len(), kind));
        }
    }

    /// A directory that changes while it is read may show a name twice.
    fn sort(&mut self) {
        let Self { bytes, entries } = self;
        entries.sort_unstable_by(|(one, _), (other, _)| bytes[one.clone()].cmp(&bytes[other.clone()]));
        entries.dedup_by(|(one, _), (other, _)| bytes[one.clone()] == bytes[other.clone()]);
    }

    fn get(&self, at: usize) -> Option<(&[u8], FileType)> {
        self.entries.get(at).map(|(range, kind)| (&self.bytes[range.clone()], *kind))
    }
}

/// Every name of three directories once, in order.
pub fn zip(sides: &[Listing; 3]) -> impl Iterator<Item = (&[u8], Types)> {
    let mut at = [0; 3];
    std::iter::from_fn(move || {
        let heads: [_; 3] = std::array::from_fn(|side| sides[side].get(at[side]));
        let name = heads.iter().flatten().map(|(name, _)| *name).min()?;
        let types = heads.map(|head| head.filter(|(other, _)| *other == name).map(|(_, kind)| kind));
        at.iter_mut().zip(&types).for_each(|(at, kind)| *at += usize::from(kind.is_some()));
        Some((name, types))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let mut listing = Listing::default();
        names.iter().for_each(|name| listing.push(name.as_bytes(), FileType::RegularFile));
        listing.sort();
        listing
    }

    #[test]
    fn every_name_comes_once_and_in_order() {
        let sides = [listing(&["b", "a", "b", ".", "c"]), listing(&["..", "c"]), listing(&["ab", "a"])];
        let found: Vec<_> = zip(&sides)
            .map(|(name, types)| format!("{}{:?}", name.escape_ascii(), types.map(|kind| u8::from(kind.is_some()))))
            .collect();
        assert_eq!(found, ["a[1, 0, 1]", "ab[0, 0, 1]", "b[1, 0, 0]", "c[1, 1, 0]"]);
    }

    #[test]
    fn a_directory_that_was_removed_has_no_names() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "").unwrap();
        let open = std::fs::File::open(dir.path()).unwrap();
        drop(dir);
        assert!(Listing::read(&open).unwrap().entries.is_empty());
    }

    #[test]
    fn packed_names_come_back() {
        let mut names = Names::default();
        assert!(names.is_empty());
        [&b"a"[..], b"\xff\n"].iter().for_each(|name| names.push(name));
        assert_eq!(names.iter().collect::<Vec<_>>(), [&b"a"[..], b"\xff\n"]);
    }
}
