//! More than one ESP: mirrored ones are all written, others are left alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use finalize::{boot::Loader, staged::BootType};

use crate::machine::Machine;

/// Copies the machine's ESP; returns the copy.
fn mirrored(machine: &Machine) -> PathBuf {
    let copy = machine.path("esp-mirror");
    assert!(Command::new("cp").arg("-a").arg(machine.path("esp")).arg(&copy).status().unwrap().success());
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

/// A disk with an ESP and the kernel's view of it: partitions 1 and 2. Returns the ESP's unique GUID.
fn disk(sys: &Path, name: &str) -> String {
    use gpt::{GptConfig, mbr::ProtectiveMBR, partition_types::EFI};
    let image = sys.join(format!("{name}.img"));
    let file = fs::File::options().read(true).write(true).create_new(true).open(&image).unwrap();
    file.set_len(8 << 20).unwrap();
    let mut device: Box<dyn gpt::DiskDevice> = Box::new(file);
    ProtectiveMBR::with_lb_size(0x3fff).overwrite_lba0(&mut device).unwrap();
    let mut table = GptConfig::new().writable(true).create_from_device(device, None).unwrap();
    let number = table.add_partition("esp", 1 << 20, EFI, 0, None).unwrap();
    let guid = table.partitions()[&number].part_guid.to_string();
    table.write().unwrap();
    let node = sys.join("devices").join(name);
    for number in ["1", "2"] {
        let partition = node.join(format!("{name}{number}"));
        fs::create_dir_all(&partition).unwrap();
        fs::write(partition.join("partition"), number).unwrap();
        fs::write(partition.join("uevent"), format!("DEVNAME={name}{number}\n")).unwrap();
    }
    fs::write(node.join("uevent"), format!("DEVNAME={}\n", image.display())).unwrap();
    guid
}

/// A device on top of others, as LUKS and RAID make them.
fn above(sys: &Path, name: &str, below: &[&str]) {
    let slaves = sys.join("devices").join(name).join("slaves");
    fs::create_dir_all(&slaves).unwrap();
    for path in below {
        let target = sys.join("devices").join(path);
        std::os::unix::fs::symlink(&target, slaves.join(target.file_name().unwrap())).unwrap();
    }
}

#[test]
fn esps_are_found_through_luks_on_raid_and_the_one_that_booted_is_last() {
    let dir = tempfile::tempdir().unwrap();
    let sys = dir.path();
    let guids = ["sda", "sdb"].map(|name| disk(sys, name));
    above(sys, "md0", &["sda/sda2", "sdb/sdb2"]);
    above(sys, "dm-0", &["md0"]);
    fs::create_dir_all(sys.join("dev/block")).unwrap();
    std::os::unix::fs::symlink(sys.join("devices/dm-0"), sys.join("dev/block/253:0")).unwrap();
    let found = || finalize::host::devices::esps(sys, (253, 0)).unwrap();
    let mut without_variables = found();
    without_variables.sort();
    assert_eq!(without_variables, [Path::new("/dev/sda1"), Path::new("/dev/sdb1")]);
    let variables = sys.join("firmware/efi/efivars");
    fs::create_dir_all(&variables).unwrap();
    for (guid, last) in guids.iter().zip(["/dev/sda1", "/dev/sdb1"]) {
        let text = format!("{}\0", guid.to_ascii_uppercase());
        let bytes: Vec<u8> = [6, 0, 0, 0].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        fs::write(variables.join("LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"), bytes).unwrap();
        assert_eq!(found().last().unwrap(), Path::new(last));
    }
    assert!(finalize::host::devices::boot_partitions(sys, (253, 0)).unwrap().is_empty());
}
