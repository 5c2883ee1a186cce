//! A disk is for the machine that its image is for: what the firmware, the boot loaders and QEMU look for has that machine's
//! names, whatever machine builds it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use image_tools::{inspect::table, program};
use xshell::cmd;

use crate::{
    boot_paths::uki,
    build::inspect,
    layout::{PROGRAM, build, ok, run, shell, system, write, write_for},
};

/// The system for an architecture, with all boot loaders under its names.
fn machine(efi: &str, grub: &str) -> Vec<(String, Vec<u8>)> {
    let mut files = system();
    files.retain(|(path, _)| !path.contains("systemd-boot"));
    for path in [
        format!("usr/lib/systemd/boot/efi/systemd-boot{efi}.efi"),
        format!("usr/lib/grub/{grub}/monolithic/grub{efi}.efi"),
        format!("usr/lib/grub/{grub}/blsuki.mod"),
    ] {
        files.push((path, b"MZ not really".to_vec()));
    }
    files.push((
        "usr/lib/bootc/kargs.d/10-arm.toml".to_owned(),
        b"kargs = [\"arm=1\"]\nmatch-architectures = [\"aarch64\"]".to_vec(),
    ));
    files
}

fn arm64() -> Vec<(String, Vec<u8>)> {
    machine("aa64", "arm64-efi")
}

/// A disk for arm64.
fn arm64_disk(dir: &Path, more: &[&str]) -> PathBuf {
    let (layout, disk) = (dir.join("layout"), dir.join("disk"));
    write_for("arm64", &layout, &arm64());
    ok(build(&layout, None, &disk, more));
    disk
}

/// The names of all files on the ESP, which begins at 1 MiB.
fn esp(disk: &Path) -> String {
    let (shell, image) = (program::shell().unwrap(), format!("{}@@1M", disk.display()));
    cmd!(shell, "mdir -/ -b -i {image} ::").read().unwrap()
}

#[test]
fn a_disk_has_the_names_of_its_machine() {
    let dir = tempfile::tempdir().unwrap();
    let disk = arm64_disk(dir.path(), &[]);
    let (report, code) = inspect(&disk);
    assert_eq!((&report["wrong"], code), (&serde_json::json!([]), Some(0)));
    assert_eq!(report["arch"], "arm64");
    // The Discoverable Partitions Specification: the root of 64-bit ARM.
    assert_eq!(report["partitions"][1]["kind"], "b921b045-1df0-41c3-af44-4c6f280d3fae");
    let names = esp(&disk);
    assert!(names.contains("EFI/BOOT/BOOTAA64.EFI") && names.contains("EFI/systemd/systemd-bootaa64.efi"), "{names}");
    assert!(!names.to_lowercase().contains("x64"), "{names}");
    let (shell, image) = (program::shell().unwrap(), format!("{}@@1M", disk.display()));
    let entry = cmd!(shell, "mtype -i {image} ::/loader/entries/*").read().unwrap();
    assert!(entry.contains(" rw arm=1 console=ttyAMA0\n"), "{entry}");
}

#[test]
fn grub_has_the_names_of_its_machine() {
    let dir = tempfile::tempdir().unwrap();
    let disk = arm64_disk(dir.path(), &["--bootloader", "grub", "--boot-partition", "--size", "1600"]);
    let (report, code) = inspect(&disk);
    assert_eq!((&report["wrong"], code), (&serde_json::json!([]), Some(0)));
    let names = esp(&disk);
    assert!(names.contains("EFI/BOOT/BOOTAA64.EFI") && !names.to_lowercase().contains("x64"), "{names}");
    let (shell, boot) = (program::shell().unwrap(), format!("{}?offset={}", disk.display(), 513 << 20));
    let modules = cmd!(shell, "debugfs -R 'ls -p grub2/arm64-efi' {boot}").read().unwrap();
    assert!(modules.contains("blsuki.mod"), "{modules}");
    // An image of that machine that has the loader of another one only.
    let layout = dir.path().join("other");
    write_for("arm64", &layout, &machine("x64", "x86_64-efi"));
    for (loader, wanted) in [("systemd-boot", "systemd-bootaa64.efi"), ("grub", "grub-efi-arm64-bin")] {
        let output = build(&layout, None, &dir.path().join("no"), &["--bootloader", loader]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(3) && said.contains(wanted), "{said}");
    }
}

/// The stub of its own machine, and a console of its own.
#[test]
fn an_image_is_sealed_for_its_machine() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let mut files = arm64();
    files.push(("usr/lib/systemd/boot/efi/linuxaa64.efi.stub".to_owned(), b"MZ the stub".to_vec()));
    write_for("arm64", &dir.path().join("layout"), &files);
    let image = format!("oci:{}", path("layout"));
    let id = String::from_utf8(run(&["digest", &image]).stdout).unwrap().trim().to_owned();
    fs::write(path("uki"), uki(&format!("composefs={id} rw"))).unwrap();
    let script =
        "#!/bin/sh\necho \"$@\" >{0}\nwhile [ \"$1\" != --stub ]; do shift; done\ncat \"$2\" >>{0}\ncp {1} \"$4\"\n";
    let script = script.replace("{0}", &path("said")).replace("{1}", &path("uki"));
    fs::write(path("ukify"), script).unwrap();
    fs::set_permissions(path("ukify"), fs::Permissions::from_mode(0o755)).unwrap();
    let made = run(&["seal", &image, "--output", &path("sealed"), "--ukify", &path("ukify"), "--options", "quiet"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let said = fs::read_to_string(path("said")).unwrap();
    assert!(said.contains(" quiet console=ttyAMA0 --os-release") && said.ends_with("MZ the stub"), "{said}");
    let disk = dir.path().join("disk");
    ok(build(&dir.path().join("sealed"), None, &disk, &["--boot-type", "uki"]));
    assert_eq!(inspect(&disk).0["wrong"], serde_json::json!([]));
}

#[test]
fn what_no_machine_boots_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two, other] = ["one", "two", "three"].map(|name| dir.path().join(name));
    write(&one, &system());
    write_for("arm64", &two, &arm64());
    write_for("riscv64", &other, &system());
    let refused = |layout: &Path, stage: Option<&Path>, wanted: &str| {
        let output = build(layout, stage, &dir.path().join("disk"), &[]);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(3) && said.contains(wanted), "{said}");
    };
    refused(&other, None, "the architecture riscv64 is not supported, only amd64 and arm64");
    refused(&one, Some(&two), "one is for x86_64");
    let typed = run(&["digest", &format!("oci:{}", one.display()), "--arch", "riscv64"]);
    let said = String::from_utf8(typed.stderr).unwrap();
    assert!(typed.status.code() == Some(2) && said.contains("only amd64 and arm64"), "{said}");
}

/// Gives every partition a type that is no machine's own, as partitioning tools do by default.
fn make_generic(disk: &Path) {
    let mut table = gpt::GptConfig::new().writable(true).open(disk).unwrap();
    let mut partitions = table.partitions().clone();
    for partition in partitions.values_mut().filter(|partition| partition.name == "root") {
        partition.part_type_guid = gpt::partition_types::LINUX_FS;
    }
    table.update_partitions(partitions).unwrap();
    table.write().unwrap();
}

#[test]
fn a_disk_whose_partitions_do_not_tell_is_known_by_its_boot_loader() {
    let dir = tempfile::tempdir().unwrap();
    let disk = arm64_disk(dir.path(), &["--bootloader", "grub"]);
    make_generic(&disk);
    assert_eq!(inspect(&disk).0["arch"], "arm64");
    let (shell, image) = (program::shell().unwrap(), format!("{}@@1M", disk.display()));
    let wrong = || inspect(&disk).0["wrong"].to_string();
    cmd!(shell, "mren -i {image} ::/EFI/BOOT/BOOTAA64.EFI GONE.EFI").run().unwrap();
    assert!(wrong().contains("the ESP has no EFI/BOOT/BOOT*.EFI"), "{}", wrong());
    let told = run(&["inspect", "--check", "--arch", "arm64", disk.to_str().unwrap()]);
    let said = String::from_utf8(told.stdout).unwrap();
    assert!(said.contains("machine     aarch64\n"), "{said}");
    assert!(said.contains("WRONG       the ESP has no EFI/BOOT/BOOTAA64.EFI"), "{said}");
    for name in ["BOOTAA64.EFI", "BOOTX64.EFI"] {
        cmd!(shell, "mcopy -i {image} {PROGRAM} ::/EFI/BOOT/{name}").run().unwrap();
    }
    let several = "the ESP has boot loaders for several machines";
    let (report, _) = inspect(&disk);
    assert!(report["arch"].is_null() && report["notes"].to_string().contains(several), "{report}");
    let said = booted(dir.path(), &disk, &[]);
    assert!(said.contains(several) && said.contains("choose one with --arch"), "{said}");
}

/// The command that `boot` starts in place of QEMU.
fn booted(dir: &Path, disk: &Path, more: &[&str]) -> String {
    let bin = dir.join("bin");
    fs::create_dir_all(&bin).unwrap();
    for name in ["qemu-system-aarch64", "qemu-system-x86_64"] {
        let script =
            "#!/bin/sh\n[ \"$1\" != --version ] || exec echo QEMU emulator version 10.0\necho \"$0 $@\" >&2; exit 1\n";
        fs::write(bin.join(name), script).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    fs::write(dir.join("vars"), "").unwrap();
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let shell = shell(dir);
    let boot = cmd!(shell, "{PROGRAM} boot {disk} --quiet --accel tcg --vars vars --timeout 60 {more...}");
    let output = program::output(boot.env("PATH", path)).unwrap();
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_disk_is_booted_on_its_machine_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let disk = arm64_disk(dir.path(), &["--format", "qcow2"]);
    let check = |disk: &Path, more: &[&str], program: &str, wanted: &[&str]| {
        let said = booted(dir.path(), disk, more);
        for wanted in [&[program][..], wanted].concat() {
            assert!(said.contains(wanted), "{wanted:?} is not in: {said}");
        }
    };
    let arm = ["-machine virt,", "-cpu neoverse-n1", "-device pvpanic-pci", "/usr/share/AAVMF/AAVMF_CODE.fd"];
    check(&disk, &[], "qemu-system-aarch64 ", &arm);
    check(&disk, &["--arch", "amd64"], "qemu-system-x86_64 ", &["-machine q35,"]);
    let (shell, raw) = (program::shell().unwrap(), dir.path().join("raw"));
    let convert = || cmd!(shell, "qemu-img convert -O qcow2 {raw} {disk}").run().unwrap();
    cmd!(shell, "qemu-img convert -O raw {disk} {raw}").run().unwrap();
    check(&raw, &[], "qemu-system-aarch64 ", &arm);
    make_generic(&raw);
    check(&raw, &[], "qemu-system-aarch64 ", &arm);
    convert();
    check(&disk, &[], "qemu-system-aarch64 ", &arm);
    // What tells nothing is booted here.
    let nothing = dir.path().join("nothing");
    fs::write(&nothing, vec![0; 1 << 20]).unwrap();
    check(&nothing, &[], concat!("qemu-system-", "x86_64 "), &[]);
    check(&nothing, &["--arch", "aarch64"], "qemu-system-aarch64 ", &[]);
    assert_eq!(table::read(&raw).unwrap().len(), 2);
}

/// KVM runs guests of its own machine's kind only.
#[test]
fn kvm_is_not_asked_for_a_guest_of_another_machine() {
    let dir = tempfile::tempdir().unwrap();
    let disk = arm64_disk(dir.path(), &[]);
    let foreign = if cfg!(target_arch = "aarch64") { "amd64" } else { "arm64" };
    let output = run(&["boot", disk.to_str().unwrap(), "--quiet", "--accel", "kvm", "--arch", foreign]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("KVM does not work here: the guest is for"), "{said}");
}
