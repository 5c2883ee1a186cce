//! What starts next: the table of cases, and the boot loaders' own tools on the same files, so that the table is not just
//! our opinion: bootctl reads entries as systemd-boot does, and grub-emu is GRUB with its menu in a terminal. `hack/tools`
//! has fetched them. systemd-boot itself is asked where there is firmware (`image-tools/tests/it/loaders.rs`).

#[allow(dead_code, reason = "two tests include it, and each takes what it needs")]
mod cases;
mod grub;

use std::{
    fs,
    path::{Path, PathBuf},
};

use finalize::boot::{
    Loader,
    order::{Item, compare_versions, titles},
};
use proptest::{prelude::*, test_runner::TestRunner};

use self::cases::{CASES, Case};
use xshell::cmd;

use crate::programs::{ok, output, shell};

#[test]
fn the_table_holds() {
    for case in CASES {
        let decision = case.decision();
        let order: Vec<_> = decision.order.iter().map(Item::stem).collect();
        assert_eq!(order.join(" "), case.order, "{}", case.name);
        assert_eq!(decision.next().unwrap().stem(), case.next, "{}", case.name);
        assert_eq!(decision.pinned.as_ref().map(|pinned| pinned.pin), case.pin, "{}", case.name);
    }
}

/// The directory in which programs of Debian's `suite` run; says so where they are missing.
fn tools(suite: &str) -> Option<PathBuf> {
    let found = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools")).join(suite).canonicalize();
    if found.is_err() || !rustix::process::geteuid().is_root() {
        println!("SKIPPED: this needs root, and the programs that hack/tools fetches");
        return None;
    }
    found.ok()
}

/// What bootctl says of the files: the name, its title in the menu, whether it is the default.
fn bootctl(root: &Path, dir: &Path) -> Vec<(String, String, bool)> {
    // It wants the root of a file system, which nobody else sees.
    let script = "mount -t tmpfs esp \"$1/boot\" && cp -r \"$2/.\" \"$1/boot\" && mount -t proc proc \"$1/proc\" && \
                  exec chroot \"$1\" bootctl --esp-path=/boot list --json=short";
    let bootctl = cmd!(shell("."), "unshare --mount sh -c {script} sh {root} {dir}");
    let list: serde_json::Value = serde_json::from_str(&ok(bootctl.env("SYSTEMD_RELAX_ESP_CHECKS", "1"))).unwrap();
    let text = |entry: &serde_json::Value, key: &str| entry[key].as_str().unwrap().to_owned();
    let name = |entry: &serde_json::Value| text(entry, "path").rsplit('/').next().unwrap().to_owned();
    let one = |entry: &serde_json::Value| (name(entry), text(entry, "showTitle"), entry["isDefault"] == true);
    list.as_array().unwrap().iter().map(one).collect()
}

#[test]
fn bootctl_agrees_with_the_table() {
    // It reads no variables where there is no firmware. It keeps the quotes that the boot loader takes away, and tells
    // capital letters from small ones.
    let by_files = |case: &&Case| {
        let variables = ["default", "preferred", "one-shot", "last", "version"];
        let quoted = case.texts().iter().any(|(_, text)| text.contains(['"', '\'']));
        let capital = case.files.iter().any(|(name, _)| name.contains(char::is_uppercase));
        case.loader == Loader::SystemdBoot
            && !quoted
            && !capital
            && variables.iter().all(|key| case.setting(key).is_none())
    };
    for root in ["trixie", "forky"].into_iter().filter_map(tools) {
        let mut wrong = vec![];
        for case in CASES.iter().filter(by_files) {
            let dir = tempfile::tempdir().unwrap();
            case.write(dir.path());
            let said = bootctl(&root, dir.path());
            let decision = case.decision();
            // bootctl lists some that the boot loader does not show, and never fewer.
            let shown = |name: &str| decision.order.iter().any(|item| item.name == name);
            let (said, more): (Vec<_>, Vec<_>) = said.into_iter().partition(|(name, ..)| shown(name));
            let default = said.iter().find(|(.., default)| *default).map(|(name, ..)| name.as_str());
            let said: Vec<_> = said.iter().map(|(name, ..)| name.as_str()).collect();
            let model: Vec<_> = decision.order.iter().map(|item| item.name.as_str()).collect();
            let next = decision.next().map(|item| item.name.as_str());
            if said != model || (default != next && more.is_empty()) {
                wrong.push(format!("{}: {said:?}, {default:?}; model {model:?}, {next:?}", case.name));
            }
        }
        assert!(wrong.is_empty(), "{}:\n{}", root.display(), wrong.join("\n"));
    }
}

#[test]
fn bootctl_tells_equal_titles_apart_in_the_same_way() {
    let Some(root) = tools("forky") else { return };
    let [one, two] = ["1234567890abcdef1234567890abcdef", "abcdef1234567890abcdef1234567890"];
    let keys = ["version 1", "version 2", "version 1", &format!("machine-id {one}"), &format!("machine-id {two}"), ""];
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("loader/entries")).unwrap();
    fs::create_dir_all(dir.path().join("k")).unwrap();
    fs::write(dir.path().join("k/v"), "kernel").unwrap();
    let texts = keys.map(|key| format!("title T\n{key}\nlinux /k/v\n"));
    let entries: Vec<_> =
        ["a.conf", "b.conf", "c.conf", "d.conf", "e.conf", "f.conf"].into_iter().zip(&texts).collect();
    for (name, text) in &entries {
        fs::write(dir.path().join("loader/entries").join(name), text).unwrap();
    }
    let entries: Vec<_> = entries.into_iter().map(|(name, text)| (name, text.parse().unwrap())).collect();
    // bootctl shows the whole machine id, the boot loader its beginning.
    let short = |title: String| title.replace(&one[8..], "").replace(&two[8..], "");
    let mut said: Vec<_> =
        bootctl(&root, dir.path()).into_iter().map(|(name, title, _)| (name, short(title))).collect();
    said.sort();
    assert_eq!(said.into_iter().map(|(_, title)| title).collect::<Vec<_>>(), titles(&entries));
}

#[test]
fn systemd_analyze_compares_versions_in_the_same_way() {
    let Some(root) = tools("forky") else { return };
    let part = "[a-c]{1,2}|[0-2]{1,2}|[-.~^_+]";
    let text = || prop::collection::vec(part, 0..5).prop_map(|parts| parts.concat());
    let config = ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() };
    let check = |(one, other): (String, String)| {
        let output = output(cmd!(shell("."), "chroot {root} systemd-analyze compare-versions -- {one} {other}"));
        let said = String::from_utf8(output.stdout).unwrap();
        let sign = match compare_versions(&one, &other) {
            std::cmp::Ordering::Less => " < ",
            std::cmp::Ordering::Equal => " == ",
            std::cmp::Ordering::Greater => " > ",
        };
        prop_assert!(said.contains(sign), "{said:?}, not {sign:?}");
        Ok(())
    };
    TestRunner::new(config).run(&(text(), text()), check).unwrap();
}
