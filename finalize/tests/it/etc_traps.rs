//! Named traps: each is the story of a way in which a merge of /etc has lost a file or an update.

use std::{
    fs::{self, Permissions},
    io::{Seek, SeekFrom, Write},
    os::{
        fd::AsFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
            net::UnixListener,
        },
    },
    path::{Path, PathBuf},
};

use cap_std::{ambient_authority, fs::Dir};
use finalize::{
    config::Config,
    etc::{Merge, Sources, apply::Applied, plan::Plan, policy::Policy},
    stop::Stop,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, lsetxattr, mknodat};

pub struct Trap {
    dir: tempfile::TempDir,
}

impl Trap {
    pub fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    pub fn below(dir: &Path) -> Self {
        let dir = tempfile::tempdir_in(dir).unwrap();
        for side in ["p", "c", "n"] {
            fs::create_dir(dir.path().join(side)).unwrap();
        }
        Self { dir }
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// The same file on some sides.
    pub fn file(&self, sides: &str, path: &str, content: &[u8]) {
        for side in sides.chars() {
            let path = self.at(&format!("{side}/{path}"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    pub fn merge(&self) -> Plan {
        self.merge_from("c")
    }

    /// With settings of a configuration file.
    pub fn merge_with(&self, config: &str) -> Plan {
        let (mut settings, mut warnings) = (Config::default(), vec![]);
        settings.apply("test", config, &mut warnings);
        assert!(warnings.is_empty(), "{warnings:?}");
        self.merge_by("c", &settings.policy).0
    }

    fn merge_from(&self, current: &str) -> Plan {
        self.merge_by(current, &Policy::default()).0
    }

    pub fn merge_by(&self, current: &str, policy: &Policy) -> (Plan, Applied) {
        let open = |path: &Path| Dir::open_ambient_dir(path, ambient_authority()).unwrap();
        let (p, c, n) = (open(&self.at("p")), open(&self.at(current)), open(&self.at("n")));
        let sources = Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() };
        let merge = Merge::plan(sources, policy).unwrap();
        let applied = merge.write(&open(self.dir.path()), "m", "x", &Stop::never()).unwrap();
        (merge.plan, applied)
    }

    pub fn merged(&self, path: &str) -> String {
        fs::read_to_string(self.at(&format!("m/{path}"))).unwrap()
    }

    pub fn is_absent(&self, path: &str) -> bool {
        fs::symlink_metadata(self.at(&format!("m/{path}"))).is_err()
    }
}

#[test]
fn a_removed_unit_link_whose_target_is_absolute_and_missing_stays_removed() {
    let trap = Trap::new();
    for side in ["p", "c", "n"] {
        trap.file(&side[..1], "wants/keep", b"");
        symlink("/nowhere/x.service", trap.at(&format!("{side}/wants/x.service"))).unwrap();
    }
    fs::remove_file(trap.at("c/wants/x.service")).unwrap();
    trap.merge();
    assert!(trap.is_absent("wants/x.service"));
}

#[test]
fn a_directory_that_became_a_link_and_back() {
    let trap = Trap::new();
    trap.file("pn", "d/a", b"1");
    trap.file("n", "d/a", b"2");
    symlink("/etc", trap.at("c/d")).unwrap();
    symlink("elsewhere", trap.at("p/l")).unwrap();
    symlink("elsewhere", trap.at("n/l")).unwrap();
    trap.file("c", "l/mine", b"1");
    trap.merge();
    // The image changed d: its node is in place, the local link is kept. It did not change l: the local one stays.
    assert_eq!((trap.merged("d/a"), trap.merged("l/mine")), ("2".into(), "1".into()));
    assert_eq!(fs::read_link(trap.at("x/d")).unwrap(), Path::new("/etc"));
}

#[test]
fn dangling_and_looping_links_are_leaves() {
    let trap = Trap::new();
    symlink("../run/gone/stub-resolv.conf", trap.at("c/resolv.conf")).unwrap();
    symlink("loop", trap.at("c/loop")).unwrap();
    trap.file("pn", "resolv.conf", b"");
    trap.merge();
    assert_eq!(fs::read_link(trap.at("m/resolv.conf")).unwrap(), Path::new("../run/gone/stub-resolv.conf"));
    assert_eq!(fs::read_link(trap.at("m/loop")).unwrap(), Path::new("loop"));
}

#[test]
fn a_directory_that_the_image_drops_stays_for_local_files_with_its_mode() {
    let trap = Trap::new();
    trap.file("pc", "d/theirs", b"1");
    trap.file("c", "d/mine", b"1");
    fs::set_permissions(trap.at("c/d"), Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(trap.at("p/d"), Permissions::from_mode(0o750)).unwrap();
    trap.merge();
    assert_eq!(trap.merged("d/mine"), "1");
    assert!(trap.is_absent("d/theirs"));
    assert_eq!(fs::metadata(trap.at("m/d")).unwrap().mode() & 0o7777, 0o750);
}

#[test]
fn what_is_no_file_is_skipped_and_listed_and_a_whiteout_is_nothing() {
    let trap = Trap::new();
    trap.file("pn", "was", b"1");
    UnixListener::bind(trap.at("c/socket")).unwrap();
    mknodat(CWD, trap.at("c/fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
    if mknodat(CWD, trap.at("c/was"), FileType::CharacterDevice, Mode::RUSR, 0).is_err() {
        println!("SKIPPED the whiteout: no right to make devices");
        return;
    }
    let plan = trap.merge();
    let skipped: Vec<_> = plan.skipped.iter().map(ToString::to_string).collect();
    assert_eq!(skipped, ["fifo", "socket"]);
    assert!(["fifo", "socket", "was"].iter().all(|path| trap.is_absent(path)));
    assert!(fs::symlink_metadata(trap.at("c/was")).unwrap().file_type().is_char_device());
}

#[test]
fn extended_attributes_of_any_length_are_carried_and_count_as_a_change() {
    // A temporary file system may allow no user attributes; the checkout's does.
    let trap = Trap::below(Path::new(env!("CARGO_TARGET_TMPDIR")));
    trap.file("pcn", "short", b"1");
    trap.file("pcn", "long", b"1");
    let set = |path: &str, length| lsetxattr(trap.at(path), "user.x", &vec![b'v'; length], XattrFlags::empty());
    set("c/short", 128).unwrap();
    let long = [60 << 10, 3 << 10].into_iter().find(|length| set("c/long", *length).is_ok()).unwrap();
    trap.merge();
    for (path, length) in [("m/short", 128), ("m/long", long)] {
        let mut value = vec![0; 1 << 16];
        assert_eq!(lgetxattr(trap.at(path), "user.x", &mut value).unwrap(), length);
    }
    println!("the longest attribute that the file system takes here has {long} bytes");
}

#[test]
fn acls_and_set_id_bits_are_carried() {
    let trap = Trap::below(Path::new(env!("CARGO_TARGET_TMPDIR")));
    trap.file("pcn", "tool", b"1");
    trap.file("c", "tool", b"2");
    // struct posix_acl_xattr: version 2; user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
    let entry =
        |tag: u16, perm: u16, id: u32| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let acl = [entry(1, 6, none), entry(2, 4, 1000), entry(4, 4, none), entry(0x10, 4, none), entry(0x20, 0, none)];
    let acl = [2u32.to_le_bytes().to_vec(), acl.concat()].concat();
    lsetxattr(trap.at("c/tool"), "system.posix_acl_access", &acl, XattrFlags::empty()).unwrap();
    trap.file("pcn", "suid", b"1");
    fs::set_permissions(trap.at("c/suid"), Permissions::from_mode(0o4755)).unwrap();
    trap.merge();
    let mut value = vec![0; 256];
    let length = lgetxattr(trap.at("m/tool"), "system.posix_acl_access", &mut value).unwrap();
    assert_eq!(value[..length], acl);
    assert_eq!(fs::metadata(trap.at("m/suid")).unwrap().mode() & 0o7777, 0o4755);
}

#[test]
fn an_edit_that_keeps_size_and_mtime_is_found() {
    let trap = Trap::new();
    trap.file("pn", "f", b"one");
    trap.file("c", "f", b"two");
    let time = fs::metadata(trap.at("p/f")).unwrap().modified().unwrap();
    fs::File::options().write(true).open(trap.at("c/f")).unwrap().set_modified(time).unwrap();
    trap.merge();
    assert_eq!(trap.merged("f"), "two");
    assert_eq!(fs::metadata(trap.at("m/f")).unwrap().modified().unwrap(), time);
}

#[test]
fn a_file_that_vanishes_between_plan_and_copy_is_a_removal() {
    let trap = Trap::new();
    trap.file("c", "gone", b"1");
    trap.file("c", "stays", b"1");
    let open = |path: &str| Dir::open_ambient_dir(trap.at(path), ambient_authority()).unwrap();
    let (p, c, n) = (open("p"), open("c"), open("n"));
    let sources = Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() };
    let merge = Merge::plan(sources, &Policy::default()).unwrap();
    fs::remove_file(trap.at("c/gone")).unwrap();
    fs::write(trap.at("c/stays"), vec![b'2'; 100_000]).unwrap();
    let applied = merge.write(&open(""), "m", "x", &Stop::never()).unwrap();
    assert!(trap.is_absent("gone"));
    assert_eq!(trap.merged("stays").len(), 100_000);
    assert_eq!(applied.moved.iter().map(ToString::to_string).collect::<Vec<_>>(), ["gone"]);
}

#[test]
fn two_names_of_one_file_stay_one_file() {
    let trap = Trap::new();
    trap.file("c", "a", b"1");
    fs::hard_link(trap.at("c/a"), trap.at("c/b")).unwrap();
    trap.merge();
    let inode = |path: &str| fs::metadata(trap.at(path)).unwrap().ino();
    assert_eq!(inode("m/a"), inode("m/b"));
    assert_ne!(inode("m/a"), inode("c/a"));
}

#[test]
fn a_hundred_and_fifty_levels_are_not_too_deep_and_names_may_be_long_odd_or_twins() {
    let trap = Trap::new();
    let deep = vec!["d"; 150].join("/");
    let long = "l".repeat(255);
    trap.file("pn", &format!("{deep}/f"), b"1");
    trap.file("c", &format!("{deep}/f"), b"2");
    trap.file("c", &long, b"1");
    trap.file("c", "Twin", b"1");
    trap.file("n", "twin", b"2");
    let odd = std::ffi::OsString::from_vec(b"o\xff\n\"".to_vec());
    fs::write(trap.at("c").join(&odd), "1").unwrap();
    let plan = trap.merge();
    assert_eq!(trap.merged(&format!("{deep}/f")), "2");
    assert_eq!((trap.merged(&long), trap.merged("Twin"), trap.merged("twin")), ("1".into(), "1".into(), "2".into()));
    assert_eq!(fs::read(trap.at("m").join(&odd)).unwrap(), b"1");
    assert!(plan.steps.keys().any(|path| path.as_bytes() == odd.as_bytes() && path.to_string() == "o\\xff\\x0a\""));
}

#[test]
fn a_file_of_four_gigabytes_is_copied_as_a_stream() {
    let trap = Trap::below(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let mut big = fs::File::create(trap.at("c/big")).unwrap();
    big.seek(SeekFrom::Start(4 << 30)).unwrap();
    big.write_all(b"end").unwrap();
    trap.merge();
    let (size, blocks) = fs::metadata(trap.at("m/big")).map(|m| (m.len(), m.blocks())).unwrap();
    assert_eq!(size, (4 << 30) + 3);
    assert!(blocks < 1 << 20, "holes were filled: {blocks} blocks");
}

#[test]
fn the_live_tree_may_be_on_another_file_system() {
    let trap = Trap::new();
    let other = Path::new("/dev/shm");
    if !other.is_dir() || fs::metadata(other).unwrap().dev() == fs::metadata(trap.at("n")).unwrap().dev() {
        println!("SKIPPED: there is no other file system");
        return;
    }
    let current = tempfile::tempdir_in(other).unwrap();
    trap.file("pn", "same", b"1");
    fs::write(current.path().join("same"), "1").unwrap();
    fs::write(current.path().join("mine"), "1").unwrap();
    symlink(current.path(), trap.at("elsewhere")).unwrap();
    trap.merge_from("elsewhere");
    assert_eq!((trap.merged("same"), trap.merged("mine")), ("1".into(), "1".into()));
}

#[test]
fn an_id_of_the_machine_is_kept_and_an_empty_one_is_no_id() {
    for (local, want) in [("0123456789abcdef0123456789abcdef\n", true), ("", false), ("uninitialized\n", false)] {
        let trap = Trap::new();
        trap.file("p", "machine-id", b"");
        trap.file("n", "machine-id", b"theirs\n");
        trap.file("c", "machine-id", local.as_bytes());
        trap.file("c", ".updated", b"");
        trap.file("c", ".pwd.lock", b"");
        trap.merge();
        assert_eq!(trap.merged("machine-id") == local, want || local == "uninitialized\n", "{local}");
        assert!(trap.is_absent(".updated") && trap.is_absent(".pwd.lock"));
    }
}
