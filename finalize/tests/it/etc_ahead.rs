//! A merge that was planned and made ahead of time: corrected to what has become of the live tree since, it is the merge
//! that is made from nothing, node by node. Trees, edits and their order are random; every kind of edit is among them.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use cap_std::{ambient_authority, fs::Dir};
use finalize::{
    etc::{Ahead, Merge, Sources, merge::Reason, policy::Policy},
    stop::Stop,
};
use proptest::prelude::*;
use rustix::fs::{Timespec, Timestamps, XattrFlags, lgetxattr, llistxattr, lsetxattr};

use crate::etc_merge::tree;

/// The names of which paths are made: few, so that edits meet each other.
const NAMES: [&str; 4] = ["a", "b", "passwd", "d"];

/// What somebody does to a tree.
#[derive(Debug, Clone, Copy)]
enum Edit {
    Write(u8),
    /// As long as before, with the times of before.
    WriteInSecret(u8),
    Replace(u8),
    Remove,
    MakeDir,
    MakeLink,
    Link,
    Chmod,
    Chown,
    Attribute,
    Inherit,
    Touch,
}

fn any_edit() -> impl Strategy<Value = (Vec<usize>, Edit)> {
    use Edit::*;
    let kinds = (0..4u8).prop_flat_map(|byte| {
        prop::sample::select(vec![
            Write(byte),
            WriteInSecret(byte),
            Replace(byte),
            Remove,
            MakeDir,
            MakeLink,
            Link,
            Chmod,
            Chown,
            Attribute,
            Inherit,
            Touch,
        ])
    });
    (prop::collection::vec(0..NAMES.len(), 1..4), kinds)
}

fn remove(path: &Path) {
    match path.symlink_metadata() {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// A name as text that account files can be read from.
fn text(byte: u8) -> String {
    format!("u{byte}:x:{byte}:{byte}::/:/bin/sh\n")
}

fn edit(root: &Path, names: &[usize], edit: Edit) {
    let path: PathBuf = names.iter().fold(root.to_owned(), |path, name| path.join(NAMES[*name]));
    let above = path.parent().unwrap();
    let is_dir = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    if !is_dir(above) && (above.symlink_metadata().is_ok() || fs::create_dir_all(above).is_err()) {
        return;
    }
    let found = path.symlink_metadata().ok();
    let is_file = found.as_ref().is_some_and(|found| found.is_file());
    match edit {
        Edit::Write(byte) if is_file => fs::write(&path, text(byte)).unwrap(),
        Edit::WriteInSecret(byte) if is_file => {
            let before = found.unwrap();
            fs::write(&path, text(byte)).unwrap();
            let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
            let times = Timestamps {
                last_access: time(before.atime(), before.atime_nsec()),
                last_modification: time(before.mtime(), before.mtime_nsec()),
            };
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        Edit::Write(byte) | Edit::WriteInSecret(byte) | Edit::Replace(byte) => {
            let new = above.join("new");
            fs::write(&new, text(byte)).unwrap();
            if is_dir(&path) {
                remove(&path);
            }
            fs::rename(&new, &path).unwrap();
        }
        Edit::Remove => remove(&path),
        Edit::MakeDir => {
            remove(&path);
            fs::create_dir(&path).unwrap();
        }
        Edit::MakeLink => {
            remove(&path);
            symlink("target", &path).unwrap();
        }
        Edit::Link if is_file => {
            let other = root.join("linked");
            remove(&other);
            fs::hard_link(&path, other).unwrap();
        }
        Edit::Chmod if found.as_ref().is_some_and(|found| !found.is_symlink()) => {
            let mode = found.unwrap().mode() ^ 0o11;
            fs::set_permissions(&path, Permissions::from_mode(mode & 0o7777)).unwrap();
        }
        Edit::Chown if found.is_some() => {
            let _ = lchown(&path, None, Some(found.unwrap().gid() ^ 1));
        }
        Edit::Attribute if is_file => lsetxattr(&path, "user.edited", b"yes", XattrFlags::empty()).unwrap(),
        Edit::Inherit if is_dir(&path) => {
            // u::rwx, u:1:r--, g::r-x, mask::r-x, o::---: acl(5), version 2.
            let entry = |tag: u16, rights: u16, id: u32| {
                [&tag.to_le_bytes()[..], &rights.to_le_bytes(), &id.to_le_bytes()].concat()
            };
            let list = [(1, 7, u32::MAX), (2, 4, 1), (4, 5, u32::MAX), (0x10, 5, u32::MAX), (0x20, 0, u32::MAX)];
            let list: Vec<u8> = list.iter().flat_map(|(tag, rights, id)| entry(*tag, *rights, *id)).collect();
            let value = [&2u32.to_le_bytes()[..], &list].concat();
            let _ = lsetxattr(&path, "system.posix_acl_default", &value, XattrFlags::empty());
        }
        Edit::Touch if is_dir(&path) => {
            let probe = path.join("touched");
            fs::write(&probe, "").unwrap();
            fs::remove_file(probe).unwrap();
        }
        _ => {}
    }
}

/// All that a merge carries of a tree, but for the times of directories that nobody asked for.
fn all_of(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root) {
        let entry = entry.unwrap();
        let (path, found) = (entry.path(), entry.path().symlink_metadata().unwrap());
        let content = match found.file_type() {
            kind if kind.is_file() => fs::read_to_string(path).unwrap(),
            kind if kind.is_symlink() => fs::read_link(path).unwrap().display().to_string(),
            _ => String::new(),
        };
        let mut names = [0; 4096];
        let length = llistxattr(path, &mut names).unwrap();
        let names = names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let attributes: BTreeMap<_, _> = names
            .map(|name| {
                let mut value = [0; 4096];
                let length = lgetxattr(path, name, &mut value).unwrap();
                (String::from_utf8_lossy(name).into_owned(), value[..length].to_vec())
            })
            .collect();
        let modified = (found.mtime(), found.mtime_nsec());
        let what = (found.mode(), found.uid(), found.gid(), modified, content, attributes);
        all.insert(path.strip_prefix(root).unwrap().display().to_string(), format!("{what:?}"));
    }
    all
}

/// Until a change has another change time than one that was made before.
pub fn next_tick(dir: &Path) {
    let probe = dir.join("probe");
    let changed = || {
        fs::write(&probe, "").unwrap();
        let found = probe.metadata().unwrap();
        (found.ctime(), found.ctime_nsec())
    };
    let before = changed();
    while changed() == before {}
}

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn open(&self, name: &str) -> Dir {
        Dir::open_ambient_dir(self.path(name), ambient_authority()).unwrap()
    }

    /// Plans and makes `m` ahead; what is kept goes through its stored form.
    fn ahead(&self) -> Ahead {
        let [p, c, n] = ["p", "c", "n"].map(|name| self.open(name));
        next_tick(self.dir.path());
        let (merge, mut ahead) = Merge::plan_ahead(sources(&p, &c, &n), &Policy::default(), 0, &Stop::never()).unwrap();
        merge.make(&mut ahead, &self.open("."), ("m", "x"), &Stop::never()).unwrap();
        next_tick(self.dir.path());
        postcard::from_bytes(&postcard::to_stdvec(&ahead).unwrap()).unwrap()
    }

    /// Corrects `m`, or makes it anew, and compares it with a merge made from nothing. Says whether it was corrected.
    fn check(&self, ahead: Ahead) -> bool {
        let [p, c, n] = ["p", "c", "n"].map(|name| self.open(name));
        let (parent, stop) = (self.open("."), Stop::never());
        let plain = Merge::plan(sources(&p, &c, &n), &Policy::default()).unwrap();
        let later = Merge::plan_after(sources(&p, &c, &n), &Policy::default(), Some(ahead), &Stop::never()).unwrap();
        assert_eq!(later.plan.to_json(), plain.plan.to_json());
        assert_eq!(later.plan.counts(), plain.plan.counts());
        let corrected = later.correct(&parent, "m", &stop).unwrap();
        if corrected.is_none() {
            later.write(&parent, "m", "x", &stop).unwrap();
        }
        plain.write(&parent, "wanted", "wanted.x", &stop).unwrap();
        assert_eq!(all_of(&self.path("m")), all_of(&self.path("wanted")), "corrected: {}", corrected.is_some());
        let (aside, wanted) = (self.path("x"), self.path("wanted.x"));
        assert_eq!(aside.exists(), wanted.exists());
        if aside.exists() {
            let below = |root: &Path| all_of(root).split_off(" ");
            assert_eq!(below(&aside), below(&wanted));
        }
        corrected.is_some()
    }
}

fn sources<'a>(p: &'a Dir, c: &'a Dir, n: &'a Dir) -> Sources<'a> {
    Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() }
}

type Edits = Vec<(Vec<usize>, Edit)>;

fn any_edits(most: usize) -> impl Strategy<Value = Edits> {
    prop::collection::vec(any_edit(), 0..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_made_ahead_and_corrected_is_the_tree_made_from_nothing(
        image in any_edits(30), local in any_edits(6), update in any_edits(6), since in any_edits(6), staged in any_edits(2),
    ) {
        let machine = Machine::new();
        for (name, steps) in [("p", vec![&image]), ("c", vec![&image, &local]), ("n", vec![&image, &update])] {
            fs::create_dir(machine.path(name)).unwrap();
            steps.into_iter().flatten().for_each(|(names, what)| edit(&machine.path(name), names, *what));
        }
        let ahead = machine.ahead();
        since.iter().for_each(|(names, what)| edit(&machine.path("c"), names, *what));
        staged.iter().for_each(|(names, what)| edit(&machine.path("n"), names, *what));
        machine.check(ahead);
    }
}

/// The same, with trees by hand.
fn check(p: &[&str], c: &[&str], n: &[&str], since: impl FnOnce(&Path)) -> bool {
    let machine = Machine::new();
    for (name, nodes) in [("p", p), ("c", c), ("n", n)] {
        tree(&machine.path(name), nodes);
    }
    let ahead = machine.ahead();
    since(&machine.path("c"));
    machine.check(ahead)
}

#[test]
fn most_edits_are_corrected_in_place() {
    let image = ["a=1", "b/c=1", "b/d=1", "e->a"];
    assert!(check(&image, &image, &image, |_| {}));
    assert!(check(&image, &image, &["a=2", "b/c=1", "new/f=1"], |c| fs::write(c.join("a"), "mine").unwrap()));
    assert!(check(&image, &["a=1", "b/c=9", "mine/f=1"], &image, |c| {
        fs::write(c.join("b/c"), "8").unwrap();
        fs::remove_dir_all(c.join("mine")).unwrap();
        fs::create_dir(c.join("other")).unwrap();
        symlink("x", c.join("other/link")).unwrap();
    }));
    assert!(check(&image, &image, &image, |c| fs::remove_dir_all(c.join("b")).unwrap()));
    // Files with several names are not.
    assert!(!check(&image, &image, &image, |c| fs::hard_link(c.join("a"), c.join("twin")).unwrap()));
}

#[test]
fn what_has_not_moved_is_not_read_again() {
    let machine = Machine::new();
    let image = ["a=1", "b/c=1", "b/d=1", "s/e=1", "s/passwd=x"];
    for name in ["p", "c", "n"] {
        tree(&machine.path(name), &image);
    }
    fs::write(machine.path("c/b/d"), "local").unwrap();
    let ahead = machine.ahead();
    fs::write(machine.path("c/s/e"), "late").unwrap();
    // Whoever reads these again finds that they have changed: an image does not.
    fs::write(machine.path("p/b/c"), "2").unwrap();
    fs::write(machine.path("p/s/passwd"), "2").unwrap();
    let [p, c, n] = ["p", "c", "n"].map(|name| machine.open(name));
    let later = Merge::plan_after(sources(&p, &c, &n), &Policy::default(), Some(ahead), &Stop::never()).unwrap();
    let steps = later.plan.steps.iter().filter(|(_, step)| step.reason == Reason::Local);
    let local: Vec<_> = steps.map(|(path, _)| path.to_string()).collect();
    assert_eq!(local, ["b/d", "s/e"]);
}

#[test]
fn another_directory_in_its_place_is_not_corrected() {
    let machine = Machine::new();
    for name in ["p", "c", "n"] {
        tree(&machine.path(name), &["a=1"]);
    }
    let ahead = machine.ahead();
    fs::rename(machine.path("m"), machine.path("moved")).unwrap();
    tree(&machine.path("m"), &["a=other"]);
    assert!(!machine.check(ahead));
}
