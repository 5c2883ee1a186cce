//! Policies and rules, through the real program.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Output};
use xshell::cmd;

use crate::{
    etc_merge::{list, tree},
    programs::{PROGRAM, output, shell},
};

fn run(dir: &Path, command: &str, config: &str, more: &[&str]) -> Output {
    fs::write(dir.join("config.toml"), config).unwrap();
    let etc =
        cmd!(shell(dir), "{PROGRAM} etc {command} --pristine p --current c --new n --config config.toml {more...}");
    output(etc)
}

fn trees(dir: &Path, p: &[&str], c: &[&str], n: &[&str]) {
    tree(&dir.join("p"), p);
    tree(&dir.join("c"), c);
    tree(&dir.join("n"), n);
}

fn check(config: &str, [p, c, n]: [&[&str]; 3], want: &[&str], aside: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    trees(dir.path(), p, c, n);
    let output = run(dir.path(), "merge", config, &["--output", "m"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for (name, want) in [("m", want), ("m.conflicts", aside), ("c", c), ("n", n)] {
        let mut got = vec![];
        list(&dir.path().join(name), "", &mut got);
        let mut want = want.to_vec();
        want.sort_unstable();
        assert_eq!(got, want, "{name}: {config}\n{}", String::from_utf8_lossy(&output.stdout));
    }
}

const CLASH: [&[&str]; 3] = [&["x=1"], &["x/mine=1", "x/sub/y=2"], &["x=2"]];
const CLASH_OTHER_WAY: [&[&str]; 3] = [&["x/a=1", "x/b=1"], &["x=mine"], &["x/a=2", "x/b=1"]];

#[test]
fn type_conflicts_by_policy() {
    let clash = |keep: &str| format!("[etc]\ntype-clash = \"{keep}\"\n");
    let mine: &[&str] = &["x/mine=1", "x/sub/y=2"];
    check(&clash("image"), CLASH, &["x=2"], mine);
    check(&clash("local"), CLASH, mine, &[]);
    check(&clash("both"), CLASH, &["x=2", "x.etc-local/mine=1", "x.etc-local/sub/y=2"], &[]);
    check(&clash("image"), CLASH_OTHER_WAY, &["x/a=2", "x/b=1"], &["x=mine"]);
    check(&clash("local"), CLASH_OTHER_WAY, &["x=mine"], &[]);
    check(&clash("both"), CLASH_OTHER_WAY, &["x/a=2", "x/b=1", "x.etc-local=mine"], &[]);
}

#[test]
fn rules_choose_for_single_paths() {
    let rule = |keep: &str| format!("[[etc.rule]]\npath = \"ssl/**\"\nkeep = \"{keep}\"\n");
    let trees: [&[&str]; 3] =
        [&["ssl/a=1", "ssl/b=1", "o=1"], &["ssl/a=2", "ssl/b=1", "o=2"], &["ssl/a=3", "ssl/b=3", "o=3"]];
    check(&rule("local"), trees, &["ssl/a=2", "ssl/b=1", "o=2"], &[]);
    check(&rule("image"), trees, &["ssl/a=3", "ssl/b=3", "o=2"], &[]);
    check(&rule("both"), trees, &["ssl/a=3", "ssl/a.etc-local=2", "ssl/b=3", "o=2"], &[]);
    // A removal is forgotten, a file is pinned though nothing changed here, the last rule counts.
    check(&rule("image"), [&["ssl/a=1"], &["ssl/"], &["ssl/a=1"]], &["ssl/a=1"], &[]);
    let both_rules = format!("{}{}", rule("image"), rule("local"));
    check(&both_rules, trees, &["ssl/a=2", "ssl/b=1", "o=2"], &[]);
}

#[test]
fn account_files_can_be_merged_as_files_and_paths_be_ignored() {
    let (p, c, n) = ("passwd=r:x:0:0:::\n", "passwd=r:x:0:0:::\nme:x:9:9:::\n", "passwd=r:x:0:0:::\nt:x:1:1:::\n");
    check("[etc]\naccounts = \"file\"\n", [&[p], &[c], &[n]], &[c], &[]);
    check("[etc]\nignore = [\"*.swp\"]\n", [&[], &["a.swp=1", "b=1"], &[]], &["b=1"], &[]);
}

#[test]
fn a_conflict_that_is_set_to_fail_refuses_before_the_first_write() {
    for (config, [p, c, n], why) in [
        ("[etc]\ntype-clash = \"fail\"\n", CLASH, "/etc/x: conflict, and [etc] type-clash = \"fail\""),
        (
            "[[etc.rule]]\npath = \"**\"\nkeep = \"fail\"\n",
            [&["a=1"][..], &["a=2"], &["a=3"]],
            "/etc/a: conflict, and [[etc.rule]] keep = \"fail\"",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        trees(dir.path(), p, c, n);
        for (command, more) in [("plan", &[][..]), ("merge", &["--output", "m"])] {
            let output = run(dir.path(), command, config, more);
            assert_eq!(output.status.code(), Some(3));
            assert_eq!(String::from_utf8_lossy(&output.stderr), format!("{why}: update not applied\n"));
            assert!(String::from_utf8_lossy(&output.stdout).contains("1 conflict\n"));
        }
        assert!(!dir.path().join("m").exists() && !dir.path().join("m.conflicts").exists());
    }
}

#[test]
fn a_plan_is_printed_as_json_and_with_content() {
    let dir = tempfile::tempdir().unwrap();
    let secret = "shadow=r:$y$secret:1::::::\n";
    trees(dir.path(), &["a=1\n", "l->x"], &["a=2\n", secret, "l->y"], &["a=1\n", "l->z"]);
    fs::write(dir.path().join("c").join("b\\\u{1}"), "").unwrap();
    let output = run(dir.path(), "plan", "", &["--json", "--content"]);
    let plan: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(plan["schema"], 1);
    let paths = plan["paths"].as_array().unwrap();
    let row = |path: &str| paths.iter().find(|row| row["path"] == path).unwrap().clone();
    let check = |path: &str, reason: &str, kind: &str, (local, image): (&str, Option<&str>)| {
        let row = row(path);
        let got = [&row["action"], &row["reason"], &row["kind"], &row["local"]].map(|value| value.as_str().unwrap());
        assert_eq!(got, ["keep", reason, kind, local], "{path}");
        assert_eq!(row["image"].as_str(), image, "{path}");
    };
    check("a", "local", "file", ("changed", None));
    check("l", "content-conflict", "link", ("changed", Some("changed")));
    check("b\\x5c\\x01", "local", "file", ("added", None));
    assert_eq!(["pristine", "current", "new"].map(|side| row("l")[side]["target"].clone()), ["x", "y", "z"]);
    assert_eq!(plan["conflicts"], serde_json::json!(["l"]));
    let text = String::from_utf8(run(dir.path(), "plan", "", &["--content"]).stdout).unwrap();
    assert!(text.contains("-1\n+2\n") && !text.contains("secret"), "{text}");
    assert!(!String::from_utf8(output.stdout).unwrap().contains("secret"));
}

#[test]
fn a_directory_that_is_ignored_is_left_out_with_all_below() {
    let trees: [&[&str]; 3] =
        [&["d/a=1", "d/s/b=1", "e=1"], &["d/a=1", "d/s/b=2", "e=1"], &["d/a=2", "d/s/b=1", "e=1"]];
    check("[etc]\nignore = [\"d\"]\n", trees, &["e=1"], &[]);
    check("[etc]\nignore = [\"d/s\"]\n", trees, &["d/a=2", "e=1"], &[]);
}

#[test]
fn what_is_kept_beside_takes_a_name_that_is_free() {
    let rule = "[[etc.rule]]\npath = \"**\"\nkeep = \"both\"\n";
    let n: &[&str] = &["a=3", "a.etc-local=theirs"];
    check(rule, [&["a=1"], &["a=2"], n], &["a=3", "a.etc-local=theirs", "a.etc-local.2=2"], &[]);
    let long = "l".repeat(255);
    let [p, c, n] = [1, 2, 3].map(|content| format!("{long}={content}"));
    let beside = format!("{}.etc-local=2", "l".repeat(245));
    check(rule, [&[&p], &[&c], &[&n]], &[&n, &beside], &[]);
    // The image dropped it with its directory: there is nothing to be beside.
    check(rule, [&["d/a=1"], &["d/a=2"], &[]], &["d/a=2"], &[]);
}

#[test]
fn a_rule_brings_its_directories_back_and_yields_where_they_are_something_else() {
    let rule = |keep: &str| format!("[[etc.rule]]\npath = \"d/s/**\"\nkeep = \"{keep}\"\n");
    let image: &[&str] = &["d/s/a=1", "d/b=1", "e=1"];
    check(&rule("image"), [image, &["e=1"], image], &["d/s/a=1", "e=1"], &[]);
    check(&rule("local"), [image, image, &["e=1"]], &["d/s/a=1", "e=1"], &[]);
    check(&rule("local"), [image, image, &["d->e", "e=1"]], &["d->e", "e=1"], &[]);
    check(&rule("image"), [image, &["d->e", "e=1"], image], &["d->e", "e=1"], &[]);
}

#[test]
fn a_rule_about_a_directory_loses_no_local_file_in_it() {
    let config = "[[etc.rule]]\npath = \"c*\"\nkeep = \"image\"\n";
    // A directory that was made here, where the image has a file.
    check(config, [&["c=1"], &["c/mine=1", "c/sub/"], &["c=1"]], &["c=1"], &["c/mine=1", "c/sub/"]);
    // One that the image drops, and that was changed here too.
    let dir = tempfile::tempdir().unwrap();
    trees(dir.path(), &["c/a=1"], &["c/a=1", "c/mine=1"], &[]);
    fs::set_permissions(dir.path().join("c/c"), fs::Permissions::from_mode(0o700)).unwrap();
    assert!(run(dir.path(), "merge", config, &["--output", "m"]).status.success());
    let mut got = vec![];
    list(&dir.path().join("m"), "", &mut got);
    assert_eq!(got, ["c/mine=1"]);
}
