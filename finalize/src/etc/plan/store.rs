//! The compiled SELinux policy below `selinux/<type>/` (semanage.conf(5), selinux_config(5)): modules, booleans, the
//! policy and the contexts that are made of them. Half of one store and half of another is no policy, so a store is all
//! local or all the image's.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

use super::{Plan, SameBytes, Side, Step, Trees, same};
use crate::etc::{
    merge::{Reason, Take},
    policy::{Keep, Policy},
    tree::{Node, RelPath},
};

/// Whether a path, or all that is below it, is part of a store.
pub fn is_part(path: &RelPath) -> bool {
    type_of(path).is_some()
}

/// The type of policy whose store a path is part of. Contexts that only a person writes (semanage-fcontext(8)) are none:
/// they go with any policy.
fn type_of(path: &RelPath) -> Option<Vec<u8>> {
    let mut names = path.components();
    let (Some(b"selinux"), Some(kind), Some(part)) = (names.next(), names.next(), names.next()) else { return None };
    let in_store = matches!(part, b"policy" | b"contexts" | b"active" | b"seusers" | b".policy.sha512");
    let own = matches!(
        path.name(),
        b"file_contexts.local" | b"file_contexts.local.bin" | b"file_contexts.subs" | b"commit_num"
    );
    (in_store && !own).then(|| kind.to_vec())
}

/// Decides each store as one: local where modules or booleans were changed here and the image has another policy.
///
/// # Errors
///
/// The path and the error of a file that could not be read.
pub fn decide(
    plan: &mut Plan,
    trees: &Trees,
    bytes: &mut dyn SameBytes,
    policy: &Policy,
) -> Result<(), (RelPath, io::Error)> {
    let mut stores: BTreeMap<Vec<u8>, BTreeSet<RelPath>> = BTreeMap::new();
    let selinux = plan
        .steps
        .range(RelPath::from("selinux")..)
        .take_while(|(path, _)| path.components().next() == Some(b"selinux"));
    for path in selinux.map(|(path, _)| path) {
        if let Some(kind) = type_of(path) {
            stores.entry(kind).or_default().insert(path.clone());
        }
    }
    for (kind, paths) in stores {
        let top = RelPath::child(Some(&RelPath::from("selinux")), &kind);
        let is_dir = |step: &Step| step.node.as_ref().is_none_or(Node::is_dir);
        if !plan.steps.get(&top).is_none_or(is_dir) {
            continue;
        }
        let compiled = RelPath::child(Some(&top), b"policy");
        let compiled = paths.iter().find(|path| path.is_below(&compiled) && trees.current.nodes.contains_key(*path));
        let rule = compiled.and_then(|path| policy.rule(path));
        match rule.or_else(|| paths.iter().find_map(|path| policy.rule(path))) {
            Some(Keep::Fail) => {}
            Some(Keep::Image) => {
                let lost = lost_modules(trees, &paths);
                take(plan, trees, &paths, Take::New);
                plan.notes.extend(lost.into_iter().map(|module| {
                    format!(
                        "/etc/{top}: the local module {module} is not in the image's policy: install it (semodule -i)"
                    )
                }));
            }
            Some(Keep::Local) => take(plan, trees, &paths, Take::Current),
            Some(Keep::Both) | None => {
                let changed = |path: &&RelPath| !matches!(plan.steps[*path].reason, Reason::Image | Reason::Converged);
                let Some(first) = paths.iter().find(changed) else { continue };
                let conflict = compiled.filter(changed).unwrap_or(first).clone();
                let differing = differing(trees, &paths, bytes)?;
                if differing.is_empty() {
                    continue;
                }
                let is_alike = |path: &RelPath| match plan.steps[path].reason {
                    Reason::Image => !differing.contains(path),
                    reason => reason == Reason::Converged,
                };
                let paths = paths.iter().filter(|path| !is_alike(path)).cloned().collect();
                take(plan, trees, &paths, Take::Current);
                if let Some(step) = plan.steps.get_mut(&conflict) {
                    step.reason = Reason::ContentConflict;
                }
                plan.notes.push(format!(
                    "/etc/{top}: the policy was changed here (modules, booleans) and in the image: all of it stays local, \
                     and `semodule -B` after the boot checks it; for the image's, add a rule with keep = \"image\" for \
                     {top}/** and install local modules again (semodule -i)"
                ));
            }
        }
    }
    Ok(())
}

/// Where the image's store is not the booted one's.
fn differing(
    trees: &Trees,
    paths: &BTreeSet<RelPath>,
    bytes: &mut dyn SameBytes,
) -> Result<BTreeSet<RelPath>, (RelPath, io::Error)> {
    let mut differing = BTreeSet::new();
    for path in paths {
        let [p, n] = [&trees.pristine, &trees.new].map(|tree| tree.nodes.get(path));
        let same = same((Side::Pristine, p), (Side::New, n), path, bytes);
        if !same.map_err(|error| (path.clone(), error))? {
            differing.insert(path.clone());
        }
    }
    Ok(differing)
}

/// All paths as one side has them.
fn take(plan: &mut Plan, trees: &Trees, paths: &BTreeSet<RelPath>, side: Take) {
    let (tree, reason) = match side {
        Take::Current => (&trees.current, Reason::Local),
        Take::New => (&trees.new, Reason::Image),
    };
    plan.aside.retain(|path| !paths.contains(path));
    plan.beside.retain(|path, _| !paths.contains(path));
    plan.refused.retain(|path, _| !paths.contains(path));
    for path in paths {
        let node = tree.nodes.get(path).cloned();
        let there = node.is_some();
        let was = plan.steps.get(path).map_or(Reason::Image, |step| step.reason);
        let reason = if reason == Reason::Local && was == Reason::Image { Reason::Held } else { reason };
        plan.steps.insert(path.clone(), Step { take: side, reason, node, content: None });
        if there {
            plan.keep_parents(trees, path, side);
        }
    }
}

/// Modules (`active/modules/<priority>/<name>`) that only the live store has.
fn lost_modules(trees: &Trees, paths: &BTreeSet<RelPath>) -> Vec<String> {
    let is_module = |path: &&RelPath| {
        let names: Vec<&[u8]> = path.components().collect();
        matches!(names[..], [_, _, b"active", b"modules", _, _])
    };
    let lost = |path: &&RelPath| trees.current.nodes.contains_key(*path) && !trees.new.nodes.contains_key(*path);
    let show = |path: &RelPath| RelPath::from_bytes(path.name().to_vec()).to_string();
    paths.iter().filter(is_module).filter(lost).map(show).collect()
}
