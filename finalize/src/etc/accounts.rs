//! Account files, merged by record: a system user that the image brings joins a passwd with local users.
//!
//! `passwd`, `group`, `shadow`, `gshadow`, `subuid`, `subgid` (passwd(5), group(5), shadow(5), gshadow(5), subuid(5),
//! subgid(5)). The key is the name. Within a record each field is merged three ways, the local one wins; member lists
//! merge as sets. Lines that are no records (comments, lines of directory services, lines with a field missing) stay where
//! they are. A file is only merged so where both sides changed it; the table decides all others.
//!
//! Pure: bytes in, bytes out. Only a file that is no text is left to the table.

mod numbers;
mod references;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use self::{
    numbers::Trouble,
    table::{Field, Line, Record, Records},
};
pub use self::{
    numbers::{Moved, moved},
    table::Table,
};
use super::tree::RelPath;

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
    /// Names whose number is another one in the merged files.
    pub moved: Vec<Moved>,
}

/// User and group numbers that local nodes of /etc refer to, each with one of these nodes.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    /// Users.
    pub uids: BTreeMap<u32, Reference>,
    /// Groups.
    pub gids: BTreeMap<u32, Reference>,
}

/// How a node of /etc refers to a number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// It is the node's owner or group.
    Owner(RelPath),
    /// An access list of the node names it.
    AccessList(RelPath),
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owner(path) => write!(f, "/etc/{path} belongs to it"),
            Self::AccessList(path) => write!(f, "an access list of /etc/{path} names it"),
        }
    }
}

/// Merges the files that both sides changed. `files` holds all that parse; `decided` says what the merged tree has for
/// those that the table decides, which change only where a record is still needed.
pub fn merge(files: &BTreeMap<File, Sides>, decided: &BTreeMap<File, Table>, owners: &Owners) -> Merged {
    let mut notes = vec![];
    let mut records: BTreeMap<File, Records> =
        decided.iter().map(|(file, table)| (*file, table.records.clone())).collect();
    for (file, sides) in files.iter().filter(|(file, _)| !decided.contains_key(*file)) {
        records.insert(*file, merge_file(*file, sides, &mut notes));
    }
    let mut work = Work { files, records, notes };
    work.keep_what_is_referred_to(owners);
    work.keep_consistent();
    work.drop_members_that_are_gone();
    let before = files.iter().map(|(file, sides)| (*file, &sides.current.records)).collect();
    let known = Trouble::find(&before);
    let after = Trouble::find(&work.records.iter().map(|(file, records)| (*file, records)).collect());
    work.notes.extend(after.difference(&known).map(ToString::to_string));
    let tables = work.tables(decided);
    let result = |file: &File| tables.get(file).or_else(|| decided.get(file)).cloned();
    let moved = moved(files, &files.keys().filter_map(|file| Some((*file, result(file)?))).collect());
    Merged { tables, notes: work.notes, moved }
}

/// The merged records of all files, while they are put together.
struct Work<'a> {
    files: &'a BTreeMap<File, Sides>,
    records: BTreeMap<File, Records>,
    notes: Vec<String>,
}

impl Work<'_> {
    /// The files that are neither side's as a whole.
    fn tables(&self, decided: &BTreeMap<File, Table>) -> BTreeMap<File, Table> {
        let mut tables = BTreeMap::new();
        for (file, sides) in self.files {
            let Some(records) = self.records.get(file) else { continue };
            let table = match decided.get(file) {
                Some(table) if table.records == *records => continue,
                // As the image has it, with records of the local file; or the other way round.
                Some(table) => {
                    let added = if *table == sides.new { &sides.current } else { &sides.new };
                    table.with(records.clone(), &Table { lines: records_of(added), ..Table::default() }, |_| false)
                }
                None => {
                    let [pristine, new] = [&sides.pristine, &sides.new].map(Table::others);
                    let current = sides.current.others();
                    let drops =
                        |line: &Line| pristine.contains(line) && !(new.contains(line) && current.contains(line));
                    sides.current.with(records.clone(), &sides.new, drops)
                }
            };
            tables.insert(*file, table);
        }
        tables
    }
}

fn records_of(table: &Table) -> Vec<Line> {
    table.names().cloned().map(Line::Record).collect()
}

/// Every name of the three sides.
fn merge_file(file: File, sides: &Sides, notes: &mut Vec<String>) -> Records {
    let mut records = Records::new();
    let names: BTreeSet<&Field> = sides.current.records.keys().chain(sides.new.records.keys()).collect();
    for name in names {
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
        records.extend(record.map(|record| (name.clone(), record)));
    }
    records
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
    let [was, here, there] = [p, c, n].map(|list| names_in(list).collect::<BTreeSet<_>>());
    let added = names_in(c).filter(|name| !there.contains(name));
    let removed = |name: &&[u8]| was.contains(name) && !(here.contains(name) && there.contains(name));
    names_in(n).chain(added).filter(|name| !removed(name)).collect::<Vec<_>>().join(&b',')
}

fn names_in(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').filter(|name| !name.is_empty())
}

/// A name for messages: one line, whatever it holds.
fn text(bytes: &[u8]) -> String {
    RelPath::from_bytes(bytes.to_vec()).to_string()
}

/// A user's or a group's number, in the third field.
fn number(record: &Record) -> Option<u32> {
    field(record, 2)
}

/// A field that is a number.
fn field(record: &Record, at: usize) -> Option<u32> {
    std::str::from_utf8(record.first()?.get(at)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
