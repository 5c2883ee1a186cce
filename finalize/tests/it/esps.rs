//! More than one ESP: mirrored ones are all written, others are left alone.

use std::{
    fs,
    path::{Path, PathBuf},
};

use finalize::{boot::Loader, staged::BootType};
use xshell::cmd;

use crate::{
    machine::Machine,
    programs::{ok, shell},
};

/// Copies the machine's ESP; returns the copy.
fn mirrored(machine: &Machine) -> PathBuf {
    let copy = machine.path("esp-mirror");
    let esp = machine.path("esp");
    ok(cmd!(shell("."), "cp -a {esp} {copy}"));
    copy
}

/// A run on both ESPs, the machine's own last, as the one that booted.
fn run(machine: &Machine, other: &Path, fail: Option<String>) -> bool {
    let mut command = machine.command(&["staged", "--esp", other.to_str().unwrap()]);
    command.envs(fail.map(|fail| ("COMPOSEFS_FINALIZE_FAIL", fail))).status().unwrap().success()
}

#[test]
fn mirrored_esps_are_all_written_however_often_it_is_stopped() {
    for n in 1.. {
        let machine = Machine::booting(Loader::SystemdBoot, BootType::Uki);
        let mirror = mirrored(&machine);
        let done = run(&machine, &mirror, Some(format!("exit:{n}")));
        assert!(run(&machine, &mirror, None), "exit:{n}");
        machine.assert_finalized();
        assert_eq!(machine.tree(&mirror), machine.tree(&machine.path("esp")), "exit:{n}");
        if done {
            assert!(n > 20, "{n}");
            break;
        }
    }
}

#[test]
fn an_esp_of_somebody_else_or_without_anything_staged_is_left_alone() {
    for boot_type in [BootType::Bls, BootType::Uki] {
        let machine = Machine::booting(Loader::SystemdBoot, boot_type);
        let stale = mirrored(&machine);
        fs::remove_dir_all(stale.join("loader/entries.staged")).unwrap();
        let before = machine.tree(&stale);
        assert!(run(&machine, &stale, None));
        machine.assert_finalized();
        assert_eq!(machine.tree(&stale), before);
    }
    for (loader, boot_type) in crate::machine::PATHS {
        let machine = Machine::booting(loader, boot_type);
        machine.files("windows", &[("EFI/Microsoft/Boot/bootmgfw.efi", "MZ")]);
        let before = machine.tree(&machine.path("windows"));
        assert!(run(&machine, &machine.path("windows"), None), "{loader} {boot_type}");
        machine.assert_finalized();
        assert_eq!(machine.tree(&machine.path("windows")), before);
    }
}

#[test]
fn systemd_boots_entries_on_a_boot_partition_are_exchanged() {
    for boot_type in [BootType::Bls, BootType::Uki] {
        let machine = Machine::booting(Loader::SystemdBoot, boot_type);
        // The ESP has the boot loader, the boot partition everything else.
        fs::rename(machine.path("esp"), machine.path("xbootldr")).unwrap();
        let esp = [("EFI/systemd/systemd-bootx64.efi", "MZ"), ("loader/loader.conf", "timeout 3\n")];
        machine.files("esp", &esp);
        fs::create_dir(machine.path("esp/loader/entries")).unwrap();
        let before = machine.tree(&machine.path("esp"));
        let boot = machine.path("xbootldr");
        machine.ok(&["staged", "--boot", boot.to_str().unwrap()]);
        assert_eq!(machine.tree(&machine.path("esp")), before);
        // From here on it is looked at as if it were the ESP.
        fs::remove_dir_all(machine.path("esp")).unwrap();
        fs::rename(boot, machine.path("esp")).unwrap();
        machine.assert_finalized();
    }
}

#[test]
fn grub_cc_has_its_entries_on_the_esp_in_grubs_order() {
    for boot_type in [BootType::Bls, BootType::Uki] {
        let machine = Machine::booting(Loader::GrubCc, boot_type);
        machine.ok(&["staged"]);
        machine.assert_finalized();
    }
}

/// A directory has its name on the disk, and its cluster is free: fsck.fat first makes of that a directory without a cluster.
#[test]
fn half_a_directory_is_mended_to_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, shell) = (dir.path().join("esp"), shell(dir.path()));
    for (bits, state, size) in [("32", 65, 4), ("16", 37, 2)] {
        ok(cmd!(shell, "truncate --size 64M esp"));
        ok(cmd!(shell, "mkfs.fat -F {bits} esp"));
        ok(cmd!(shell, "mmd -i esp ::HALF"));
        let mut bytes = fs::read(&disk).unwrap();
        let word = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
        // BPB_RsvdSecCnt, BPB_FATSz16 or BPB_FATSz32, BPB_NumFATs (the FAT specification, section 3).
        let (first, fats) = (word(14) * 512, usize::from(bytes[16]));
        let length = if size == 4 { word(36) } else { word(22) } * 512;
        let entry = bytes.windows(11).position(|at| at == b"HALF       ").unwrap();
        let cluster = word(entry + 26);
        for fat in 0..fats {
            let at = first + fat * length + cluster * size;
            bytes[at..at + size].fill(0);
        }
        bytes[state] |= 1;
        fs::write(&disk, &bytes).unwrap();
        assert!(finalize::sys::fat::mend(&disk).unwrap());
        ok(cmd!(shell, "fsck.fat -n esp"));
        let listed = cmd!(shell, "mdir -b -i esp ::/").output().unwrap();
        assert!(!String::from_utf8_lossy(&listed.stdout).contains("HALF"), "nobody can use it, or remove it");
        fs::remove_file(&disk).unwrap();
    }
}

#[test]
fn what_a_power_cut_has_left_on_fat_is_mended_only_where_it_was_left() {
    let dir = tempfile::tempdir().unwrap();
    let (disk, shell) = (dir.path().join("esp"), shell(dir.path()));
    ok(cmd!(shell, "truncate --size 64M esp"));
    let mend = || finalize::sys::fat::mend(&disk);
    assert!(!mend().unwrap(), "no file system");
    for (bits, state) in [("32", 65), ("16", 37)] {
        ok(cmd!(shell, "mkfs.fat -F {bits} esp"));
        fs::write(dir.path().join("file"), vec![b'x'; 10_000]).unwrap();
        ok(cmd!(shell, "mcopy -i esp file ::OLD"));
        ok(cmd!(shell, "mcopy -i esp file ::NEW"));
        let mut bytes = fs::read(&disk).unwrap();
        let entry = |name: &[u8]| bytes.windows(11).position(|at| at == name).unwrap();
        let (old, new) = (entry(b"OLD        "), entry(b"NEW        "));
        // Half a rename: both names have the same clusters (the FAT specification, section 6).
        for field in [20..22, 26..28] {
            let first = bytes[old + field.start..old + field.end].to_vec();
            bytes[new + field.start..new + field.end].copy_from_slice(&first);
        }
        fs::write(&disk, &bytes).unwrap();
        assert!(!mend().unwrap(), "it was unmounted");
        bytes[state] |= 1;
        fs::write(&disk, &bytes).unwrap();
        assert!(mend().unwrap());
        assert!(!mend().unwrap(), "once");
        ok(cmd!(shell, "fsck.fat -n esp"));
    }
}
