//! `etc status` and `etc reset`: what was changed here, and back.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    process::{Command, Output},
};

use finalize::boot::Loader;
use serde_json::Value;
use xshell::cmd;

use crate::{
    etc_merge::list,
    etc_traps::Trap,
    machine::{Machine, id},
    programs::{self, PROGRAM, shell},
};

fn command(trap: &Trap, what: &str, more: &[&str]) -> Command {
    cmd!(shell(trap.at("")), "{PROGRAM} etc {what} --pristine p --current c {more...}").into()
}

fn run(trap: &Trap, what: &str, more: &[&str]) -> Output {
    command(trap, what, more).output().unwrap()
}

fn ok(trap: &Trap, what: &str, more: &[&str]) -> String {
    programs::ok(command(trap, what, more))
}

fn tree(trap: &Trap, side: &str) -> Vec<String> {
    let mut all = vec![];
    list(&trap.at(side), "", &mut all);
    all
}

/// Changed, added and removed files, a mode, a link, a directory that is a file here, one that is gone; on a file system
/// that has all kinds of renames.
fn trap() -> Trap {
    let trap = Trap::below(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")));
    for name in ["same", "edited", "mode", "gone", "dir/a", "dir/b", "lost/deep/a", "lost/deep/b", "kind/a"] {
        trap.file("p", name, b"image\n");
    }
    for name in ["same", "mode", "dir/a"] {
        trap.file("c", name, b"image\n");
    }
    for name in ["edited", "added/x", "kind"] {
        trap.file("c", name, b"local\n");
    }
    trap.file("c", "dir/b", b"local\n");
    symlink("theirs", trap.at("p/link")).unwrap();
    symlink("mine", trap.at("c/link")).unwrap();
    fs::set_permissions(trap.at("c/mode"), fs::Permissions::from_mode(0o600)).unwrap();
    trap
}

#[test]
fn drift_is_what_was_changed_here() {
    let trap = trap();
    let want = "added    /etc/added\n\
        added    /etc/added/x\n\
        changed  /etc/dir/b  (content)\n\
        changed  /etc/edited  (content)\n\
        removed  /etc/gone\n\
        changed  /etc/kind  (type)\n\
        removed  /etc/kind/a\n\
        changed  /etc/link  (target)\n\
        removed  /etc/lost\n\
        removed  /etc/lost/deep\n\
        removed  /etc/lost/deep/a\n\
        removed  /etc/lost/deep/b\n\
        changed  /etc/mode  (mode)\n\
        /etc: 2 added, 5 changed, 6 removed here\n";
    assert_eq!(ok(&trap, "status", &[]), want);
    let json: Value = serde_json::from_str(&ok(&trap, "status", &["--json", "--content"])).unwrap();
    assert_eq!(json["counts"], serde_json::json!({ "added": 2, "changed": 5, "removed": 6 }));
    let row = |path: &str| json["paths"].as_array().unwrap().iter().find(|row| row["path"] == path).unwrap();
    assert_eq!((&row("mode")["what"], &row("mode")["current"]["mode"]), (&serde_json::json!(["mode"]), &"0600".into()));
    assert_eq!((&row("gone")["change"], &row("gone")["current"]), (&"removed".into(), &Value::Null));
    let diff = json["content"].as_array().unwrap().iter().find(|diff| diff["path"] == "edited").unwrap();
    assert!(diff["diff"].as_str().unwrap().ends_with("-image\n+local\n"), "{diff}");
    let text = ok(&trap, "status", &["--content"]);
    assert!(text.contains("--- /etc/edited, the image's\n+++ /etc/edited, the local\n@@"), "{text}");
}

#[test]
fn a_fresh_machine_has_no_drift() {
    let trap = Trap::new();
    trap.file("pc", "d/a", b"1");
    trap.file("p", "machine-id", b"uninitialized\n");
    trap.file("c", "machine-id", b"0123456789abcdef0123456789abcdef\n");
    trap.file("c", ".updated", b"");
    assert_eq!(ok(&trap, "status", &[]), "/etc: 0 added, 0 changed, 0 removed here\n");
    let json: Value = serde_json::from_str(&ok(&trap, "status", &["--json"])).unwrap();
    assert_eq!(json["paths"], serde_json::json!([]));
    // A machine's id that is gone is drift.
    fs::remove_file(trap.at("c/machine-id")).unwrap();
    assert!(ok(&trap, "status", &[]).starts_with("removed  /etc/machine-id\n"));
}

#[test]
fn the_running_machine_is_compared_with_its_own_image() {
    let machine = Machine::new(Loader::SystemdBoot);
    fs::remove_file(machine.path("run").join(finalize::layout::MARKER)).unwrap();
    let text = machine.ok(&["etc", "status"]);
    assert_eq!(
        text,
        "removed  /etc/gone\nchanged  /etc/hosts  (content)\nadded    /etc/new\n/etc: 1 added, 1 changed, 1 removed here\n"
    );
    let before = machine.etc("a");
    let dry = machine.ok(&["etc", "reset", "--dry-run", "/etc/hosts", "gone"]);
    assert!(dry.contains("changed  /etc/hosts") && dry.contains("nothing was written"), "{dry}");
    assert_eq!(machine.etc("a"), before);
    let told = machine.ok(&["etc", "reset", "/etc/hosts", "gone", "new"]);
    let kept = machine.state("a").join("etc.conflicts");
    assert!(told.contains(&format!("local copies saved in {}", kept.display())), "{told}");
    assert_eq!(machine.ok(&["etc", "status"]), "/etc: 0 added, 0 changed, 0 removed here\n");
    let read = |name: &str| fs::read_to_string(kept.join(name)).unwrap();
    assert_eq!((read("hosts"), read("new"), kept.join("gone").exists()), ("mine".into(), "mine".into(), false));
    assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o7777, 0o700, "{}", id("a"));
}

#[test]
fn each_kind_of_path_goes_back_and_what_was_here_is_kept() {
    let trap = trap();
    let (image, local) = (tree(&trap, "p"), tree(&trap, "c"));
    let all = ["edited", "mode", "gone", "dir/b", "added", "kind", "link", "lost/deep/a"];
    ok(&trap, "reset", &[&["--conflicts", "kept", "--dry-run"][..], &all].concat());
    assert_eq!(tree(&trap, "c"), local);
    assert!(!trap.at("kept").exists());
    ok(&trap, "reset", &[&["--conflicts", "kept"][..], &all].concat());
    let without: Vec<_> = image.iter().filter(|line| !line.starts_with("lost/deep/b")).cloned().collect();
    assert_eq!(tree(&trap, "c"), without);
    assert_eq!(fs::metadata(trap.at("c/mode")).unwrap().mode() & 0o7777, 0o644);
    let kept = ["added/x=local\n", "dir/b=local\n", "edited=local\n", "kind=local\n", "link->mine", "mode=image\n"];
    assert_eq!(tree(&trap, "kept"), kept);
    assert_eq!(fs::metadata(trap.at("kept/mode")).unwrap().mode() & 0o7777, 0o600);
    // Nothing is written over what was kept before, and what is the image's already is left alone.
    trap.file("c", "edited", b"again\n");
    let inode = fs::metadata(trap.at("c/same")).unwrap().ino();
    ok(&trap, "reset", &["--conflicts", "kept", "edited", "same"]);
    assert_eq!((tree(&trap, "kept").len(), tree(&trap, "kept.2")), (6, vec!["edited=again\n".to_owned()]));
    assert_eq!(fs::metadata(trap.at("c/same")).unwrap().ino(), inode);
    assert_eq!(tree(&trap, "p"), image);
}

#[test]
fn what_cannot_be_reset_is_said_before_the_first_write() {
    let trap = trap();
    let local = tree(&trap, "c");
    for (path, want) in [
        ("nowhere", "/etc/nowhere exists neither here nor in the image"),
        ("kind/a", "/etc/kind is no directory here: reset /etc/kind itself"),
        ("../p/same", "without \"..\""),
        ("/etc/", "name a path below /etc"),
        ("/usr/x", "/usr/x is not below /etc"),
    ] {
        let output = run(&trap, "reset", &["--conflicts", "kept", "edited", path]);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{path}: {message}");
        assert!(message.contains(want), "{path}: {message}");
    }
    assert_eq!(tree(&trap, "c"), local);
    assert!(!trap.at("kept").exists());
}

/// Stopped at any changing call, each path is whole, the local one or the image's, and no local byte is gone; run again,
/// all is reset.
#[test]
fn a_reset_that_is_stopped_anywhere_loses_nothing() {
    let paths = ["edited", "gone", "added", "kind", "lost/deep"];
    let wanted = |trap: &Trap| -> BTreeMap<&str, [Vec<String>; 2]> {
        let below = |side: &str, path: &str| {
            tree(trap, side)
                .into_iter()
                .filter(|line| line.starts_with(&format!("{path}=")) || line.starts_with(&format!("{path}/")))
                .collect()
        };
        paths.into_iter().map(|path| (path, [below("c", path), below("p", path)])).collect()
    };
    for n in 1.. {
        let trap = trap();
        let whole = wanted(&trap);
        let arguments = [&["--conflicts", "kept"][..], &paths].concat();
        let mut program = command(&trap, "reset", &arguments);
        let how = if n % 2 == 0 { "eio" } else { "exit" };
        let output = program.env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}")).output().unwrap();
        if output.status.success() {
            println!("{} calls", n - 1);
            assert!(n > 30, "only {n} calls");
            break;
        }
        let now = wanted(&trap);
        for path in paths {
            let current = &now[path][0];
            assert!(whole[path].contains(current), "{how}:{n}: {path} is neither: {current:?}");
            let kept = tree(&trap, "kept");
            let safe = *current == whole[path][0] || whole[path][0].iter().all(|line| kept.contains(line));
            assert!(safe, "{how}:{n}: the local {path} is lost");
        }
        // A path that is nowhere any more is taken for a slip of the pen.
        let left: Vec<_> = paths.into_iter().filter(|path| *path != "added" || trap.at("c/added").exists()).collect();
        ok(&trap, "reset", &[&["--conflicts", "kept"][..], &left].concat());
        for path in paths {
            assert_eq!(wanted(&trap)[path][0], whole[path][1], "{how}:{n}: {path}");
        }
        assert!(!trap.at("c/.etc-reset").exists(), "{how}:{n}");
    }
}
