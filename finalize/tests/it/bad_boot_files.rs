//! Boot files that somebody broke or edited: a message, and what boots keeps booting. And UKIs staged the older way.

use std::fs;

use finalize::{
    boot::{Loader, grub::chainloaded},
    layout,
    staged::BootType,
};

use crate::machine::{Machine, PATHS, id};

/// The finalization fails with this in its message, and nothing that boots has changed.
fn fails_and_leaves_what_boots(machine: &Machine, part: &str) {
    let before = machine.tree(&machine.boot(""));
    let esp = machine.tree(&machine.path("esp"));
    let message = machine.fails(&["staged"]);
    assert!(message.contains(part), "{message}");
    assert_eq!(machine.tree(&machine.boot("")), before, "{message}");
    assert_eq!(machine.tree(&machine.path("esp")), esp, "{message}");
    assert_eq!(machine.live().into_iter().find(|name| name.len() == 1).unwrap(), "a");
}

#[test]
fn staged_entries_that_boot_nothing_or_only_the_old_are_refused() {
    for (loader, boot_type) in PATHS {
        let empty = Machine::booting(loader, boot_type);
        let old = Machine::booting(loader, boot_type);
        if (loader, boot_type) == (Loader::Grub, BootType::Uki) {
            fs::write(empty.path("sysroot/boot/grub2/user.cfg.staged"), "").unwrap();
            fs::copy(old.path("sysroot/boot/grub2/user.cfg"), old.path("sysroot/boot/grub2/user.cfg.staged")).unwrap();
        } else {
            for machine in [&empty, &old] {
                fs::remove_dir_all(machine.boot("loader/entries.staged")).unwrap();
                fs::create_dir(machine.boot("loader/entries.staged")).unwrap();
            }
            let name = "bootc_x-1-1.conf";
            fs::copy(old.boot("loader/entries").join(name), old.boot("loader/entries.staged").join(name)).unwrap();
        }
        fails_and_leaves_what_boots(&empty, "stage the deployment again");
        fails_and_leaves_what_boots(&old, "stage the deployment again");
    }
}

#[test]
fn broken_entries_are_passed_over() {
    let broken =
        ["", "\0\0", "title\n\nlinux\n", "options composefs=", "linux \u{fffd}", "initrd /x\noptions 'composefs"];
    for (loader, boot_type) in PATHS.into_iter().filter(|path| *path != (Loader::Grub, BootType::Uki)) {
        let machine = Machine::booting(loader, boot_type);
        for dir in ["entries", "entries.staged"] {
            for (number, text) in broken.iter().enumerate() {
                fs::write(machine.boot(&format!("loader/{dir}/broken{number}.conf")), text).unwrap();
            }
            fs::write(machine.boot(&format!("loader/{dir}/latin1.conf")), b"title \xe9\n").unwrap();
            fs::create_dir(machine.boot(&format!("loader/{dir}/directory.conf"))).unwrap();
        }
        machine.ok(&["staged"]);
        let latin1 = fs::read(machine.boot("loader/entries/latin1.conf")).unwrap();
        assert_eq!(latin1, b"title \xe9\n", "{loader} {boot_type}");
        assert!(machine.boot("loader/entries/directory.conf").is_dir(), "{loader} {boot_type}");
        assert_eq!(machine.live().iter().filter(|name| name.len() == 1).cloned().collect::<String>(), "ba");
        assert_eq!(machine.live().iter().filter(|name| *name == "rescue.conf").count(), 1);
    }
}

#[test]
fn an_entry_whose_kernel_is_gone_is_not_made_the_first() {
    for (loader, boot_type) in PATHS {
        let machine = Machine::booting(loader, boot_type);
        let gone = match boot_type {
            BootType::Bls => machine.kernel("b").join("initrd"),
            BootType::Uki => machine.kernel("b"),
        };
        fs::remove_file(&gone).unwrap();
        fails_and_leaves_what_boots(&machine, gone.file_name().unwrap().to_str().unwrap());
        fs::write(&gone, "").unwrap();
        fails_and_leaves_what_boots(&machine, gone.file_name().unwrap().to_str().unwrap());
    }
}

#[test]
fn a_menu_edited_by_hand_keeps_what_was_added() {
    let machine = Machine::booting(Loader::Grub, BootType::Uki);
    let path = machine.path("sysroot/boot/grub2/user.cfg");
    let added = "set colour=\"a { b\"\nfunction f {\n  if true; then { echo '}'; }; fi\n}\nunknown --words {}\n\
                 submenu 'More \"}' {\n  menuentry x { boot\n  }\n}\nmenuentry \"Mine\" --id 'it''s' {\n  boot \"}\"\n}\n";
    fs::write(&path, format!("{}{added}", fs::read_to_string(&path).unwrap())).unwrap();
    machine.ok(&["staged"]);
    let menu = fs::read_to_string(&path).unwrap();
    assert!(menu.contains(added), "{added} is not in {menu}");
    for part in
        ["submenu 'More \"}' {\n  menuentry x { boot\n  }\n}\n", "menuentry \"Mine\" --id 'it''s' {\n  boot \"}\"\n}\n"]
    {
        assert!(menu.contains(part), "{part} is not in {menu}");
    }
    let titles: Vec<_> = chainloaded(&menu).into_iter().map(|(_, path)| path).collect();
    assert!(titles[0].contains(id("b").as_str()) && titles[1].contains(id("a").as_str()), "{titles:?}");
}

/// The smallest PE32+ file (the PE/COFF specification) with a command line in it.
fn uki(cmdline: &str) -> Vec<u8> {
    let mut file = vec![0; 0x200];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"MZ");
    put(0x3c, &0x40u32.to_le_bytes());
    put(0x40, b"PE\0\0\x64\x86\x01\0");
    put(0x54, &240u16.to_le_bytes());
    put(0x58, &0x20bu16.to_le_bytes());
    put(0x58 + 108, &16u32.to_le_bytes());
    let section = 0x58 + 240;
    put(section, b".cmdline");
    for (at, value) in [(8, cmdline.len()), (12, 0x1000), (16, cmdline.len()), (20, 0x200)] {
        put(section + at, &u32::try_from(value).unwrap().to_le_bytes());
    }
    file.extend(cmdline.bytes());
    file
}

/// `b` is staged as `b.efi.staged`, and nothing else.
pub fn staged_the_older_way() -> Machine {
    let machine = Machine::booting(Loader::SystemdBoot, BootType::Uki);
    fs::remove_dir_all(machine.boot("loader/entries.staged")).unwrap();
    let linux = machine.path("esp/EFI/Linux");
    fs::write(linux.join("a.efi"), uki(&format!("composefs={} rw", id("a")))).unwrap();
    fs::write(linux.join("b.efi.staged"), uki(&format!("composefs={} rw\n\0", id("b")))).unwrap();
    machine
}

#[test]
fn ukis_staged_the_older_way_are_renamed() {
    let machine = staged_the_older_way();
    machine.ok(&["staged"]);
    let linux = machine.path("esp/EFI/Linux");
    let wanted = uki(&format!("composefs={} rw\n\0", id("b")));
    assert_eq!(fs::read(linux.join("b.efi")).unwrap(), wanted);
    assert!(linux.join("a.efi").exists() && !linux.join("b.efi.staged").exists());
    assert_eq!(machine.etc("b")["hosts"], "mine");
    assert!(machine.state("b").join(layout::ETC_ORIG).exists());
    // Finished but for its marker: once more changes nothing.
    machine.ok(&["staged"]);
    assert_eq!(fs::read(linux.join("b.efi")).unwrap(), wanted);
}

#[test]
fn renaming_ukis_can_be_stopped_at_any_call() {
    for how in ["exit", "enospc", "eio"] {
        for n in 1.. {
            let machine = staged_the_older_way();
            let fail = format!("{how}:{n}");
            let done = machine.command(&["staged"]).env("COMPOSEFS_FINALIZE_FAIL", &fail).status().unwrap().success();
            let linux = machine.path("esp/EFI/Linux");
            assert!(linux.join("a.efi").exists(), "{fail}");
            let whole = uki(&format!("composefs={} rw\n\0", id("b")));
            let any =
                ["b.efi", "b.efi.staged"].map(|name| fs::read(linux.join(name)).is_ok_and(|bytes| bytes == whole));
            assert!(any[0] || any[1], "{fail}: the new UKI is gone");
            if any[0] {
                assert_eq!(machine.etc("b")["hosts"], "mine", "{fail}: it boots without the local changes");
            }
            machine.ok(&["staged"]);
            assert_eq!(fs::read(linux.join("b.efi")).unwrap(), whole, "{fail}");
            assert!(!linux.join("b.efi.staged").exists(), "{fail}");
            if done {
                assert!(n > 20, "{n}");
                break;
            }
        }
    }
}

/// What has its name already boots the running deployment: it stays, whatever fails, and as the fallback.
#[test]
fn a_uki_that_boots_now_is_never_overwritten_or_removed() {
    let (a, b) = (uki(&format!("composefs={} rw", id("a"))), uki(&format!("composefs={} rw", id("b"))));
    let names = |machine: &Machine| -> Vec<(String, Vec<u8>)> {
        let read = |entry: fs::DirEntry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
        let dir = fs::read_dir(machine.path("esp/EFI/Linux")).unwrap().map(Result::unwrap);
        dir.filter(|entry| entry.path().is_file()).map(read).collect()
    };
    // One name for both; and the booted one staged as well, under names that are theirs.
    let cases: [&[(&str, &Vec<u8>)]; 3] = [
        &[("debian.efi", &a), ("debian.efi.staged", &b)],
        &[("A.efi", &a), ("A.efi.staged", &a), ("B.efi.staged", &b)],
        &[("Debian.EFI", &a), ("debian-1.efi", &a), ("debian.efi.staged", &b)],
    ];
    for files in cases {
        for how in ["exit", "eio-once", "term"] {
            for n in 1.. {
                let machine = staged_the_older_way();
                for name in ["a.efi", "b.efi.staged"] {
                    fs::remove_file(machine.path("esp/EFI/Linux").join(name)).unwrap();
                }
                files
                    .iter()
                    .for_each(|(name, bytes)| fs::write(machine.path("esp/EFI/Linux").join(name), bytes).unwrap());
                let fail = format!("{how}:{n}");
                let output = machine.command(&["staged"]).env("COMPOSEFS_FINALIZE_FAIL", &fail).output().unwrap();
                let (after, message) = (names(&machine), String::from_utf8_lossy(&output.stderr).into_owned());
                let boots = |bytes: &Vec<u8>| {
                    after.iter().any(|(name, found)| name.to_lowercase().ends_with(".efi") && found == bytes)
                };
                assert!(boots(&a), "{files:?} {fail}: the running deployment has no UKI: {message}");
                for (name, bytes) in files.iter().filter(|(name, _)| !name.ends_with(".staged")) {
                    assert!(after.contains(&((*name).to_owned(), (*bytes).clone())), "{fail}: {name} has changed");
                }
                if message.contains("the old deployment boots next") {
                    assert!(!boots(&b), "{fail}: {message}");
                }
                machine.ok(&["staged"]);
                let after = names(&machine);
                assert!(after.iter().any(|(name, bytes)| name.ends_with(".efi") && *bytes == b), "{fail}: {after:?}");
                assert!(after.iter().all(|(name, _)| !name.ends_with(".staged")), "{fail}");
                if output.status.success() {
                    break;
                }
            }
        }
    }
}

#[test]
fn a_uki_staged_the_older_way_for_another_deployment_is_refused() {
    let machine = staged_the_older_way();
    let path = machine.path("esp/EFI/Linux/b.efi.staged");
    for content in [uki("composefs=x rw"), uki(&format!("composefs={}", id("c"))), b"MZ".to_vec(), vec![]] {
        fs::write(&path, content).unwrap();
        fs::remove_dir_all(machine.state("b").join(layout::ETC_ORIG)).ok();
        let message = machine.fails(&["staged"]);
        assert!(message.contains("stage the deployment again"), "{message}");
        assert!(path.exists());
    }
}
