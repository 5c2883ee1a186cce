//! An awkward ESP: the directories of entries, and the names that a finalization makes, do not lie in one sector.
//!
//! A directory entry of FAT has 32 bytes, 16 of them are a sector, and a long name takes one more for every 13 characters
//! (Microsoft's FAT specification, "Long File Name Implementation"). So the number of slots says what lies where.

use std::{io::Write, path::Path};

use anyhow::{Context, Result};
use finalize::layout::{ENTRIES, ENTRIES_STAGED, LOADER};
use xshell::cmd;

use crate::{inspect::Disk, program};

/// Three slots: two for a name of 14 to 26 characters, one for the short name.
const SLOTS_OF_THREE: usize = 8;
/// `.`, `..` and the booted deployment's entry are five slots, these are six; so of the next two names with three slots
/// each the second lies in two sectors.
const FOREIGN: usize = 2;

/// Moves `entries.staged` more than a sector behind `entries`, and adds entries of somebody else.
///
/// # Errors
///
/// What mtools say.
pub fn crowd(disk: &Path) -> Result<()> {
    let start =
        Disk::open(disk, None)?.partitions.iter().find(|partition| partition.name == "esp").map(|esp| esp.start);
    let image = format!("{}@@{}", disk.display(), start.context("the disk has no partition esp")?);
    let shell = program::shell()?;
    let tool = |name: &str, arguments: &[&str]| {
        program::run(cmd!(shell, "{name} -i {image} {arguments...}"))
            .with_context(|| format!("crowding the ESP: {name}"))
    };
    let mut filler = tempfile::NamedTempFile::new()?;
    writeln!(filler, "title Somebody else's\nlinux /somebody-else")?;
    let path = filler.path().to_string_lossy();
    let (staged, aside) = (format!("::/{LOADER}/{ENTRIES_STAGED}"), "::/aside");
    tool("mmove", &[&staged, aside])?;
    for number in 0..SLOTS_OF_THREE {
        tool("mcopy", &[&path, &format!("::/{LOADER}/somebody-else-{number}.txt")])?;
    }
    tool("mmove", &[aside, &staged])?;
    for number in 0..FOREIGN {
        tool("mcopy", &[&path, &format!("::/{LOADER}/{ENTRIES}/a-foreign-entry-{number}.conf")])?;
    }
    Ok(())
}
