//! A soft reboot is refused where a reboot would come to something else, and only what is finalized is mounted for it. That what
//! is mounted starts is seen in QEMU (tmt/tests/a-soft-reboot-starts-an-update).

use std::fs;

use finalize::{boot::Loader, layout, staged::BootType};
use serde_json::Value;

use crate::machine::{Machine, PATHS, id};

/// All that speaks against a soft reboot, in one sentence.
fn against(machine: &Machine, cmdline: &str) -> String {
    let before = machine.tree(&machine.path(""));
    let output = machine.command_after(cmdline, &["staged", "--soft-reboot", "--json"]).output().unwrap();
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!((output.status.code(), &said["outcome"]), (Some(3), &"refused".into()));
    let output = machine.command_after(cmdline, &["staged", "--soft-reboot", "--dry-run"]).output().unwrap();
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(machine.tree(&machine.path("")), before, "something was changed");
    said["error"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect::<Vec<_>>().join("; ")
}

#[test]
fn what_speaks_against_a_soft_reboot_is_said_at_once() {
    for (loader, boot_type) in PATHS {
        let machine = Machine::booting(loader, boot_type);
        let booted = format!("composefs={}", id("a"));
        let said = against(&machine, &booted);
        // It is a tree in a directory, and none that systemd has started.
        assert!(said.contains("/etc is not the deployment's own directory"), "{said}");
        if boot_type == BootType::Uki {
            assert!(said.contains("a UKI brings its own kernel"), "{said}");
            continue;
        }
        let options = |text: &str| against(&machine, &format!("{booted} {text}")).contains("other options: -nosmt");
        assert!(!options("") && options("nosmt"), "{said}");
        assert!(said.contains("an origin has no digest"), "{said}");
        let digests = |staged: &str| {
            for (letter, digest) in [("a", "0"), ("b", staged)] {
                let text = format!("[boot]\nboot_type = bls\ndigest = {digest}\n");
                fs::write(machine.state(letter).join(layout::origin(&id(letter))), text).unwrap();
            }
            against(&machine, &booted)
        };
        assert!(digests("1").contains("the update has another kernel"));
        assert!(!digests("0").contains("kernel or"));
    }
}

#[test]
fn without_an_update_there_is_nothing_to_start() {
    let machine = Machine::booting(Loader::SystemdBoot, BootType::Bls);
    machine.ok(&["staged"]);
    assert_eq!(against(&machine, &format!("composefs={}", id("a"))), "nothing is staged");
}

#[test]
fn only_what_is_finalized_is_mounted_and_only_once() {
    let machine = Machine::booting(Loader::SystemdBoot, BootType::Bls);
    assert_eq!(machine.ok(&["next-root"]), "");
    let asked = machine.path("run").join(layout::SOFT_REBOOT);
    let ask = |text: &str| fs::write(&asked, text).unwrap();
    for (text, why) in [
        (format!("composefs={}\n", id("b")), "no record of a finalization"),
        ("composefs=../../x\n".to_owned(), "names no deployment"),
        (String::new(), "names no deployment"),
    ] {
        ask(&text);
        let said = machine.fails(&["next-root"]);
        assert!(said.contains(why) && said.contains("what runs cannot be mounted anew"), "{said}");
        assert!(!asked.exists());
    }
    machine.ok(&["staged"]);
    ask(&format!("composefs={}\n", id("a")));
    assert!(machine.fails(&["next-root"]).contains("is not finalized, or does not boot next"));
    // It is, and its image is none: nothing stays mounted.
    ask(&format!("composefs={}\n", id("b")));
    assert!(machine.fails(&["next-root"]).contains(&layout::image(&id("b"))));
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(machine.path("run").to_str().unwrap()), "{mounts}");
}
