//! Two directories of Type #1 entries, and how one takes the place of the other.

mod one_by_one;

use std::io;

use anyhow::{Context, Result, bail, ensure};
use cap_std::fs::Dir;

use super::{
    super::{
        BootDir, EntriesPlace,
        bls::Entry,
        count::{Trial, bare, counted, is_spent},
        entries::{Entries, is_entry},
        grub,
        loader::Loader,
    },
    Exchange, Method, Stands,
    foreign::Foreign,
};
use crate::{
    digest::DeploymentId,
    layout::{ENTRIES, ENTRIES_STAGED, ENTRIES_TRASH},
    sys,
};

/// The name of the entry that is first while the others are rewritten: behind every `bootc_…` in GRUB's order, which
/// is descending.
pub const TRANSIT: &str = "zz-composefs-finalize.conf";

/// The name under which a file is written before it gets its own.
pub const ASIDE: &str = ".composefs-finalize.new";

/// `loader/entries` and `loader/entries.staged`.
#[derive(Debug)]
pub struct Dirs {
    loader: Dir,
    order: Loader,
    method: Method,
    id: DeploymentId,
    live: Entries,
    next: Entries,
    /// Whether the boot loader reads the entries in its own language, from a file beside them.
    generates: bool,
    /// Whose boots are counted.
    trial: Option<Trial>,
    /// Whether the files that are to be renamed into the live directory one by one are on the disk.
    are_aside: bool,
    done: Done,
}

/// What this run has done to the live entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Nothing,
    /// The directories have changed places.
    Exchanged,
    /// The new entry was put before the others.
    Transit,
}

impl Dirs {
    /// Finds out, by content, where the exchange for deployment `id` stands. Writes nothing.
    pub fn probe(place: &EntriesPlace, loader: Dir, id: &DeploymentId) -> Result<(Self, Stands)> {
        let live = Entries::read(&loader, ENTRIES).context("reading loader/entries")?.unwrap_or_default();
        let next = Entries::read(&loader, ENTRIES_STAGED).context("reading loader/entries.staged")?.unwrap_or_default();
        let (order, method) = (place.loader, place.method);
        let generates =
            live.get(grub::GENERATED).is_some() || next.get(grub::GENERATED).is_some() || sources_generated(place)?;
        let (trial, are_aside, done) = (None, false, Done::Nothing);
        let dirs = Self { loader, order, method, id: id.clone(), live, next, generates, trial, are_aside, done };
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
            tracing::info!("the staged entries do not sort {} first; its entry will be renamed", id.short());
        }
        Ok((dirs, Stands::Ready))
    }

    /// What the live entries are is on the disk, and is read back.
    fn make_durable(&mut self) -> Result<()> {
        sys::sync::file_system(self.loader.open(".")?).context("syncing the exchanged entries")?;
        if self.method == Method::Exchange {
            sys::sync::fsync(self.loader.open_dir(ENTRIES)?.open(".")?).context("syncing loader/entries")?;
        }
        self.checkpoint()?;
        self.live = Entries::read(&self.loader, ENTRIES).context("reading loader/entries back")?.unwrap_or_default();
        Ok(())
    }

    /// Writes the journal back where there is one: what knows no exchange has none.
    fn checkpoint(&self) -> Result<()> {
        match self.method {
            Method::Exchange => {
                sys::sync::checkpoint(&self.loader).context("writing the boot file system's journal back")
            }
            Method::OneByOne => Ok(()),
        }
    }

    /// The staged entry of the new deployment.
    fn primary(&self) -> Result<Entry> {
        let found = self.next.of_deployment(self.order, &self.id).map(|(_, entry)| entry);
        found.with_context(|| format!("no entry in loader/entries.staged boots {}", self.id))
    }

    /// Carries what is not ours into the staged directory, renames what is ours where its name is taken, or where the new
    /// deployment would not come first (a downgrade that somebody staged for GRUB, say).
    fn prepare(&mut self) -> io::Result<()> {
        let (live, staged) = (self.loader.open_dir(ENTRIES)?, self.loader.open_dir(ENTRIES_STAGED)?);
        let foreign = Foreign::of(&live)?;
        self.give_way(&staged, &foreign)?;
        self.put_first(&staged, &foreign)?;
        self.put_counter(&staged)?;
        if self.method == Method::Exchange {
            foreign.link(&live, &staged)?;
        }
        self.reread()?;
        if self.generates {
            let afterwards = self.afterwards();
            let counting = self.trial.as_ref().and_then(|trial| grub::counting(&afterwards, Some(trial)));
            let text = counting.unwrap_or_else(|| grub::menuentries(&afterwards));
            if self.next.get(grub::GENERATED) != Some(&text) {
                put(&staged, grub::GENERATED, &text)?;
                self.reread()?;
            }
        }
        Ok(())
    }

    /// Staged files whose names are taken by live ones that are not ours: ours get another name, the others are dropped.
    fn give_way(&mut self, staged: &Dir, foreign: &Foreign) -> io::Result<()> {
        for (name, content) in self.next.files().filter(|(name, _)| foreign.takes(name)) {
            let stem = &name[..name.len().saturating_sub(".conf".len())];
            if is_entry(name) && content.parse::<Entry>().is_ok_and(|entry| entry.is_ours()) {
                let taken = |name: &str| foreign.takes(name) || self.next.has_in_any_case(name);
                let mut free = (1..).map(|number| format!("{stem}.{number}.conf")).filter(|name| !taken(name));
                put(staged, &free.next().unwrap_or_default(), content)?;
            }
            sys::remove::file(staged, name)?;
        }
        self.reread()
    }

    /// Gives the new deployment's entry a name and a key that sort before all of ours, where it has none.
    fn put_first(&mut self, staged: &Dir, foreign: &Foreign) -> io::Result<()> {
        if self.next.first_deployment(self.order).as_ref() == Some(&self.id) {
            return Ok(());
        }
        let Some((name, entry)) = self.next.of_deployment(self.order, &self.id) else { return Ok(()) };
        let bare_name = name.strip_prefix("bootc_").map_or(name, |rest| rest.trim_start_matches('z'));
        let bare_key = entry.value("sort-key").unwrap_or("bootc").trim_start_matches('!').to_owned();
        // Each has one more than the one before it: one of them is first.
        for more in 1..=self.next.files().count() + 1 {
            let first = format!("bootc_z{}-{}", "z".repeat(more), bare_name.trim_start_matches('-'));
            let text = entry.clone().with("sort-key", &format!("{}{bare_key}", "!".repeat(more))).to_string();
            let others = self.next.files().filter(|(other, _)| *other != name).map(owned);
            let all: Entries = others.chain([(first.clone(), text.clone())]).collect();
            if all.first_deployment(self.order).as_ref() == Some(&self.id) && !foreign.takes(&first) {
                put(staged, &first, &text)?;
                if first != name {
                    sys::remove::file(staged, name)?;
                }
                break;
            }
        }
        self.reread()
    }

    /// Gives the name of the new deployment's entry a fresh counter, for a boot loader that counts there.
    fn put_counter(&mut self, staged: &Dir) -> io::Result<()> {
        let tries = self.trial.as_ref().filter(|_| self.order == Loader::SystemdBoot).map(|trial| trial.tries);
        if let (Some(tries), Some((name, _))) = (tries, self.next.of_deployment(self.order, &self.id))
            && counted(name, tries) != name
        {
            sys::rename::replace(staged, name, &counted(name, tries))?;
        }
        self.reread()
    }

    /// The name of the entry in transit: its boots are counted as well.
    fn transit_name(&self) -> String {
        match (self.order, &self.trial) {
            (Loader::SystemdBoot, Some(trial)) => counted(TRANSIT, trial.tries),
            _ => TRANSIT.to_owned(),
        }
    }

    fn reread(&mut self) -> io::Result<()> {
        self.next = Entries::read(&self.loader, ENTRIES_STAGED)?.unwrap_or_default();
        Ok(())
    }

    /// The entries after the exchange: the staged ones, and the live ones that are not ours.
    fn afterwards(&self) -> Entries {
        let foreign = self.live.files().filter(|(name, content)| !is_ours(name, content));
        foreign.chain(self.next.files()).map(owned).collect()
    }

    /// Removes the directory that is not live, once nothing in it is somebody else's.
    fn remove_old(&self) -> io::Result<()> {
        let live = self.loader.open_dir(ENTRIES)?;
        if live.try_exists(ASIDE)? {
            sys::remove::file(&live, ASIDE)?;
        }
        if self.method == Method::OneByOne {
            // What it means is told by the live entries; on FAT a rename is more than a deletion.
            return sys::remove::tree(&self.loader, ENTRIES_STAGED);
        }
        if let Ok(old) = self.loader.open_dir(ENTRIES_STAGED) {
            Foreign::of(&old)?.move_to(&old, &live)?;
            sys::sync::fsync(live.open(".")?)?;
        }
        sys::remove::discard(&self.loader, ENTRIES_STAGED, ENTRIES_TRASH)
    }
}

impl Exchange for Dirs {
    fn boots(&self) -> Vec<String> {
        let entry = self.primary().ok();
        entry.map_or(vec![], |entry| match self.order {
            Loader::Grub => grub::files(&entry),
            _ => entry.files().map(str::to_owned).collect(),
        })
    }

    fn count(&mut self, trial: Option<&Trial>) -> Result<(), String> {
        let why = match self.order {
            _ if trial.is_none() => None,
            Loader::SystemdBoot => None,
            Loader::Grub if !self.generates => {
                Some("GRUB reads the entries by itself here, and not a menu that counts")
            }
            Loader::Grub if grub::counting(&self.afterwards(), trial).is_none() => {
                Some("there is no other deployment to go back to")
            }
            Loader::Grub => None,
            Loader::GrubCc => Some("GrubCC is not known to count"),
        };
        self.trial = trial.filter(|_| why.is_none()).cloned();
        why.map_or(Ok(()), |why| Err(why.to_owned()))
    }

    fn sync(&mut self) -> Result<()> {
        self.prepare().context("preparing loader/entries.staged")?;
        if self.method == Method::OneByOne {
            self.write_aside()?;
            self.are_aside = true;
        }
        sys::sync::file_system(self.loader.open(".")?).context("syncing the boot file system")?;
        // Also for GRUB, which sees nothing that is only in the journal.
        self.checkpoint()
    }

    fn exchange(&mut self) -> Result<()> {
        if self.method == Method::Exchange {
            match sys::rename::exchange(&self.loader, ENTRIES, ENTRIES_STAGED) {
                Err(error) if unsupported(&error) => self.method = Method::OneByOne,
                other => {
                    other.context("exchanging loader/entries and loader/entries.staged")?;
                    self.done = Done::Exchanged;
                    return Ok(());
                }
            }
        }
        self.done = Done::Transit;
        self.put_transit().context("adding the new entry to loader/entries")
    }

    fn settle(&mut self) -> Result<()> {
        self.make_durable()?;
        let first = self.live.first_deployment(self.order);
        ensure!(
            first.as_ref() == Some(&self.id),
            "loader/entries still boots {} first; expected {}",
            first.as_ref().map_or("nothing", DeploymentId::short),
            self.id.short()
        );
        Ok(())
    }

    fn take_back(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.done, Done::Nothing) {
            Done::Nothing => return Ok(()),
            Done::Transit => self.remove_transit().context("removing the new entry from loader/entries")?,
            Done::Exchanged => {
                sys::rename::exchange(&self.loader, ENTRIES, ENTRIES_STAGED).context("exchanging the entries back")?;
            }
        }
        self.make_durable()?;
        let first = self.live.first_deployment(self.order);
        ensure!(first.as_ref() != Some(&self.id), "loader/entries still boots {} first", self.id.short());
        Ok(())
    }

    fn clean_up(&mut self) -> Result<()> {
        if let Some(transit) = transit_in(&self.live).map(str::to_owned) {
            if self.next.of_deployment(self.order, &self.id).is_some() {
                self.finish_one_by_one(&transit).context("rewriting loader/entries")?;
            } else if self.is_whole() {
                sys::remove::file(&self.loader.open_dir(ENTRIES)?, &transit)
                    .context("removing the entry in transit")?;
            }
        }
        self.remove_old().context("removing loader/entries.staged")?;
        sys::sync::file_system(self.loader.open(".")?).context("syncing the boot file system")
    }
}

/// Whether GRUB's main configuration reads a menu that is generated from the entries.
fn sources_generated(place: &EntriesPlace) -> Result<bool> {
    if place.loader != Loader::Grub {
        return Ok(false);
    }
    let boot = match place.boot {
        BootDir::Root => place.root.try_clone()?,
        BootDir::Boot => place.root.open_dir("boot").context("opening boot")?,
    };
    let wanted = format!("loader/{ENTRIES}/{}", grub::GENERATED);
    for path in ["grub2/grub.cfg", "grub/grub.cfg"] {
        let text = sys::file::read_bytes(&boot, path, 1 << 24).with_context(|| format!("reading {path}"))?;
        if text.is_some_and(|text| text.windows(wanted.len()).any(|part| part == wanted.as_bytes())) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn owned((name, content): (&str, &str)) -> (String, String) {
    (name.to_owned(), content.to_owned())
}

/// The entry in transit, whatever its counter; the one that boots first where an earlier exchange has left another one.
fn transit_in(entries: &Entries) -> Option<&str> {
    let all = entries.files().map(|(name, _)| name).filter(|name| bare(name) == TRANSIT);
    all.max_by_key(|name| !is_spent(name))
}

fn is_ours(name: &str, content: &str) -> bool {
    is_entry(name) && content.parse::<Entry>().is_ok_and(|entry| entry.is_ours())
}

/// Puts a file in place by rename, its content on the disk before its name, both before returning.
fn put(dir: &Dir, name: &str, content: &str) -> io::Result<()> {
    let written = sys::file::write(dir, ASIDE, content.as_bytes())
        .and_then(|()| sys::sync::file_system(dir.open(".")?))
        .and_then(|()| sys::rename::replace(dir, ASIDE, name));
    if written.is_err() {
        _ = sys::remove::file(dir, ASIDE);
    }
    written?;
    sys::sync::file_system(dir.open(".")?)
}

fn unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP))
}
