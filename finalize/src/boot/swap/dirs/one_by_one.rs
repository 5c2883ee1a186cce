//! The exchange where directories cannot change places: file by file, an entry that sorts first leading the way.
//!
//! Four flushes: what will be renamed is written beside the staged files; the entry in transit gets its name, by one rename;
//! the other files get theirs; the entry in transit goes, and what was staged.

use std::io;

use anyhow::{Context, Result};

use super::{Dirs, TRANSIT, is_ours, owned, put, transit_in};
use crate::{
    boot::{
        count::{bare, is_spent},
        entries::Entries,
        grub,
    },
    layout::{ENTRIES, ENTRIES_STAGED},
    sys,
};

/// The name of a file in the staged directory that gets the name `name` in the live one.
fn aside(name: &str) -> String {
    format!(".composefs-finalize.{name}")
}

impl Dirs {
    /// Writes beside the staged files what is to be renamed into the live directory: the entry that is first while the others
    /// are rewritten, and the others. Nothing is synced.
    pub(super) fn write_aside(&self) -> Result<()> {
        let entry = self.primary()?;
        let key = format!("!{}", entry.value("sort-key").unwrap_or_default());
        let transit = entry.with("sort-key", &key).to_string();
        let staged = self.loader.open_dir(ENTRIES_STAGED)?;
        let transit_name = self.transit_name();
        for (name, content) in self.changed().into_iter().chain([(transit_name.as_str(), transit.as_str())]) {
            sys::file::write_new(&staged, &aside(name), 0o644, content.as_bytes())
                .with_context(|| format!("writing {name}"))?;
        }
        Ok(())
    }

    /// The next files that are not live as they are, that of the new deployment last.
    fn changed(&self) -> Vec<(&str, &str)> {
        let primary = self.next.of_deployment(self.order, &self.id).map(|(name, _)| name);
        let (last, others): (Vec<_>, Vec<_>) = self.next.files().partition(|(name, _)| Some(*name) == primary);
        others.into_iter().chain(last).filter(|(name, content)| same(&self.live, name, content).is_none()).collect()
    }

    /// Makes what is written aside durable, unless it is.
    fn put_aside(&mut self) -> Result<()> {
        if !self.are_aside {
            self.write_aside()?;
            sys::sync::file_system(self.loader.open(".")?).context("syncing the boot file system")?;
            self.are_aside = true;
        }
        Ok(())
    }

    /// Adds the new deployment's entry under a name and a key that sort before all others: one rename.
    pub(super) fn put_transit(&mut self) -> Result<()> {
        self.put_aside()?;
        self.give_name(&self.transit_name())?;
        if self.next.get(grub::GENERATED).is_some_and(|text| self.live.get(grub::GENERATED) != Some(text)) {
            self.give_name(grub::GENERATED)?;
        }
        Ok(())
    }

    /// Moves what was written aside into the live directory, over what has its name there.
    fn give_name(&self, name: &str) -> io::Result<()> {
        let (staged, live) = (self.loader.open_dir(ENTRIES_STAGED)?, self.loader.open_dir(ENTRIES)?);
        sys::rename::replace_from((&staged, &aside(name)), (&live, name))
    }

    /// The live entries without the transit one. A power cut may leave it or take it: the old deployment boots after this.
    pub(super) fn remove_transit(&self) -> Result<()> {
        let live = self.loader.open_dir(ENTRIES)?;
        let files = Entries::read(&self.loader, ENTRIES)?.unwrap_or_default();
        let Some(transit) = transit_in(&files) else { return Ok(()) };
        if files.get(grub::GENERATED).is_some() {
            let others: Entries = files.files().filter(|(name, _)| *name != transit).map(owned).collect();
            put(&live, grub::GENERATED, &grub::menuentries(&others))?;
        }
        Ok(sys::remove::file(&live, transit)?)
    }

    /// From the transit entry to the staged ones, in one go: as long as that one is first, nothing else is what boots. What a
    /// power cut leaves of the others is written again. The transit entry goes last.
    pub(super) fn finish_one_by_one(&mut self, transit: &str) -> Result<()> {
        self.put_aside()?;
        let live = self.loader.open_dir(ENTRIES)?;
        let staged = self.loader.open_dir(ENTRIES_STAGED)?;
        for (name, content) in self.changed() {
            match staged.try_exists(aside(name))? {
                true => self.give_name(name)?,
                // The menu that GRUB reads has its name already.
                false if name == grub::GENERATED => {}
                false => put(&live, name, content)?,
            }
        }
        for name in superfluous(&self.live, &self.next) {
            sys::remove::file(&live, name)?;
        }
        sys::sync::file_system(self.loader.open(".")?)?;
        Ok(sys::remove::file(&live, transit)?)
    }

    /// Whether the live entries boot the new deployment without the transit one too.
    pub(super) fn is_whole(&self) -> bool {
        let others: Entries = self.live.files().filter(|(name, _)| bare(name) != TRANSIT).map(owned).collect();
        others.first_deployment(self.order).as_ref() == Some(&self.id)
    }
}

/// The live file that is the next one `name`: by the same name, or by one that the boot loader, or whoever found it good, has
/// given it since. One without tries is none.
fn same<'a>(live: &'a Entries, name: &str, content: &str) -> Option<&'a str> {
    let is_same = |(other, text): &(&str, &str)| {
        *text == content && (*other == name || bare(other).eq_ignore_ascii_case(&bare(name)) && !is_spent(other))
    };
    live.files().find(is_same).map(|(other, _)| other)
}

/// The live entries that are ours and not among the next, in whatever case.
fn superfluous<'a>(live: &'a Entries, next: &'a Entries) -> impl Iterator<Item = &'a str> {
    let kept: Vec<_> = next.files().filter_map(|(name, content)| same(live, name, content)).collect();
    let old = move |(name, content): &(&str, &str)| {
        is_ours(name, content) && !next.has_in_any_case(name) && !kept.contains(name)
    };
    let in_transit = transit_in(live);
    live.files().filter(old).map(|(name, _)| name).filter(move |name| Some(*name) != in_transit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_differ_in_case_are_one_file() {
        let entries = |names: &[&str]| -> Entries {
            names.iter().map(|name| ((*name).to_owned(), "linux /bootc_composefs-x/vmlinuz\n".to_owned())).collect()
        };
        let live = entries(&["BOOTC_X-1-1.CONF", "bootc_x-0-1.conf", "Old.Conf", "notes.txt", TRANSIT]);
        let next = entries(&["bootc_x-1-1.conf", "bootc_x-1-0.conf"]);
        assert_eq!(superfluous(&live, &next).collect::<Vec<_>>(), ["Old.Conf", "bootc_x-0-1.conf"]);
    }
}
