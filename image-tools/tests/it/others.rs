//! Disks that others have made: partitions in another order, by other names, on other sectors, with what nobody expects in them.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use gpt::{GptConfig, disk::LogicalBlockSize, mbr::ProtectiveMBR, partition_types};
use image_tools::{inspect::table, program, sparse};
use xshell::{Shell, cmd};

use crate::{
    build::inspect,
    layout::{build, ok, run, system, write},
};

const MIB: u64 = 1 << 20;
pub const ESP: &str = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B";
pub const ROOT: &str = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709";
const LINUX: &str = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";

/// The file systems of a disk, each in a file: `esp`, `root`, and `boot` where there is one.
pub struct Parts {
    dir: tempfile::TempDir,
}

impl Parts {
    /// Of a disk of ours with one deployment.
    pub fn of(more: &[&str]) -> Self {
        let mut files = system();
        files.push(("usr/lib/grub/x86_64-efi/monolithic/grubx64.efi".to_owned(), b"MZ not really".to_vec()));
        let dir = tempfile::tempdir().unwrap();
        write(&dir.path().join("layout"), &files);
        Self::of_layout(dir, more)
    }

    /// Of a disk with the system whose layout is in `dir`.
    pub fn of_layout(dir: tempfile::TempDir, more: &[&str]) -> Self {
        let disk = dir.path().join("ours");
        let small = ["--esp-size", "40", "--size", "200"];
        ok(build(&dir.path().join("layout"), None, &disk, &[&small[..], more].concat()));
        for part in table::read(&disk).unwrap() {
            sparse::part(&disk, part.start..part.start + part.size, &dir.path().join(&part.name)).unwrap();
        }
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An empty file of `mib` MiB.
    pub fn empty(&self, name: &str, mib: u64) -> PathBuf {
        let path = self.path(name);
        File::create(&path).unwrap().set_len(mib * MIB).unwrap();
        path
    }

    /// A disk of partitions as sfdisk(8) is told of them, one a line; what is in each is named by its own name, or is empty.
    pub fn disk(&self, partitions: &[(&str, &str)]) -> PathBuf {
        let disk = self.empty("disk", 1024);
        let mut script = "label: gpt\n".to_owned();
        for (line, content) in partitions {
            let found = fs::metadata(self.path(content)).ok().filter(fs::Metadata::is_file);
            let size = found.map_or(8, |found| found.len() / MIB);
            script.push_str(&format!("size={size}MiB, {line}\n"));
        }
        let shell = program::shell().unwrap();
        let sfdisk = cmd!(shell, "sfdisk --quiet {disk}");
        program::feed(sfdisk, |stdin| Ok(stdin.write_all(script.as_bytes())?)).unwrap();
        self.fill(&disk, partitions.iter().map(|(_, content)| *content));
        disk
    }

    fn fill<'a>(&self, disk: &Path, contents: impl Iterator<Item = &'a str>) {
        let mut places = table::read(disk).unwrap();
        places.sort_by_key(|place| place.number);
        for (content, place) in contents.zip(places) {
            if self.path(content).is_file() {
                sparse::into(&self.path(content), disk, place.start).unwrap();
            }
        }
    }

    /// An ext4 with what the file `from` has, made by mke2fs with these words; what is sealed there is not here.
    pub fn remade(&self, from: &str, to: &str, words: &[&str]) {
        let shell = program::shell().unwrap();
        let (from, out, to) = (self.path(from), self.path("remade"), self.empty(to, 150));
        _ = fs::remove_dir_all(&out);
        fs::create_dir(&out).unwrap();
        let command = format!("rdump / {}", out.display());
        program::run(cmd!(shell, "debugfs -R {command} {from}")).unwrap();
        program::run(cmd!(shell, "mke2fs -q -F -t ext4 -d {out} {words...} {to}")).unwrap();
    }
}

/// What is said of a disk, as people read it, with the exit code.
pub fn said(disk: &Path, more: &[&str]) -> (String, Option<i32>) {
    let output = run(&[&["inspect", disk.to_str().unwrap()], more].concat());
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8(text).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (text, output.status.code())
}

/// A disk that is as it must be, with one deployment that boots.
fn is_whole(disk: &Path, loader: &str) {
    let (report, code) = inspect(disk);
    assert_eq!((&report["wrong"], code), (&serde_json::json!([]), Some(0)), "{report:#}");
    assert_eq!(report["loader"], loader);
    assert_eq!(report["deployments"].as_array().unwrap().len(), 1);
    assert_eq!(report["entries"][0]["deployment"], report["deployments"][0]["id"]);
}

/// As bootc's `install to-disk` makes it (1.16): a partition for BIOS first, and names of its own.
#[test]
fn a_disk_of_bootc() {
    for (loader, more) in [("systemd-boot", &[][..]), ("grub", &["--bootloader", "grub"])] {
        let parts = Parts::of(more);
        let disk = parts.disk(&[
            ("type=21686148-6449-6E6F-744E-656564454649, name=\"BIOS-BOOT\"", ""),
            (&format!("type={ESP}, name=\"EFI-SYSTEM\""), "esp"),
            (&format!("type={ROOT}, name=\"root\""), "root"),
        ]);
        is_whole(&disk, loader);
    }
}

/// With a boot partition of the generic type, the root one of that too, and others before, between and behind.
#[test]
fn partitions_in_any_order_and_by_any_name() {
    let parts = Parts::of(&["--bootloader", "grub", "--boot-partition", "--boot-size", "40"]);
    fs::copy(parts.path("root"), parts.path("a")).unwrap();
    let disk = parts.disk(&[
        ("type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, name=\"esp\"", ""),
        (&format!("type={LINUX}, name=\"root\""), "nothing"),
        (&format!("type={LINUX}, name=\"data\""), "root"),
        ("type=01234567-89AB-CDEF-0123-456789ABCDEF", ""),
        (&format!("type={LINUX}"), "boot"),
        (&format!("type={ESP}, name=\"boot\""), "esp"),
    ]);
    is_whole(&disk, "grub");
    let (text, _) = said(&disk, &[]);
    assert!(text.contains("4  8 MiB, of an unknown type, empty\n"), "{text}");
    let twice = parts.disk(&[
        (&format!("type={LINUX}"), "a"),
        (&format!("type={ROOT}"), "root"),
        (&format!("type={LINUX}"), "boot"),
        (&format!("type={ESP}"), "esp"),
    ]);
    is_whole(&twice, "grub");
    let (text, _) = said(&twice, &[]);
    assert!(text.contains("note        partition 1 (Linux data, \"\") has deployments too"), "{text}");
}

#[test]
fn a_disk_of_systemd_repart() {
    let parts = Parts::of(&[]);
    let (definitions, disk) = (parts.path("repart.d"), parts.path("disk"));
    fs::create_dir(&definitions).unwrap();
    let types =
        [("home", None), ("root-x86-64", Some("root")), ("swap", None), ("esp", Some("esp")), ("xbootldr", None)];
    for (number, (kind, from)) in types.iter().enumerate() {
        let size = from.map_or(16, |from| fs::metadata(parts.path(from)).unwrap().len() / MIB);
        let mut text = format!("[Partition]\nType={kind}\nSizeMinBytes={size}M\nSizeMaxBytes={size}M\n");
        if let Some(from) = from {
            text.push_str(&format!("CopyBlocks={}\n", parts.path(from).display()));
        }
        fs::write(definitions.join(format!("{number}.conf")), text).unwrap();
    }
    let shell = program::shell().unwrap();
    program::run(cmd!(
        shell,
        "systemd-repart --dry-run=no --empty=create --size=300M --seed=5c1b7b1f9f0b4b7d8f3a0e6d3c2b1a09 --definitions={definitions} {disk}"
    ))
    .unwrap();
    is_whole(&disk, "systemd-boot");
    let (text, _) = said(&disk, &[]);
    assert!(text.contains("XBOOTLDR, empty") && text.contains("home, empty"), "{text}");
}

/// A disk with sectors of 4096 bytes, whose FAT has them too.
#[test]
fn sectors_of_4096_bytes() {
    let parts = Parts::of(&[]);
    let (shell, esp, files) = (program::shell().unwrap(), parts.empty("large-esp", 300), parts.path("files"));
    fs::create_dir(&files).unwrap();
    let old = parts.path("esp");
    cmd!(shell, "mcopy -s -i {old} ::/EFI ::/loader {files}").quiet().run().unwrap();
    program::run(cmd!(shell, "mkfs.vfat -F 32 -S 4096 -s 1 {esp}")).unwrap();
    let (efi, loader) = (files.join("EFI"), files.join("loader"));
    cmd!(shell, "mcopy -s -i {esp} {efi} {loader} ::/").quiet().run().unwrap();
    let disk = parts.empty("disk", 1024);
    let mut device: Box<dyn gpt::DiskDevice> = Box::new(File::options().read(true).write(true).open(&disk).unwrap());
    ProtectiveMBR::with_lb_size(u32::MAX).overwrite_lba0(&mut device).unwrap();
    let config = GptConfig::new().writable(true).logical_block_size(LogicalBlockSize::Lb4096);
    let mut table = config.create_from_device(device, None).unwrap();
    let size = fs::metadata(parts.path("root")).unwrap().len();
    table.add_partition("x", 300 * MIB, partition_types::EFI, 0, None).unwrap();
    table.add_partition("y", size, partition_types::LINUX_ROOT_X64, 0, None).unwrap();
    table.write().unwrap();
    parts.fill(&disk, ["large-esp", "root"].into_iter());
    is_whole(&disk, "systemd-boot");
}

/// ext4 of the kind that mke2fs makes of small file systems, and an XBOOTLDR partition that systemd-boot reads too.
#[test]
fn blocks_of_1024_bytes_and_kernels_on_a_boot_partition() {
    let parts = Parts::of(&["--unsealed"]);
    parts.remade("root", "small", &["-b", "1024"]);
    let empty = parts.empty("empty-esp", 40);
    let shell = program::shell().unwrap();
    program::run(cmd!(shell, "mkfs.vfat -F 32 {empty}")).unwrap();
    let program = parts.path("layout/index.json");
    cmd!(shell, "mmd -i {empty} ::/EFI ::/EFI/BOOT").run().unwrap();
    cmd!(shell, "mcopy -i {empty} {program} ::/EFI/BOOT/BOOTX64.EFI").run().unwrap();
    let xbootldr = "type=BC13C2FF-59E6-4262-A352-B275FD6F7172";
    let disk =
        parts.disk(&[(&format!("type={ESP}"), "empty-esp"), (xbootldr, "esp"), (&format!("type={ROOT}"), "small")]);
    is_whole(&disk, "systemd-boot");
    let bytes = fs::read(&disk).unwrap();
    let at = bytes.windows(16).position(|window| window == b"big big big big ").unwrap();
    File::options().write(true).open(&disk).unwrap().write_all_at(b"B", at as u64).unwrap();
    let (text, code) = said(&disk, &["--check"]);
    assert!(code == Some(1) && text.contains("its data has another digest"), "{text}");
}

#[test]
fn a_disk_without_deployments_has_none() {
    let parts = Parts::of(&[]);
    let (shell, root) = (program::shell().unwrap(), parts.empty("other", 100));
    program::run(cmd!(shell, "mke2fs -q -F -t ext4 {root}")).unwrap();
    for content in ["other", "nothing"] {
        let disk = parts.disk(&[(&format!("type={ROOT}"), content), (&format!("type={ESP}"), "esp")]);
        let (text, code) = said(&disk, &[]);
        assert!(code == Some(0) && text.contains("deployment  none\n"), "{text}");
        let (text, code) = said(&disk, &["--check"]);
        assert!(code == Some(1) && text.contains("WRONG       the disk has no deployments\n"), "{text}");
    }
}

/// Magics, each where its file system has it.
#[test]
fn what_is_not_read_is_called_by_its_name() {
    let parts = Parts::of(&[]);
    for (at, magic, name) in [
        (65600, &b"_BHRfS_M"[..], "btrfs"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (512, b"LABELONE", "LVM"),
        (0, b"XFSB", "XFS"),
        (0, b"no file system", "something unknown"),
    ] {
        let root = parts.empty("strange", 20);
        File::options().write(true).open(&root).unwrap().write_all_at(magic, at).unwrap();
        let disk = parts.disk(&[(&format!("type={ROOT}"), "strange"), (&format!("type={ESP}"), "strange")]);
        let (text, code) = said(&disk, &[]);
        let wanted = format!("note        partition 1 (root x86-64, \"\") holds {name}, which is not looked into");
        assert!(code == Some(0) && text.contains(&wanted) && text.contains("deployment  none"), "{text}");
        assert!(text.contains(&format!("partition 2 (ESP, \"\") holds {name}: an ESP is FAT")), "{text}");
        assert_eq!(said(&disk, &["--check"]).1, Some(1));
    }
    // A magic, and nothing behind it.
    let root = parts.empty("strange", 20);
    File::options().write(true).open(&root).unwrap().write_all_at(b"\x53\xef", 1080).unwrap();
    let disk = parts.disk(&[(&format!("type={ROOT}"), "strange"), (&format!("type={ESP}"), "esp")]);
    let (text, _) = said(&disk, &["--check"]);
    assert!(text.contains("partition 1 (root x86-64, \"\") cannot be read"), "{text}");
}

#[test]
fn what_has_no_partition_table_is_called_by_its_name() {
    let parts = Parts::of(&[]);
    let shell = program::shell().unwrap();
    let mbr = parts.empty("mbr", 20);
    program::feed(cmd!(shell, "sfdisk --quiet {mbr}"), |stdin| Ok(stdin.write_all(b"label: dos\n,\n")?)).unwrap();
    let nothing = parts.empty("zeros", 20);
    let short = parts.empty("short", 0);
    let broken = parts.disk(&[(&format!("type={ESP}"), "esp")]);
    File::options().write(true).open(&broken).unwrap().set_len(100 * MIB).unwrap();
    let (text, _) = said(&broken, &[]);
    assert!(text.contains("note        only the first of both copies of the partition table is valid"), "{text}");
    File::options().write(true).open(&broken).unwrap().set_len(20 * MIB).unwrap();
    for (disk, wanted) in [
        (&mbr, "there is no GPT"),
        (&parts.path("esp"), "there is no GPT"),
        (&nothing, "there is no partition table"),
        (&short, "there is no partition table"),
        (&broken, "behind the end of the image"),
    ] {
        let (text, code) = said(disk, &["--check"]);
        assert!(code == Some(1) && text.contains(wanted), "{}: {text}", disk.display());
    }
}

/// Only what is needed for a disk without GRUB is there.
#[test]
fn tools_of_grub_are_needed_for_grub_only() {
    let parts = Parts::of(&[]);
    let disk = parts.disk(&[(&format!("type={ESP}"), "esp"), (&format!("type={ROOT}"), "root")]);
    let bin = parts.path("bin");
    fs::create_dir(&bin).unwrap();
    let shell = program::shell().unwrap();
    for name in ["qemu-img", "mdir", "mtype"] {
        let found = cmd!(shell, "which {name}").read().unwrap();
        std::os::unix::fs::symlink(found, bin.join(name)).unwrap();
    }
    let inspect = |shell: &Shell| {
        let program = crate::layout::PROGRAM;
        program::output(cmd!(shell, "env PATH={bin} {program} inspect --check {disk}")).unwrap()
    };
    ok(inspect(&shell));
}
