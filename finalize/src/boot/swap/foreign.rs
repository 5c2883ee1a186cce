//! What lies in a directory of entries and is not ours: it is carried along, byte for byte, whatever it is.
//!
//! Ours are the Type #1 entries that boot a deployment, the menu that is generated from the entries, and what a run of ours
//! has left. Everything else is somebody's: entries in another encoding, links, directories, `*.conf.disabled`.

use std::{collections::BTreeSet, ffi::OsString, io};

use cap_std::fs::{Dir, DirEntry, MetadataExt};
use rustix::fs::{AtFlags, linkat};

use super::{
    super::{bls::Entry, count, entries::is_entry, grub},
    dirs::{ASIDE, TRANSIT},
};
use crate::sys;

/// The names in a directory of entries that are not ours.
#[derive(Debug, Default)]
pub struct Foreign(BTreeSet<OsString>);

impl Foreign {
    /// Looks through the directory.
    ///
    /// # Errors
    ///
    /// Those of getdents(2) and read(2).
    pub fn of(dir: &Dir) -> io::Result<Self> {
        let mut names = BTreeSet::new();
        for entry in dir.entries()? {
            let entry = entry?;
            if !is_ours(dir, &entry)? {
                names.insert(entry.file_name());
            }
        }
        Ok(Self(names))
    }

    /// Whether a file called `name` would take the place of one of these, in whatever case: to FAT it is the same name.
    pub fn takes(&self, name: &str) -> bool {
        self.0.iter().any(|other| other.eq_ignore_ascii_case(name))
    }

    /// Gives each of them that is not a directory a second name in `to`, where it has none: an entry that boots must be
    /// there at the moment of the exchange.
    ///
    /// # Errors
    ///
    /// Those of linkat(2).
    pub fn link(&self, from: &Dir, to: &Dir) -> io::Result<()> {
        for name in &self.0 {
            if from.symlink_metadata(name)?.is_dir() || is_same(from, to, name)? {
                continue;
            }
            sys::fault::changing("linkat")?;
            match linkat(from, name, to, name, AtFlags::empty()) {
                // A file of this name that is not ours was staged as well: that of the live entries is moved later.
                Err(rustix::io::Errno::EXIST) => {}
                linked => linked?,
            }
        }
        Ok(())
    }

    /// Moves each of them that is not in `to` already to there. One whose name is taken by another file gets a number.
    ///
    /// # Errors
    ///
    /// Those of renameat2(2).
    pub fn move_to(&self, from: &Dir, to: &Dir) -> io::Result<()> {
        for name in &self.0 {
            if is_same(from, to, name)? {
                continue;
            }
            let free = (0..).map(|number| match number {
                0 => name.clone(),
                number => {
                    let mut numbered = name.clone();
                    numbered.push(format!(".{number}"));
                    numbered
                }
            });
            for name_there in free {
                match sys::rename::move_between((from, name), (to, &name_there)) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    moved => {
                        moved?;
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Whether both directories have this name for one and the same file.
fn is_same(one: &Dir, other: &Dir, name: &OsString) -> io::Result<bool> {
    let there = match other.symlink_metadata(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        there => there?,
    };
    let here = one.symlink_metadata(name)?;
    Ok((here.dev(), here.ino()) == (there.dev(), there.ino()))
}

fn is_ours(dir: &Dir, entry: &DirEntry) -> io::Result<bool> {
    let Ok(name) = entry.file_name().into_string() else { return Ok(false) };
    if !entry.file_type()?.is_file() {
        return Ok(false);
    }
    if [TRANSIT, ASIDE, grub::GENERATED].contains(&count::bare(&name).as_str()) {
        return Ok(true);
    }
    if !is_entry(&name) {
        return Ok(false);
    }
    match sys::file::read(dir, &name) {
        Ok(text) => Ok(text.is_some_and(|text| text.parse::<Entry>().is_ok_and(|entry| entry.is_ours()))),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(false),
        Err(error) => Err(error),
    }
}
