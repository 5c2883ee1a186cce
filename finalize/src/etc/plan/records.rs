//! Account files in a plan: those on which both sides changed become merged by record.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{Plan, SameBytes, Side, Step, Trees};
use crate::etc::{
    accounts::{self, File, Moved, Owners, Sides, Table},
    merge::{Reason, Take},
    policy::{Accounts, Policy},
    tree::{Kind, Node, RelPath},
};

/// Replaces content conflicts of account files by what [`accounts::merge`] makes of them, and brings back records that
/// the image dropped where something local refers to them. What a rule names is left alone. Local files whose owner has
/// another number in the merged files are noted, and change their owner if the policy says so.
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
        let Some(step) = plan.steps.get(&path(file)).filter(|step| is_file(step.node.as_ref())) else { continue };
        let (take, ruled) = (step.take, policy.rule(&path(file)).is_some());
        let conflict = step.reason == Reason::ContentConflict && !ruled && policy.accounts == Accounts::Merge;
        let mut table = |side| bytes.read(side, &path(file)).map_err(|error| (path(file), error));
        let [current, new] =
            [Side::Current, Side::New].map(|side| if ruled && side != of(take) { Ok(None) } else { table(side) });
        let read = |bytes: &Option<Vec<u8>>| bytes.as_ref().and_then(|bytes| Table::read(file, bytes));
        let (current, new) = (read(&current?), read(&new?));
        if !conflict {
            let taken = if take == Take::New { &new } else { &current };
            decided.extend(taken.clone().map(|(table, _)| (file, table)));
        }
        let pristine = read(&table(Side::Pristine)?).map(|(table, _)| table).unwrap_or_default();
        match (current, new) {
            (Some((current, remarks)), Some((new, _))) => {
                plan.notes.extend(remarks.into_iter().filter(|_| conflict));
                files.insert(file, Sides { pristine, current, new });
            }
            (current, new) if conflict => {
                plan.notes.push(no_text(file, current.as_ref(), &pristine, new.as_ref()));
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

fn of(take: Take) -> Side {
    match take {
        Take::Current => Side::Current,
        Take::New => Side::New,
    }
}

/// Why a file could not be merged by record, and what the merged tree lacks for that.
fn no_text(
    file: File,
    current: Option<&(Table, Vec<String>)>,
    pristine: &Table,
    new: Option<&(Table, Vec<String>)>,
) -> String {
    let known: BTreeSet<_> = pristine.names().collect();
    let brought = new.iter().flat_map(|(table, _)| table.names()).filter(|name| !known.contains(name));
    let brought: Vec<_> = brought.map(|name| RelPath::from_bytes(name.clone()).to_string()).collect();
    let whose = if current.is_none() { "local" } else { "image's" };
    let lacks =
        if brought.is_empty() { String::new() } else { format!(", without the image's {}", brought.join(", ")) };
    format!("{}: the {whose} file is no text, or larger than 16 MiB; the local file stays as it is{lacks}", file.name())
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

/// Notes what belongs to numbers that moved, and changes the owner in the merged tree where that is wanted.
fn follow(plan: &mut Plan, trees: &mut Trees, moved: &[Moved], change: bool) {
    let of = |file: File| moved.iter().filter(move |one| one.file == file).map(|one| (one.old, one)).collect();
    let (uids, gids): (BTreeMap<u32, &Moved>, BTreeMap<u32, &Moved>) = (of(File::Passwd), of(File::Group));
    if moved.is_empty() {
        return;
    }
    let mut notes: Vec<_> = moved.iter().map(ToString::to_string).collect();
    let mut look = |path: &RelPath, node: &mut Node| {
        let (uid, gid) = (uids.get(&node.uid), gids.get(&node.gid));
        for one in uid.iter().chain(&gid) {
            let follows = change && one.certain;
            let Moved { name, old, new, .. } = one;
            let what = format!("/etc/{path} belongs to {} {old}, which is {name}", one.kind());
            notes.push(match (follows, &one.taken_by) {
                (true, _) => format!("{what}: it gets {new}"),
                (false, Some(other)) => format!("{what} no longer, but {other}; {name} has {new} (see follow-ids)"),
                (false, None) => format!("{what} no longer; {name} has {new} (see follow-ids)"),
            });
        }
        let new = |moved: Option<&&Moved>, old| moved.filter(|one| change && one.certain).map_or(old, |one| one.new);
        (node.uid, node.gid) = (new(uid, node.uid), new(gid, node.gid));
    };
    let is_local = |step: &&mut Step| step.take == Take::Current && step.content.is_none();
    for (path, step) in &mut plan.steps {
        if let Some(node) = Some(step).filter(is_local).and_then(|step| step.node.as_mut()) {
            look(path, node);
        }
    }
    let elsewhere: BTreeSet<&RelPath> = plan.aside.iter().chain(plan.beside.keys()).collect();
    for top in elsewhere {
        let below = trees.current.nodes.range_mut::<RelPath, _>(top..);
        for (path, node) in below.take_while(|(path, _)| *path == top || path.is_below(top)) {
            look(path, node);
        }
    }
    plan.notes.extend(notes);
}

fn path(file: File) -> RelPath {
    RelPath::from(file.name())
}

fn is_file(node: Option<&Node>) -> bool {
    node.is_some_and(|node| matches!(node.kind, Kind::File { .. }))
}

/// Who owns the local nodes of the merged tree.
fn owners(plan: &Plan) -> Owners {
    let mut owners = Owners::default();
    for (path, step) in plan.steps.iter().filter(|(_, step)| step.take == Take::Current) {
        let Some(node) = &step.node else { continue };
        owners.uids.entry(node.uid).or_insert_with(|| path.clone());
        owners.gids.entry(node.gid).or_insert_with(|| path.clone());
    }
    owners
}
