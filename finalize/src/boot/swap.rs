//! The exchange of the boot entries: the one moment at which the next boot changes.
//!
//! `entries.staged` holds exactly the entries that shall exist afterwards. The states consume each other, so that
//! nothing is exchanged that is not on the disk, and nothing is deleted before the exchange is:
//! [`Staged`] → [`Synced`] → [`Exchanged`] → [`Durable`].
//!
//! Two methods, one promise: at every instant `entries` names a deployment that boots.
//!
//! - [`Method::Exchange`], on file systems with a journal: the two directories are exchanged by `RENAME_EXCHANGE`.
//! - [`Method::OneByOne`], on FAT and where exchange is not supported. FAT swaps the start clusters in two directory
//!   entries, which may lie in two sectors; a power cut between them leaves both names on the same clusters, and
//!   `fsck.fat` then empties one of them. So directories are left where they are: an entry that sorts first is put
//!   among the live ones (one directory slot, one sector: either it is there or not), then the others are brought to
//!   their final form, each durable before the next one begins, and the extra one is removed last.

use std::io;

use anyhow::{Context, Result, bail, ensure};
use cap_std::fs::Dir;

use super::{
    Place,
    bls::Entry,
    entries::{Entries, is_entry},
    grub,
    loader::Loader,
    menu::{Menu, Stands},
    uki::Renames,
};
use crate::{
    digest::DeploymentId,
    layout::{ENTRIES, ENTRIES_STAGED},
    sys,
};

/// The name of the entry that is first while the others are rewritten: behind every `bootc_…` in GRUB's order, which
/// is descending.
const TRANSIT: &str = "zz-composefs-finalize.conf";

/// How entries are exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Both directories at once, by `RENAME_EXCHANGE`.
    Exchange,
    /// Entry by entry, durably.
    OneByOne,
}

/// What the entry directories say, by content.
#[derive(Debug)]
pub enum Probe {
    /// The staged place names the deployment as the next one to boot.
    Ready(Staged),
    /// The live entries already do, though perhaps not durably; whatever the staged place holds is left over.
    Exchanged(Exchanged),
}

/// The next entries lie beside the live ones, written by somebody else, perhaps not yet on the disk.
#[derive(Debug)]
pub struct Staged(Both);

/// They are on the disk, with the entries that are not ours carried into them.
#[derive(Debug)]
pub struct Synced(Both);

/// The live place names the new deployment; a power cut may still undo it.
#[derive(Debug)]
pub struct Exchanged(Both);

/// A power cut no longer undoes it. Only now may anything be deleted.
#[derive(Debug)]
pub struct Durable(Both);

/// What is exchanged: a directory of entries, GRUB's menu, or UKIs' names.
#[derive(Debug)]
enum Both {
    Entries(Swap),
    Menu(Menu),
    Ukis(Renames),
}

#[derive(Debug)]
struct Swap {
    loader: Dir,
    order: Loader,
    method: Method,
    id: DeploymentId,
    live: Entries,
    next: Entries,
}

/// Finds out, by content, where the exchange for deployment `id` stands. Writes nothing.
///
/// # Errors
///
/// When neither side names `id` as the next to boot, when there are no live entries, or when they cannot be read.
pub fn probe(place: &Place, id: &DeploymentId) -> Result<Probe> {
    if let Some(dir) = &place.menu {
        let (menu, stands) = Menu::probe(dir, id)?;
        let menu = Both::Menu(menu);
        return Ok(stands.into_probe(menu));
    }
    let loader = place.loader_dir().context("opening loader/ on the boot file system")?;
    if !loader.is_dir(ENTRIES_STAGED)
        && place.loader == Loader::SystemdBoot
        && let Some((renames, stands)) = Renames::probe(&place.root, id)?
    {
        return Ok(stands.into_probe(Both::Ukis(renames)));
    }
    let live = Entries::read(&loader, ENTRIES).context("reading loader/entries")?.unwrap_or_default();
    let next = Entries::read(&loader, ENTRIES_STAGED).context("reading loader/entries.staged")?;
    let order = place.loader;
    let first_live = live.first_deployment(order);
    let first_next = next.as_ref().and_then(|n| n.first_deployment(order));
    let swap = Swap { loader, order, method: place.method, id: id.clone(), live, next: next.unwrap_or_default() };
    if first_live.as_ref() == Some(id) {
        return Ok(Probe::Exchanged(Exchanged(Both::Entries(swap))));
    }
    ensure!(
        !swap.live.ordered(order).is_empty(),
        "loader/entries has no entry that boots; refusing to exchange it: stage the deployment again"
    );
    if swap.next.of_deployment(order, id).is_none() {
        bail!("no entry in loader/entries.staged boots {id}: stage the deployment again");
    }
    if first_next.as_ref() != Some(id) {
        tracing::info!("the staged entries do not sort the new deployment first; their names will be changed");
    }
    Ok(Probe::Ready(Staged(Both::Entries(swap))))
}

/// [`Synced`], or [`Exchanged`] by an earlier run.
#[derive(Debug)]
pub enum Ready {
    /// To be exchanged.
    Synced(Synced),
    /// To be made durable.
    Exchanged(Exchanged),
}

impl Stands {
    fn into_probe(self, what: Both) -> Probe {
        match self {
            Self::Ready => Probe::Ready(Staged(what)),
            Self::Exchanged => Probe::Exchanged(Exchanged(what)),
        }
    }
}

impl Probe {
    /// [`Staged::sync`], where there is something to exchange.
    ///
    /// # Errors
    ///
    /// As [`Staged::sync`].
    pub fn sync(self) -> Result<Ready> {
        match self {
            Self::Ready(staged) => staged.sync().map(Ready::Synced),
            Self::Exchanged(exchanged) => Ok(Ready::Exchanged(exchanged)),
        }
    }
}

impl Ready {
    /// [`Synced::exchange`], where there is something to exchange.
    ///
    /// # Errors
    ///
    /// As [`Synced::exchange`].
    pub fn exchange(self) -> Result<Exchanged> {
        match self {
            Self::Synced(synced) => synced.exchange(),
            Self::Exchanged(exchanged) => Ok(exchanged),
        }
    }
}

impl Staged {
    /// The files that the new deployment's entry boots, for checks before the first write.
    ///
    /// # Errors
    ///
    /// None that [`probe`] has not reported.
    pub fn boots(&self) -> Result<Vec<String>> {
        match &self.0 {
            Both::Entries(swap) => Ok(swap.primary()?.files().map(str::to_owned).collect()),
            Both::Menu(menu) => Ok(menu.uki().into_iter().collect()),
            Both::Ukis(_) => Ok(vec![]),
        }
    }

    /// Brings what is staged to its final form and makes it, and the kernels beside it, durable.
    ///
    /// # Errors
    ///
    /// Those of writing and syncing; what is live is untouched.
    pub fn sync(mut self) -> Result<Synced> {
        match &mut self.0 {
            Both::Entries(swap) => {
                swap.prepare().context("preparing loader/entries.staged")?;
                sys::sync::file_system(swap.loader.open(".")?).context("syncing the boot file system")?;
            }
            Both::Menu(menu) => menu.sync()?,
            Both::Ukis(renames) => renames.sync()?,
        }
        Ok(Synced(self.0))
    }
}

impl Synced {
    /// The exchange.
    ///
    /// # Errors
    ///
    /// Those of writing; then the old deployment still boots.
    pub fn exchange(mut self) -> Result<Exchanged> {
        match &mut self.0 {
            Both::Entries(swap) => swap.exchange()?,
            Both::Menu(menu) => menu.exchange()?,
            Both::Ukis(renames) => renames.exchange()?,
        }
        Ok(Exchanged(self.0))
    }
}

impl Exchanged {
    /// Makes the exchange durable, and reads it back.
    ///
    /// # Errors
    ///
    /// Those of syncing, and when what is read back does not name the new deployment first.
    pub fn settle(mut self) -> Result<Durable> {
        match &mut self.0 {
            Both::Entries(swap) => swap.settle()?,
            Both::Menu(menu) => menu.settle()?,
            Both::Ukis(renames) => renames.settle()?,
        }
        Ok(Durable(self.0))
    }
}

impl Durable {
    /// Brings what is live to its final form and removes what is old. Safe to stop and to run again.
    ///
    /// # Errors
    ///
    /// Those of writing; the new deployment boots all the same.
    pub fn clean_up(self) -> Result<()> {
        match self.0 {
            Both::Entries(swap) => swap.clean_up(),
            Both::Menu(menu) => menu.clean_up(),
            Both::Ukis(renames) => renames.clean_up(),
        }
    }
}

impl Swap {
    fn exchange(&mut self) -> Result<()> {
        if self.method == Method::Exchange {
            match sys::rename::exchange(&self.loader, ENTRIES, ENTRIES_STAGED) {
                Err(error) if unsupported(&error) => self.method = Method::OneByOne,
                other => return other.context("exchanging loader/entries and loader/entries.staged"),
            }
        }
        self.put_transit().context("adding the new entry to loader/entries")
    }

    fn settle(&mut self) -> Result<()> {
        sys::sync::file_system(self.loader.open(".")?).context("syncing the exchanged entries")?;
        sys::sync::fsync(self.loader.open_dir(ENTRIES)?.open(".")?).context("syncing loader/entries")?;
        sys::sync::checkpoint(&self.loader).context("writing the boot file system's journal back")?;
        self.live = Entries::read(&self.loader, ENTRIES).context("reading loader/entries back")?.unwrap_or_default();
        let first = self.live.first_deployment(self.order);
        ensure!(first.as_ref() == Some(&self.id), "after the exchange loader/entries names {first:?} first");
        Ok(())
    }

    fn clean_up(self) -> Result<()> {
        let finished = self.live.get(TRANSIT).is_none();
        if !finished && self.next.of_deployment(self.order, &self.id).is_some() {
            self.finish_one_by_one().context("rewriting loader/entries")?;
        }
        sys::file::remove_tree(&self.loader, ENTRIES_STAGED).context("removing loader/entries.staged")?;
        sys::sync::file_system(self.loader.open(".")?).context("syncing the boot file system")
    }

    fn primary(&self) -> Result<Entry> {
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
