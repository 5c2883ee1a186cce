//! Room for local nodes that are kept elsewhere than in their place.

use std::collections::BTreeSet;

use super::Plan;
use crate::etc::tree::{Kind, Node, RelPath, Tree};

/// Bytes of all that goes to `etc.conflicts` or is kept beside the image's: files, and a block a directory.
pub fn elsewhere(plan: &Plan, current: &Tree) -> u64 {
    let tops: BTreeSet<&RelPath> = plan.aside.iter().chain(plan.beside.keys()).collect();
    let below =
        |top| current.nodes.range::<RelPath, _>(top..).take_while(move |(path, _)| *path == top || path.is_below(top));
    tops.into_iter().flat_map(below).map(|(_, node)| size(node)).sum()
}

fn size(node: &Node) -> u64 {
    match node.kind {
        Kind::Dir => 4096,
        Kind::File { size, .. } => size,
        Kind::Link(_) => 0,
    }
}
