//! The merge on real directories.

use std::{
    fs,
    os::{fd::AsFd, unix::fs::symlink},
    path::Path,
};

use cap_std::{ambient_authority, fs::Dir};
use finalize::{
    etc::{Merge, Sources, policy::Policy},
    stop::Stop,
};

/// Files as `path=content`, links as `path->target`, directories as `path/`.
pub fn tree(root: &Path, nodes: &[&str]) {
    fs::create_dir(root).unwrap();
    for node in nodes {
        let path = |p: &str| {
            let path = root.join(p);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        if let Some((name, target)) = node.split_once("->") {
            symlink(target, path(name)).unwrap();
        } else if let Some((name, content)) = node.split_once('=') {
            fs::write(path(name), content).unwrap();
        } else {
            fs::create_dir_all(root.join(node)).unwrap();
        }
    }
}

pub fn list(root: &Path, below: &str, out: &mut Vec<String>) {
    let Ok(dir) = fs::read_dir(root.join(below)) else { return };
    for entry in dir {
        let entry = entry.unwrap();
        let path = Path::new(below).join(entry.file_name()).to_str().unwrap().to_owned();
        let kind = entry.file_type().unwrap();
        if kind.is_symlink() {
            out.push(format!("{path}->{}", fs::read_link(entry.path()).unwrap().display()));
        } else if kind.is_dir() {
            let before = out.len();
            list(root, &path, out);
            if out.len() == before {
                out.push(format!("{path}/"));
            }
        } else {
            out.push(format!("{path}={}", fs::read_to_string(entry.path()).unwrap()));
        }
    }
    out.sort();
}

fn check(pristine: &[&str], current: &[&str], new: &[&str], want: &[&str], aside: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    tree(&root.join("p"), pristine);
    tree(&root.join("c"), current);
    tree(&root.join("n"), new);
    let open = |name: &str| Dir::open_ambient_dir(root.join(name), ambient_authority()).unwrap();
    let (p, c, n) = (open("p"), open("c"), open("n"));
    let merge =
        Merge::plan(Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() }, &Policy::default())
            .unwrap();
    merge.write(&open("."), "m", "x", &Stop::never()).unwrap();
    for (name, want) in [("m", want), ("x", aside), ("p", pristine), ("c", current), ("n", new)] {
        let mut got = Vec::new();
        list(root, "", &mut Vec::new());
        list(&root.join(name), "", &mut got);
        let mut want = want.to_vec();
        want.sort_unstable();
        assert_eq!(got, want, "{name}\n{}", merge.plan);
    }
}

#[test]
fn the_table() {
    let p = &["same=1", "local=1", "image=1", "both=1", "alike=1", "gone=1", "dropped=1", "rm-clash=1"];
    let c = &["same=1", "local=2", "image=1", "both=2", "alike=3", "dropped=1", "mine=1"];
    let n = &["same=1", "local=1", "image=2", "both=3", "alike=3", "gone=1", "rm-clash=2", "theirs=1"];
    check(p, c, n, &["same=1", "local=2", "image=2", "both=2", "alike=3", "mine=1", "theirs=1"], &[]);
}

#[test]
fn an_edit_that_keeps_the_size_is_found() {
    check(&["a=one"], &["a=two"], &["a=one"], &["a=two"], &[]);
}

#[test]
fn a_removed_link_with_an_absolute_target_stays_removed() {
    check(&["u/x.service->/usr/x"], &["u/"], &["u/x.service->/usr/x"], &["u/"], &[]);
    check(&[], &["resolv.conf->/gone/away", "loop->loop"], &[], &["resolv.conf->/gone/away", "loop->loop"], &[]);
}

#[test]
fn a_directory_that_the_image_dropped_is_kept_for_local_files_alone() {
    check(&["d/a=1", "d/e/f=1"], &["d/a=1", "d/e/f=1", "d/e/mine=1"], &[], &["d/e/mine=1"], &[]);
}

#[test]
fn a_directory_that_was_removed_here_stays_removed() {
    check(&["d/a=1"], &[], &["d/a=2", "d/b=1"], &[], &[]);
}

#[test]
fn a_type_conflict_keeps_both_sides_somewhere() {
    check(&["x=1"], &["x/mine=1"], &["x=2"], &["x=2"], &["x/mine=1"]);
    check(&["x/a=1"], &["x=mine"], &["x/a=2"], &["x/a=2"], &["x=mine"]);
    check(&["x/a=1"], &["x/a=1", "x/mine=1"], &["x->/elsewhere"], &["x->/elsewhere"], &["x/a=1", "x/mine=1"]);
}

#[test]
fn a_directory_that_became_a_link_here_follows_nothing() {
    check(&["x/a=1"], &["x->/etc"], &["x/a=1"], &["x->/etc"], &[]);
}

#[test]
fn a_system_user_of_the_image_joins_local_users() {
    let (p, c) = ("passwd=root:x:0:0:::\n", "passwd=root:x:0:0:::\nme:x:1000:1000:::\n");
    let n = "passwd=root:x:0:0:::\ntcpdump:x:104:104:::\n";
    check(&[p], &[c], &[n], &["passwd=root:x:0:0:::\ntcpdump:x:104:104:::\nme:x:1000:1000:::\n"], &[]);
    // Lines that are no records are lines of both; what is no text is local as a whole.
    check(&["group=x"], &["group=mine"], &["group=theirs"], &["group=theirs\nmine\n"], &[]);
    check(&["group=x"], &["group=\0mine"], &["group=theirs"], &["group=\0mine"], &[]);
}

#[test]
fn what_was_in_a_directory_that_both_sides_replaced_is_no_conflict_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    for (name, nodes) in [("p", "x/a=1"), ("c", "x->q"), ("n", "x->r")] {
        tree(&dir.path().join(name), &[nodes]);
    }
    let open = |name: &str| Dir::open_ambient_dir(dir.path().join(name), ambient_authority()).unwrap();
    let (p, c, n) = (open("p"), open("c"), open("n"));
    let sources = Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() };
    let plan = Merge::plan(sources, &Policy::default()).unwrap().plan;
    let conflicts: Vec<_> = plan.conflicts().map(|(path, _)| path.to_string()).collect();
    assert_eq!(conflicts, ["x"]);
}
