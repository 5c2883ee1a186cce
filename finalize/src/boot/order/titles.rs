//! Titles that can be told apart.

use std::collections::BTreeMap;

use super::Item;
use crate::boot::bls::Entry;

/// The titles of a menu's lines, in their order, each different from all others: where titles are equal the version is
/// added, then the beginning of the machine id, then the file's name, as systemd-boot does.
pub fn titles(entries: &[(&str, Entry)]) -> Vec<String> {
    let items: Vec<_> = entries.iter().map(|(name, entry)| Item::of_entry(name, entry)).collect();
    let mut titles: Vec<_> = items.iter().map(|item| item.title.clone().unwrap_or_else(|| item.name.clone())).collect();
    let machine = |item: &Item| item.machine_id.chars().take(8).collect::<String>();
    let added: [&dyn Fn(&Item) -> String; 3] = [&|item| item.version.clone(), &machine, &|item| item.name.clone()];
    for add in added {
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        titles.iter().for_each(|title| *times.entry(title.clone()).or_default() += 1);
        for (title, item) in titles.iter_mut().zip(&items) {
            let more = add(item);
            if times[title.as_str()] > 1 && !more.is_empty() {
                *title = format!("{title} ({more})");
            }
        }
    }
    titles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(entries: &[(&str, &str)], want: &[&str]) {
        let entries: Vec<_> =
            entries.iter().map(|(name, text)| (*name, text.replace(';', "\n").parse().unwrap())).collect();
        assert_eq!(titles(&entries), want);
    }

    #[test]
    fn equal_titles_get_what_tells_them_apart() {
        check(&[("a.conf", "title A"), ("b.conf", "title B")], &["A", "B"]);
        check(&[("a.conf", "title A;version 1"), ("b.conf", "title A;version 2")], &["A (1)", "A (2)"]);
        check(&[("a.conf", "title A;version 1"), ("b.conf", "title A")], &["A (1)", "A"]);
        let same = "title A;version 1";
        check(&[("a.conf", same), ("b.conf", same), ("c.conf", "title B")], &["A (1) (a.conf)", "A (1) (b.conf)", "B"]);
        let of = |machine: &str| format!("title A;version 1;machine-id {machine}");
        let (one, two) = (of("0123456789"), of("abcdefghij"));
        check(&[("a.conf", &one), ("b.conf", &two)], &["A (1) (01234567)", "A (1) (abcdefgh)"]);
        check(&[("a.conf", "linux /x"), ("b.conf", "")], &["a.conf", "b.conf"]);
    }
}
