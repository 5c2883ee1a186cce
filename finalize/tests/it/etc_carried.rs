//! What is carried with a local node, and what becomes of nodes that change while they are carried.

use std::{
    fs::{self, Permissions},
    io::Write,
    os::{
        fd::AsFd,
        unix::{
            fs::{MetadataExt, PermissionsExt, chown, symlink},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::Command,
};

use cap_std::{ambient_authority, fs::Dir};
use finalize::{
    etc::{
        Merge, Sources,
        apply::Applied,
        policy::{Keep, Policy, Rule},
    },
    stop::Stop,
    sys::flags,
};
use rustix::fs::{IFlags, XattrFlags, ioctl_getflags, ioctl_setflags, lgetxattr, lsetxattr};
use xshell::cmd;

use crate::{
    etc_traps::Trap,
    programs::{PROGRAM, output, shell},
};

/// On the file system of the checkout, which has flags and all kinds of attributes.
pub fn trap() -> Trap {
    Trap::below(Path::new(env!("CARGO_TARGET_TMPDIR")))
}

fn is_root(trap: &Trap) -> bool {
    let root = fs::metadata(trap.at("p")).unwrap().uid() == 0;
    if !root {
        println!("SKIPPED: not root");
    }
    root
}

/// Nodes with flags, which nothing can remove before the flags are taken away.
pub struct Flagged(pub Vec<PathBuf>);

impl Flagged {
    pub fn set(&mut self, path: PathBuf, flags: IFlags) -> bool {
        let node = fs::File::open(&path).unwrap();
        let set = ioctl_getflags(&node).and_then(|old| ioctl_setflags(&node, old | flags)).is_ok();
        self.0.push(path);
        set
    }
}

impl Drop for Flagged {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Ok(node) = fs::File::open(path) {
                flags::clear(&node).unwrap();
            }
        }
    }
}

pub fn flags_of(path: &Path) -> IFlags {
    ioctl_getflags(fs::File::open(path).unwrap()).unwrap() & (IFlags::IMMUTABLE | IFlags::APPEND)
}

#[test]
fn immutable_and_append_only_files_stay_so() {
    let trap = trap();
    trap.file("c", "resolv.conf", b"nameserver ::1\n");
    trap.file("pn", "fstab", b"1");
    trap.file("c", "fstab", b"2");
    trap.file("c", "locked/mine", b"1");
    trap.file("c", "plain", b"1");
    let names = ["resolv.conf", "fstab", "locked"];
    let merged = names.map(|name| trap.at(&format!("m/{name}")));
    let mut flagged = Flagged(merged.to_vec());
    let wanted = [IFlags::IMMUTABLE, IFlags::APPEND, IFlags::IMMUTABLE];
    if !names.iter().zip(wanted).all(|(name, flags)| flagged.set(trap.at(&format!("c/{name}")), flags)) {
        println!("SKIPPED: no right to set flags, or none on this file system");
        return;
    }
    trap.merge();
    // What a stopped run leaves is no obstacle, whatever flags it has.
    let (_, applied) = trap.merge_by("c", &Policy::default());
    assert_eq!(merged.each_ref().map(|path| flags_of(path)), wanted);
    assert!(flags_of(&trap.at("m/plain")).is_empty());
    assert_eq!((trap.merged("resolv.conf"), trap.merged("locked/mine")), ("nameserver ::1\n".into(), "1".into()));
    assert!(applied.notes.is_empty(), "{:?}", applied.notes);
    assert!(fs::write(&merged[0], "2").is_err(), "the flag does nothing");
    flags::clear(fs::File::open(&merged[0]).unwrap()).unwrap();
    fs::write(&merged[0], "2").unwrap();
    // To clear what is not set is nothing.
    flags::clear(fs::File::open(trap.at("m/plain")).unwrap()).unwrap();
}

/// An unchanged file is a link to the image's own, which must not get a flag; and a merged one is of neither side.
#[test]
fn files_that_only_a_flag_sets_apart_are_copies_and_merged_ones_keep_theirs() {
    let trap = trap();
    trap.file("pcn", "hosts", b"1");
    trap.file("pc", "motd", b"1");
    trap.file("n", "motd", b"2");
    trap.file("p", "passwd", b"root:x:0:0:::\n");
    trap.file("c", "passwd", b"root:x:0:0:::\nme:x:9:9:::\n");
    trap.file("n", "passwd", b"root:x:0:0:::\nsvc:x:8:8:::\n");
    let names = ["hosts", "passwd", "motd"];
    let mut flagged = Flagged(names.map(|name| trap.at(&format!("m/{name}"))).to_vec());
    if !names.iter().all(|name| flagged.set(trap.at(&format!("c/{name}")), IFlags::IMMUTABLE)) {
        println!("SKIPPED: no right to set flags, or none on this file system");
        return;
    }
    let plan = trap.merge();
    let flags = names.map(|name| flags_of(&trap.at(&format!("m/{name}"))));
    assert_eq!(flags, [IFlags::IMMUTABLE, IFlags::IMMUTABLE, IFlags::empty()]);
    assert!(flags_of(&trap.at("n/hosts")).is_empty());
    assert_eq!((trap.merged("hosts"), trap.merged("motd")), ("1".into(), "2".into()));
    assert_eq!(trap.merged("passwd"), "root:x:0:0:::\nsvc:x:8:8:::\nme:x:9:9:::\n");
    let want =
        "/etc/motd may not be changed here (chattr), but is the booted image's: the new one is taken, without the flag";
    assert_eq!(plan.notes, [want]);
}

#[test]
fn a_flag_that_cannot_be_set_is_said() {
    let trap = trap();
    trap.file("c", "resolv.conf", b"1");
    let mut flagged = Flagged(vec![]);
    if !is_root(&trap) || !flagged.set(trap.at("c/resolv.conf"), IFlags::IMMUTABLE) {
        println!("SKIPPED: no right to set flags, or none on this file system");
        return;
    }
    let output = output(cmd!(
        shell(trap.at("")),
        "setpriv --bounding-set -linux_immutable --inh-caps -linux_immutable --
         {PROGRAM} etc merge --pristine p --current c --new n --output m"
    ));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && said.contains("/etc/resolv.conf has chattr +i here; the merged one has not"),
        "{said}"
    );
    assert_eq!(trap.merged("resolv.conf"), "1");
}

fn set(trap: &Trap, path: &str, name: &str, value: &[u8]) {
    lsetxattr(trap.at(path), name, value, XattrFlags::empty()).unwrap();
}

fn get(trap: &Trap, path: &str, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let length = lgetxattr(trap.at(path), name, &mut value).ok()?;
    value.truncate(length);
    Some(value)
}

#[test]
fn directories_have_the_images_label_and_no_signature_of_an_inode_is_carried() {
    let trap = trap();
    if !is_root(&trap) {
        return;
    }
    trap.file("pcn", "d/theirs", b"1");
    trap.file("c", "d/mine", b"1");
    trap.file("c", "own/mine", b"1");
    trap.file("pcn", "same", b"1");
    fs::set_permissions(trap.at("c/d"), Permissions::from_mode(0o700)).unwrap();
    for (path, label) in [("c/d", "local"), ("n/d", "image"), ("c/own", "own"), ("c", "local"), ("n", "image")] {
        set(&trap, path, "security.selinux", label.as_bytes());
    }
    fs::set_permissions(trap.at("c"), Permissions::from_mode(0o750)).unwrap();
    for path in ["c/d/mine", "c/same"] {
        set(&trap, path, "security.evm", b"\x02of this inode");
    }
    let plan = trap.merge();
    for (path, want) in [("m/d", "image"), ("m/own", "own"), ("m", "image")] {
        assert_eq!(get(&trap, path, "security.selinux").as_deref(), Some(want.as_bytes()), "{path}");
    }
    assert_eq!(fs::metadata(trap.at("m/d")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(get(&trap, "m/d/mine", "security.evm"), None);
    assert!(!plan.steps.contains_key(&"same".into()), "a signature counts as a change");
}

/// struct posix_acl_xattr: version 2; user::rwx, user:1000:rwx, group::r-x, mask::rwx, other::---.
fn default_acl() -> Vec<u8> {
    let entry =
        |(tag, perm, id): (u16, u16, u32)| [&tag.to_le_bytes()[..], &perm.to_le_bytes(), &id.to_le_bytes()].concat();
    let none = u32::MAX;
    let entries = [(1, 7, none), (2, 7, 1000), (4, 5, none), (0x10, 7, none), (0x20, 0, none)].map(entry);
    [2u32.to_le_bytes().to_vec(), entries.concat()].concat()
}

#[test]
fn what_is_kept_beside_inherits_nothing_and_moves_no_time() {
    const DEFAULT: &str = "system.posix_acl_default";
    let trap = trap();
    if !is_root(&trap) {
        return;
    }
    for (side, content) in [("p", b"1"), ("c", b"2"), ("n", b"3")] {
        trap.file(side, "d/secret", content);
        trap.file("c", "d/x/sub/mine", b"1");
    }
    trap.file("p", "d/x", b"1");
    trap.file("n", "d/x", b"2");
    for side in ["p", "c", "n"] {
        set(&trap, &format!("{side}/d"), DEFAULT, &default_acl());
        fs::set_permissions(trap.at(&format!("{side}/d/secret")), Permissions::from_mode(0o640)).unwrap();
        chown(trap.at(&format!("{side}/d")), Some(65534), Some(65534)).unwrap();
    }
    let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::open(trap.at("n/d")).unwrap().set_modified(time).unwrap();
    let rules = vec![Rule::new("d/secret", Keep::Both).unwrap()];
    let policy = Policy { type_clash: Keep::Both, rules, ..Policy::default() };
    trap.merge_by("c", &policy);
    assert_eq!((trap.merged("d/secret"), trap.merged("d/secret.etc-local")), ("3".into(), "2".into()));
    assert_eq!(trap.merged("d/x.etc-local/sub/mine"), "1");
    for (path, mode) in [("m/d/secret.etc-local", 0o640), ("m/d/x.etc-local", 0o755), ("m/d/x.etc-local/sub", 0o755)] {
        assert_eq!(fs::metadata(trap.at(path)).unwrap().mode() & 0o7777, mode, "{path}");
        assert_eq!(get(&trap, path, DEFAULT), None, "{path}");
        assert_eq!(get(&trap, path, "system.posix_acl_access"), None, "{path}");
    }
    assert_eq!(get(&trap, "m/d", DEFAULT), Some(default_acl()));
    assert_eq!(fs::metadata(trap.at("m/d")).unwrap().modified().unwrap(), time);
}

/// Plans the merge, lets `meanwhile` change the live tree, and writes it.
fn moving(trap: &Trap, meanwhile: impl FnOnce()) -> Applied {
    let open = |path: &str| Dir::open_ambient_dir(trap.at(path), ambient_authority()).unwrap();
    let (p, c, n) = (open("p"), open("c"), open("n"));
    let sources = Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() };
    let merge = Merge::plan(sources, &Policy::default()).unwrap();
    meanwhile();
    merge.write(&open(""), "m", "x", &Stop::never()).unwrap()
}

#[test]
fn a_file_that_becomes_something_else_between_plan_and_copy_is_carried_as_that() {
    let trap = trap();
    for path in ["to-link", "to-dir", "to-socket", "gone", "d/below"] {
        trap.file("c", path, b"1");
    }
    symlink("old", trap.at("c/link")).unwrap();
    symlink("old", trap.at("c/link-to-file")).unwrap();
    let applied = moving(&trap, || {
        for path in ["to-link", "to-dir", "to-socket", "gone", "link", "link-to-file"] {
            fs::remove_file(trap.at(&format!("c/{path}"))).unwrap();
        }
        symlink("elsewhere", trap.at("c/to-link")).unwrap();
        symlink("new", trap.at("c/link")).unwrap();
        trap.file("c", "to-dir/sub/file", b"in it");
        trap.file("c", "link-to-file", b"now");
        fs::set_permissions(trap.at("c/to-dir/sub"), Permissions::from_mode(0o700)).unwrap();
        std::os::unix::net::UnixListener::bind(trap.at("c/to-socket")).unwrap();
        fs::remove_dir_all(trap.at("c/d")).unwrap();
        trap.file("c", "d", b"a file");
    });
    assert_eq!(fs::read_link(trap.at("m/to-link")).unwrap(), Path::new("elsewhere"));
    assert_eq!(fs::read_link(trap.at("m/link")).unwrap(), Path::new("new"));
    assert_eq!((trap.merged("to-dir/sub/file"), trap.merged("link-to-file")), ("in it".into(), "now".into()));
    assert_eq!(fs::metadata(trap.at("m/to-dir/sub")).unwrap().mode() & 0o7777, 0o700);
    assert!(trap.is_absent("to-socket") && trap.is_absent("gone") && trap.is_absent("d/below"));
    let moved: Vec<_> = applied.moved.iter().map(ToString::to_string).collect();
    assert_eq!(moved, ["d/below", "gone", "link", "link-to-file", "to-dir", "to-link", "to-socket"]);
    assert_eq!(applied.notes, ["/etc/d is no directory any more, since it was read"]);
    assert_eq!(applied.said().len(), 8);
}

#[test]
fn what_comes_or_goes_after_the_trees_were_read_is_said() {
    let trap = trap();
    trap.file("pcn", "d/same", b"1");
    trap.file("pcn", "d/replaced", b"1");
    trap.file("pcn", "d/removed", b"1");
    trap.file("pc", "d/dropped", b"1");
    trap.file("c", "mine", b"1");
    trap.file("pcn", "quiet/same", b"1");
    // A directory's time is only as fine as the clock of the kernel's ticks.
    let old = std::time::SystemTime::UNIX_EPOCH;
    for dir in ["c", "c/d", "c/quiet"] {
        fs::File::open(trap.at(dir)).unwrap().set_modified(old).unwrap();
    }
    let applied = moving(&trap, || {
        trap.file("c", "late", b"1");
        trap.file("c", "d/late/deep", b"1");
        trap.file("c", "d/.new", b"2");
        fs::rename(trap.at("c/d/.new"), trap.at("c/d/replaced")).unwrap();
        fs::remove_file(trap.at("c/d/removed")).unwrap();
        fs::File::options().append(true).open(trap.at("c/mine")).unwrap().write_all(b"2").unwrap();
    });
    let want = [
        "/etc/late was made or replaced after /etc was read: it is not carried",
        "/etc/d/removed was removed after /etc was read: the image's is still there",
        "/etc/d/late was made or replaced after /etc was read: it is not carried",
        "/etc/d/replaced was made or replaced after /etc was read: it is not carried",
    ];
    assert_eq!(applied.notes, want);
    assert!(applied.moved.is_empty(), "{:?}", applied.moved);
    assert_eq!(trap.merged("mine"), "12");
    // Where nothing moved, nothing is said.
    assert_eq!(moving(&trap, || {}), Applied { bytes_copied: applied.bytes_copied + 3, ..Applied::default() });
}

#[test]
fn room_is_needed_for_what_is_kept_elsewhere_too() {
    for keep in [Keep::Image, Keep::Both] {
        let trap = Trap::new();
        trap.file("pn", "x", b"1");
        trap.file("n", "x", b"2");
        trap.file("c", "x/mine", &[b'm'; 5000]);
        trap.file("c", "y", &[b'y'; 300]);
        let policy = Policy { type_clash: keep, ..Policy::default() };
        let (plan, applied) = trap.merge_by("c", &policy);
        // The directory of what is kept elsewhere is a block.
        assert_eq!(plan.bytes(), 4096 + 5000 + 300, "{keep:?}");
        assert!(applied.bytes_copied <= plan.bytes());
    }
}

/// As a user who cannot read the file, which a disk that is broken does to root.
#[test]
fn a_file_that_is_given_up_is_never_opened() {
    let trap = Trap::new();
    if !is_root(&trap) {
        return;
    }
    trap.file("pn", "broken.conf", b"1");
    trap.file("n", "broken.conf", b"3");
    trap.file("c", "broken.conf", b"2");
    trap.file("c", "passwd", b"root:x:0:0:::\n");
    trap.file("pn", "passwd", b"root:x:0:0:x::\n");
    for path in ["broken.conf", "passwd"] {
        fs::set_permissions(trap.at(&format!("c/{path}")), Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(trap.at(&format!("p/{path}")), Permissions::from_mode(0o0)).unwrap();
    }
    for entry in walkdir::WalkDir::new(trap.at("")) {
        chown(entry.unwrap().path(), Some(65534), Some(65534)).unwrap();
    }
    let program = trap.at("program");
    fs::copy(PROGRAM, &program).unwrap();
    let run = |config: &str| {
        fs::write(trap.at("config.toml"), config).unwrap();
        let mut merge = Command::from(cmd!(
            shell(trap.at("")),
            "{program} etc merge --pristine p --current c --new n --output m --config config.toml"
        ));
        let output = merge.uid(65534).gid(65534).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let ignored = "[etc]\nignore = [\"passwd\", \"broken.conf\"]\n";
    let ruled = "[[etc.rule]]\npath = \"{broken.conf,passwd}\"\nkeep = \"image\"\n";
    let (code, said) = run("");
    assert!(code == Some(1) && said.contains("/etc/broken.conf"), "{said}");
    assert_eq!(run(ignored), (Some(0), String::new()));
    assert!(trap.is_absent("broken.conf"));
    fs::remove_dir_all(trap.at("m")).unwrap();
    // Only its bytes could tell that broken.conf was changed.
    fs::set_permissions(trap.at("p/passwd"), Permissions::from_mode(0o644)).unwrap();
    assert_eq!(run(ruled), (Some(0), String::new()));
    assert_eq!((trap.merged("broken.conf"), trap.merged("passwd")), ("3".into(), "root:x:0:0:x::\n".into()));
}

#[test]
fn a_mode_is_never_set_through_a_link() {
    let trap = Trap::new();
    trap.file("c", "secret", b"1");
    fs::set_permissions(trap.at("c/secret"), Permissions::from_mode(0o600)).unwrap();
    symlink("secret", trap.at("c/link")).unwrap();
    let dir = fs::File::open(trap.at("c")).unwrap();
    assert!(finalize::sys::node::chmod(dir.as_fd(), b"link", 0o4755).is_err());
    assert_eq!(fs::metadata(trap.at("c/secret")).unwrap().mode() & 0o7777, 0o600);
    finalize::sys::node::chmod(dir.as_fd(), b"secret", 0o4755).unwrap();
    assert_eq!(fs::metadata(trap.at("c/secret")).unwrap().mode() & 0o7777, 0o4755);
}
