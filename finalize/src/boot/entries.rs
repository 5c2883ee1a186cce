//! A directory of Type #1 entries, read as a whole, and the order in which a boot loader shows them.

use std::{collections::BTreeMap, io};

use cap_std::fs::Dir;

use super::{
    bls::Entry,
    loader::Loader,
    order::{self, Item},
};
use crate::{digest::DeploymentId, sys};

/// The files of an entry directory: name and content. What is no regular file is not listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entries(BTreeMap<String, String>);

impl Entries {
    /// Reads the directory `name` of `loader`; nothing where there is none.
    ///
    /// Files whose name or content is not UTF-8, and files over 1 MiB, are no entries of anybody's and left out: they
    /// can only be somebody else's.
    ///
    /// # Errors
    ///
    /// Those of openat2(2), getdents(2) and read(2).
    pub fn read(loader: &Dir, name: &str) -> io::Result<Option<Self>> {
        let dir = match loader.open_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut files = BTreeMap::new();
        for file in dir.entries()? {
            let file = file?;
            let Ok(name) = file.file_name().into_string() else { continue };
            if !file.file_type()?.is_file() || name.starts_with('.') {
                continue;
            }
            match sys::file::read(&dir, &name) {
                Ok(Some(content)) => _ = files.insert(name, content),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(Self(files)))
    }

    /// All files, by name.
    pub fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, content)| (name.as_str(), content.as_str()))
    }

    /// The content of a file.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// Whether there is a file of this name, in whatever case: to FAT it is the same file.
    pub fn has_in_any_case(&self, name: &str) -> bool {
        self.0.keys().any(|other| other.eq_ignore_ascii_case(name))
    }

    /// The entries in the order in which `loader` shows them on this machine: the first one boots.
    pub fn ordered(&self, loader: Loader) -> Vec<(&str, Entry)> {
        self.ordered_by(loader, Item::of_entry)
    }

    /// The same on a machine that entries call `architecture`: `x64`, say.
    pub fn ordered_on(&self, architecture: &str, loader: Loader) -> Vec<(&str, Entry)> {
        self.ordered_by(loader, |name, entry| Item::of_entry_on(architecture, name, entry))
    }

    fn ordered_by(&self, loader: Loader, item: impl Fn(&str, &Entry) -> Item) -> Vec<(&str, Entry)> {
        let parse = |(name, content): (_, &str)| content.parse().ok().map(|entry: Entry| (name, entry));
        let bootable = |(_, entry): &(&str, Entry)| entry.files().next().is_some();
        let list: Vec<_> = self.files().filter(|(name, _)| is_entry(name)).filter_map(parse).filter(bootable).collect();
        let mut list: Vec<_> = list.into_iter().map(|(name, entry)| (item(name, &entry), name, entry)).collect();
        list.retain(|(item, ..)| item.is_shown(loader, None));
        list.sort_by(|one, other| order::compare(loader, &one.0, &other.0));
        list.into_iter().map(|(_, name, entry)| (name, entry)).collect()
    }

    /// The deployment of the first entry that is ours. Where somebody's own entry stands before it (with GRUB a file
    /// name behind `bootc_` is enough), that one boots, before a finalization as after it.
    pub fn first_deployment(&self, loader: Loader) -> Option<DeploymentId> {
        self.ordered(loader).into_iter().find(|(_, entry)| entry.is_ours()).and_then(|(_, entry)| entry.deployment())
    }

    /// The entry of deployment `id`, the first where there are several.
    pub fn of_deployment(&self, loader: Loader, id: &DeploymentId) -> Option<(&str, Entry)> {
        self.ordered(loader).into_iter().find(|(_, entry)| entry.deployment().as_ref() == Some(id))
    }
}

impl FromIterator<(String, String)> for Entries {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(files: I) -> Self {
        Self(files.into_iter().collect())
    }
}

/// Whether a file of this name is an entry; FAT keeps a name as somebody wrote it.
pub fn is_entry(name: &str) -> bool {
    name.len().checked_sub(5).and_then(|at| name.get(at..)).is_some_and(|end| end.eq_ignore_ascii_case(".conf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(files: &[(&str, &str)]) -> Entries {
        files.iter().map(|(n, c)| (format!("{n}.conf"), c.replace(';', "\n"))).collect()
    }

    fn check(loader: Loader, files: &[(&str, &str)], want: &[&str]) {
        let all = entries(files);
        let got: Vec<_> = all.ordered(loader).iter().map(|(n, _)| n.trim_end_matches(".conf").to_owned()).collect();
        assert_eq!(got, want);
    }

    #[test]
    fn systemd_boot_sorts_by_key_then_version() {
        let b = Loader::SystemdBoot;
        let [one, two] = ["sort-key k-1;version 9;linux /a", "sort-key k-0;version 1;linux /b"];
        check(b, &[("z", one), ("a", two)], &["a", "z"]);
        check(b, &[("a", "version 1;linux /a"), ("z", one)], &["z", "a"]);
        check(
            b,
            &[("x+0-3", "sort-key a;linux /a"), ("w", "linux /w"), ("y+1", "sort-key b;linux /b")],
            &["y+1", "w", "x+0-3"],
        );
        check(b, &[("a", "sort-key k;version 1.2;linux /a"), ("b", "sort-key k;version 1.10;linux /a")], &["b", "a"]);
    }

    #[test]
    fn grub_sorts_by_file_name_descending() {
        check(Loader::Grub, &[("x-9-0", "linux /a"), ("x-10-1", "linux /a")], &["x-10-1", "x-9-0"]);
        check(Loader::Grub, &[("x-13-0", "linux /a"), ("x-13-1", "linux /a")], &["x-13-1", "x-13-0"]);
    }

    #[test]
    fn an_entry_for_another_machine_is_shown_there() {
        let all =
            entries(&[("a", "architecture x64;linux /a"), ("b", "architecture AA64;linux /b"), ("c", "linux /c")]);
        let shown = |architecture: &str| -> String {
            let list = all.ordered_on(architecture, Loader::SystemdBoot);
            list.iter().map(|(name, _)| name.trim_end_matches(".conf")).collect()
        };
        assert_eq!([shown("x64"), shown("aa64")], ["ca", "cb"]);
    }

    #[test]
    fn an_entry_that_boots_nothing_is_not_first() {
        check(Loader::SystemdBoot, &[("a", ""), ("b", "title x"), ("c", "efi /x")], &["c"]);
    }
}
