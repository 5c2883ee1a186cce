//! Files that were made immutable or append-only here, and else are the booted image's: to have the flag, a file must be a
//! copy of its own.

use std::io;

use super::{Plan, SameBytes, Side, Trees, same};
use crate::etc::{
    merge::{Reason, Take},
    tree::{Node, RelPath},
};

/// Keeps such a file where the image has no other one; notes that the flag is lost where it has.
///
/// # Errors
///
/// The path and the error of a file that could not be read.
pub fn keep(plan: &mut Plan, trees: &Trees, bytes: &mut dyn SameBytes) -> Result<(), (RelPath, io::Error)> {
    for path in &trees.flagged {
        let [p, c, n] = [&trees.pristine, &trees.current, &trees.new].map(|tree| tree.nodes.get(path));
        let Some(step) = plan.steps.get_mut(path).filter(|step| step.reason == Reason::Image) else { continue };
        if same((Side::Pristine, p), (Side::New, n), path, bytes).map_err(|error| (path.clone(), error))? {
            (step.take, step.reason, step.node) = (Take::Current, Reason::Held, c.cloned());
        } else if step.node.as_ref().is_some_and(|node| !Node::is_dir(node)) {
            let why = "may not be changed here (chattr), but is the booted image's";
            plan.notes.push(format!("/etc/{path} {why}: the new one is taken, without the flag"));
        }
    }
    Ok(())
}
