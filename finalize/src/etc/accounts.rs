//! Account files, merged by record: a system user that the image brings joins a passwd with local users.
//!
//! `passwd`, `group`, `shadow`, `gshadow`, `subuid`, `subgid` (passwd(5), group(5), shadow(5), gshadow(5), subuid(5),
//! subgid(5)). The key is the name. Within a record each field is merged three ways, the local one wins; member lists
//! merge as sets. A file is only merged so where both sides changed it; the table decides all others.
//!
//! Pure: bytes in, bytes out. A file that does not parse is left to the table.

use std::collections::{BTreeMap, BTreeSet};

/// An account file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum File {
    /// Users.
    Passwd,
    /// Groups.
    Group,
    /// Passwords of users.
    Shadow,
    /// Passwords and administrators of groups.
    Gshadow,
    /// Subordinate user numbers; several lines a name.
    Subuid,
    /// Subordinate group numbers; several lines a name.
    Subgid,
}

impl File {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::Passwd, Self::Group, Self::Shadow, Self::Gshadow, Self::Subuid, Self::Subgid];

    /// The name in /etc.
    pub fn name(self) -> &'static str {
        match self {
            Self::Passwd => "passwd",
            Self::Group => "group",
            Self::Shadow => "shadow",
            Self::Gshadow => "gshadow",
            Self::Subuid => "subuid",
            Self::Subgid => "subgid",
        }
    }

    /// Number of fields, and those that are lists of names.
    fn shape(self) -> (usize, &'static [usize]) {
        match self {
            Self::Passwd => (7, &[]),
            Self::Group => (4, &[3]),
            Self::Shadow => (9, &[]),
            Self::Gshadow => (4, &[2, 3]),
            Self::Subuid | Self::Subgid => (3, &[]),
        }
    }

    /// The file with the passwords of this one's records.
    pub fn shadow(self) -> Option<Self> {
        match self {
            Self::Passwd => Some(Self::Shadow),
            Self::Group => Some(Self::Gshadow),
            _ => None,
        }
    }
}

/// A record: the fields of its line. subuid(5) and subgid(5) allow several lines of one name.
type Record = Vec<Vec<Vec<u8>>>;

/// A file's records, by name, and the order of the names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    records: BTreeMap<Vec<u8>, Record>,
    order: Vec<Vec<u8>>,
}

impl Table {
    /// The records of `bytes`; nothing when a line has another number of fields, no name, or a name that was there
    /// before (where that is not allowed).
    pub fn parse(file: File, bytes: &[u8]) -> Option<Self> {
        let several = matches!(file, File::Subuid | File::Subgid);
        let mut table = Self::default();
        for line in bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            let fields: Vec<Vec<u8>> = line.split(|b| *b == b':').map(<[u8]>::to_vec).collect();
            let name = fields[0].clone();
            if fields.len() != file.shape().0 || name.is_empty() {
                return None;
            }
            let record = table.records.entry(name.clone()).or_default();
            match record.is_empty() {
                true => table.order.push(name),
                false if several => {}
                false => return None,
            }
            record.push(fields);
        }
        Some(table)
    }

    /// The file's bytes, a line a record, in order.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![];
        for line in self.order.iter().filter_map(|name| self.records.get(name)).flatten() {
            bytes.extend(line.join(&b':'));
            bytes.push(b'\n');
        }
        bytes
    }

    fn insert(&mut self, name: &[u8], record: Record) {
        if self.records.insert(name.to_vec(), record).is_none() {
            self.order.push(name.to_vec());
        }
    }

    fn remove(&mut self, name: &[u8]) {
        self.records.remove(name);
        self.order.retain(|other| other != name);
    }

    fn number(&self, name: &[u8], field: usize) -> Option<&[u8]> {
        self.records.get(name)?.first()?.get(field).map(Vec::as_slice)
    }
}

/// The three sides of a file.
#[derive(Debug, Clone, Default)]
pub struct Sides {
    /// The booted image's; empty when it ships none.
    pub pristine: Table,
    /// The live one.
    pub current: Table,
    /// The staged deployment's.
    pub new: Table,
}

/// What is merged, and what a person should know.
#[derive(Debug, Clone, Default)]
pub struct Merged {
    /// The files.
    pub tables: BTreeMap<File, Table>,
    /// One line each.
    pub notes: Vec<String>,
}

/// User and group numbers that local nodes of /etc have.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    /// Users.
    pub uids: BTreeSet<u32>,
    /// Groups.
    pub gids: BTreeSet<u32>,
}

/// Merges the files that both sides changed. `files` holds all that parse; `decided` says what the merged tree has for
/// those that the table decides, which change only where a record is still needed.
pub fn merge(files: &BTreeMap<File, Sides>, decided: &BTreeMap<File, Table>, owners: &Owners) -> Merged {
    let mut merged = Merged::default();
    for (file, sides) in files.iter().filter(|(file, _)| !decided.contains_key(*file)) {
        let table = merge_file(*file, sides, &mut merged.notes);
        merged.tables.insert(*file, table);
    }
    keep_what_is_referred_to(files, decided, owners, &mut merged);
    for file in [File::Passwd, File::Group] {
        report_collisions(file, &mut merged);
        keep_consistent(file, files, decided, &mut merged);
    }
    merged
}

/// Every name of the three sides, the image's order first.
fn merge_file(file: File, sides: &Sides, notes: &mut Vec<String>) -> Table {
    let mut table = Table::default();
    let local = sides.current.order.iter().filter(|name| !sides.new.records.contains_key(*name));
    for name in sides.new.order.iter().chain(local) {
        let [p, c, n] = [&sides.pristine, &sides.current, &sides.new].map(|side| side.records.get(name));
        let record = match (p, c, n) {
            _ if p == c => n.cloned(),
            _ if p == n || c == n => c.cloned(),
            (_, Some(c), Some(n)) => Some(merge_record(file, [p.unwrap_or(&vec![]), c, n], notes)),
            (_, c, _) => {
                notes.push(format!("{}: {} changed on both sides; the local record stays", file.name(), text(name)));
                c.cloned()
            }
        };
        if let Some(record) = record {
            table.insert(name, record);
        }
    }
    table
}

fn merge_record(file: File, [p, c, n]: [&Record; 3], notes: &mut Vec<String>) -> Record {
    let ([c_line], [n_line]) = (&c[..], &n[..]) else {
        return c.clone();
    };
    let none = vec![];
    let p_line = p.first().unwrap_or(&none);
    let merge_field = |at: usize| -> Vec<u8> {
        let [p, c, n] = [p_line, c_line, n_line].map(|line| line.get(at).map_or(&b""[..], Vec::as_slice));
        match () {
            () if c == n || p == n => c.to_vec(),
            () if p == c && !p_line.is_empty() => n.to_vec(),
            () if file.shape().1.contains(&at) => merge_list(p, c, n),
            () => {
                let name = text(&c_line[0]);
                notes.push(format!("{}: field {} of {name} differs; the local one stays", file.name(), at + 1));
                c.to_vec()
            }
        }
    };
    vec![(0..file.shape().0).map(merge_field).collect()]
}

/// What either side added, without what either side removed; the image's order first.
fn merge_list(p: &[u8], c: &[u8], n: &[u8]) -> Vec<u8> {
    let list = |bytes: &[u8]| -> Vec<Vec<u8>> {
        bytes.split(|b| *b == b',').filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
    };
    let [p, c, n] = [p, c, n].map(list);
    let added = c.iter().filter(|name| !n.contains(name));
    let all = n.iter().chain(added);
    let removed = |name: &Vec<u8>| p.contains(name) && !(c.contains(name) && n.contains(name));
    all.filter(|name| !removed(name)).cloned().collect::<Vec<_>>().join(&b',')
}

/// Users and groups that the image dropped stay while something local refers to them.
fn keep_what_is_referred_to(
    files: &BTreeMap<File, Sides>,
    decided: &BTreeMap<File, Table>,
    owners: &Owners,
    merged: &mut Merged,
) {
    let of = |merged: &Merged, file| merged.tables.get(&file).or_else(|| decided.get(&file)).cloned();
    let primary_groups: BTreeSet<&[u8]> = local_lines(files, File::Passwd).map(|line| &line[3][..]).collect();
    let members: BTreeSet<&[u8]> = local_lines(files, File::Group).flat_map(|line| names_in(&line[3])).collect();
    let all_members: BTreeSet<Vec<u8>> = of(merged, File::Group).iter().flat_map(member_names).collect();
    for (file, owned) in [(File::Passwd, &owners.uids), (File::Group, &owners.gids)] {
        let (Some(sides), Some(mut table)) = (files.get(&file), of(merged, file)) else { continue };
        let before = table.order.len();
        for name in &sides.current.order {
            if table.records.contains_key(name) || sides.new.records.contains_key(name) {
                continue;
            }
            let number = sides.current.number(name, 2).unwrap_or_default();
            let is_owner = text(number).parse().is_ok_and(|number| owned.contains(&number));
            let is_named = match file {
                File::Passwd => members.contains(&name[..]) && all_members.contains(name),
                _ => primary_groups.contains(number),
            };
            if is_owner || is_named {
                let note = format!("{}: the image dropped {}, which is still referred to", file.name(), text(name));
                merged.notes.push(note);
                table.insert(name, sides.current.records[name].clone());
            }
        }
        if table.order.len() > before {
            merged.tables.insert(file, table);
        }
    }
}

/// Lines that were added or changed here.
fn local_lines(files: &BTreeMap<File, Sides>, file: File) -> impl Iterator<Item = &Vec<Vec<u8>>> {
    files.get(&file).into_iter().flat_map(|sides| {
        let changed = |name: &Vec<u8>, record: &Record| sides.pristine.records.get(name) != Some(record);
        sides.current.records.iter().filter(move |(name, record)| changed(name, record)).flat_map(|(_, record)| record)
    })
}

fn member_names(table: &Table) -> impl Iterator<Item = Vec<u8>> {
    let lists = table.records.values().flatten().filter_map(|line| line.get(3));
    lists.flat_map(|list| names_in(list)).map(<[u8]>::to_vec)
}

fn names_in(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').filter(|name| !name.is_empty())
}

/// Two names of one number: both stay, for files of either belong to that number.
fn report_collisions(file: File, merged: &mut Merged) {
    let Some(table) = merged.tables.get(&file) else { return };
    let mut seen: BTreeMap<&[u8], &[u8]> = BTreeMap::new();
    let mut notes = vec![];
    for name in &table.order {
        let Some(number) = table.number(name, 2) else { continue };
        if let Some(other) = seen.insert(number, name) {
            notes.push(format!("{}: {} and {} have the number {}", file.name(), text(other), text(name), text(number)));
        }
    }
    merged.notes.extend(notes);
}

/// No name in one file of a pair that the merge left out of the other.
fn keep_consistent(file: File, files: &BTreeMap<File, Sides>, decided: &BTreeMap<File, Table>, merged: &mut Merged) {
    let Some(shadow) = file.shadow() else { return };
    let of = |merged: &Merged, file| merged.tables.get(&file).or_else(|| decided.get(&file)).cloned();
    let (Some(names), Some(mut passwords)) = (of(merged, file), of(merged, shadow)) else { return };
    let before = passwords.clone();
    let known = |name: &Vec<u8>| {
        let sides = files.get(&file);
        sides.is_some_and(|s| [&s.pristine, &s.current, &s.new].iter().any(|side| side.records.contains_key(name)))
    };
    for name in before.order.iter().filter(|name| !names.records.contains_key(*name) && known(name)) {
        passwords.remove(name);
    }
    for name in names.order.iter().filter(|name| !before.records.contains_key(*name)) {
        let sides = files.get(&shadow);
        let found = sides.and_then(|s| s.current.records.get(name).or_else(|| s.new.records.get(name)));
        if let Some(record) = found {
            passwords.insert(name, record.clone());
        }
    }
    if passwords != before {
        merged.tables.insert(shadow, passwords);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
