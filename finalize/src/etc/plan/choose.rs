//! What rules and policies make of the table's decisions.

use std::collections::{HashMap, HashSet};

use super::{Plan, Quiet, Step, Trees};
use crate::etc::{
    merge::{Reason, Take},
    names::Names,
    policy::{Keep, Policy},
    tree::{Node, RelPath},
};

/// The longest name that Linux file systems take.
const NAME_MAX: usize = 255;

/// `.etc-local.` and a number of any size.
const LONGEST_ENDING: usize = 32;

impl Plan {
    /// Applies what rules and policies say to the table's decision.
    pub(super) fn choose(
        &mut self,
        taken: &mut Taken,
        (policy, trees): (&Policy, &Trees),
        path: &RelPath,
        step: &mut Step,
    ) {
        let ruled = policy.rule(path);
        let keep = match (ruled, step.reason) {
            (Some(keep @ (Keep::Local | Keep::Image)), _) => keep,
            (Some(keep), reason) if reason.is_conflict() => keep,
            (None, Reason::TypeConflict) => policy.type_clash,
            _ => return,
        };
        let [c, n] = [&trees.current, &trees.new].map(|tree| tree.nodes.get(path));
        let both_dirs = c.is_some_and(Node::is_dir) && n.is_some_and(Node::is_dir);
        let keep = match keep {
            // There is nothing of the image's that the local one could be beside; a directory is not in two places.
            Keep::Both if n.is_none() || both_dirs => Keep::Local,
            keep => keep,
        };
        let wanted = match keep {
            Keep::Fail => return self.refuse(path, step, ruled),
            Keep::Local => (Take::Current, c.cloned()),
            Keep::Image | Keep::Both => (Take::New, n.cloned()),
        };
        if wanted.1.is_some() && !self.has_place(path) {
            let above = std::iter::successors(path.parent(), RelPath::parent);
            let is_leaf = |dir: &RelPath| {
                self.steps.get(dir).and_then(|step| step.node.as_ref()).is_some_and(|node| !node.is_dir())
            };
            let above = above.filter(is_leaf).last().unwrap_or_default();
            self.notes.push(format!("/etc/{path}: rule ignored: /etc/{above} is not a directory any more"));
            return;
        }
        (step.take, step.node) = wanted;
        match (keep, step.reason) {
            (Keep::Both, reason) if c.is_some() && reason.is_conflict() => {
                self.beside.insert(path.clone(), taken.free_name(path, trees, &self.quiet));
            }
            (Keep::Image, Reason::TypeConflict) => _ = self.aside.insert(path.clone()),
            (Keep::Image, Reason::Local) if c.is_some_and(Node::is_dir) && n.is_some_and(|node| !node.is_dir()) => {
                // The rule is about the directory, not about the local files in it.
                step.reason = Reason::TypeConflict;
                self.aside.insert(path.clone());
            }
            (Keep::Image, Reason::Local | Reason::Held) => step.reason = Reason::Image,
            (Keep::Local, Reason::Image) => step.reason = Reason::Held,
            _ => {}
        }
    }

    /// Conflicts that must not be decided: nothing will be written.
    fn refuse(&mut self, path: &RelPath, step: &Step, rule: Option<Keep>) {
        let setting = if rule.is_some() { "[[etc.rule]] keep = \"fail\"" } else { "[etc] type-clash = \"fail\"" };
        self.refused.insert(path.clone(), setting);
        if step.reason == Reason::TypeConflict {
            self.aside.insert(path.clone());
        }
    }

    /// Whether everything above `path` is a directory, or is nothing and can become one.
    fn has_place(&self, path: &RelPath) -> bool {
        let above = std::iter::successors(path.parent(), RelPath::parent).filter_map(|dir| self.steps.get(&dir));
        above.filter_map(|step| step.node.as_ref()).all(Node::is_dir)
    }

    /// Directories that the table dropped stay for what is in them.
    pub(super) fn keep_parents(&mut self, trees: &Trees, path: &RelPath, take: Take) {
        let tree = match take {
            Take::Current => &trees.current,
            Take::New => &trees.new,
        };
        for dir in std::iter::successors(path.parent(), RelPath::parent) {
            let Some(step) = self.steps.get_mut(&dir).filter(|step| step.node.is_none()) else { return };
            step.node = tree.nodes.get(&dir).cloned();
            step.take = take;
            if take == Take::New {
                step.reason = Reason::Image;
            }
        }
    }
}

/// Names that are no longer free: in the directory where a name was looked for last, and those that were given.
#[derive(Default)]
pub struct Taken {
    dir: Option<RelPath>,
    quiet: HashSet<Vec<u8>>,
    given: HashSet<RelPath>,
    /// The number to try next, by the beginning of a name.
    numbers: HashMap<RelPath, u64>,
}

impl Taken {
    /// `NAME.etc-local`, or with a number behind it where a tree has that; shortened where it gets too long.
    fn free_name(&mut self, path: &RelPath, trees: &Trees, quiet: &Quiet) -> RelPath {
        let parent = path.parent();
        let dir = parent.clone().unwrap_or_default();
        if self.dir.as_ref() != Some(&dir) {
            self.quiet = quiet.leaves.get(&dir).into_iter().flat_map(Names::iter).map(<[u8]>::to_vec).collect();
            self.dir = Some(dir);
        }
        // Names that are cut to one stem go on where the last of them has ended.
        let stem = &path.name()[..path.name().len().min(NAME_MAX - LONGEST_ENDING)];
        let number = self.numbers.entry(RelPath::child(parent.as_ref(), stem)).or_insert(1);
        loop {
            let ending = match *number {
                1 => ".etc-local".to_owned(),
                number => format!(".etc-local.{number}"),
            };
            *number += 1;
            let stem = &path.name()[..path.name().len().min(NAME_MAX - ending.len())];
            let name = [stem, ending.as_bytes()].concat();
            let beside = RelPath::child(parent.as_ref(), &name);
            let in_trees = [&trees.pristine, &trees.current, &trees.new].iter().any(|t| t.nodes.contains_key(&beside));
            if !in_trees && !self.quiet.contains(&name) && self.given.insert(beside.clone()) {
                return beside;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_with_one_beginning_get_names_of_their_own_without_a_search_for_each() {
        let mut taken = Taken::default();
        let name = |number: usize| RelPath::from(format!("d/{}{number:05}", "x".repeat(250)).as_str());
        let (trees, quiet) = (Trees::default(), Quiet::default());
        let given: HashSet<_> = (0..3000).map(|number| taken.free_name(&name(number), &trees, &quiet)).collect();
        assert_eq!(given.len(), 3000);
        assert!(given.iter().all(|path| path.name().len() <= NAME_MAX));
        // One name tried for each.
        assert_eq!(taken.numbers.values().copied().collect::<Vec<_>>(), [3001]);
        let short = taken.free_name(&RelPath::from("d/y"), &trees, &quiet);
        assert_eq!(short, RelPath::from("d/y.etc-local"));
    }
}
