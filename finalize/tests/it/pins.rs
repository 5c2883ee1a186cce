//! A default that pins another entry than the new one: said by `staged`, by the record and by `status`, on every path.

use std::fs;

use finalize::{boot::Loader, layout, staged::BootType};

use crate::machine::{Machine, id};

const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Sets a variable as efivarfs shows it.
fn variable(machine: &Machine, name: &str, value: &str) {
    let units = value.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    let bytes: Vec<u8> = [7, 0, 0, 0].into_iter().chain(units).collect();
    let dir = machine.path("sys/firmware/efi/efivars");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(format!("{name}-{VENDOR}")), bytes).unwrap();
}

fn grub(machine: &Machine, environment: &str, default: &str) {
    let block = format!("# GRUB Environment Block\n{environment:#<900}");
    let cfg = format!("load_env\nset default=\"{default}\"\n");
    machine.files("sysroot/boot/grub2", &[("grubenv", &block), ("grub.cfg", &cfg)]);
}

/// Finalizes; `b` is written, `next` starts next, and the words say what to do.
fn check(machine: &Machine, next: &str, words: &[&str]) {
    let said = machine.ok(&["staged"]);
    machine.assert_finalized();
    let record = fs::read_to_string(machine.path("sysroot").join(layout::RECORD)).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let status: serde_json::Value = serde_json::from_str(&machine.ok(&["status", "--json"])).unwrap();
    assert_eq!((record["next"].as_str(), status["next"].as_str()), (Some(id(next).as_str()), Some(id(next).as_str())));
    let other = if next == "a" { "b" } else { "a" };
    assert_eq!(status["fallback"], serde_json::json!([id(other)]));
    if words.is_empty() {
        assert!(said.contains("it boots next") && record["notes"].is_null(), "{said}\n{record:#}");
        return;
    }
    assert!(said.contains("but aaaaaaaaaaaa boots next"), "{said}");
    for word in words {
        assert!(said.contains(word), "{said} lacks {word}");
        assert!(record["notes"].to_string().replace('\\', "").contains(word), "{record:#} lacks {word}");
        assert!(status["pinned"].as_str().unwrap().contains(word), "{status:#} lacks {word}");
    }
}

#[test]
fn a_default_of_systemd_boot_is_said() {
    for boot_type in [BootType::Bls, BootType::Uki] {
        let machine = || Machine::booting(Loader::SystemdBoot, boot_type);
        for pattern in ["bootc_x-1-0.conf", "bootc_*-0.conf", "BOOTC_X-1-0.CONF"] {
            let machine = machine();
            machine.files("esp/loader", &[("loader.conf", &format!("timeout 3\ndefault {pattern}\n"))]);
            check(&machine, "a", &["loader.conf", "default", "to undo: remove the line"]);
            assert!(fs::read_to_string(machine.path("esp/loader/loader.conf")).unwrap().contains(pattern));
        }
        let pattern = machine();
        variable(&pattern, "LoaderEntryDefault", "bootc_x-*-0.conf");
        check(&pattern, "a", &["LoaderEntryDefault", "bootctl set-default \"\""]);
        let once = machine();
        variable(&once, "LoaderEntryOneShot", "bootc_x-1-0.conf");
        check(&once, "a", &["LoaderEntryOneShot", "bootctl set-oneshot \"\""]);
        let saved = machine();
        saved.files("esp/loader", &[("loader.conf", "default @saved\n")]);
        variable(&saved, "LoaderEntryLastBooted", "bootc_x-1-0.conf");
        check(&saved, "a", &["@saved", "to undo"]);
    }
}

#[test]
fn a_saved_entry_of_grub_is_said() {
    let next = "${next_entry}";
    for (environment, default) in [("saved_entry=2\n", "${saved_entry}"), ("next_entry=2\n", next)] {
        let machine = Machine::new(Loader::Grub);
        grub(&machine, environment, default);
        let name = environment.split('=').next().unwrap();
        check(&machine, "a", &[environment.trim(), &format!("grub-editenv - unset {name}")]);
    }
}

/// A default that names exactly one entry, and that one of ours, means the system that the machine has.
#[test]
fn a_default_that_names_our_old_entry_follows_to_the_new_one() {
    let block = |environment: &str| format!("# GRUB Environment Block\n{environment:#<900}");
    for boot_type in [BootType::Bls, BootType::Uki] {
        let machine = Machine::booting(Loader::SystemdBoot, boot_type);
        variable(&machine, "LoaderEntryDefault", "bootc_x-1-0.conf");
        assert_follows(&machine, "LoaderEntryDefault");
        let file = machine.path("sys/firmware/efi/efivars").join(format!("LoaderEntryDefault-{VENDOR}"));
        let text: Vec<u8> = fs::read(file).unwrap()[4..].iter().copied().filter(|byte| *byte != 0).collect();
        assert_eq!(String::from_utf8(text).unwrap(), "bootc_x-1-1.conf");
    }
    let machine = Machine::new(Loader::Grub);
    grub(&machine, "saved_entry=bootc_x-1-0\nboot_success=1\n", "${saved_entry}");
    assert_follows(&machine, "saved_entry");
    let after = fs::read_to_string(machine.path("sysroot/boot/grub2/grubenv")).unwrap();
    assert_eq!(after, block("saved_entry=bootc_x-1-1\nboot_success=1\n"));
    let machine = Machine::booting(Loader::Grub, BootType::Uki);
    grub(&machine, &format!("saved_entry=A system: ({})\n", id("a")), "${saved_entry}");
    assert_follows(&machine, "saved_entry");
    let after = fs::read_to_string(machine.path("sysroot/boot/grub2/grubenv")).unwrap();
    assert_eq!(after, block(&format!("saved_entry=A system: ({})\n", id("b"))));
}

fn assert_follows(machine: &Machine, pin: &str) {
    let said = machine.ok(&["staged"]);
    assert!(said.contains("it boots next") && said.contains(pin), "{said}");
    let status: serde_json::Value = serde_json::from_str(&machine.ok(&["status", "--json"])).unwrap();
    assert_eq!(status["next"].as_str(), Some(id("b").as_str()), "{status:#}");
}

/// Somebody's choice goes where the configuration says so, and every other byte beside it stays.
#[test]
fn a_pin_is_removed_where_the_configuration_says_so() {
    let unpinning = |machine: &Machine| {
        machine.files(
            &format!("sysroot/{}/etc/composefs-finalize", layout::deployment(&id("a"))),
            &[("config.toml", "[boot]\nunpin = true\n")],
        );
    };
    let machine = Machine::new(Loader::SystemdBoot);
    let conf = "# mine\ntimeout 3\n  default bootc_x-1-0.conf\ndefaults x\neditor no";
    machine.files("esp/loader", &[("loader.conf", conf)]);
    unpinning(&machine);
    assert_follows(&machine, "unpin");
    let after = fs::read_to_string(machine.path("esp/loader/loader.conf")).unwrap();
    assert_eq!(after, "# mine\ntimeout 3\ndefaults x\neditor no");
    for name in ["LoaderEntryOneShot", "LoaderEntryDefault"] {
        let machine = Machine::new(Loader::SystemdBoot);
        variable(&machine, name, "bootc_x-1-0.conf");
        unpinning(&machine);
        assert_follows(&machine, "unpin");
        assert!(!machine.path("sys/firmware/efi/efivars").join(format!("{name}-{VENDOR}")).exists());
    }
    for (environment, default) in [("saved_entry=2\n", "${saved_entry}"), ("next_entry=2\n", "${next_entry}")] {
        let machine = Machine::new(Loader::Grub);
        grub(&machine, &format!("{environment}boot_success=1\n"), default);
        unpinning(&machine);
        // Without the pin the entry of somebody else is the first, as it was before the update.
        assert!(machine.ok(&["staged"]).contains("removed what pinned another entry"));
        let after = fs::read_to_string(machine.path("sysroot/boot/grub2/grubenv")).unwrap();
        assert!(after.starts_with("# GRUB Environment Block\nboot_success=1\n###") && after.len() == 925, "{after}");
    }
}

#[test]
fn what_pins_nothing_or_the_new_one_is_not_said() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.files("esp/loader", &[("loader.conf", "default bootc_*\n")]);
    variable(&machine, "LoaderEntryDefault", "gone.conf");
    check(&machine, "b", &[]);
    let machine = Machine::new(Loader::Grub);
    grub(&machine, "saved_entry=bootc_x-1-1\n", "${saved_entry}");
    check(&machine, "b", &[]);
    let machine = Machine::new(Loader::Grub);
    // The first line is the rescue entry, as before.
    grub(&machine, "saved_entry=bootc_x-1-0\n", "1");
    check(&machine, "b", &[]);
}
