//! One account file as lines: records by name, and every other line as it is.

use std::collections::{BTreeMap, BTreeSet};

use super::{File, names_in};

/// A name, or any other field.
pub type Field = Vec<u8>;

/// A record: the fields of its line. subuid(5) and subgid(5) allow several lines of one name.
pub type Record = Vec<Vec<Field>>;

/// Records by name.
pub type Records = BTreeMap<Field, Record>;

/// A line of the file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Line {
    /// The first line of this name's record.
    Record(Field),
    /// A line that is no record, without its newline.
    Other(Vec<u8>),
}

impl Line {
    /// Whether the line includes or excludes names of a directory service (nsswitch.conf(5), "Compatibility mode").
    /// Such lines end the file: nothing behind `+` is found first.
    pub fn is_compat(&self) -> bool {
        matches!(self, Self::Other(line) if line.starts_with(b"+") || line.starts_with(b"-"))
    }

    /// Whether nothing is in the line. Blank lines have no identity: one is like the other.
    pub fn is_blank(&self) -> bool {
        matches!(self, Self::Other(line) if line.trim_ascii().is_empty())
    }
}

/// A file's lines in order, and its records.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Table {
    /// Each name once.
    pub(super) lines: Vec<Line>,
    pub(super) records: Records,
}

impl Table {
    /// The lines of `bytes`; nothing when `bytes` is no text (has a NUL).
    pub fn parse(file: File, bytes: &[u8]) -> Option<Self> {
        Self::read(file, bytes).map(|(table, _)| table)
    }

    /// The same, and a remark for each line that is neither a record, a comment, blank, nor of a directory service, for
    /// each name that stands twice, and for ends of lines that are not those of this system. A remark names no content: `shadow` holds secrets.
    ///
    /// A second line of a name becomes one with the first where the lines are equal, or where both are of one number and
    /// have members, which are joined. Any other second line stays as it is: what it says is not known to be the same.
    pub fn read(file: File, bytes: &[u8]) -> Option<(Self, Vec<String>)> {
        if bytes.contains(&0) {
            return None;
        }
        let (mut table, mut remarks, mut again) = (Self::default(), vec![], Again::new());
        let text = bytes.strip_suffix(b"\n").unwrap_or(bytes);
        let lines = text.split(|b| *b == b'\n').take(if bytes.is_empty() { 0 } else { usize::MAX });
        let mut with_cr = 0;
        for (number, line) in lines.enumerate() {
            with_cr += usize::from(line.ends_with(b"\r"));
            let other = Line::Other(line.to_vec());
            let fields: Vec<Field> = line.split(|b| *b == b':').map(<[u8]>::to_vec).collect();
            let name = &fields[0];
            if other.is_compat() || other.is_blank() || line.starts_with(b"#") {
                table.lines.push(other);
            } else if fields.len() != file.shape().0 || name.is_empty() {
                remarks.push(format!("{}: line {} is no record; it stays as it is", file.name(), number + 1));
                table.lines.push(other);
            } else if let Some(record) = table.records.get_mut(name) {
                if matches!(file, File::Subuid | File::Subgid) {
                    record.push(fields);
                } else if can_join(file, &record[0], &fields) {
                    again.entry(name.clone()).or_default().0.push(fields);
                } else {
                    again.entry(name.clone()).or_default().1 += 1;
                    table.lines.push(other);
                }
            } else {
                table.lines.push(Line::Record(name.clone()));
                table.records.insert(name.clone(), vec![fields]);
            }
        }
        for (name, (same, others)) in again {
            if let Some(record) = table.records.get_mut(&name).filter(|_| !same.is_empty()) {
                join(file, &mut record[0], &same);
                remarks.push(is_one_now(file, &name, same.len() + 1));
            }
            if others > 0 {
                let (file, name, times) = (file.name(), super::text(&name), times(others + 1));
                remarks.push(format!("{file}: {name} stands {times} with different fields; all lines stay"));
            }
        }
        if with_cr > 0 {
            let (name, s) = (file.name(), if with_cr == 1 { " ends" } else { "s end" });
            remarks.push(format!("{name}: {with_cr} line{s} with a carriage return, which is part of the last field"));
        }
        Some((table, remarks))
    }

    /// The file's bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![];
        let mut put = |line: &[u8]| {
            bytes.extend_from_slice(line);
            bytes.push(b'\n');
        };
        for line in &self.lines {
            match line {
                Line::Other(line) => put(line),
                Line::Record(name) => {
                    self.records.get(name).into_iter().flatten().for_each(|fields| put(&fields.join(&b':')));
                }
            }
        }
        bytes
    }

    /// The names in order.
    pub fn names(&self) -> impl Iterator<Item = &Field> {
        self.lines.iter().filter_map(|line| match line {
            Line::Record(name) => Some(name),
            Line::Other(_) => None,
        })
    }

    /// Lines that are no records.
    pub(super) fn others(&self) -> BTreeSet<&Line> {
        self.lines.iter().filter(|line| matches!(line, Line::Other(_))).collect()
    }

    /// A table with `records`: the lines of `self` in their order, without names that `records` lacks and what `drops`
    /// says; then what only `added` has, each line behind the one that it follows there; lines of directory services last.
    pub(super) fn with(&self, records: Records, added: &Self, drops: impl Fn(&Line) -> bool) -> Self {
        let stays = |line: &&Line| match line {
            Line::Record(name) => records.contains_key(name),
            Line::Other(_) => line.is_blank() || !drops(line),
        };
        let kept: Vec<&Line> = self.lines.iter().filter(stays).collect();
        let known: BTreeSet<&Line> = self.lines.iter().collect();
        let mut behind: BTreeMap<Option<&Line>, Vec<&Line>> = BTreeMap::new();
        let (mut anchor, mut last) = (None, vec![]);
        for line in added.lines.iter().filter(|line| !line.is_blank()) {
            match () {
                () if known.contains(line) => {
                    anchor = if stays(&line) && !line.is_compat() { Some(line) } else { anchor };
                }
                () if !stays(&line) => {}
                () if line.is_compat() => last.push(line),
                () => behind.entry(anchor).or_default().push(line),
            }
        }
        let mut lines: Vec<Line> = behind.remove(&None).into_iter().flatten().cloned().collect();
        for line in kept.iter().filter(|line| !line.is_compat()) {
            lines.push((*line).clone());
            lines.extend(behind.remove(&Some(*line)).into_iter().flatten().cloned());
        }
        lines.extend(kept.into_iter().filter(|line| line.is_compat()).chain(last).cloned());
        Self { lines, records }
    }
}

/// Further lines of names that have a record: those that become one with it, and how many others there are.
type Again = BTreeMap<Field, (Vec<Vec<Field>>, usize)>;

/// Whether the first line of a name can hold all that a second one says.
fn can_join(file: File, first: &[Field], second: &[Field]) -> bool {
    let has_lists = !file.shape().1.is_empty();
    first == second || (has_lists && (file != File::Group || first[2] == second[2]))
}

/// Adds the members of further lines of a name to its first.
fn join(file: File, first: &mut [Field], more: &[Vec<Field>]) {
    for at in file.shape().1 {
        let mut seen = BTreeSet::new();
        let all = std::iter::once(&first[*at]).chain(more.iter().map(|line| &line[*at]));
        let all: Vec<&[u8]> = all.flat_map(|list| names_in(list)).filter(|name| seen.insert(*name)).collect();
        first[*at] = all.join(&b',');
    }
}

fn is_one_now(file: File, name: &[u8], lines: usize) -> String {
    let (name, times) = (super::text(name), times(lines));
    let whose = if lines == 2 { "both" } else { "all" };
    match file.shape().1 {
        [] => format!("{}: {name} stood {times}, in equal lines; it is one now", file.name()),
        _ => format!("{}: {name} stood {times}; it is one line now, with the members of {whose}", file.name()),
    }
}

fn times(number: usize) -> String {
    if number == 2 { "twice".into() } else { format!("{number} times") }
}
