//! Local nodes that refer to numbers which moved: by their owner, their group, or an entry of an access list. Each is
//! noted with both numbers, and gets the new ones where the policy says so.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Plan, Step, Trees,
    acl::{LISTS, named, renumbered},
};
use crate::etc::{
    accounts::{File, Moved, Owners, Reference},
    merge::Take,
    tree::{Node, RelPath},
};

/// Notes what refers to numbers that moved, and changes it in the merged tree if `change` says so.
pub fn follow(plan: &mut Plan, trees: &mut Trees, moved: &[Moved], change: bool) {
    if moved.is_empty() {
        return;
    }
    let by_number = moved.iter().map(|one| ((one.file, one.old), one)).collect();
    let mut follow = Follow { moved: by_number, change, notes: moved.iter().map(ToString::to_string).collect() };
    let is_local = |step: &&mut Step| step.take == Take::Current && step.content.is_none();
    for (path, step) in &mut plan.steps {
        if let Some(node) = Some(step).filter(is_local).and_then(|step| step.node.as_mut()) {
            follow.node(path, node);
        }
    }
    let elsewhere: BTreeSet<&RelPath> = plan.aside.iter().chain(plan.beside.keys()).collect();
    for top in elsewhere {
        let below = trees.current.nodes.range_mut::<RelPath, _>(top..);
        for (path, node) in below.take_while(|(path, _)| *path == top || path.is_below(top)) {
            follow.node(path, node);
        }
    }
    plan.notes.extend(follow.notes);
}

struct Follow<'a> {
    moved: BTreeMap<(File, u32), &'a Moved>,
    change: bool,
    notes: Vec<String>,
}

impl Follow<'_> {
    fn node(&mut self, path: &RelPath, node: &mut Node) {
        for (file, number) in [(File::Passwd, &mut node.uid), (File::Group, &mut node.gid)] {
            if let Some(one) = self.moved.get(&(file, *number)).copied() {
                *number = self.followed(file, *number);
                self.notes.push(self.note(
                    &format!("/etc/{path} belongs to {} {}", one.kind(), one.old),
                    one,
                    self.change,
                ));
            }
        }
        for (attribute, list) in LISTS {
            let Some(value) = node.xattrs.get_mut(attribute) else { continue };
            let changed = renumbered(value, |file, number| self.followed(file, number)).filter(|_| self.change);
            for one in named(value).into_iter().filter_map(|named| self.moved.get(&named).copied()) {
                let what = format!("/etc/{path} has {} {} in its {list}", one.kind(), one.old);
                self.notes.push(self.note(&what, one, changed.is_some()));
            }
            if let Some(changed) = changed {
                *value = changed;
            }
        }
    }

    /// What a number becomes.
    fn followed(&self, file: File, number: u32) -> u32 {
        let moved = self.moved.get(&(file, number)).filter(|one| self.change && one.certain);
        moved.map_or(number, |one| one.new)
    }

    fn note(&self, what: &str, one: &Moved, changes: bool) -> String {
        let Moved { name, new, .. } = one;
        match &one.taken_by {
            _ if changes && one.certain => format!("{what}, which is {name}: it gets {new}"),
            Some(other) => {
                format!("{what}, which is {name} no longer, but {other}; {name} has {new}{}", self.advice(one))
            }
            None => format!("{what}, which is {name} no longer; {name} has {new}{}", self.advice(one)),
        }
    }

    /// What helps where nothing was changed.
    fn advice(&self, one: &Moved) -> &'static str {
        match (self.change, one.certain) {
            (false, _) => " (see follow-ids)",
            (true, false) => "; several names had the old number, so it stays: change it",
            (true, true) => "; the list would name one number twice, so it stays: change it",
        }
    }
}

/// The numbers that local nodes of the merged tree refer to, each with one of these nodes.
pub fn owners(plan: &Plan) -> Owners {
    let local = plan.steps.iter().filter(|(_, step)| step.take == Take::Current);
    let local: Vec<_> = local.filter_map(|(path, step)| Some((path, step.node.as_ref()?))).collect();
    let mut owners = Owners::default();
    for (path, node) in &local {
        owners.uids.entry(node.uid).or_insert_with(|| Reference::Owner((*path).clone()));
        owners.gids.entry(node.gid).or_insert_with(|| Reference::Owner((*path).clone()));
    }
    for (path, node) in local {
        let lists = LISTS.iter().filter_map(|(attribute, _)| node.xattrs.get(*attribute));
        for (file, number) in lists.flat_map(|value| named(value)) {
            let numbers = if file == File::Passwd { &mut owners.uids } else { &mut owners.gids };
            numbers.entry(number).or_insert_with(|| Reference::AccessList(path.clone()));
        }
    }
    owners
}
