//! Every boot path is built as its boot loader reads it, and a UKI that boots another image is refused.

use std::path::Path;

use image_tools::program;
use xshell::cmd;

use crate::{
    build::inspect,
    layout::{build, ok, run, system, write},
};

const GRUB: &str = "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi";

/// The system in a version, with GRUB.
pub fn version(version: &str) -> Vec<(String, Vec<u8>)> {
    release("test", version)
}

/// The same by another name.
fn release(id: &str, version: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = system();
    let os_release = format!("ID={id}\nVERSION_ID={version}\nPRETTY_NAME=\"A test\"\n");
    files.retain(|(path, _)| path != "usr/lib/os-release");
    files.push(("usr/lib/os-release".to_owned(), os_release.into_bytes()));
    files.push((GRUB.to_owned(), b"MZ not really".to_vec()));
    files
}

/// A PE file with the sections of a UKI (Microsoft's PE format), and what it takes to be signed.
pub fn uki(command_line: &str) -> Vec<u8> {
    let sections = [(".cmdline", command_line.as_bytes()), (".linux", b"a kernel"), (".initrd", b"an initramfs")];
    let mut file = vec![0; 0x40];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x40;
    file.extend(b"PE\0\0\x64\x86\x03\0");
    // The optional header of PE32+, with 16 data directories.
    file.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 240, 0, 0x22, 0]);
    let mut optional = [0; 240];
    optional[..2].copy_from_slice(&[0x0b, 0x02]);
    let mut at = file.len() + optional.len() + 40 * sections.len();
    optional[60..64].copy_from_slice(&u32::try_from(at).unwrap().to_le_bytes());
    optional[108] = 16;
    file.extend(optional);
    for (name, data) in sections {
        let mut header = [0; 40];
        header[..name.len()].copy_from_slice(name.as_bytes());
        for (offset, value) in [(8, data.len()), (16, data.len()), (20, at)] {
            header[offset..offset + 4].copy_from_slice(&u32::try_from(value).unwrap().to_le_bytes());
        }
        file.extend(header);
        at += data.len();
    }
    sections.iter().for_each(|(_, data)| file.extend(*data));
    file
}

fn digest(dir: &Path) -> String {
    let output = ok(run(&["digest", &format!("oci:{}", dir.display())]));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Writes the layout of a system with a UKI and an addon that name the system's own digest.
pub fn write_with_uki(dir: &Path, files: Vec<(String, Vec<u8>)>) {
    write_with_uki_that(dir, files, "composefs=");
}

/// The same; what stands before the digest says whether fs-verity is required.
pub fn write_with_uki_that(dir: &Path, mut files: Vec<(String, Vec<u8>)>, says: &str) {
    write(dir, &files);
    let id = digest(dir);
    std::fs::remove_dir_all(dir).unwrap();
    files.push(("boot/EFI/Linux/test.efi".to_owned(), uki(&format!("{says}{id} rw"))));
    files.push(("boot/EFI/Linux/test.efi.extra.d/a.addon.efi".to_owned(), b"MZ addon".to_vec()));
    write(dir, &files);
    assert_eq!(digest(dir), id, "the digest covers /boot");
}

#[test]
fn every_boot_path_is_whole_and_the_new_version_is_first_even_when_it_is_older() {
    every_boot_path(version("2.10"), version("2.9"));
}

#[test]
fn the_staged_system_is_first_whatever_it_calls_itself() {
    every_boot_path(release("aaa", "44"), release("zzz", "1"));
    every_boot_path(release("zzz", "1"), release("aaa", "44"));
}

fn every_boot_path(old: Vec<(String, Vec<u8>)>, new: Vec<(String, Vec<u8>)>) {
    let grub_partition = &["--bootloader", "grub", "--boot-partition"][..];
    let cases = [
        (&["--bootloader", "systemd-boot", "--boot-type", "bls"][..], 2),
        (&["--bootloader", "systemd-boot", "--boot-type", "uki"], 2),
        (&["--bootloader", "grub"], 2),
        (grub_partition, 3),
        (&["--bootloader", "grub", "--boot-partition", "xfs"], 3),
        (&["--bootloader", "grub", "--boot-type", "uki"], 2),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    write_with_uki(&one, old);
    write_with_uki(&two, new);
    let (booted, staged) = (digest(&one), digest(&two));
    for (options, partitions) in cases {
        let disk = dir.path().join("disk");
        let size = ["--size", "1600"];
        let output = build(&one, Some(&two), &disk, &[options, &size].concat());
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        let (report, code) = inspect(&disk);
        assert_eq!((&report["wrong"], code), (&serde_json::json!([]), Some(0)), "{options:?}");
        assert_eq!(report["partitions"].as_array().unwrap().len(), partitions, "{options:?}");
        assert_eq!(report["loader"], options[1]);
        let ids = |list: &str| {
            let list = report[list].as_array().unwrap().iter();
            list.map(|entry| entry["deployment"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ids("entries"), std::slice::from_ref(&booted), "{options:?}");
        assert_eq!(ids("staged_entries"), [staged.clone(), booted.clone()], "{options:?}");
    }
}

#[test]
fn a_uki_of_another_image_is_refused_with_both_digests() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let mut files = version("1");
    let other = "ab".repeat(64);
    files.push(("boot/EFI/Linux/test.efi".to_owned(), uki(&format!("composefs={other}"))));
    write(&layout, &files);
    let id = digest(&layout);
    let refused = |code: i32, want: &[&str], options: &[&str]| {
        let output = build(&layout, None, &dir.path().join("disk"), options);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{message}");
        want.iter().for_each(|want| assert!(message.contains(want), "{want:?} is not in: {message}"));
        assert!(!dir.path().join("disk").exists());
    };
    refused(3, &["test.efi", &other, &id], &["--boot-type", "uki"]);
    refused(2, &["a boot partition needs --bootloader grub"], &["--boot-partition"]);
    std::fs::remove_dir_all(&layout).unwrap();
    write(&layout, &system());
    refused(3, &["one UKI", "boot/EFI/Linux"], &["--boot-type", "uki"]);
    refused(3, &[GRUB, "grub-efi-amd64-bin"], &["--bootloader", "grub"]);
}

#[test]
fn sealing_leaves_nothing_behind_when_it_fails() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    let mut files = system();
    files.push(("usr/lib/systemd/boot/efi/linuxx64.efi.stub".to_owned(), b"MZ not really".to_vec()));
    write(&layout, &files);
    let (image, output) = (format!("oci:{}", layout.display()), dir.path().join("sealed"));
    let output_text = output.to_str().unwrap();
    // `false` is a program that fails.
    for (ukify, wanted) in [("false", "false failed"), ("/no/such/program", "is it installed?")] {
        let made = run(&["seal", &image, "--output", output_text, "--ukify", ukify]);
        let message = String::from_utf8(made.stderr).unwrap();
        assert!(made.status.code() == Some(1) && message.contains(wanted), "{message}");
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["layout"]);
    }
    std::fs::create_dir(&output).unwrap();
    let made = run(&["seal", &image, "--output", output_text]);
    assert!(String::from_utf8(made.stderr).unwrap().contains("exists: remove it"));
}

#[test]
fn a_sealed_image_boots_itself_and_its_addons_move_with_its_uki() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut files = version("1");
    files.push(("usr/lib/systemd/boot/efi/linuxx64.efi.stub".to_owned(), b"MZ not really".to_vec()));
    files.push(("boot/EFI/Linux/test-1.efi.extra.d/a.addon.efi".to_owned(), b"MZ addon".to_vec()));
    write(&dir.path().join("layout"), &files);
    let id = digest(&dir.path().join("layout"));
    // Instead of ukify, whose last argument is the file to make.
    std::fs::write(path("uki"), uki(&format!("composefs={id} rw"))).unwrap();
    std::fs::write(path("ukify"), format!("#!/bin/sh\nfor last; do :; done\ncp {} \"$last\"\n", path("uki"))).unwrap();
    std::fs::set_permissions(path("ukify"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let (image, sealed) = (format!("oci:{}", path("layout")), path("sealed"));
    let made = run(&["seal", &image, "--output", &sealed, "--ukify", &path("ukify")]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert_eq!(String::from_utf8(made.stdout).unwrap().trim(), id);

    let shell = program::shell().unwrap();
    for loader in ["systemd-boot", "grub"] {
        let disk = dir.path().join("disk");
        let options = ["--bootloader", loader, "--boot-type", "uki", "--mirror-esp", "--size", "2000"];
        let output = build(sealed.as_ref(), None, &disk, &options);
        assert!(output.status.success(), "{loader}: {}", String::from_utf8_lossy(&output.stderr));
        // Both ESPs: the first begins at 1 MiB, the other 512 MiB behind it.
        for esp in ["1M", "513M"] {
            let addon = format!("::/EFI/Linux/bootc/bootc_composefs-{id}.efi.extra.d/a.addon.efi");
            let image = format!("{}@@{esp}", disk.display());
            assert_eq!(cmd!(shell, "mtype -i {image} {addon}").read().unwrap(), "MZ addon", "{loader} {esp}");
        }
    }
}

#[test]
fn what_grub_can_do_decides_how_it_gets_its_entries() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, disk) = (dir.path().join("layout"), dir.path().join("disk"));
    let modules = ["usr/lib/grub/x86_64-efi/linux.mod", "usr/lib/grub/x86_64-efi/blsuki.mod"];
    for (has, wanted) in
        [(1, "source \"($root)/loader/entries/grub.cfg\"\n"), (2, "insmod blsuki\nblscfg --path /loader")]
    {
        let mut files = version("1");
        files.extend(modules[..has].iter().map(|path| ((*path).to_owned(), b"a module".to_vec())));
        write(&layout, &files);
        ok(build(&layout, None, &disk, &["--bootloader", "grub", "--boot-partition", "--size", "1600"]));
        // The boot partition lies behind the ESP.
        let (shell, image) = (program::shell().unwrap(), format!("{}?offset={}", disk.display(), 513 << 20));
        let config = cmd!(shell, "debugfs -R 'cat grub2/grub.cfg' {image}").read().unwrap();
        assert!(config.contains(wanted), "{wanted:?} is not in: {config}");
        std::fs::remove_dir_all(&layout).unwrap();
    }
}
