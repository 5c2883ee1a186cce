//! Account files in a plan: those on which both sides changed become merged by record.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{
    Plan, SameBytes, Side, Trees,
    follow::{follow, owners},
};
use crate::etc::{
    accounts::{self, File, Sides, Table},
    merge::{Reason, Take},
    policy::{Accounts, Policy},
    tree::{Kind, RelPath, Tree},
};

/// Replaces content conflicts of account files by what [`accounts::merge`] makes of them, and brings back records that
/// the image dropped where something local refers to them. What a rule names is left alone. Local nodes that
/// refer to a number which is another one in the merged files are noted, and follow it if the policy says so.
///
/// # Errors
///
/// The path and the error of a file that could not be read.
pub fn decide(
    plan: &mut Plan,
    trees: &mut Trees,
    bytes: &mut dyn SameBytes,
    policy: &Policy,
) -> Result<(), (RelPath, io::Error)> {
    let (mut files, mut decided) = (BTreeMap::new(), BTreeMap::new());
    for file in File::ALL {
        let Some(step) = plan.steps.get(&path(file)) else { continue };
        let (take, ruled) = (step.take, policy.rule(&path(file)).is_some());
        let conflict = step.reason == Reason::ContentConflict && !ruled && policy.accounts == Accounts::Merge;
        let mut read = |side| read(file, trees.side(side), side, bytes);
        let unread = || Err("is not read");
        let current = if ruled && take == Take::New { unread() } else { read(Side::Current)? };
        let new = if ruled && take == Take::Current { unread() } else { read(Side::New)? };
        if !conflict {
            let taken = if take == Take::New { &new } else { &current };
            decided.extend(taken.as_ref().ok().map(|(table, _)| (file, table.clone())));
        }
        let pristine = read(Side::Pristine)?.map(|(table, _)| table).unwrap_or_default();
        match (current, new) {
            (Ok((current, remarks)), Ok((new, _))) => {
                plan.notes.extend(remarks.into_iter().filter(|_| conflict));
                if conflict && current.names().next().is_none() && pristine.names().next().is_some() {
                    let why = "the local one has no records; those of the booted image count as removed here";
                    plan.notes.push(format!("{}: {why}", file.name()));
                }
                files.insert(file, Sides { pristine, current, new });
            }
            (Err(why), new) if conflict => {
                let new = new.map(|(new, _)| new).unwrap_or_default();
                plan.notes.push(format!(
                    "{}: the local one {why} and stays as it is{}",
                    file.name(),
                    lacks(&pristine, &new)
                ));
            }
            (_, Err(why)) if conflict => {
                plan.notes.push(format!("{}: the image's {why}; the local one stays as it is", file.name()));
            }
            _ => {}
        }
    }
    let moved = match policy.accounts {
        Accounts::File => accounts::moved(&files, &decided),
        Accounts::Merge => {
            let merged = accounts::merge(&files, &decided, &owners(plan));
            for (file, table) in merged.tables {
                put(plan, trees, &path(file), table.bytes());
            }
            plan.notes.extend(merged.notes);
            merged.moved
        }
    };
    follow(plan, trees, &moved, policy.follow_ids);
    Ok(())
}

/// One side of an account file, with remarks about its lines; or why it cannot be read by record.
type Read = Result<(Table, Vec<String>), &'static str>;

/// # Errors
///
/// The path and the error of a file that could not be read.
fn read(file: File, tree: &Tree, side: Side, bytes: &mut dyn SameBytes) -> Result<Read, (RelPath, io::Error)> {
    let path = path(file);
    Ok(match tree.nodes.get(&path).map(|node| &node.kind) {
        None => Err("is not there"),
        Some(Kind::Dir) => Err("is a directory"),
        Some(Kind::Link(_)) => Err("is a symlink"),
        Some(Kind::File { .. }) => match bytes.read(side, &path).map_err(|error| (path, error))? {
            None => Err("is larger than 16 MiB"),
            Some(bytes) => Table::read(file, &bytes).ok_or("is no text"),
        },
    })
}

/// What the merged tree lacks where a file could not be merged by record.
fn lacks(pristine: &Table, new: &Table) -> String {
    let known: BTreeSet<_> = pristine.names().collect();
    let brought = new.names().filter(|name| !known.contains(name));
    let brought: Vec<_> = brought.map(|name| RelPath::from_bytes(name.clone()).to_string()).collect();
    if brought.is_empty() { String::new() } else { format!(", without the image's {}", brought.join(", ")) }
}

/// Makes `content` what is at `path`: owner, mode and attributes by the table, each by itself.
fn put(plan: &mut Plan, trees: &Trees, path: &RelPath, content: Vec<u8>) {
    let Some(step) = plan.steps.get_mut(path) else { return };
    let [p, c, n] = [&trees.pristine, &trees.current, &trees.new].map(|tree| tree.nodes.get(path));
    step.reason = Reason::Records;
    if let (Some(c), Some(n)) = (c, n) {
        let mut node = c.clone();
        let mut differs = vec![];
        if pick(p.map(|p| p.mode), &mut node.mode, n.mode) {
            differs.push("mode");
        }
        let mut owner = (c.uid, c.gid);
        if pick(p.map(|p| (p.uid, p.gid)), &mut owner, (n.uid, n.gid)) {
            differs.push("owner");
        }
        (node.uid, node.gid) = owner;
        if pick(p.map(|p| p.xattrs.clone()), &mut node.xattrs, n.xattrs.clone()) {
            differs.push("extended attributes");
        }
        if !differs.is_empty() {
            plan.notes.push(format!("{path}: {} differ on both sides; the local ones stay", differs.join(", ")));
        }
        step.node = Some(node);
    }
    if let Some(Kind::File { size, .. }) = step.node.as_mut().map(|node| &mut node.kind) {
        *size = content.len() as u64;
    }
    step.content = Some(content);
}

/// The image's value where nobody changed it here. Says whether both sides changed it, each in another way.
fn pick<T: PartialEq>(pristine: Option<T>, current: &mut T, new: T) -> bool {
    let changed = pristine.as_ref().is_some_and(|pristine| pristine != current);
    if !changed && pristine.is_some() {
        *current = new;
        return false;
    }
    *current != new && pristine.as_ref() != Some(&new)
}

fn path(file: File) -> RelPath {
    RelPath::from(file.name())
}
