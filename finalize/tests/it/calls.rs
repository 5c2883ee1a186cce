//! Every system call that changes something is announced to the failpoint counter right before it is made: the program
//! runs under strace(1), and what it did is compared with what it announced.
//!
//! What this does not see: changes through a memory mapping, and what the kernel does by itself (closing the last
//! descriptor of a mount). The program has neither.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use xshell::cmd;

use crate::{
    counting, gc,
    machine::{Machine, PATHS, id},
    programs::{if_here, shell},
};

/// Calls that change something, and what they are announced as.
const CHANGING: &[(&str, &str)] = &[
    ("write", "write"),
    ("pwrite64", "write"),
    ("writev", "write"),
    ("pwritev", "write"),
    ("pwritev2", "write"),
    ("copy_file_range", "copy_file_range"),
    ("sendfile", "copy_file_range"),
    ("splice", "copy_file_range"),
    ("truncate", "ftruncate"),
    ("ftruncate", "ftruncate"),
    ("fallocate", "fallocate"),
    ("open", "openat"),
    ("creat", "openat"),
    ("openat", "openat"),
    ("openat2", "openat"),
    ("mknod", "mknodat"),
    ("mknodat", "mknodat"),
    ("mkdir", "mkdirat"),
    ("mkdirat", "mkdirat"),
    ("link", "linkat"),
    ("linkat", "linkat"),
    ("symlink", "symlinkat"),
    ("symlinkat", "symlinkat"),
    ("unlink", "unlinkat"),
    ("unlinkat", "unlinkat"),
    ("rmdir", "unlinkat"),
    ("rename", "renameat"),
    ("renameat", "renameat"),
    ("renameat2", "renameat2"),
    ("chmod", "fchmodat"),
    ("fchmod", "fchmod"),
    ("fchmodat", "fchmodat"),
    ("fchmodat2", "fchmodat"),
    ("chown", "fchownat"),
    ("lchown", "fchownat"),
    ("fchown", "fchown"),
    ("fchownat", "fchownat"),
    ("utimensat", "utimensat"),
    ("setxattr", "lsetxattr"),
    ("lsetxattr", "lsetxattr"),
    ("fsetxattr", "fsetxattr"),
    ("removexattr", "lremovexattr"),
    ("lremovexattr", "lremovexattr"),
    ("fremovexattr", "fremovexattr"),
    ("fsync", "fsync"),
    ("fdatasync", "fsync"),
    ("sync", "syncfs"),
    ("syncfs", "syncfs"),
    ("mount_setattr", "mount_setattr"),
    ("fsconfig", "fsconfig"),
    ("fsmount", "fsmount"),
    ("mount", "mount"),
    ("move_mount", "move_mount"),
    ("umount2", "umount2"),
    ("ioctl", "ioctl"),
];

/// The ioctls that change a file or a file system; as strace shows those of ext4 that it has no name for (`CHECKPOINT`,
/// `ALLOC_DA_BLKS`).
const IOCTLS: [&str; 7] = [
    "FICLONE",
    "FS_IOC_SETFLAGS",
    "EXT4_IOC_CHECKPOINT",
    "FIFREEZE",
    "FITHAW",
    "_IOC(_IOC_WRITE, 0x66, 0x2b",
    "_IOC(_IOC_NONE, 0x66, 0xc",
];

/// Which kind of change a line of strace shows, where it shows one that could be made.
fn change(call: &str, line: &str) -> Option<&'static str> {
    let kind = CHANGING.iter().find(|(name, _)| *name == call)?.1;
    let creates = ["O_CREAT", "O_TRUNC", "O_TMPFILE"].iter().any(|flag| line.contains(flag));
    // Standard output and error, sockets and pipes are no files of a disk.
    let speaks = ["(1<", "(2<"].iter().any(|fd| line.contains(&format!("{call}{fd}"))) || line.contains("<socket:");
    match kind {
        "openat" if !creates => None,
        "write" if speaks || line.contains("<pipe:") || line.contains("<UNIX") || line.contains("anon_inode:") => None,
        "ioctl" if !IOCTLS.iter().any(|name| line.contains(name)) => None,
        kind => Some(kind),
    }
}

/// What was done without being announced, and what was announced and not done; and how many changes there were.
fn compare(trace: &str) -> (Vec<String>, usize) {
    let mut announced: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let (mut wrong, mut count) = (vec![], 0);
    for line in trace.lines() {
        let Some((pid, rest)) = line.split_once(' ') else { continue };
        let rest = rest.trim_start();
        let Some((call, arguments)) = rest.split_once('(') else { continue };
        if let Some(name) = arguments.split("\"/changing/").nth(1).and_then(|rest| rest.split('"').next()) {
            announced.entry(pid).or_default().push(name);
        } else if let Some(kind) = change(call, rest) {
            count += 1;
            match announced.entry(pid).or_default().pop() {
                Some(name) if name == kind => {}
                Some(name) => wrong.push(format!("announced {name}, did {rest}")),
                None => wrong.push(format!("not announced: {rest}")),
            }
        }
    }
    let left = announced.into_values().flatten().map(|name| format!("announced {name}, and did nothing"));
    wrong.extend(left);
    (wrong, count)
}

/// Runs the command under strace; none where there is no strace.
fn traced(command: &Command, machine: &Machine) -> Option<String> {
    let trace = machine.path("trace");
    let calls: BTreeSet<_> = CHANGING.iter().map(|(name, _)| *name).chain(["readlink", "readlinkat"]).collect();
    let calls = calls.into_iter().map(|name| format!("?{name}")).collect::<Vec<_>>().join(",");
    let (program, args) = (command.get_program(), command.get_args());
    let strace =
        cmd!(shell("."), "strace -f -y -qq -s 64 -e signal=none -o {trace} -e trace={calls} -- {program} {args...}");
    let output = if_here(strace.env("COMPOSEFS_FINALIZE_ANNOUNCE", "1").env("COMPOSEFS_FINALIZE_TICK", "0"))?;
    let message = String::from_utf8_lossy(&output.stderr);
    if message.contains("ptrace") || message.contains("PTRACE") {
        return None;
    }
    assert!(output.status.success(), "{command:?}: {message}");
    Some(fs::read_to_string(trace).unwrap())
}

/// What a run announces, in its order; none where there is no strace.
pub fn announced(command: &Command, machine: &Machine) -> Option<Vec<String>> {
    let name = |line: &str| Some(line.split("\"/changing/").nth(1)?.split('"').next()?.to_owned());
    Some(traced(command, machine)?.lines().filter_map(name).collect())
}

fn more_of_everything(machine: &Machine) {
    let (a, b) = (machine.state("a").join("etc"), machine.state("b").join("etc"));
    fs::create_dir(a.join("local.d")).unwrap();
    (0..30).for_each(|number| fs::write(a.join(format!("local.d/{number}")), vec![b'x'; number * 700]).unwrap());
    std::os::unix::fs::symlink("hosts", a.join("link")).unwrap();
    fs::write(a.join("clash"), "mine").unwrap();
    fs::create_dir(b.join("clash")).unwrap();
    fs::write(machine.path("sysroot").join("rescue"), "").unwrap();
}

#[test]
fn every_changing_call_is_announced() {
    for (loader, boot_type) in PATHS {
        let machine = counting::equipped(Machine::on_disk(loader, boot_type), 2);
        more_of_everything(&machine);
        let booted = |letter: &str, args: &[&str]| counting::command(&machine, letter, args);
        let runs = [
            ("the preparation", booted("a", &["prepare"])),
            ("the first run", booted("a", &["staged"])),
            ("the second run", booted("a", &["staged"])),
            ("arm", booted("a", &["arm"])),
            ("the report", booted("b", &["report"])),
            ("arm of a counted boot", booted("b", &["arm"])),
            ("the end of the count", booted("b", &["bless"])),
            ("arm after the tries", booted("a", &["arm"])),
            ("the report after the tries", booted("a", &["report"])),
            ("another try", booted("a", &["try-again", "bbbb"])),
        ];
        for (what, command) in runs {
            match what {
                "arm of a counted boot" => counting::boot_of(&machine, "b"),
                "arm after the tries" => counting::spend(&machine),
                _ => {}
            }
            let Some(trace) = traced(&command, &machine) else {
                println!("SKIPPED, no strace here");
                return;
            };
            let (wrong, count) = compare(&trace);
            assert!(
                wrong.is_empty(),
                "{loader} {boot_type}, {what}: {} of {count}:\n{}",
                wrong.len(),
                wrong.join("\n")
            );
            println!("{loader} {boot_type}, {what}: {count} changing calls, all announced");
            machine.stage("b");
        }
    }
}

#[test]
fn every_changing_call_of_a_life_is_announced() {
    for (loader, boot_type) in PATHS {
        let machine = gc::littered(loader, boot_type);
        fs::create_dir_all(machine.path("esp")).unwrap();
        let booted = |args: &[&str]| machine.command_after(&format!("composefs={}", id("b")), args);
        let stage: fn(&Machine) = |machine| machine.restage("c");
        type Run = (&'static [&'static str], fn(&Machine));
        let runs: [Run; 7] = [
            (&["gc"], |_| ()),
            (&["pin", "aaaa"], |_| ()),
            (&["rollback"], |_| ()),
            (&["rollback"], |_| ()),
            (&["pin", "--remove", "aaaa"], |_| ()),
            (&["rollback"], stage),
            (&["unstage"], stage),
        ];
        for (args, first) in runs {
            first(&machine);
            let Some(trace) = traced(&booted(args), &machine) else {
                println!("SKIPPED, no strace here");
                return;
            };
            // Those of composefs' own collection: what it removes, nothing names.
            let ours: Vec<_> = trace.lines().filter(|line| !line.contains("/composefs/objects/")).collect();
            let (wrong, count) = compare(&ours.join("\n"));
            assert!(
                wrong.is_empty(),
                "{loader} {boot_type}, {args:?}: {} of {count}:\n{}",
                wrong.len(),
                wrong.join("\n")
            );
            println!("{loader} {boot_type}, {args:?}: {count} changing calls, all announced");
        }
    }
}

#[test]
fn a_call_that_is_not_announced_is_seen() {
    let good = "7 readlink(\"/changing/unlinkat\", 0x1, 256) = -1 ENOENT\n7 unlinkat(3</x>, \"y\", 0) = 0\n";
    assert_eq!(compare(good), (vec![], 1));
    for bad in [
        "7 unlinkat(3</x>, \"y\", 0) = 0\n",
        "7 readlink(\"/changing/fsync\", 0x1, 256) = -1 ENOENT\n7 unlinkat(3</x>, \"y\", 0) = 0\n",
        "8 readlink(\"/changing/unlinkat\", 0x1, 256) = -1 ENOENT\n7 unlinkat(3</x>, \"y\", 0) = 0\n",
        "7 openat(3</x>, \"y\", O_RDWR|O_CREAT, 0600) = 4</x/y>\n",
        "7 pwrite64(4</x/y>, \"z\", 1, 0) = 1\n",
    ] {
        assert!(!compare(bad).0.is_empty(), "{bad}");
    }
}
