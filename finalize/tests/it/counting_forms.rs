//! Boot counting in GRUB's menu of UKIs, which is people's too, and in the names of UKIs of the older form.

use std::fs;

use finalize::{
    boot::{Loader, count::script},
    layout,
    staged::BootType,
};

use crate::{
    bad_boot_files::staged_the_older_way,
    counting::{equipped, machine, menu, run, variable},
};

#[test]
fn the_next_update_replaces_a_count_and_leaves_nothing_of_it() {
    let machine = machine((Loader::Grub, BootType::Uki), 3);
    let before = menu(&machine);
    run(&machine, "a", &["staged"]);
    assert!(menu(&machine).contains(script::CALL));
    // The old deployment is staged from the new one, by somebody who copies the menuentries.
    let entries: Vec<_> = menu(&machine).split("\n\n").map(str::to_owned).collect();
    assert!(entries.len() > 1);
    fs::write(machine.path("vendor/config.toml"), "").unwrap();
    fs::write(machine.path("sysroot/boot/grub2/user.cfg.staged"), menu(&machine)).unwrap();
    let text = fs::read_to_string(machine.path("sysroot/boot/grub2/user.cfg.staged")).unwrap();
    let bare = finalize::boot::user_cfg::UserCfg::from_bytes(text.as_bytes());
    let again = bare.with_entries_of(&bare);
    let again = String::from_utf8(again.to_bytes()).unwrap();
    assert!(!again.contains("composefs_") && !again.contains("counts boots"), "{again}");
    assert_eq!(again.matches("menuentry ").count(), before.matches("menuentry ").count() + 1);
}

#[test]
fn a_uki_of_the_older_form_is_counted_in_its_own_name() {
    let machine = equipped(staged_the_older_way(), 3);
    let ukis = || {
        let dir = fs::read_dir(machine.path("esp/EFI/Linux")).unwrap().map(Result::unwrap);
        let mut names: Vec<_> =
            dir.filter(|file| file.path().is_file()).map(|file| file.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    run(&machine, "a", &["staged"]);
    assert_eq!(ukis(), ["a.efi", "b+3.efi"]);
    run(&machine, "a", &["staged"]);
    assert_eq!(ukis(), ["a.efi", "b+3.efi"]);
    let linux = machine.path("esp/EFI/Linux");
    let started = |from: &str, to: &str| {
        machine.reboot();
        fs::rename(linux.join(from), linux.join(to)).unwrap();
        variable(&machine, "LoaderBootCountPath", &format!("\\EFI\\Linux\\{to}"));
        variable(&machine, "LoaderEntrySelected", "b.efi");
    };
    started("b+3.efi", "b+2-1.efi");
    run(&machine, "b", &["arm"]);
    assert!(machine.path("run").join(layout::TRIAL).exists());
    run(&machine, "b", &["bless"]);
    assert_eq!(ukis(), ["a.efi", "b.efi"]);
    // One that has no tries left is not taken for the next one, and gets new ones when it is staged again.
    started("b.efi", "b+0-3.efi");
    fs::copy(linux.join("b+0-3.efi"), linux.join("b.efi.staged")).unwrap();
    machine.stage("b");
    run(&machine, "a", &["staged"]);
    assert_eq!(ukis(), ["a.efi", "b+3.efi"]);
}
