//! What people have reported of merges of /etc and of account files, case by case: `etc_cases.md` shows for each what
//! the merged tree has and what is said. It is compared with what happens; `UPDATE_CASES=1` writes it anew.

use std::{
    fmt::Write as _,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use finalize::boot::Loader;
use rustix::fs::IFlags;
use xshell::cmd;

use crate::{
    etc_accounts::is_root,
    etc_carried::{Flagged, flags_of, trap},
    etc_generated::store,
    etc_numbers::swapped,
    etc_traps::Trap,
    machine::Machine,
    programs::{PROGRAM, output, shell},
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/etc_cases.md");

const HEAD: &str = "# Reported cases\n\nP is the booted image's /etc, C the live one, N the staged image's, M the merged \
                    one. Modes are shown where they are not 0644 or 0755, owners where they are not root, flags where \
                    there are any. Below are the words of `composefs-finalize etc plan`. A test compares all of this \
                    with what happens (`etc_cases.rs`).\n";

/// A case; none where it cannot be tried here.
type Try = fn() -> Option<String>;

const CASES: [(&str, Try); 10] = [
    ("A1. A group, and a user, that stand twice", twice),
    ("A2. Comments, blank lines, lines of directory services", odd_lines),
    ("A3. Two services whose numbers change places", numbers),
    ("A6. Two names with one subordinate range, and a user within it", ranges),
    ("A7. Indexes that the machine made itself", indexes),
    ("A8. A policy with a local module, and a new one in the image", policy),
    ("A9. Files that may not be changed", flags),
    ("A10. A file that cannot be read", unreadable),
    ("A11. Account files that are no files of lines", no_files),
    ("A12. Account files with other ends of lines, or none", line_ends),
];

#[test]
fn the_table_of_cases_is_what_happens() {
    let written = fs::read_to_string(FILE).unwrap_or_default();
    let (head, sections) = written.split_once("\n## ").unwrap_or((&written, ""));
    let sections: Vec<_> = sections.split("\n## ").map(|section| section.trim_end()).collect();
    let (mut text, mut wrong) = (HEAD.to_owned(), vec![]);
    for (at, (title, case)) in CASES.iter().enumerate() {
        let was = sections.get(at).copied().unwrap_or_default();
        let now = case().map(|text| format!("{title}\n{}", text.trim_end()));
        if now.is_none() {
            println!("SKIPPED {title}");
        }
        let now = now.unwrap_or_else(|| was.to_owned());
        if was != now {
            wrong.push(format!("{}", similar::TextDiff::from_lines(was, &now).unified_diff()));
        }
        write!(text, "\n## {now}\n").unwrap();
    }
    if std::env::var_os("UPDATE_CASES").is_some() {
        return fs::write(FILE, text).unwrap();
    }
    assert!(wrong.is_empty(), "{FILE} is not what happens:\n{}", wrong.join("\n"));
    assert_eq!((head.trim_end(), sections.len()), (HEAD.trim_end(), CASES.len()));
}

/// The case under one configuration: the sides of these paths, and the plan.
fn show(text: &mut String, trap: &Trap, config: &str, paths: &[&str]) {
    let plan = trap.merge_with(config);
    if !config.is_empty() {
        writeln!(text, "\nWith `{}`:", config.trim_end().replace("\n", " ")).unwrap();
    }
    writeln!(text).unwrap();
    for path in paths {
        writeln!(text, "    {path}").unwrap();
        for side in ["P", "C", "N", "M"] {
            writeln!(text, "      {side}  {}", node(&trap.at(&side.to_lowercase()).join(path))).unwrap();
        }
    }
    writeln!(text).unwrap();
    plan.to_string().lines().for_each(|line| writeln!(text, "    {line}").unwrap());
}

/// One node, on one line.
fn node(path: &Path) -> String {
    let Ok(meta) = fs::symlink_metadata(path) else { return "-".into() };
    let mut text = match meta.file_type() {
        kind if kind.is_dir() => "directory".to_owned(),
        kind if kind.is_symlink() => format!("-> {}", fs::read_link(path).unwrap().display()),
        _ => format!("\"{}\"", fs::read(path).unwrap().escape_ascii()).replace("\\'", "'").replace("\\\"", "\""),
    };
    if !meta.is_symlink() && ![0o644, 0o755].contains(&(meta.mode() & 0o7777)) {
        write!(text, "  {:04o}", meta.mode() & 0o7777).unwrap();
    }
    let root = fs::metadata(path.ancestors().find(|above| above.join("c").is_dir()).unwrap()).unwrap();
    if (meta.uid(), meta.gid()) != (root.uid(), root.gid()) {
        write!(text, "  {}:{}", meta.uid(), meta.gid()).unwrap();
    }
    let flags = if meta.is_symlink() { IFlags::empty() } else { flags_of(path) };
    for (flag, letter) in [(IFlags::IMMUTABLE, 'i'), (IFlags::APPEND, 'a')] {
        if flags.contains(flag) {
            write!(text, "  +{letter}").unwrap();
        }
    }
    text
}

fn twice() -> Option<String> {
    let (mut text, trap) = (String::new(), trap());
    trap.file("p", "group", b"root:x:0:\ndocker:x:990:\n");
    trap.file("c", "group", b"root:x:0:\ndocker:x:990:\ndocker:x:990:ada\nada:x:1000:\n");
    trap.file("n", "group", b"root:x:0:\ndocker:x:990:\nnewsvc:x:985:\n");
    trap.file("p", "passwd", b"root:x:0:0:::\n");
    trap.file("c", "passwd", b"root:x:0:0:::\nada:x:1000:1000:::\nada:x:1000:1000:::\n");
    trap.file("n", "passwd", b"root:x:0:0:::\nnewsvc:x:985:985:::\n");
    show(&mut text, &trap, "", &["group", "passwd"]);
    Some(text)
}

fn odd_lines() -> Option<String> {
    let (mut text, trap) = (String::new(), trap());
    trap.file("p", "passwd", b"root:x:0:0:::\n");
    trap.file("c", "passwd", b"root:x:0:0:::\n# site\n\nada:x:1000:1000:::\n+@admins\n-guest\n+::::::\n");
    trap.file("n", "passwd", b"root:x:0:0:::\nsvc:x:990:990:::\n");
    trap.file("p", "group", b"root:x:0:\n");
    trap.file("c", "group", b"root:x:0:\nada:x:1000:\n+");
    trap.file("n", "group", b"root:x:0:\nsvc:x:990:\n");
    trap.file("p", "shadow", b"root:*:::::::\n");
    trap.file("c", "shadow", b"root:$y$secret:::::::\nbroken\n+::::::::\n");
    trap.file("n", "shadow", b"root:*:::::::\nsvc:!:::::::\n");
    show(&mut text, &trap, "", &["passwd", "group", "shadow"]);
    Some(text)
}

fn numbers() -> Option<String> {
    let mut text = String::new();
    for follow in [false, true] {
        let trap = swapped();
        if !is_root(&trap) {
            return None;
        }
        fs::set_permissions(trap.at("c/dm/custom.conf"), Permissions::from_mode(0o640)).unwrap();
        chown(trap.at("c/dm/custom.conf"), Some(114), Some(116)).unwrap();
        let config = if follow { "[etc]\nfollow-ids = true\n" } else { "" };
        show(&mut text, &trap, config, &["passwd", "dm/custom.conf"]);
    }
    Some(text)
}

fn ranges() -> Option<String> {
    let (mut text, trap) = (String::new(), trap());
    trap.file("p", "subuid", b"");
    trap.file("c", "subuid", b"ada:100000:65536\n");
    trap.file("n", "subuid", b"builder:100000:65536\n");
    trap.file("p", "passwd", b"root:x:0:0:::\n");
    trap.file("c", "passwd", b"root:x:0:0:::\nada:x:1000:0:::\nbuilder:x:1001:0:::\n");
    trap.file("n", "passwd", b"root:x:0:0:::\nbig:x:100500:0:::\n");
    show(&mut text, &trap, "", &["subuid", "passwd"]);
    Some(text)
}

fn indexes() -> Option<String> {
    let mut text = String::new();
    for config in ["", "[[etc.rule]]\npath = \"ld.so.cache\"\nkeep = \"local\"\n"] {
        let trap = trap();
        for path in ["ld.so.cache", "pki/ca-trust/extracted/pem/bundle.pem", "udev/hwdb.bin", "passwd-"] {
            trap.file("p", path, b"1");
            trap.file("c", path, b"2");
            trap.file("n", path, b"3");
        }
        trap.file("cn", ".updated", b"");
        show(&mut text, &trap, config, &["ld.so.cache", "passwd-", ".updated"]);
    }
    Some(text)
}

fn policy() -> Option<String> {
    let mut text = String::new();
    for config in ["", "[[etc.rule]]\npath = \"selinux/**\"\nkeep = \"image\"\n"] {
        let paths = ["policy/policy.33", "contexts/files/file_contexts", "active/modules/400/mine/cil"];
        let paths = paths.map(|path| format!("selinux/t/{path}"));
        show(&mut text, &store(), config, &paths.each_ref().map(String::as_str));
    }
    Some(text)
}

fn flags() -> Option<String> {
    let (mut text, trap) = (String::new(), trap());
    trap.file("pn", "resolv.conf", b"");
    trap.file("c", "resolv.conf", b"nameserver ::1\n");
    trap.file("pcn", "hosts", b"1");
    trap.file("pc", "motd", b"1");
    trap.file("n", "motd", b"2");
    trap.file("c", "events.log", b"1");
    trap.file("c", "locked/mine", b"1");
    let names = ["resolv.conf", "hosts", "motd", "events.log", "locked"];
    let all = names.iter().flat_map(|name| [trap.at(&format!("c/{name}")), trap.at(&format!("m/{name}"))]);
    let mut flagged = Flagged(all.collect::<Vec<PathBuf>>());
    for name in names {
        let flag = if name == "events.log" { IFlags::APPEND } else { IFlags::IMMUTABLE };
        if !flagged.set(trap.at(&format!("c/{name}")), flag) {
            return None;
        }
    }
    show(&mut text, &trap, "", &names);
    Some(text)
}

/// The program without what lets root read everything: as on a disk that is broken, opening a file fails.
fn who_cannot_read(program: &Command) -> Command {
    let less = "-dac_override,-dac_read_search";
    let (dir, program, args) = (program.get_current_dir().unwrap(), program.get_program(), program.get_args());
    cmd!(shell(dir), "setpriv --bounding-set {less} --inh-caps {less} -- {program} {args...}").into()
}

fn unreadable() -> Option<String> {
    let mut text = String::new();
    let ruled = "[[etc.rule]]\npath = \"broken.conf\"\nkeep = \"image\"\n";
    for config in ["", "[etc]\nignore = [\"broken.conf\"]\n", ruled] {
        let trap = trap();
        trap.file("pn", "broken.conf", b"1");
        trap.file("c", "broken.conf", b"2");
        trap.file("c", "config.toml", config.as_bytes());
        fs::set_permissions(trap.at("c/broken.conf"), Permissions::from_mode(0o0)).unwrap();
        fs::set_permissions(trap.at("p/broken.conf"), Permissions::from_mode(0o0)).unwrap();
        let merge = cmd!(
            shell(trap.at("")),
            "{PROGRAM} etc merge --pristine p --current c --new n --output m --config c/config.toml"
        );
        let output = output(who_cannot_read(&merge.into()));
        if !is_root(&trap) || output.status.code() == Some(127) {
            return None;
        }
        let given = if config.is_empty() {
            String::new()
        } else {
            format!("With `{}`, ", config.trim_end().replace('\n', " "))
        };
        write!(
            text,
            "\n{given}`etc merge` as a user who may not read it; exit code {}:\n\n",
            output.status.code().unwrap()
        )
        .unwrap();
        write!(text, "    broken.conf\n      M  {}\n\n", node(&trap.at("m/broken.conf"))).unwrap();
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
        said.lines().for_each(|line| writeln!(text, "    {line}").unwrap());
    }
    Some(text)
}

fn no_files() -> Option<String> {
    let (mut text, trap) = (String::new(), trap());
    trap.file("p", "passwd", b"root:x:0:0:::\n");
    trap.file("c", "passwd", b"root:x:0:0:::\n\0\0\n");
    trap.file("n", "passwd", b"root:x:0:0:::\nsvc:x:990:990:::\n");
    trap.file("p", "group", b"root:x:0:\n");
    trap.file("n", "group", b"root:x:0:\nsvc:x:990:\n");
    std::os::unix::fs::symlink("../var/lib/group", trap.at("c/group")).unwrap();
    trap.file("p", "subuid", b"");
    trap.file("c", "subuid/mine", b"1");
    trap.file("n", "subuid", b"svc:100000:9\n");
    show(&mut text, &trap, "", &["passwd", "group", "subuid"]);
    Some(text)
}

fn line_ends() -> Option<String> {
    let (mut text, trap) = (String::new(), trap());
    trap.file("p", "passwd", b"root:x:0:0::/root:/bin/sh\na:x:1:1::/:/bin/sh\n");
    trap.file("c", "passwd", b"root:x:0:0::/root:/bin/sh\r\na:x:1:1::/:/bin/sh\r\nada:x:1000:0::/:/bin/sh\r\n");
    trap.file("n", "passwd", b"root:x:0:0::/root:/bin/sh\na:x:1:1::/:/bin/bash\nsvc:x:990:990::/:/bin/sh\n");
    trap.file("p", "group", b"root:x:0:\n");
    trap.file("c", "group", b"root:x:0:\nada:x:1000:");
    trap.file("n", "group", b"root:x:0:\nsvc:x:990:");
    trap.file("p", "subuid", b"");
    trap.file("c", "subuid", b"ada:100000:9");
    trap.file("n", "subuid", b"svc:200000:9\n");
    show(&mut text, &trap, "", &["passwd", "group", "subuid"]);
    Some(text)
}

/// The record names the path until the next finalization, and the way out that the table shows leads there.
#[test]
fn a_file_that_cannot_be_read_is_named_after_the_next_boot_too() {
    let machine = Machine::new(Loader::SystemdBoot);
    let hosts = machine.state("a").join("etc/hosts");
    fs::set_permissions(&hosts, Permissions::from_mode(0o0)).unwrap();
    let staged = || output(who_cannot_read(&machine.command(&["staged"])));
    let output = staged();
    if fs::metadata(&hosts).unwrap().uid() != 0 || output.status.code() == Some(127) {
        println!("SKIPPED: not root, or no setpriv");
        return;
    }
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("reading /etc/hosts"), "{said}");
    machine.reboot();
    for args in [&["status"][..], &["status", "--json"]] {
        let status = machine.ok(args);
        assert!(status.contains("reading /etc/hosts") && status.contains("Permission denied"), "{status}");
    }
    machine.stage("b");
    let local = machine.state("a").join("etc/composefs-finalize");
    fs::create_dir(&local).unwrap();
    fs::write(local.join("config.toml"), "[etc]\nignore = [\"hosts\"]\n").unwrap();
    let output = staged();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(machine.live()[0], "b");
    assert!(!machine.etc("b").contains_key("hosts"));
}
