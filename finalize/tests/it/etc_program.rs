//! What a person sees of a merge, and what only a process of its own shows: exit codes, secrets, limits, owners.

use std::{
    fs::{self, Permissions},
    os::unix::{
        fs::{MetadataExt, PermissionsExt, chown, symlink},
        process::CommandExt,
    },
    process::{Command, Output},
};

use cap_std::{ambient_authority, fs::Dir};
use finalize::etc::plan::Colour;
use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
use xshell::cmd;

use crate::{
    etc_traps::Trap,
    programs::{PROGRAM, ok, output, shell},
};

/// The user that owns nothing.
const NOBODY: u32 = 65534;

pub fn run(trap: &Trap, command: &str, more: &[&str]) -> Output {
    output(cmd!(shell(trap.at("")), "{PROGRAM} etc {command} --pristine p --current c --new n {more...}"))
}

fn is_root(trap: &Trap) -> bool {
    let root = fs::metadata(trap.at("p")).unwrap().uid() == 0;
    if !root {
        println!("SKIPPED: not root");
    }
    root
}

/// What an attribute of a node is, if it has it.
fn xattr(trap: &Trap, path: &str, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = lgetxattr(trap.at(path), name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

/// On the file system of the checkout, which has more kinds of attributes than a temporary one may have.
fn trap() -> Trap {
    Trap::below(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")))
}

#[test]
fn content_that_is_not_for_everybody_is_never_shown() {
    let trap = trap();
    for path in ["shadow-", ".gshadow.swp", "security/opasswd", "private", "late.key"] {
        trap.file("pn", path, b"before-secret\n");
        trap.file("c", path, b"after-secret\n");
    }
    fs::set_permissions(trap.at("c/private"), Permissions::from_mode(0o640)).unwrap();
    // An image's key that was removed here, behind a long comment.
    trap.file("pn", "late.key", &[&[b'#'; 5000][..], b"\n-----BEGIN PRIVATE KEY-----\nsecret\n"].concat());
    trap.file("c", "open", b"shown\n");
    for more in [&["--content"][..], &["--content", "--json"]] {
        let text = String::from_utf8(run(&trap, "plan", more).stdout).unwrap();
        assert!(text.contains("shown") && !text.contains("secret\n") && !text.contains("-secret"), "{text}");
    }
}

#[test]
fn lines_are_coloured_for_a_terminal_and_the_summary_is_last() {
    let trap = trap();
    trap.file("pn", "a", b"1");
    trap.file("c", "a", b"2");
    let plan = trap.merge();
    let lines = |colour| {
        let mut text = vec![];
        plan.print(&mut text, colour).unwrap();
        String::from_utf8(text).unwrap()
    };
    assert_eq!(lines(Colour::On), lines(Colour::Off).replacen("keep  ", "\x1b[32mkeep  \x1b[0m", 1));
    let summary = "/etc: 0 from the image, 1 local, 0 changed alike on both sides, 0 merged by record, 0 conflicts";
    assert_eq!(lines(Colour::Off), format!("keep   /etc/a  (changed here)\n{summary}\n"));
    // What goes to a file is not coloured.
    assert_eq!(String::from_utf8(run(&trap, "plan", &[]).stdout).unwrap(), lines(Colour::Off));
}

#[test]
fn the_output_is_new_and_the_losers_go_where_they_are_told_to() {
    let trap = trap();
    trap.file("pn", "x", b"1");
    trap.file("n", "x", b"2");
    trap.file("c", "x/mine", b"1");
    let merge = |more: &[&str]| run(&trap, "merge", more).status.code();
    assert_eq!(merge(&["--output", "m", "--conflicts", "lost"]), Some(0));
    assert_eq!((trap.merged("x"), fs::read_to_string(trap.at("lost/x/mine")).unwrap()), ("2".into(), "1".into()));
    assert!(!trap.at("m.conflicts").exists());
    assert_eq!(merge(&["--output", "m", "--conflicts", "other"]), Some(1), "the output exists");
    assert_eq!(merge(&["--output", "m2", "--conflicts", "lost"]), Some(1), "the conflicts exist");
    assert!(!trap.at("m2").exists() && !trap.at("other").exists() && trap.at("m/x").exists());
    assert_eq!(merge(&["--outpt", "m3"]), Some(2));
}

#[test]
fn few_open_files_are_enough_to_begin_with() {
    let trap = trap();
    let deep = vec!["d"; 150].join("/");
    trap.file("pn", &format!("{deep}/f"), b"1");
    trap.file("c", &format!("{deep}/f"), b"2");
    let limited = "ulimit -Sn 64 && exec \"$0\" etc merge --pristine p --current c --new n --output m";
    ok(cmd!(shell(trap.at("")), "sh -c {limited} {PROGRAM}"));
    assert_eq!(trap.merged(&format!("{deep}/f")), "2");
}

#[test]
fn an_access_list_that_directories_hand_down_is_not_taken_up() {
    let trap = trap();
    trap.file("c", "d/mine", b"1");
    trap.file("pcn", "d/theirs", b"1");
    // struct posix_acl_xattr: version 2; user::rwx, user:1000:rwx, group::r-x, mask::rwx, other::r-x.
    let entry =
        |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let list = [entry(1, 7, none), entry(2, 7, 1000), entry(4, 5, none), entry(0x10, 7, none), entry(0x20, 5, none)];
    let list = [2u32.to_le_bytes().to_vec(), list.concat()].concat();
    lsetxattr(trap.at(""), "system.posix_acl_default", &list, XattrFlags::empty()).unwrap();
    trap.merge();
    for path in ["m", "m/d", "m/d/mine", "m/d/theirs"] {
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            assert_eq!(xattr(&trap, path, name), None, "{path} {name}");
        }
    }
    assert_eq!(fs::metadata(trap.at("m/d/mine")).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn owners_capabilities_and_labels_are_carried_and_the_label_is_the_images() {
    let trap = trap();
    if !is_root(&trap) {
        return;
    }
    trap.file("pn", "tool", b"1");
    trap.file("c", "tool", b"2");
    trap.file("c", "mine", b"1");
    symlink("to", trap.at("c/link")).unwrap();
    let set = |path: &str, name: &str, value: &[u8]| lsetxattr(trap.at(path), name, value, XattrFlags::empty());
    chown(trap.at("c/tool"), Some(1000), Some(1001)).unwrap();
    fs::set_permissions(trap.at("c/tool"), Permissions::from_mode(0o6755)).unwrap();
    // struct vfs_cap_data, revision 2: CAP_NET_RAW, permitted and effective.
    let capability = [0x0200_0001u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    set("c/tool", "security.capability", &capability).unwrap();
    for (path, label) in [("c/tool", "local"), ("n/tool", "image"), ("c/mine", "mine"), ("c/link", "link")] {
        set(path, "security.selinux", label.as_bytes()).unwrap();
    }
    set("c/link", "trusted.x", b"value").unwrap();
    set("c/mine", "trusted.overlay.origin", b"never").unwrap();
    trap.merge();
    let tool = fs::metadata(trap.at("m/tool")).unwrap();
    assert_eq!((tool.uid(), tool.gid(), tool.mode() & 0o7777), (1000, 1001, 0o6755));
    assert_eq!(xattr(&trap, "m/tool", "security.capability").unwrap(), capability);
    for (path, label) in [("m/tool", "image"), ("m/mine", "mine"), ("m/link", "link")] {
        assert_eq!(xattr(&trap, path, "security.selinux").unwrap(), label.as_bytes(), "{path}");
    }
    assert_eq!(xattr(&trap, "m/link", "trusted.x").unwrap(), b"value");
    assert_eq!(xattr(&trap, "m/mine", "trusted.overlay.origin"), None);
}

#[test]
fn an_owner_of_local_files_stays_in_passwd_and_shadow() {
    let trap = trap();
    if !is_root(&trap) {
        return;
    }
    trap.file("pc", "passwd", b"root:x:0:0:::\ngames:x:5:60:::\n");
    trap.file("n", "passwd", b"root:x:0:0:::\n");
    trap.file("pc", "shadow", b"root:*:::::::\ngames:!:::::::\n");
    trap.file("n", "shadow", b"root:*:::::::\n");
    trap.file("c", "scores", b"1");
    chown(trap.at("c/scores"), Some(5), None).unwrap();
    let plan = trap.merge();
    assert_eq!(trap.merged("passwd"), "root:x:0:0:::\ngames:x:5:60:::\n");
    assert_eq!(trap.merged("shadow"), "root:*:::::::\ngames:!:::::::\n");
    assert_eq!(plan.notes, ["passwd: kept user games (5), removed from the image, because /etc/scores belongs to it"]);
    assert_eq!(plan.counts().merged, 2);
}

#[test]
fn times_of_files_links_and_directories_are_carried() {
    let trap = trap();
    trap.file("c", "d/mine", b"1");
    symlink("to", trap.at("c/d/link")).unwrap();
    trap.file("pcn", "e/theirs", b"1");
    let dir = Dir::open_ambient_dir(trap.at(""), ambient_authority()).unwrap();
    let paths = ["d/mine", "d/link", "d", "e/theirs", "e"];
    for (at, path) in ["c/d/mine", "c/d/link", "c/d", "n/e/theirs", "n/e"].iter().enumerate() {
        let time = rustix::fs::Timespec { tv_sec: 1_000_000 + at as i64, tv_nsec: 123_456_789 };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(&dir, *path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
    trap.merge();
    for (at, path) in paths.iter().enumerate() {
        let merged = fs::symlink_metadata(trap.at(&format!("m/{path}"))).unwrap();
        assert_eq!((merged.mtime(), merged.mtime_nsec()), (1_000_000 + at as i64, 123_456_789), "{path}");
    }
}

#[test]
fn a_merge_that_is_stopped_by_a_signal_leaves_nothing() {
    let trap = trap();
    for name in ["a", "b", "c"] {
        trap.file("pn", name, b"1");
        trap.file("c", name, b"2");
    }
    // The first calls make the output; what stops the last file comes too late.
    for n in 1..9 {
        let merge = cmd!(shell(trap.at("")), "{PROGRAM} etc merge --pristine p --current c --new n --output m");
        let output = output(merge.env("COMPOSEFS_FINALIZE_FAIL", format!("term:{n}")));
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{n}: {message}");
        assert!(message.contains("merging /etc/") && message.contains("stopped by a signal"), "{n}: {message}");
        assert!(!trap.at("m").exists(), "{n}");
    }
    assert!(run(&trap, "merge", &["--output", "m"]).status.success());
}

#[test]
fn a_local_file_that_may_not_be_read_is_found_before_the_first_write() {
    let trap = Trap::below(&std::env::temp_dir());
    trap.file("pn", "a", b"1");
    trap.file("c", "a", b"2");
    trap.file("c", "z/key", b"mine");
    let (program, root) = (trap.at("program"), is_root(&trap));
    fs::copy(PROGRAM, &program).unwrap();
    fs::set_permissions(trap.at("c/z/key"), Permissions::from_mode(0o000)).unwrap();
    let merge = || {
        let merge = cmd!(shell(trap.at("")), "{program} etc merge --pristine p --current c --new n --output m");
        let mut merge = Command::from(merge);
        if root {
            merge.uid(NOBODY).gid(NOBODY);
        }
        merge.output().unwrap()
    };
    if root {
        for entry in walkdir::WalkDir::new(trap.at("")) {
            chown(entry.unwrap().path(), Some(NOBODY), Some(NOBODY)).unwrap();
        }
    }
    let output = merge();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("reading /etc/z/key"), "{message}");
    assert!(!trap.at("m").exists());
    fs::set_permissions(trap.at("c/z/key"), Permissions::from_mode(0o400)).unwrap();
    assert!(merge().status.success());
    assert_eq!(fs::read(trap.at("m/z/key")).unwrap(), b"mine");
}
