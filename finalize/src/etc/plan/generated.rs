//! Files that a program makes from others: indexes, not settings. Where the image ships another one than before, a local
//! one is stale. Rules of the configuration come first.

use super::{Plan, Step, Trees};
use crate::etc::{
    merge::{Reason, Take},
    policy::{Keep, Policy},
    tree::{Node, RelPath},
};

impl Plan {
    /// Lets a generated file follow the image where it would be in conflict, and notes that it does.
    pub(super) fn follow_if_generated(&mut self, policy: &Policy, path: &RelPath, step: &mut Step, trees: &Trees) {
        let in_conflict = matches!(step.reason, Reason::ContentConflict | Reason::RemovedConflict);
        if !in_conflict || !is_generated(path) || policy.rule(path).is_some_and(|keep| keep != Keep::Image) {
            return;
        }
        let above = path.parent().and_then(|above| self.steps.get(&above));
        let has_place = above.is_none_or(|above| above.node.as_ref().is_some_and(Node::is_dir));
        let Some(new) = trees.new.nodes.get(path).filter(|new| !new.is_dir() && has_place) else { return };
        (step.take, step.reason, step.node) = (Take::New, Reason::Image, Some(new.clone()));
        self.notes.push(format!("/etc/{path}: a program makes it from other files, so it follows the image"));
    }
}

/// ld.so.cache (ldconfig(8)), hwdb.bin (systemd-hwdb(8)), what `update-ca-trust` and `update-ca-certificates` extract,
/// backups of account files (passwd(5) and its like, with a `-`), and the number of the last change to a policy store.
fn is_generated(path: &RelPath) -> bool {
    let names: Vec<&[u8]> = path.components().collect();
    matches!(
        names[..],
        [b"ld.so.cache" | b"passwd-" | b"group-" | b"shadow-" | b"gshadow-" | b"subuid-" | b"subgid-"]
            | [b"udev", b"hwdb.bin"]
            | [b"ssl", b"certs", b"ca-certificates.crt"]
            | [b"pki", b"ca-trust", b"extracted", _, ..]
            | [b"ca-certificates", b"extracted", _, ..]
            | [b"selinux", _, b"active", b"commit_num"]
    )
}
