//! Numbers: names whose number is another one after the merge, and numbers that more than one name may use.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use super::{
    File, Sides, Table, field, number,
    table::{Field, Record, Records},
    text,
};

/// A name whose number in the merged file is not the one that local files belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// [`File::Passwd`] or [`File::Group`].
    pub file: File,
    /// The user or the group.
    pub name: String,
    /// In the live file.
    pub old: u32,
    /// In the merged one.
    pub new: u32,
    /// Who has the old number in the merged file.
    pub taken_by: Option<String>,
    /// Whether every name of the old number in the live file has this new one. Else nobody knows whose a file is.
    pub certain: bool,
}

impl Moved {
    /// `uid` or `gid`.
    pub fn kind(&self) -> &'static str {
        if self.file == File::Passwd { "uid" } else { "gid" }
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, Self { name, old, new, .. }) = (self.kind(), self);
        write!(
            f,
            "{}: {name} has {kind} {new} in the image, and {old} here; files in /var keep {old}",
            self.file.name()
        )?;
        match &self.taken_by {
            Some(other) => write!(f, ", which is {other} then: change their owner"),
            None => write!(f, ": change their owner"),
        }
    }
}

/// Names that the live and the `merged` files have with different numbers.
pub fn moved(files: &BTreeMap<File, Sides>, merged: &BTreeMap<File, Table>) -> Vec<Moved> {
    let mut found = vec![];
    for file in [File::Passwd, File::Group] {
        let (Some(sides), Some(merged)) = (files.get(&file), merged.get(&file)) else { continue };
        let holders: BTreeMap<u32, &Field> =
            merged.records.iter().filter_map(|(name, record)| Some((number(record)?, name))).collect();
        let mut becomes: BTreeMap<u32, BTreeSet<Option<u32>>> = BTreeMap::new();
        for (name, record) in &sides.current.records {
            let new = merged.records.get(name).and_then(number);
            number(record).map(|old| becomes.entry(old).or_default().insert(new));
        }
        for (name, record) in &sides.current.records {
            let (old, new) = (number(record), merged.records.get(name).and_then(number));
            let (Some(old), Some(new)) = (old, new) else { continue };
            if old != new {
                let taken_by = holders.get(&old).map(|name| text(name));
                let certain = becomes.get(&old).is_some_and(|all| all.len() == 1);
                found.push(Moved { file, name: text(name), old, new, taken_by, certain });
            }
        }
    }
    found
}

/// Two that may use the same number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Two names of one number.
    Same(File, String, String, u32),
    /// Two names whose subordinate ranges overlap.
    Overlap(File, String, String),
    /// A name whose number is in the range of another.
    Inside(File, String, u32, String),
    /// A user of a group that there is not.
    NoGroup(String, u32),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same(file, one, other, number) => {
                write!(f, "{}: {one} and {other} share the number {number}; change one of them", file.name())
            }
            Self::Overlap(file, one, other) => {
                write!(f, "{}: the ranges of {one} and {other} overlap; change one of them", file.name())
            }
            Self::Inside(file, name, number, owner) => {
                let which = file.name();
                write!(f, "{which}: {name} has the number {number}, which is in the subordinate range of {owner}")
            }
            Self::NoGroup(user, gid) => write!(f, "passwd: {user} is of the group {gid}, which group lacks; add it"),
        }
    }
}

/// A range of subordinate numbers: first, behind the last, name.
type Range<'a> = (u64, u64, &'a Field);

impl Trouble {
    /// All that these files have. Of many that share one number or one range, each is named with one other.
    pub fn find(files: &BTreeMap<File, &Records>) -> BTreeSet<Self> {
        let mut found = BTreeSet::new();
        for (file, subordinate) in [(File::Passwd, File::Subuid), (File::Group, File::Subgid)] {
            let ranges = files.get(&subordinate).map(|records| ranges(records)).unwrap_or_default();
            let ends = overlaps(subordinate, &ranges, &mut found);
            let mut seen: BTreeMap<u32, &Field> = BTreeMap::new();
            for (name, record) in files.get(&file).into_iter().flat_map(|records| records.iter()) {
                let Some(number) = number(record) else { continue };
                if let Some(other) = seen.insert(number, name) {
                    found.insert(Self::Same(file, text(other), text(name), number));
                }
                let before = ranges.partition_point(|range| range.0 <= u64::from(number));
                let owner = before.checked_sub(1).and_then(|at| ends.get(at));
                if let Some((_, owner)) = owner.filter(|(end, _)| u64::from(number) < *end) {
                    found.insert(Self::Inside(file, text(name), number, text(owner)));
                }
            }
        }
        if let (Some(users), Some(groups)) = (files.get(&File::Passwd), files.get(&File::Group)) {
            let groups: BTreeSet<u32> = groups.values().filter_map(number).collect();
            for (user, record) in *users {
                let gid = field(record, 3).filter(|gid| !groups.contains(gid));
                found.extend(gid.map(|gid| Self::NoGroup(text(user), gid)));
            }
        }
        found
    }
}

/// Reports each range that begins before an earlier one of another name ends. Returns, for each range, where the longest
/// so far ends, and whose it is.
fn overlaps<'a>(file: File, ranges: &[Range<'a>], found: &mut BTreeSet<Trouble>) -> Vec<(u64, &'a Field)> {
    let mut ends: Vec<(u64, &Field)> = vec![];
    for (start, end, name) in ranges {
        let last = ends.last().copied();
        if let Some((_, other)) = last.filter(|(last, other)| start < last && other != name) {
            let (one, other) = if other < *name { (other, *name) } else { (*name, other) };
            found.insert(Trouble::Overlap(file, text(one), text(other)));
        }
        ends.push(last.filter(|(last, _)| last >= end).unwrap_or((*end, *name)));
    }
    ends
}

/// All ranges, by where they begin.
fn ranges(records: &Records) -> Vec<Range<'_>> {
    let lines = |(name, record): (_, &Record)| -> Vec<Range<'_>> {
        let number = |field: &[u8]| std::str::from_utf8(field).ok()?.parse::<u32>().ok().map(u64::from);
        let range = |line: &Vec<Field>| {
            let start = number(line.get(1)?)?;
            Some((start, start + number(line.get(2)?)?, name))
        };
        record.iter().filter_map(range).collect()
    };
    let mut all: Vec<_> = records.iter().flat_map(lines).collect();
    all.sort_unstable();
    all
}
