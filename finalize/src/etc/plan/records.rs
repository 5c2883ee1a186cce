//! Account files in a plan: those on which both sides changed become merged by record.

use std::{collections::BTreeMap, io};

use super::{Plan, SameBytes, Side};
use crate::etc::{
    accounts::{self, File, Owners, Sides, Table},
    merge::{Reason, Take},
    policy::Policy,
    tree::{Kind, RelPath},
};

/// Replaces content conflicts of account files by what [`accounts::merge`] makes of them, and brings back records that
/// the image dropped where something local refers to them. What a rule names is left alone.
///
/// # Errors
///
/// The path and the error of a file that could not be read.
pub fn decide(plan: &mut Plan, bytes: &mut dyn SameBytes, policy: &Policy) -> Result<(), (RelPath, io::Error)> {
    let (mut files, mut decided) = (BTreeMap::new(), BTreeMap::new());
    for file in File::ALL {
        let Some(step) = plan.steps.get(&path(file)).filter(|step| is_file(step.node.as_ref())) else { continue };
        let mut table = |side| -> Result<Option<Table>, (RelPath, io::Error)> {
            let bytes = bytes.read(side, &path(file)).map_err(|error| (path(file), error))?;
            Ok(bytes.and_then(|bytes| Table::parse(file, &bytes)))
        };
        let (current, new) = (table(Side::Current)?, table(Side::New)?);
        let conflict = step.reason == Reason::ContentConflict && policy.rule(&path(file)).is_none();
        if !conflict {
            let taken = if step.take == Take::New { &new } else { &current };
            decided.extend(taken.clone().map(|table| (file, table)));
        }
        if let (Some(current), Some(new), true) = (current, new, policy.rule(&path(file)).is_none()) {
            let pristine = table(Side::Pristine)?.unwrap_or_default();
            files.insert(file, Sides { pristine, current, new });
        }
    }
    let merged = accounts::merge(&files, &decided, &owners(plan));
    for (file, table) in merged.tables {
        let Some(step) = plan.steps.get_mut(&path(file)) else { continue };
        let content = table.bytes();
        step.reason = Reason::Records;
        if let Some(Kind::File { size, .. }) = step.node.as_mut().map(|node| &mut node.kind) {
            *size = content.len() as u64;
        }
        step.content = Some(content);
    }
    plan.notes.extend(merged.notes);
    Ok(())
}

fn path(file: File) -> RelPath {
    RelPath::from(file.name())
}

fn is_file(node: Option<&crate::etc::tree::Node>) -> bool {
    node.is_some_and(|node| matches!(node.kind, Kind::File { .. }))
}

/// Who owns the local nodes of the merged tree.
fn owners(plan: &Plan) -> Owners {
    let local = plan.steps.values().filter(|step| step.take == Take::Current).filter_map(|step| step.node.as_ref());
    let mut owners = Owners::default();
    for node in local {
        owners.uids.insert(node.uid);
        owners.gids.insert(node.gid);
    }
    owners
}
