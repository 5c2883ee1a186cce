//! What a machine has changed in its /etc since the booted image: a merge into that very image, of which only the local
//! side is looked at.

use std::{fmt, io};

use anyhow::{Context, Result};
use serde_json::json;

use super::{
    Merge, Sources,
    plan::kind,
    policy::Policy,
    tree::{Kind, Node},
    view::{Change, Row, View, details},
};

/// The merge of the live /etc into the booted image. Rules do not count, but what is never carried is no drift.
///
/// # Errors
///
/// When the image ships no /etc, or something cannot be read.
pub fn read<'a>(sources: Sources<'a>, policy: &Policy) -> Result<Merge<'a>> {
    let new = sources.pristine.context("the booted image ships no /etc: nothing to compare with")?;
    Merge::plan(Sources { new, ..sources }, &Policy { ignore: policy.ignore.clone(), ..Policy::default() })
}

/// The differences, without the machine's id, which every machine gets (machine-id(5)).
///
/// # Errors
///
/// When something cannot be read.
pub fn view<'a>(merge: &'a Merge<'a>) -> Result<View<'a>> {
    let mut view = View::of(merge)?;
    view.rows.retain(|path, row| row.local.is_some() && !(path.as_bytes() == b"machine-id" && row.step.node.is_some()));
    Ok(view)
}

/// How many paths were added, changed and removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Counts {
    added: u64,
    changed: u64,
    removed: u64,
}

impl Counts {
    /// Those of a view.
    pub fn of(view: &View<'_>) -> Self {
        let count = |wanted| view.rows.values().filter(|row| row.local == Some(wanted)).count() as u64;
        Self { added: count(Change::Added), changed: count(Change::Changed), removed: count(Change::Removed) }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/etc: {} added, {} changed, {} removed here", self.added, self.changed, self.removed)
    }
}

/// Writes a line a path, and a summary.
///
/// # Errors
///
/// Those of writing.
pub fn print(view: &View<'_>, out: &mut dyn io::Write) -> io::Result<()> {
    for (path, row) in &view.rows {
        let Some(change) = row.local else { continue };
        match what(row) {
            what if what.is_empty() => writeln!(out, "{change:8} /etc/{path}")?,
            what => writeln!(out, "{change:8} /etc/{path}  ({})", what.join(", "))?,
        }
    }
    writeln!(out, "{}", Counts::of(view))
}

/// The differences as JSON: `schema` (1); `paths`, each with `path`, `change` (`added`, `changed`, `removed`), `what`
/// differs of a changed one (`content`, `type`, `target`, `mode`, `owner`, `attributes`), and the nodes `pristine` and
/// `current` as a plan has them; `skipped`, what is never carried; and `counts`.
pub fn to_json(view: &View<'_>) -> serde_json::Value {
    let rows = view.rows.iter().map(|(path, row)| {
        let [pristine, current, _] = row.sides.each_ref().map(|node| node.as_ref().map(details));
        let kind = row.sides[1].as_ref().or(row.sides[0].as_ref()).map(kind);
        json!({
            "path": path, "change": row.local, "what": what(row), "kind": kind, "pristine": pristine, "current": current,
        })
    });
    json!({
        "schema": 1, "paths": rows.collect::<Vec<_>>(), "skipped": view.merge.plan.skipped, "counts": Counts::of(view),
    })
}

/// What differs of a node that both sides have.
fn what(row: &Row) -> Vec<&'static str> {
    let [Some(one), Some(other), _] = &row.sides else { return vec![] };
    let mut what = vec![];
    let mut add = |differs: bool, name| what.extend(differs.then_some(name));
    let is_type = std::mem::discriminant(&one.kind) != std::mem::discriminant(&other.kind);
    add(is_type, "type");
    match (&one.kind, &other.kind) {
        (Kind::Link(one), Kind::Link(other)) => add(one != other, "target"),
        (Kind::File { size, .. }, Kind::File { size: other_size, .. }) => {
            // Bytes were compared where nothing else differs.
            add(size != other_size || Node::same_but_bytes(one, other), "content");
        }
        _ => {}
    }
    let has_mode = !is_type && !matches!(one.kind, Kind::Link(_));
    add(has_mode && one.mode != other.mode, "mode");
    add((one.uid, one.gid) != (other.uid, other.gid), "owner");
    add(one.xattrs != other.xattrs, "attributes");
    what
}
