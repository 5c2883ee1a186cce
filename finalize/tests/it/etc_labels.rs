//! SELinux labels that the running policy does not know. What a kernel with SELinux shows and says then is shown and said
//! here without one: the label `unlabeled_t` is put on the disk, and strace(1) lets lsetxattr(2) fail with EINVAL.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use xshell::cmd;

use crate::{
    etc_program::run,
    etc_traps::Trap,
    programs::{PROGRAM, output, shell},
};

const UNKNOWN: &str = "system_u:object_r:unlabeled_t:s0";

/// A tree with a directory that all sides have, one of the image's, and local files; none without root.
fn labelled(labels: &[(&str, &str)]) -> Option<Trap> {
    let trap = Trap::below(Path::new(env!("CARGO_TARGET_TMPDIR")));
    if fs::metadata(trap.at("p")).unwrap().uid() != 0 {
        println!("SKIPPED: not root");
        return None;
    }
    trap.file("pcn", "d/theirs", b"1");
    trap.file("c", "d/mine", b"1");
    trap.file("n", "new/theirs", b"1");
    for (path, label) in labels {
        lsetxattr(trap.at(path), "security.selinux", label.as_bytes(), XattrFlags::empty()).unwrap();
    }
    Some(trap)
}

fn label(trap: &Trap, path: &str) -> Option<String> {
    let mut value = vec![0; 256];
    let length = lgetxattr(trap.at(path), "security.selinux", &mut value).ok()?;
    Some(String::from_utf8_lossy(&value[..length]).into_owned())
}

const HINT: &str = "restorecon -R /etc";

#[test]
fn a_label_that_reads_as_none_is_not_written() {
    let labels = [("n", "image"), ("c/d", "local"), ("n/d", UNKNOWN), ("n/new", UNKNOWN), ("n/new/theirs", UNKNOWN)];
    let Some(trap) = labelled(&labels) else { return };
    let merged = run(&trap, "merge", &["--output", "m"]);
    let said = String::from_utf8_lossy(&merged.stderr);
    assert!(merged.status.success(), "{said}");
    assert_eq!(label(&trap, "m").as_deref(), Some("image"));
    assert_eq!(label(&trap, "m/d").as_deref(), Some("local"), "better than none: the local directory's");
    assert_eq!(label(&trap, "m/new"), None, "what says nothing is not written down");
    assert_eq!(label(&trap, "m/new/theirs").as_deref(), Some(UNKNOWN), "a hard link keeps what is on the disk");
    assert!(said.contains("/etc/d and 1 more") && said.contains(HINT), "{said}");
}

#[test]
fn a_label_that_cannot_be_set_does_not_fail_the_update() {
    let labels = [("n", "image"), ("n/d", "of_a_new_policy"), ("c/d/mine", "local")];
    let Some(trap) = labelled(&labels) else { return };
    let merged = output(cmd!(
        shell(trap.at("")),
        "strace -f -qq -o /dev/null -e trace=lsetxattr -e inject=lsetxattr:error=EINVAL --
         {PROGRAM} etc merge --pristine p --current c --new n --output m"
    ));
    let said = String::from_utf8_lossy(&merged.stderr);
    if said.to_lowercase().contains("ptrace") {
        println!("SKIPPED, no strace here");
        return;
    }
    assert!(merged.status.success(), "{said}");
    assert_eq!(fs::read(trap.at("m/d/mine")).unwrap(), b"1");
    assert_eq!([label(&trap, "m/d"), label(&trap, "m/d/mine")], [None, None]);
    assert!(said.contains("/etc/d: the running SELinux policy") && said.contains(HINT), "{said}");
}

#[test]
fn labels_that_are_known_are_no_news() {
    let Some(trap) = labelled(&[("n", "image"), ("n/d", "image"), ("c/d", "local"), ("c/d/mine", "local")]) else {
        return;
    };
    let merged = run(&trap, "merge", &["--output", "m"]);
    let said = String::from_utf8_lossy(&merged.stderr);
    assert!(merged.status.success() && !said.contains(HINT), "{said}");
    assert_eq!(label(&trap, "m/d").as_deref(), Some("image"));
}
