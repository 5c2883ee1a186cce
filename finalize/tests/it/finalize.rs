//! Whole finalizations on a machine of directories.

use std::fs;

use finalize::{boot::Loader, layout};
use sha2::{Digest, Sha256};
use xshell::cmd;

use crate::{
    machine::{Machine, PATHS, id},
    programs::{ok, output, shell},
};

fn record(machine: &Machine) -> serde_json::Value {
    let text = fs::read_to_string(machine.path("sysroot").join(layout::RECORD)).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_staged_deployment_is_finalized_and_a_second_run_changes_nothing() {
    for (loader, boot_type) in PATHS {
        let machine = Machine::booting(loader, boot_type);
        let before = machine.etc("a");
        for _again in 0..2 {
            machine.ok(&["staged"]);
            machine.assert_finalized();
            assert_eq!(machine.etc("a"), before, "the old deployment's /etc must not change");
            let record = record(&machine);
            assert_eq!((record["outcome"].as_str(), record["step"].as_str()), (Some("finalized"), Some("done")));
            assert_eq!(record["to"].as_str(), Some(id("b").as_str()));
        }
    }
}

#[test]
fn an_edit_after_a_first_run_is_carried_by_the_second() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.ok(&["staged"]);
    fs::write(machine.state("a").join("etc/hosts"), "1").unwrap();
    fs::write(machine.state("a").join("etc/late"), "mine").unwrap();
    machine.ok(&["staged"]);
    let etc = machine.etc("b");
    assert_eq!((etc["hosts"].as_str(), etc["late"].as_str()), ("1", "mine"));
    assert_eq!(machine.live()[..2], ["b", "a"]);
}

#[test]
fn nothing_staged_and_a_locked_deployment_write_nothing() {
    let machine = Machine::new(Loader::SystemdBoot);
    fs::remove_dir_all(machine.path("run/composefs")).unwrap();
    let before = machine.tree(&machine.path(""));
    assert_eq!(machine.ok(&["staged"]), "nothing is staged\n");
    let locked = format!("{{\"depl_id\":\"{}\",\"finalization_locked\":true}}", id("b"));
    machine.files("run", &[(layout::MARKER, &locked)]);
    assert!(machine.ok(&["staged"]).contains("locked"));
    fs::remove_dir_all(machine.path("run/composefs")).unwrap();
    assert_eq!(machine.tree(&machine.path("")), before);
}

#[test]
fn a_preview_writes_nothing() {
    let machine = Machine::new(Loader::Grub);
    let before = machine.tree(&machine.path(""));
    for args in [&["plan"][..], &["plan", "--json"], &["staged", "--dry-run"], &["status"], &["status", "--json"]] {
        assert!(!machine.ok(args).is_empty());
    }
    assert_eq!(machine.tree(&machine.path("")), before);
}

#[test]
fn status_says_what_is_booted_and_staged() {
    let machine = Machine::new(Loader::SystemdBoot);
    let status =
        |machine: &Machine| -> serde_json::Value { serde_json::from_str(&machine.ok(&["status", "--json"])).unwrap() };
    let before = status(&machine);
    assert_eq!(before["booted"]["id"], id("a").as_str());
    assert_eq!(before["staged"]["id"], id("b").as_str());
    assert_eq!(before["staged"]["complete"], true);
    assert_eq!(before["loader"], "systemd-boot");
    assert_eq!((before["next"].as_str(), &before["fallback"]), (Some(id("a").as_str()), &serde_json::json!([])));
    machine.ok(&["staged"]);
    let after = status(&machine);
    assert_eq!((after["next"].as_str(), &after["fallback"]), (Some(id("b").as_str()), &serde_json::json!([id("a")])));
    machine.reboot();
    let after_boot = machine.command_after(&format!("composefs={}", id("b")), &["status", "--json"]).output().unwrap();
    let after_boot: serde_json::Value = serde_json::from_slice(&after_boot.stdout).unwrap();
    assert_eq!((&after_boot["next"], &after_boot["fallback"]), (&after["next"], &after["fallback"]));
    assert_eq!(after["record"]["outcome"], "finalized");
}

/// Breaks the machine, then: an error that says `want`, and nothing written but the record.
fn check_refused(want: &[&str], break_it: impl Fn(&Machine)) {
    let machine = Machine::new(Loader::SystemdBoot);
    break_it(&machine);
    let tree = |machine: &Machine| {
        let mut tree = machine.tree(&machine.path(""));
        tree.retain(|path, _| !path.starts_with("sysroot/state/finalize"));
        tree
    };
    let before = tree(&machine);
    let message = machine.fails(&["staged"]);
    for want in want {
        assert!(message.contains(want), "{message}");
    }
    assert_eq!(tree(&machine), before, "{message}");
}

#[test]
fn a_bad_marker_is_refused() {
    let marker = |text: &'static str| move |machine: &Machine| machine.files("run", &[(layout::MARKER, text)]);
    check_refused(&["staged-deployment", "stage the deployment again"], marker("no json"));
    check_refused(&["staged-deployment", "depl_id"], marker("{}"));
    check_refused(&["staged-deployment", "no deployment id"], marker("{\"depl_id\":\"../../etc\"}"));
}

#[test]
fn an_incomplete_deployment_is_refused() {
    let remove = |path: &'static str| {
        move |machine: &Machine| {
            let path = machine.path(&path.replace("ID", id("b").as_str()));
            fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path)).unwrap();
        }
    };
    check_refused(&["state/deploy/bbb"], remove("sysroot/state/deploy/ID"));
    check_refused(&["/etc is missing"], remove("sysroot/state/deploy/ID/etc"));
    check_refused(&[".origin is missing"], remove("sysroot/state/deploy/ID/ID.origin"));
    check_refused(&["composefs/images/bbb"], remove("sysroot/composefs/images/ID"));
    check_refused(&["initrd", "boot entry names"], remove("esp/EFI/Linux/bootc_composefs-ID/initrd"));
    check_refused(&["no boot_type", "bls or uki"], |machine| {
        fs::write(machine.state("b").join(layout::origin(&id("b"))), "[origin]\n").unwrap();
    });
}

#[test]
fn a_boot_directory_without_entries_is_refused() {
    check_refused(&["loader/entries has no entry"], |machine| {
        fs::remove_dir_all(machine.boot("loader/entries")).unwrap();
    });
    check_refused(&["no entry in loader/entries.staged"], |machine| {
        fs::remove_dir_all(machine.boot("loader/entries.staged")).unwrap();
    });
    check_refused(&["opening loader/"], |machine| fs::remove_dir_all(machine.boot("loader")).unwrap());
}

#[test]
fn a_machine_without_composefs_says_so() {
    let machine = Machine::new(Loader::Grub);
    let output = machine.command_after("quiet", &["staged"]).output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("not booted from a composefs deployment"), "{message}");
}

#[test]
fn the_original_etc_goes_when_the_new_deployment_has_booted() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.ok(&["staged"]);
    let original = machine.state("b").join(layout::ETC_ORIG);
    assert!(original.join("motd").exists());
    let next_boot = machine.command_after(&format!("composefs={}", id("b")), &["report"]).output();
    let said = String::from_utf8(next_boot.unwrap().stdout).unwrap();
    assert!(said.contains("has booted"), "{said}");
    assert!(!original.exists());
    machine.assert_finalized();
}

/// On a real file system that is full, where the test may mount one.
#[test]
fn a_full_esp_is_an_error_that_says_so_and_the_old_deployment_boots() {
    let machine = Machine::new(Loader::SystemdBoot);
    let esp = machine.path("esp");
    // The command's own mount namespace has a small ESP with the same files, and not a block left.
    let script =
        "set -e; cp -a \"$ESP\" \"$ESP.full\"; mount -t tmpfs -o size=64k none \"$ESP\"; cp -a \"$ESP.full/.\" \"$ESP\"
        head -c 1M /dev/zero >\"$ESP/filler\" 2>/dev/null || true
        if \"$@\"; then exit 99; fi
        rm \"$ESP/filler\"; rm -r \"$ESP.full\"; cp -a \"$ESP\" \"$ESP.after\"";
    let staged = machine.command(&["staged"]);
    let (program, args) = (staged.get_program(), staged.get_args());
    let output = output(cmd!(shell("."), "unshare --mount sh -c {script} sh {program} {args...}").env("ESP", &esp));
    let message = String::from_utf8(output.stderr).unwrap();
    if message.starts_with("unshare:") {
        println!("SKIPPED, no mount namespace: {message}");
        return;
    }
    assert!(output.status.success(), "{:?} {message}", output.status);
    assert!(message.contains("loader/entries") && message.contains("No space left on device"), "{message}");
    let tree = machine.tree(&machine.path("esp.after"));
    assert_eq!(tree.keys().filter(|path| path.starts_with("loader/entries/")).count(), 2, "{:?}", tree.keys());
    assert_eq!(tree, machine.tree(&esp));
    machine.ok(&["staged"]);
    machine.assert_finalized();
}

#[test]
fn deployments_with_the_same_kernel_may_share_its_directory() {
    for loader in [Loader::SystemdBoot, Loader::Grub] {
        let machine = Machine::new(loader);
        let [a, b] = ["a", "b"].map(|letter| layout::kernel_dir(&id(letter)));
        for letter in ["a", "b"] {
            let digest = hex::encode(Sha256::digest("aa"));
            let origin = format!("[boot]\nboot_type = bls\ndigest = {digest}\n");
            fs::write(machine.state(letter).join(layout::origin(&id(letter))), origin).unwrap();
        }
        fs::remove_dir_all(machine.kernel("b")).unwrap();
        let staged = machine.boot("loader/entries.staged/bootc_x-1-1.conf");
        fs::write(&staged, fs::read_to_string(&staged).unwrap().replace(&b, &a)).unwrap();
        machine.ok(&["staged"]);
        machine.assert_finalized();
        ok(machine.command_after(&format!("composefs={}", id("b")), &["report"]));
        assert_eq!(machine.tree(&machine.kernel("a")).len(), 2, "the directory that both name is whole");
        // Any other kernel there is not what was staged.
        let machine = Machine::new(loader);
        let staged = machine.boot("loader/entries.staged/bootc_x-1-1.conf");
        fs::write(&staged, fs::read_to_string(&staged).unwrap().replace(&b, "bootc_composefs-none")).unwrap();
        assert!(machine.fails(&["staged"]).contains("bootc_composefs-none/vmlinuz"));
        assert_eq!(machine.live().iter().find(|name| name.len() == 1).map(String::as_str), Some("a"));
    }
}

/// The last flush takes the entry in transit and the staged ones; of these two a power cut may leave the first alone.
#[test]
fn an_entry_in_transit_that_a_power_cut_has_left_alone_goes_at_the_next_boot() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.ok(&["staged"]);
    let first = fs::read_to_string(machine.boot("loader/entries/bootc_x-1-1.conf")).unwrap();
    let transit = machine.boot("loader/entries/zz-composefs-finalize.conf");
    fs::write(&transit, first.replace("sort-key ", "sort-key !")).unwrap();
    ok(machine.command_after(&format!("composefs={}", id("b")), &["report"]));
    assert!(!transit.exists());
    machine.assert_finalized();
}
