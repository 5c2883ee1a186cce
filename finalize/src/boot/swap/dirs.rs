//! Two directories of Type #1 entries, and how one takes the place of the other.

use std::io;

use anyhow::{Context, Result, bail, ensure};
use cap_std::fs::Dir;

use super::{
    super::{
        Place,
        bls::Entry,
        entries::{Entries, is_entry},
        grub,
        loader::Loader,
        menu::Stands,
    },
    Method,
};
use crate::{
    digest::DeploymentId,
    layout::{ENTRIES, ENTRIES_STAGED},
    sys,
};

/// The name of the entry that is first while the others are rewritten: behind every `bootc_…` in GRUB's order, which
/// is descending.
const TRANSIT: &str = "zz-composefs-finalize.conf";

/// `loader/entries` and `loader/entries.staged`.
#[derive(Debug)]
pub struct Dirs {
    loader: Dir,
    order: Loader,
    method: Method,
    id: DeploymentId,
    live: Entries,
    next: Entries,
}

impl Dirs {
    /// Finds out, by content, where the exchange for deployment `id` stands. Writes nothing.
    pub fn probe(place: &Place, loader: Dir, id: &DeploymentId) -> Result<(Self, Stands)> {
        let live = Entries::read(&loader, ENTRIES).context("reading loader/entries")?.unwrap_or_default();
        let next = Entries::read(&loader, ENTRIES_STAGED).context("reading loader/entries.staged")?;
        let (order, method, next) = (place.loader, place.method, next.unwrap_or_default());
        let dirs = Self { loader, order, method, id: id.clone(), live, next };
        if dirs.live.first_deployment(order).as_ref() == Some(id) {
            return Ok((dirs, Stands::Exchanged));
        }
        ensure!(
            !dirs.live.ordered(order).is_empty(),
            "loader/entries has no entry that boots; refusing to exchange it: stage the deployment again"
        );
        if dirs.next.of_deployment(order, id).is_none() {
            bail!("no entry in loader/entries.staged boots {id}: stage the deployment again");
        }
        if dirs.next.first_deployment(order).as_ref() != Some(id) {
            tracing::info!("the staged entries do not sort the new deployment first; their names will be changed");
        }
        Ok((dirs, Stands::Ready))
    }

    /// Brings the staged entries to their final form and makes them, and the kernels beside them, durable: also for
    /// GRUB, which sees nothing that is only in the journal.
    pub fn sync(&mut self) -> Result<()> {
        self.prepare().context("preparing loader/entries.staged")?;
        sys::sync::file_system(self.loader.open(".")?).context("syncing the boot file system")?;
        sys::sync::checkpoint(&self.loader).context("writing the boot file system's journal back")
    }

    /// The exchange.
    pub fn exchange(&mut self) -> Result<()> {
        if self.method == Method::Exchange {
            match sys::rename::exchange(&self.loader, ENTRIES, ENTRIES_STAGED) {
                Err(error) if unsupported(&error) => self.method = Method::OneByOne,
                other => return other.context("exchanging loader/entries and loader/entries.staged"),
            }
        }
        self.put_transit().context("adding the new entry to loader/entries")
    }

    /// Makes the exchange durable, and reads it back.
    pub fn settle(&mut self) -> Result<()> {
        self.make_durable()?;
        let first = self.live.first_deployment(self.order);
        ensure!(first.as_ref() == Some(&self.id), "after the exchange loader/entries names {first:?} first");
        Ok(())
    }

    /// What the live entries are is on the disk, and is read back.
    fn make_durable(&mut self) -> Result<()> {
        sys::sync::file_system(self.loader.open(".")?).context("syncing the exchanged entries")?;
        sys::sync::fsync(self.loader.open_dir(ENTRIES)?.open(".")?).context("syncing loader/entries")?;
        sys::sync::checkpoint(&self.loader).context("writing the boot file system's journal back")?;
        self.live = Entries::read(&self.loader, ENTRIES).context("reading loader/entries back")?.unwrap_or_default();
        Ok(())
    }

    /// Brings what is live to its final form and removes what is old.
    pub fn clean_up(self) -> Result<()> {
        let finished = self.live.get(TRANSIT).is_none();
        if !finished && self.next.of_deployment(self.order, &self.id).is_some() {
            self.finish_one_by_one().context("rewriting loader/entries")?;
        }
        sys::file::remove_tree(&self.loader, ENTRIES_STAGED).context("removing loader/entries.staged")?;
        sys::sync::file_system(self.loader.open(".")?).context("syncing the boot file system")
    }

    /// Makes the old deployment the first one again, durably.
    pub fn take_back(mut self) -> Result<()> {
        match self.live.get(TRANSIT) {
            Some(_) => self.remove_transit().context("removing the new entry from loader/entries")?,
            None => {
                let first = self.next.first_deployment(self.order);
                ensure!(first.is_some_and(|id| id != self.id), "loader/entries.staged has no entry to go back to");
                sys::rename::exchange(&self.loader, ENTRIES, ENTRIES_STAGED).context("exchanging the entries back")?;
            }
        }
        self.make_durable()?;
        let first = self.live.first_deployment(self.order);
        ensure!(first.as_ref() != Some(&self.id), "loader/entries still names {} first", self.id);
        Ok(())
    }

    /// The staged entry of the new deployment.
    pub fn primary(&self) -> Result<Entry> {
        let found = self.next.of_deployment(self.order, &self.id).map(|(_, entry)| entry);
        found.with_context(|| format!("no entry in loader/entries.staged boots {}", self.id))
    }

    /// Carries entries that are not ours into the staged directory, and renames ours where the new deployment would
    /// not come first (a downgrade that somebody staged for GRUB, say).
    fn prepare(&mut self) -> io::Result<()> {
        let dir = self.loader.open_dir(ENTRIES_STAGED)?;
        let mut wanted = Vec::new();
        for (name, content) in self.live.files() {
            let ours = !is_entry(name) || content.parse::<Entry>().is_ok_and(|entry| entry.is_ours());
            if !ours && self.next.get(name) != Some(content) {
                wanted.push((name.to_owned(), content.to_owned()));
            }
        }
        if self.next.first_deployment(self.order).as_ref() != Some(&self.id)
            && let Some((name, entry)) = self.next.of_deployment(self.order, &self.id)
        {
            let first = format!("bootc_zz-{name}");
            let key = entry.value("sort-key").unwrap_or("bootc").to_owned();
            wanted.push((first, entry.with("sort-key", &format!("!{key}")).to_string()));
        }
        for (name, content) in wanted {
            put(&dir, &name, &content)?;
        }
        self.next = Entries::read(&self.loader, ENTRIES_STAGED)?.unwrap_or_default();
        // A GRUB that reads no entries has them in its own language, in the same directory.
        if self.live.get(grub::GENERATED).is_some() || self.next.get(grub::GENERATED).is_some() {
            let text = grub::menuentries(&self.next);
            if self.next.get(grub::GENERATED) != Some(&text) {
                put(&dir, grub::GENERATED, &text)?;
                self.next = Entries::read(&self.loader, ENTRIES_STAGED)?.unwrap_or_default();
            }
        }
        Ok(())
    }

    /// Adds the new deployment's entry under a name and a key that sort before all others.
    fn put_transit(&self) -> Result<()> {
        let entry = self.primary()?;
        let key = format!("!{}", entry.value("sort-key").unwrap_or_default());
        let live = self.loader.open_dir(ENTRIES)?;
        put(&live, TRANSIT, &entry.with("sort-key", &key).to_string())?;
        if let Some(text) = self.next.get(grub::GENERATED) {
            put(&live, grub::GENERATED, text)?;
        }
        Ok(())
    }

    /// The live entries without the transit one. A power cut may leave it or take it: the old deployment boots after this.
    fn remove_transit(&self) -> Result<()> {
        let live = self.loader.open_dir(ENTRIES)?;
        if self.live.get(grub::GENERATED).is_some() {
            let others: Entries = self.live.files().filter(|(name, _)| *name != TRANSIT).map(owned).collect();
            put(&live, grub::GENERATED, &grub::menuentries(&others))?;
        }
        Ok(sys::file::remove(&live, TRANSIT)?)
    }

    /// From the transit entry to the staged ones: add and rewrite, then remove what is ours and not among them, the
    /// transit entry last. The new deployment is first at every step.
    fn finish_one_by_one(&self) -> io::Result<()> {
        let live = self.loader.open_dir(ENTRIES)?;
        let primary = self.next.of_deployment(self.order, &self.id).map(|(name, _)| name);
        let (last, others): (Vec<_>, Vec<_>) = self.next.files().partition(|(name, _)| Some(*name) == primary);
        for (name, content) in others.into_iter().chain(last) {
            if self.live.get(name) != Some(content) {
                put(&live, name, content)?;
            }
        }
        for name in superfluous(&self.live, &self.next) {
            sys::file::remove(&live, name)?;
        }
        sys::sync::file_system(live.open(".")?)?;
        sys::file::remove(&live, TRANSIT)?;
        sys::sync::file_system(live.open(".")?)
    }
}

fn owned((name, content): (&str, &str)) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

/// The live entries that are ours and not among the next, in whatever case.
fn superfluous<'a>(live: &'a Entries, next: &'a Entries) -> impl Iterator<Item = &'a str> {
    let ours =
        |name: &str, content: &str| is_entry(name) && content.parse::<Entry>().is_ok_and(|entry| entry.is_ours());
    let old = move |(name, content): &(&str, &str)| ours(name, content) && !next.has_in_any_case(name);
    live.files().filter(old).map(|(name, _)| name).filter(|name| *name != TRANSIT)
}

/// Puts a file in place by rename, its content on the disk before its name, both before returning.
fn put(dir: &Dir, name: &str, content: &str) -> io::Result<()> {
    let aside = ".composefs-finalize.new";
    let written = sys::file::write(dir, aside, content.as_bytes())
        .and_then(|()| sys::sync::file_system(dir.open(".")?))
        .and_then(|()| sys::rename::replace(dir, aside, name));
    if written.is_err() {
        _ = dir.remove_file(aside);
    }
    written?;
    sys::sync::file_system(dir.open(".")?)
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
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
