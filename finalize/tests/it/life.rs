//! A machine goes back and forward: `rollback`, `unstage` and `pin`, on the four boot paths.

use std::{fs, process::Output};

use finalize::{boot::Loader, layout, staged::BootType};
use serde_json::Value;

use crate::machine::{Machine, PATHS, id};

/// A machine that was updated from `a` to `b` and has booted `b`.
pub fn updated(loader: Loader, boot_type: BootType) -> Machine {
    let machine = Machine::booting(loader, boot_type);
    machine.ok(&["staged"]);
    machine.reboot();
    in_b(&machine, &["report"]);
    machine
}

/// The program on a machine that has booted `b`.
fn run_in_b(machine: &Machine, args: &[&str]) -> Output {
    machine.command_after(&format!("composefs={}", id("b")), args).output().unwrap()
}

pub fn in_b(machine: &Machine, args: &[&str]) -> String {
    let output = run_in_b(machine, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The run is refused: exit code 3, words, and nothing has changed but the lock.
fn check_refused(machine: &Machine, args: &[&str], words: &[&str]) {
    let tree = || {
        let mut tree = machine.tree(&machine.path(""));
        tree.retain(|path, _| !path.ends_with("finalize/lock"));
        tree
    };
    let before = tree();
    for json in [false, true] {
        let output = run_in_b(machine, &[args, if json { &["--json"][..] } else { &[] }].concat());
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(3), "{args:?}: {said} {}", String::from_utf8_lossy(&output.stderr));
        for word in words {
            assert!(said.contains(word), "{word}: {said}");
        }
        if json {
            let said: Value = serde_json::from_str(&said).unwrap();
            assert_eq!((&said["outcome"], said["error"].is_array()), (&"refused".into(), true));
        }
    }
    assert_eq!(tree(), before, "{args:?}");
}

pub fn ours(machine: &Machine) -> String {
    machine.live().into_iter().filter(|name| name.len() == 1).collect()
}

#[test]
fn a_rollback_changes_the_order_and_nothing_else_and_another_one_changes_it_back() {
    for (loader, boot_type) in PATHS {
        let machine = updated(loader, boot_type);
        let before = machine.tree(&machine.path("sysroot/state/deploy"));
        assert_eq!(ours(&machine), "ba");
        for (args, wanted) in [(&["rollback"][..], "ab"), (&["rollback"], "ba"), (&["rollback", "--to", "aaaa"], "ab")]
        {
            let said = in_b(&machine, args);
            assert!(said.starts_with(&format!("{} boots next", id(&wanted[..1]).short())), "{said}");
            assert_eq!(ours(&machine), wanted, "{loader} {boot_type}");
            assert!(machine.live().contains(&"rescue.conf".to_owned()));
        }
        assert_eq!(machine.tree(&machine.path("sysroot/state/deploy")), before);
        for left in
            ["sysroot/boot/loader/entries.staged", "esp/loader/entries.staged", "sysroot/boot/grub2/user.cfg.staged"]
        {
            assert!(!machine.path(left).exists(), "{left}");
        }
        assert!(!machine.path("sysroot").join(layout::ROLLBACK).exists());
        let menu = machine.path("sysroot/boot/loader/entries/grub.cfg");
        if (loader, boot_type) == (Loader::Grub, BootType::Bls) {
            let menu = fs::read_to_string(menu).unwrap();
            let at = |letter: &str| menu.find(&format!("composefs={}", id(letter))).unwrap();
            assert!(at("a") < at("b") && menu.contains("menuentry rescue "), "{menu}");
        }
        // Once more changes nothing.
        let entries = machine.tree(&machine.path(""));
        let said: Value = serde_json::from_str(&in_b(&machine, &["rollback", "aaaa", "--json"])).unwrap();
        assert_eq!(said["outcome"], "nothing-to-do");
        let record: Value = serde_json::from_str(&in_b(&machine, &["status", "--json"])).unwrap();
        // With GRUB somebody's own entry stands first.
        let is_first = (loader, boot_type) != (Loader::Grub, BootType::Bls);
        assert_eq!(record["next"], if is_first { Value::from(id("a").as_str()) } else { Value::Null });
        assert_eq!(machine.tree(&machine.path("")), entries);
    }
}

#[test]
fn a_dry_run_says_the_same_and_writes_nothing() {
    for (loader, boot_type) in PATHS {
        let machine = updated(loader, boot_type);
        let before = machine.tree(&machine.path(""));
        for args in [&["rollback", "--dry-run"][..], &["unstage", "--dry-run"], &["pin", "aaaa", "--dry-run"]] {
            in_b(&machine, args);
            let said: Value = serde_json::from_str(&in_b(&machine, &[args, &["--json"]].concat())).unwrap();
            let nothing = args[0] == "unstage";
            assert_eq!(said["outcome"], if nothing { "nothing-to-do" } else { "would-be-done" });
        }
        assert_eq!(machine.tree(&machine.path("")), before);
    }
}

#[test]
fn a_staged_update_is_cancelled_by_a_rollback_and_by_unstage() {
    for (loader, boot_type) in PATHS {
        for command in ["unstage", "rollback"] {
            let machine = updated(loader, boot_type);
            machine.restage("c");
            let said = in_b(&machine, &[command]);
            assert!(said.contains(&format!("update to {} was cancelled", id("c").short())), "{said}");
            assert_eq!(ours(&machine), if command == "unstage" { "ba" } else { "ab" });
            assert_eq!(in_b(&machine, &["staged"]).trim(), "nothing is staged");
            machine.reboot();
            assert_eq!(in_b(&machine, &["arm"]).trim(), "nothing is staged");
            let said: Value = serde_json::from_str(&in_b(&machine, &["unstage", "--json"])).unwrap();
            assert_eq!(said["outcome"], "nothing-to-do", "{said}");
        }
    }
}

#[test]
fn entries_that_nobody_waits_for_and_a_marker_that_is_none_are_removed() {
    for (loader, boot_type) in PATHS {
        let machine = updated(loader, boot_type);
        machine.restage("c");
        machine.reboot();
        let said: Value = serde_json::from_str(&in_b(&machine, &["unstage", "--json"])).unwrap();
        assert_eq!(said["outcome"], "done", "{loader} {boot_type}: {said}");
        machine.files("run", &[(layout::MARKER, "garbage")]);
        in_b(&machine, &["unstage"]);
        assert!(!machine.path("run").join(layout::MARKER).exists());
        machine.files("run", &[(layout::MARKER, "garbage")]);
        in_b(&machine, &["rollback"]);
        assert!(!machine.path("run").join(layout::MARKER).exists());
    }
}

#[test]
fn a_rollback_before_the_reboot_keeps_the_old_deployment_and_another_one_the_new() {
    for (loader, boot_type) in PATHS {
        let machine = Machine::booting(loader, boot_type);
        machine.ok(&["staged"]);
        assert!(machine.ok(&["rollback"]).contains("which is booted now"));
        assert_eq!(ours(&machine), "ab");
        // The shutdown finalizes nothing once more.
        assert_eq!(machine.ok(&["staged"]).trim(), "nothing is staged");
        assert_eq!(ours(&machine), "ab");
        machine.ok(&["rollback"]);
        fs::write(machine.state("a").join("etc/late"), "late").unwrap();
        machine.ok(&["staged"]);
        assert_eq!((ours(&machine).as_str(), machine.etc("b")["late"].as_str()), ("ba", "late"));
        machine.ok(&["rollback"]);
        machine.reboot();
        let said = machine.ok(&["report"]);
        assert!(said.contains("rolled back"), "{said}");
    }
}

#[test]
fn what_would_not_boot_is_refused() {
    for (loader, boot_type) in PATHS {
        let machine = updated(loader, boot_type);
        check_refused(&machine, &["rollback", "--to", "cccc"], &["no deployment that boots", "cccc"]);
        check_refused(&machine, &["rollback", "aa"], &["at least four digits"]);
        check_refused(&machine, &["pin", "cccc"], &["no deployment that boots"]);
        check_refused(&machine, &["pin", "--remove", "aaaa"], &["no pinned deployment"]);
        let image = machine.path("sysroot").join(layout::image(&id("a")));
        fs::rename(&image, image.with_extension("away")).unwrap();
        check_refused(&machine, &["rollback"], &[id("a").short(), "image", "is missing"]);
        fs::rename(image.with_extension("away"), &image).unwrap();
        let kernel = machine.kernel("a");
        let kernel = if kernel.is_dir() { kernel.join("initrd") } else { kernel };
        fs::write(&kernel, "").unwrap();
        check_refused(&machine, &["rollback"], &["would not boot", "is empty"]);
        fs::remove_file(&kernel).unwrap();
        check_refused(&machine, &["rollback"], &["would not boot", "looking for"]);
        check_refused(&machine, &["rollback", "--dry-run"], &["would not boot"]);
    }
}

#[test]
fn a_finalized_update_is_not_unstaged_and_a_single_deployment_has_nothing_to_go_back_to() {
    for (loader, boot_type) in PATHS {
        let machine = Machine::booting(loader, boot_type);
        machine.ok(&["staged"]);
        let output = machine.run(&["unstage"]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code() == Some(3) && said.contains("is finalized already"), "{said}");
        let machine = Machine::booting(loader, boot_type);
        let output = machine.run(&["rollback"]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code() == Some(3) && said.contains("nothing to go back to"), "{said}");
        let output = machine.run(&["rollback", "bbbb"]);
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code() == Some(3) && said.contains("is staged, and boots after"), "{said}");
    }
}

/// An update drops the entries of all but two deployments. What was pinned comes back with the entry that it had.
#[test]
fn a_pinned_deployment_comes_back_when_no_entry_boots_it() {
    for (loader, boot_type) in PATHS {
        let machine = updated(loader, boot_type);
        in_b(&machine, &["pin", "aaaa"]);
        let said: Value = serde_json::from_str(&in_b(&machine, &["pin", "aaaa", "--json"])).unwrap();
        assert_eq!(said["outcome"], "nothing-to-do");
        machine.restage("c");
        in_b(&machine, &["staged"]);
        assert_eq!(ours(&machine), "cb");
        let said = in_b(&machine, &["rollback", "--to", "aaaa"]);
        assert_eq!(ours(&machine), "acb", "{loader} {boot_type}: {said}");
        // Three in a row: the fallback is what comes second.
        in_b(&machine, &["rollback"]);
        assert_eq!(ours(&machine), "cab");
        in_b(&machine, &["rollback", "bbbb"]);
        assert_eq!(ours(&machine), "bca");
        in_b(&machine, &["pin", "--remove", "aaaa"]);
        let pins: Value =
            serde_json::from_str(&fs::read_to_string(machine.path("sysroot").join(layout::PINS)).unwrap()).unwrap();
        assert_eq!(pins, serde_json::json!({ "schema": 1, "pins": [] }));
    }
}

#[test]
fn a_pin_of_the_boot_loader_follows_or_is_said() {
    let machine = updated(Loader::SystemdBoot, BootType::Bls);
    machine.files("esp/loader", &[("loader.conf", "default *-0.conf\n")]);
    let said = in_b(&machine, &["rollback"]);
    assert!(said.contains("note: ") && said.contains("loader.conf") && said.contains("to undo"), "{said}");
    let status: Value = serde_json::from_str(&in_b(&machine, &["status", "--json"])).unwrap();
    assert_eq!((ours(&machine).as_str(), &status["next"]), ("ab", &Value::from(id("b").as_str())));
}

#[test]
fn ukis_that_wait_for_their_names_are_unstaged() {
    let machine = Machine::booting(Loader::SystemdBoot, BootType::Uki);
    fs::remove_dir_all(machine.boot("loader/entries.staged")).unwrap();
    machine.files("esp/EFI/Linux", &[("x.efi.staged", "a UKI"), ("y.efi", "mine")]);
    machine.ok(&["unstage"]);
    assert!(!machine.path("esp/EFI/Linux/x.efi.staged").exists() && machine.path("esp/EFI/Linux/y.efi").exists());
    assert_eq!(machine.ok(&["staged"]).trim(), "nothing is staged");
}

#[test]
fn every_esp_gets_the_order() {
    let machine = updated(Loader::SystemdBoot, BootType::Bls);
    let mirror = machine.path("mirror");
    crate::programs::ok(xshell::cmd!(crate::programs::shell("."), "cp -r").arg(machine.path("esp")).arg(&mirror));
    let mut command = machine.command_after(&format!("composefs={}", id("b")), &["rollback"]);
    let output = command.arg("--esp").arg(&mirror).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(machine.tree(&mirror.join("loader")), machine.tree(&machine.path("esp/loader")));
    assert_eq!(ours(&machine), "ab");
}
