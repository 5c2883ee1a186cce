//! What a person sees before an update: everything that differs, also what only the image changed, and a reason where
//! there is nothing to see.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    process::{Command, Output, Stdio},
};

use finalize::boot::Loader;
use serde_json::Value;

use crate::{etc_traps::Trap, machine::Machine};
use xshell::cmd;

use crate::programs::{PROGRAM, output, shell};

fn plan(trap: &Trap, more: &[&str]) -> Output {
    output(cmd!(shell(trap.at("")), "{PROGRAM} etc plan --pristine p --current c --new n {more...}"))
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What becomes of each path here and in the image.
fn rows(plan: &Value) -> BTreeMap<&str, [Option<&str>; 3]> {
    let mut rows = BTreeMap::new();
    for row in plan["paths"].as_array().unwrap() {
        rows.insert(row["path"].as_str().unwrap(), ["reason", "local", "image"].map(|key| row[key].as_str()));
    }
    rows
}

/// Quiet leaves in all their kinds: changed, added and dropped by the image, or only in their mode; with some that nobody
/// changed, and a directory that came and one that went.
fn trap() -> Trap {
    let trap = Trap::new();
    for name in ["changed", "dropped", "mode", "same", "d/changed", "d/dropped", "d/same", "old/a"] {
        trap.file("pc", name, b"1");
    }
    for (name, content) in [
        ("changed", "2"),
        ("mode", "1"),
        ("same", "1"),
        ("added", "1"),
        ("d/changed", "2"),
        ("d/same", "1"),
        ("d/e/f", "1"),
    ] {
        trap.file("n", name, content.as_bytes());
    }
    fs::set_permissions(trap.at("n/mode"), fs::Permissions::from_mode(0o600)).unwrap();
    trap.file("c", "mine", b"1");
    trap
}

#[test]
fn every_path_that_differs_between_any_two_sides_is_listed() {
    let trap = trap();
    let plan: Value = serde_json::from_slice(&plan(&trap, &["--json"]).stdout).unwrap();
    let image = |change| [Some("image"), None, Some(change)];
    let want = BTreeMap::from([
        ("added", image("added")),
        ("changed", image("changed")),
        ("d/changed", image("changed")),
        ("d/dropped", image("removed")),
        ("d/e", image("added")),
        ("d/e/f", image("added")),
        ("dropped", image("removed")),
        ("mine", [Some("local"), Some("added"), None]),
        ("mode", image("changed")),
        ("old", image("removed")),
        ("old/a", image("removed")),
    ]);
    assert_eq!(rows(&plan), want);
    assert_eq!(plan["reason"], Value::Null);
    let row = |path: &str| plan["paths"].as_array().unwrap().iter().find(|row| row["path"] == path).unwrap();
    assert_eq!(
        (row("mode")["pristine"]["mode"].as_str(), row("mode")["new"]["mode"].as_str()),
        (Some("0644"), Some("0600"))
    );
    assert_eq!((row("dropped")["action"].as_str(), &row("dropped")["new"]), (Some("remove"), &Value::Null));
}

#[test]
fn text_is_grouped_and_all_names_each_path() {
    let trap = trap();
    let grouped = text(&plan(&trap, &[]));
    let want = "keep   /etc/mine  (changed here)\n\
        take   /etc/added  (added in the image)\n\
        take   /etc/changed  (changed in the image)\n\
        take   /etc/d/  (2 added, 1 changed, 1 removed in the image)\n\
        remove /etc/dropped  (removed in the image)\n\
        take   /etc/mode  (changed in the image)\n\
        take   /etc/old/  (2 removed in the image)\n\
        /etc: 13 from the image, 1 local, 0 changed alike on both sides, 0 merged by record, 0 conflicts\n";
    assert_eq!(grouped, want);
    let all = text(&plan(&trap, &["--all"]));
    assert!(all.contains("take   /etc/d/e/f  (added in the image)\n"), "{all}");
    assert!(all.contains("remove /etc/d/dropped  (removed in the image)\n") && !all.contains("same"), "{all}");
}

#[test]
fn content_shows_what_the_image_changed() {
    let trap = trap();
    trap.file("n", "mode", b"secret");
    let content = text(&plan(&trap, &["--content"]));
    assert!(
        content.contains("--- /etc/d/changed, the booted image's\n+++ /etc/d/changed, the staged image's\n"),
        "{content}"
    );
    assert!(content.contains("-1\n") && content.contains("+2\n"), "{content}");
    // Private in one of the images is private.
    assert!(content.contains("/etc/mode, the staged image's\n(its content is not shown)\n"), "{content}");
}

#[test]
fn what_is_never_carried_is_not_listed_as_the_images() {
    let trap = trap();
    trap.file("p", ".pwd.lock", b"");
    trap.file("p", "ignored/deep", b"1");
    fs::write(trap.at("config.toml"), "[etc]\nignore = [\"ignored\"]\n").unwrap();
    let plan: Value = serde_json::from_slice(&plan(&trap, &["--json", "--config", "config.toml"]).stdout).unwrap();
    let rows = rows(&plan);
    assert!(!rows.keys().any(|path| path.starts_with("ignored") || path.starts_with('.')), "{rows:?}");
    assert_eq!(plan["skipped"], serde_json::json!([".pwd.lock", "ignored"]));
}

#[test]
fn json_says_why_there_is_nothing_to_merge() {
    let machine = Machine::new(Loader::SystemdBoot);
    let json = |args: &[&str]| -> Value { serde_json::from_str(&machine.ok(args)).unwrap() };
    assert_eq!(json(&["plan", "--json"])["reason"], Value::Null);
    machine.files("vendor", &[("config.toml", "[etc]\nmerge = false\n")]);
    let vendor = machine.path("vendor");
    let vendor = ["--vendor-config", vendor.to_str().unwrap()];
    for command in [&["plan"][..], &["staged", "--dry-run"]] {
        let answer = json(&[command, &["--json"], &vendor].concat());
        assert_eq!(
            (&answer["reason"], &answer["paths"]),
            (&"merge-disabled".into(), &Value::Array(vec![])),
            "{answer}"
        );
        assert!(machine.ok(&[command, &vendor].concat()).contains("merge"), "{command:?}");
    }
    let marker = machine.path("run").join(finalize::layout::MARKER);
    let staged = fs::read_to_string(&marker).unwrap();
    fs::write(&marker, staged.replace('}', ",\"finalization_locked\":true}")).unwrap();
    assert_eq!(json(&["staged", "--dry-run", "--json"])["reason"], "locked");
    let text = machine.ok(&["staged", "--dry-run"]);
    assert!(text.contains("staged but locked: not finalized") && !text.contains("/etc/"), "{text}");
    // Who asks for the plan gets the plan, and is told.
    assert_eq!(json(&["plan", "--json"])["locked"], true);
    let text = machine.ok(&["plan"]);
    assert!(text.contains("staged but locked") && text.contains("/etc/motd"), "{text}");
    fs::remove_file(marker).unwrap();
    for command in [&["plan", "--json"][..], &["staged", "--dry-run", "--json"]] {
        assert_eq!(json(command)["reason"], "nothing-staged");
    }
}

#[test]
fn a_refusal_is_told_before_the_reboot_too() {
    let machine = Machine::new(Loader::SystemdBoot);
    fs::write(machine.state("a").join("etc/motd"), "mine").unwrap();
    machine.files("vendor", &[("config.toml", "[[etc.rule]]\npath = \"motd\"\nkeep = \"fail\"\n")]);
    let vendor = machine.path("vendor");
    for command in [&["plan"][..], &["plan", "--json"], &["staged", "--dry-run"], &["staged"]] {
        let output = machine.run(&[command, &["--vendor-config", vendor.to_str().unwrap()]].concat());
        let told = [output.stderr, output.stdout].concat();
        let told = String::from_utf8_lossy(&told);
        assert_eq!(output.status.code(), Some(3), "{command:?}: {told}");
        assert!(told.contains("/etc/motd: conflict, and [[etc.rule]] keep = \"fail\": update not applied"), "{told}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let trap = trap();
    for number in 0..3000 {
        trap.file("c", &format!("many/a-long-name-that-fills-a-pipe-{number}"), b"1");
    }
    let mut program = Command::from(cmd!(shell(trap.at("")), "{PROGRAM} etc plan --pristine p --current c --new n"));
    let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = [0; 4];
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut first).unwrap();
    drop(out);
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr)), (Some(0), "".into()));
}
