//! Disks that do not boot, or will not boot one day, or only elsewhere: each is found, and says what is wrong with it.

use std::fs;

use image_tools::program;
use xshell::cmd;

use crate::{
    boot_paths::{version, write_with_uki},
    build::inspect,
    layout::{build, ok, system, write},
    others::{ESP, Parts, ROOT, said},
};

/// The disk of these parts, in the usual order.
fn disk(parts: &Parts, esp: &str, root: &str) -> std::path::PathBuf {
    parts.disk(&[(&format!("type={ESP}"), esp), (&format!("type={ROOT}"), root)])
}

#[test]
fn verity_that_is_demanded_and_not_there() {
    let ukis = tempfile::tempdir().unwrap();
    write_with_uki(&ukis.path().join("layout"), version("1"));
    let uki = ["--boot-type", "uki"];
    let all = [(Parts::of(&[]), "bootc_test-1-1.conf"), (Parts::of_layout(ukis, &uki), "bootc_test-1-1.conf")];
    for (parts, entry) in all {
        parts.remade("root", "unsealed", &[]);
        let (text, code) = said(&disk(&parts, "esp", "unsealed"), &["--check"]);
        let wanted = format!("WRONG       {entry} demands fs-verity of ");
        assert!(code == Some(1) && text.contains(&wanted) && text.contains("so it does not boot"), "{text}");
        let (text, code) = said(&disk(&parts, "esp", "root"), &["--check"]);
        assert_eq!((code, text.contains("note")), (Some(0), false), "{text}");
    }
}

#[test]
fn features_that_older_boot_loaders_do_not_read() {
    let parts = Parts::of(&["--unsealed"]);
    parts.remade("root", "new", &["-O", "orphan_file,metadata_csum_seed"]);
    let (text, code) = said(&disk(&parts, "esp", "new"), &["--check"]);
    let wanted = "note        partition 2 (root x86-64, \"\") has orphan_file, metadata_csum_seed: GRUB before 2.12";
    assert!(code == Some(0) && text.contains(wanted), "{text}");
    parts.remade("root", "old", &["-O", "^orphan_file,^metadata_csum_seed"]);
    let (text, _) = said(&disk(&parts, "esp", "old"), &["--check"]);
    assert!(!text.contains("note"), "{text}");
}

/// Of three kernels, or UKIs, the third has no room.
#[test]
fn a_disk_that_cannot_take_another_update() {
    let grub = ["--bootloader", "grub", "--boot-partition", "--boot-size", "64"];
    for (more, place) in [(&[][..], "esp"), (&grub[..], "boot")] {
        let dir = tempfile::tempdir().unwrap();
        let mut files = system();
        files.push(("usr/lib/grub/x86_64-efi/monolithic/grubx64.efi".to_owned(), b"MZ not really".to_vec()));
        let kernel = files.iter_mut().find(|(path, _)| path.ends_with("vmlinuz")).unwrap();
        kernel.1 = vec![7; 9 << 20];
        write(&dir.path().join("layout"), &files);
        let parts = Parts::of_layout(dir, more);
        let (shell, filler, image) = (program::shell().unwrap(), parts.path("filler"), parts.path(place));
        let mut disk = vec![(format!("type={ESP}"), "esp"), (format!("type={ROOT}"), "root")];
        disk.extend((place == "boot").then(|| ("type=BC13C2FF-59E6-4262-A352-B275FD6F7172".to_owned(), "boot")));
        let disk: Vec<_> = disk.iter().map(|(line, content)| (line.as_str(), *content)).collect();
        let (text, code) = said(&parts.disk(&disk), &["--check"]);
        assert_eq!(code, Some(0), "{text}");
        fs::write(&filler, vec![1; 18 << 20]).unwrap();
        match place {
            "esp" => cmd!(shell, "mcopy -i {image} {filler} ::/filler").run().unwrap(),
            _ => {
                fs::write(&filler, vec![1; 32 << 20]).unwrap();
                let command = format!("write {} filler", filler.display());
                cmd!(shell, "debugfs -w -R {command} {image}").quiet().ignore_stderr().run().unwrap();
            }
        }
        let (text, code) = said(&parts.disk(&disk), &["--check"]);
        let wanted = "MiB free, but the kernels of 2 more deployments need 19 MiB: updates will fail";
        assert!(code == Some(1) && text.contains(wanted), "{text}");
    }
}

#[test]
fn identifiers_that_every_disk_of_an_older_version_has() {
    let parts = Parts::of(&["--seed", "composefs"]);
    let (text, _) = said(&parts.path("ours"), &["--check"]);
    assert!(
        text.contains("note        partition 2 (root x86-64, \"root\") has the UUID that --seed composefs gives"),
        "{text}"
    );
    let (report, _) = inspect(&Parts::of(&[]).path("ours"));
    assert_eq!(report["notes"], serde_json::json!([]), "of another seed");
}

#[test]
fn a_boot_loader_that_no_firmware_of_this_kind_starts() {
    let parts = Parts::of(&[]);
    let arm = "type=B921B045-1DF0-41C3-AF44-4C6F280D3FAE";
    let check = |root: &str| said(&parts.disk(&[(&format!("type={ESP}"), "esp"), (root, "root")]), &["--check"]);
    let (text, code) = check(arm);
    let wanted = "WRONG       the ESP has no EFI/BOOT/BOOTAA64.EFI, but efi/boot/bootx64.efi: a firmware";
    assert!(code == Some(1) && text.contains(wanted), "{text}");
    let (shell, image) = (program::shell().unwrap(), parts.path("esp"));
    cmd!(shell, "mdel -i {image} ::/EFI/BOOT/BOOTX64.EFI").run().unwrap();
    let (text, code) = check(&format!("type={ROOT}"));
    assert!(code == Some(1) && text.contains("WRONG       the ESP has no EFI/BOOT/BOOTX64.EFI: a firmware"), "{text}");
}

#[test]
fn a_fat_that_says_it_begins_elsewhere() {
    let parts = Parts::of(&[]);
    let root = format!("type={ROOT}");
    let moved = parts.disk(&[(&root, "root"), (&format!("type={ESP}"), "esp")]);
    let (text, code) = said(&moved, &["--check"]);
    assert!(code == Some(0) && text.contains("but its FAT says 1048576 (BPB_HiddSec)"), "{text}");
    let (shell, plain) = (program::shell().unwrap(), parts.empty("plain", 40));
    program::run(cmd!(shell, "mkfs.vfat -F 32 {plain}")).unwrap();
    let (text, _) = said(&disk(&parts, "plain", "root"), &[]);
    assert!(text.contains("its FAT says 0 (BPB_HiddSec)"), "{text}");
}

#[test]
fn a_mirrored_esp_that_is_no_mirror() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("layout"), &system());
    let disk = dir.path().join("disk");
    ok(build(&dir.path().join("layout"), None, &disk, &["--mirror-esp", "--esp-size", "40", "--size", "300"]));
    let (text, code) = said(&disk, &["--check"]);
    assert_eq!(code, Some(0), "{text}");
    let (shell, mirror) = (program::shell().unwrap(), format!("{}@@41M", disk.display()));
    // What is somebody else's may be on one of them.
    let rescue = dir.path().join("rescue.conf");
    fs::write(&rescue, "title Rescue\nlinux /rescue\n").unwrap();
    cmd!(shell, "mcopy -i {mirror} {rescue} ::/loader/entries/").run().unwrap();
    let (text, code) = said(&disk, &["--check"]);
    assert_eq!(code, Some(0), "{text}");
    cmd!(shell, "mdel -i {mirror} ::/loader/entries/bootc_*.conf").run().unwrap();
    let (text, code) = said(&disk, &["--check"]);
    let wanted = "partition 2 (ESP, \"esp-mirror\") has other entries of deployments in loader/entries than partition 1 (ESP, \"esp\")";
    assert!(code == Some(1) && text.contains(wanted), "{text}");
}
