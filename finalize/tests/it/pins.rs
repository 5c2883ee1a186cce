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
        let by_variable = machine();
        variable(&by_variable, "LoaderEntryDefault", "bootc_x-1-0.conf");
        check(&by_variable, "a", &["LoaderEntryDefault", "bootctl set-default \"\""]);
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
    for (environment, default) in [("saved_entry=bootc_x-1-0\n", "${saved_entry}"), ("next_entry=2\n", next)] {
        let machine = Machine::new(Loader::Grub);
        grub(&machine, environment, default);
        let name = environment.split('=').next().unwrap();
        check(&machine, "a", &[environment.trim(), &format!("grub-editenv - unset {name}")]);
    }
    let machine = Machine::booting(Loader::Grub, BootType::Uki);
    grub(&machine, &format!("saved_entry=A system: ({})\n", id("a")), "${saved_entry}");
    check(&machine, "a", &["saved_entry=A system", "to undo"]);
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
