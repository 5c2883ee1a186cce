//! SELinux labels that could not be given to the merged tree: the image's policy has them, the running one does not.
//!
//! Such a label is invisible: without `mac_admin` (class capability2 of SELinux) a node that has one reads as if it had
//! none (`unlabeled_t`), and setting one is EINVAL (`security/selinux/hooks.c`, `selinux_inode_getsecurity` and
//! `selinux_inode_setxattr`). Hard links keep theirs. What is made anew, directories and copies, has another label then,
//! which no longer fails the update; a person is told, since restorecon(8) mends it after the next boot.

use std::os::fd::BorrowedFd;

use super::{
    Sources,
    merge::Take,
    plan::{Plan, Step},
    scan::Walker,
    tree::RelPath,
};
use crate::sys::xattr;

/// A line about the nodes of `merged` that have another label than the image has there; none where all have theirs.
pub fn missing(sources: &Sources<'_>, merged: BorrowedFd<'_>, plan: &Plan) -> Option<String> {
    xattr::label(sources.new, b".").ok().flatten()?;
    let [mut image, mut merged] = [sources.new, merged].map(Walker::new);
    let label = |walker: &mut Walker<'_>, path: &RelPath| {
        let dir = walker.parent_of(path).ok()?;
        xattr::label(dir, path.name()).ok().flatten()
    };
    let made = plan.steps.iter().filter(|(_, step)| is_made_anew(step)).map(|(path, _)| path);
    let mut other = made.filter(|path| label(&mut image, path).is_some_and(|it| label(&mut merged, path) != Some(it)));
    let (first, more) = (other.next()?, other.count());
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!(
        "/etc/{first}{more}: the running SELinux policy does not know the label that the new image has there: run \
         restorecon -R /etc after the next boot"
    ))
}

/// Whether the node is no hard link to the image's.
fn is_made_anew(step: &Step) -> bool {
    let made = step.take == Take::Current || step.content.is_some();
    step.node.as_ref().is_some_and(|node| made || node.is_dir())
}
