//! Another order of the entries that are live: one deployment first, the others in the order that they had. Nothing is read
//! or written here.
//!
//! Every entry of ours gets the name and the key of its place, for GRUB goes by names and systemd-boot by keys: names of one
//! version, which GRUB compares first, with a number that falls, and keys with a number that rises. So the order can be
//! changed as often as somebody likes, and with two entries the names are bootc's.

use super::{
    bls::{Entry, Role},
    entries::{Entries, is_entry},
    loader::Loader,
    order::Counter,
    swap::TRANSIT,
};
use crate::digest::DeploymentId;

/// An entry on its way to its place.
struct Placed {
    entry: Entry,
    counter: Option<Counter>,
}

/// The entries of ours among `live`, that of deployment `first` before the others. Where no entry boots `first`, it is
/// `kept`, the text of one that did. Nothing where there is none.
pub fn arranged(live: &Entries, loader: Loader, first: &DeploymentId, kept: Option<&str>) -> Option<Entries> {
    let shown = live.ordered(loader);
    let boots = |(_, entry): &&(&str, Entry)| entry.deployment().as_ref() == Some(first);
    let (name, primary) =
        match shown.iter().find(|it| boots(it) && it.0 != TRANSIT).or_else(|| shown.iter().find(boots)) {
            Some((name, entry)) => (*name, entry.clone()),
            None => ("", kept?.parse().ok()?),
        };
    let is_copy = |(other, entry): &&(&str, Entry)| {
        let deployment = entry.deployment();
        // What leads the way in an exchange has another entry to come.
        let comes = || shown.iter().any(|(name, entry)| *name != TRANSIT && entry.deployment() == deployment);
        *other == name || (*other == TRANSIT && comes())
    };
    let others = shown.iter().filter(|it| it.1.is_ours() && !is_copy(it));
    let others = others.map(|(name, entry)| Placed { entry: entry.clone(), counter: Counter::split(name).1 });
    let naming = Naming::of(name, &primary);
    let list: Vec<_> = [Placed { entry: primary, counter: None }].into_iter().chain(others).collect();
    let width = list.len().saturating_sub(1).to_string().len();
    let count = list.len();
    let mut all: Vec<_> = list
        .into_iter()
        .enumerate()
        .map(|(place, placed)| {
            let text = placed.entry.with("sort-key", &naming.sort_key(place, width)).to_string();
            (naming.file_name(count - 1 - place, placed.counter), text)
        })
        .collect();
    // Ours, and for another machine or without a kernel: nobody sees them, and nobody loses them.
    let unseen = live.files().filter(|(name, content)| {
        let ours = is_entry(name) && content.parse::<Entry>().is_ok_and(|entry| entry.is_ours());
        ours && *name != TRANSIT && !shown.iter().any(|(shown, _)| shown == name)
    });
    for (name, content) in unseen {
        let stem = &name[..name.len() - ".conf".len()];
        let is_free = |name: &String| !all.iter().any(|(taken, _)| taken.eq_ignore_ascii_case(name));
        let mut names = [name.to_owned()].into_iter().chain((1..).map(|number| format!("{stem}.{number}.conf")));
        all.extend(names.find(is_free).map(|name| (name, content.to_owned())));
    }
    Some(all.into_iter().collect())
}

/// What all names, and all keys, have in common.
struct Naming {
    stem: String,
    key: String,
}

impl Naming {
    /// As the entry `primary` in the file `name` has them.
    fn of(name: &str, primary: &Entry) -> Self {
        let (name, _) = Counter::split(name);
        let parts = name.strip_prefix("bootc_").and_then(|rest| rest.strip_suffix(".conf")).and_then(|rest| {
            // A name that was made to be the first.
            let rest =
                rest.split_once('-').filter(|(os, _)| os.bytes().all(|c| c == b'z')).map_or(rest, |(_, rest)| rest);
            let (os, rest) = rest.split_once('-')?;
            Some((os.to_owned(), rest.rsplit_once('-')?.0.to_owned()))
        });
        let key = primary.value("sort-key").unwrap_or_default().trim_start_matches('!');
        let key = key.strip_prefix("bootc-").unwrap_or(key);
        let key = key.rsplit_once('-').map_or(key, |(key, _)| key);
        let (os, version) = parts.unwrap_or_else(|| (key.to_owned(), "0".to_owned()));
        let name = Role::Primary.file_name(if os.is_empty() { "bootc" } else { &os }, &version);
        let key = if key.is_empty() { os } else { key.to_owned() };
        Self { stem: name.trim_end_matches("1.conf").to_owned(), key }
    }

    fn file_name(&self, number: usize, counter: Option<Counter>) -> String {
        let tries = match counter {
            None => String::new(),
            Some(Counter { left, done: 0 }) => format!("+{left}"),
            Some(Counter { left, done }) => format!("+{left}-{done}"),
        };
        format!("{}{number}{tries}.conf", self.stem)
    }

    /// Keys are compared as text, so they are of one length.
    fn sort_key(&self, place: usize, width: usize) -> String {
        format!("bootc-{}-{place:0width$}", self.key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Loader; 2] = [Loader::SystemdBoot, Loader::Grub];

    fn id(letter: char) -> DeploymentId {
        letter.to_string().repeat(64).parse().unwrap()
    }

    fn entry(letter: char, key: &str) -> String {
        format!("title {letter}\nversion 1\nlinux /{letter}\noptions composefs={}\nsort-key {key}\n", id(letter))
    }

    fn letters(entries: &Entries, loader: Loader) -> String {
        let list = entries.ordered(loader);
        list.iter()
            .map(|(_, entry)| entry.deployment().map_or('-', |id| char::from(id.as_str().as_bytes()[0])))
            .collect()
    }

    fn live(files: &[(&str, String)]) -> Entries {
        files.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect()
    }

    #[test]
    fn two_entries_get_the_names_that_bootc_would_give_them_and_change_places_for_ever() {
        let mut now = live(&[
            ("bootc_debian-13-1.conf", entry('b', "bootc-debian-0")),
            ("bootc_debian-1-0.conf", entry('a', "bootc-debian-1")),
        ]);
        for round in 0..50 {
            let to = if round % 2 == 0 { 'a' } else { 'b' };
            let wanted = if to == 'a' { "ab" } else { "ba" };
            now = arranged(&now, BOTH[round % 2], &id(to), None).unwrap();
            assert_eq!(BOTH.map(|loader| letters(&now, loader)), [wanted, wanted]);
            let names: Vec<_> = now.files().map(|(name, _)| name).collect();
            assert_eq!(names, ["bootc_debian-1-0.conf", "bootc_debian-1-1.conf"]);
        }
    }

    #[test]
    fn any_number_of_entries_keeps_its_order_behind_the_first() {
        let names: Vec<_> = ('a'..='f').chain('0'..='9').collect();
        let file = |(at, letter): (usize, &char)| {
            (format!("bootc_x-{}-{at}.conf", 50 - at), entry(*letter, &format!("bootc-x-{at:02}")))
        };
        let now: Entries = names.iter().enumerate().map(file).collect();
        for (loader, to) in BOTH.into_iter().flat_map(|loader| names.iter().map(move |to| (loader, *to))) {
            let rest: String = letters(&now, loader).chars().filter(|letter| *letter != to).collect();
            let after = arranged(&now, loader, &id(to), None).unwrap();
            assert_eq!(BOTH.map(|loader| letters(&after, loader)), [format!("{to}{rest}"), format!("{to}{rest}")]);
        }
    }

    #[test]
    fn odd_names_counters_and_entries_in_transit_find_their_places() {
        let now = live(&[
            (TRANSIT, entry('b', "!bootc-os-0")),
            ("bootc_z-os-9-1+2-1.conf", entry('b', "!!bootc-os-0")),
            ("bootc_os-9-0+0-3.conf", entry('a', "bootc-os-1")),
            ("mine.conf", entry('c', "x")),
            ("bootc_os-9-0.conf", format!("architecture m68k\nlinux /x\noptions composefs={}\n", id('d'))),
            ("rescue.conf", "linux /rescue\n".to_owned()),
        ]);
        for loader in BOTH {
            let after = arranged(&now, loader, &id('a'), None).unwrap();
            let names: Vec<_> = after.files().map(|(name, _)| name).collect();
            let (wanted, order) = match loader {
                // GRUB asks for no architecture.
                Loader::Grub => {
                    (["bootc_os-9-0.conf", "bootc_os-9-1+2-1.conf", "bootc_os-9-2.conf", "bootc_os-9-3.conf"], "acbd")
                }
                _ => {
                    (["bootc_os-9-0.1.conf", "bootc_os-9-0.conf", "bootc_os-9-1+2-1.conf", "bootc_os-9-2.conf"], "abc")
                }
            };
            assert_eq!((names, letters(&after, loader)), (wanted.to_vec(), order.to_owned()));
        }
    }

    #[test]
    fn what_no_entry_boots_comes_back_from_its_text() {
        let now = live(&[("bootc_x-1-1.conf", entry('a', "bootc-x-0"))]);
        assert!(arranged(&now, Loader::Grub, &id('b'), None).is_none());
        let text = entry('b', "bootc-x-1");
        for loader in BOTH {
            let after = arranged(&now, loader, &id('b'), Some(&text)).unwrap();
            assert_eq!(letters(&after, loader), "ba");
        }
    }
}
