//! Finding what boots on odd disks: trees that look like sysfs and udev, and real loop devices where there are some.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use finalize::{host::devices, sys::mount};
use xshell::cmd;

use crate::programs::{is_here, ok, output, shell};

const ESP: gpt::partition_types::Type = gpt::partition_types::EFI;
const DATA: gpt::partition_types::Type = gpt::partition_types::LINUX_FS;
const ESP_GUID: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// Something like /sys, and beside it udev's data and links.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Self(tempfile::tempdir().unwrap());
        ["class/block", "dev/block", "firmware/efi/efivars"]
            .iter()
            .for_each(|dir| fs::create_dir_all(tree.at(dir)).unwrap());
        tree
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    /// A device, at a place below `devices`; its name is the last part.
    fn device(&self, path: &str, devname: &str) {
        let (node, name) = (self.at("devices").join(path), path.rsplit('/').next().unwrap());
        fs::create_dir_all(&node).unwrap();
        fs::write(node.join("uevent"), format!("DEVNAME={devname}\n")).unwrap();
        fs::write(node.join("dev"), format!("9:{name}\n")).unwrap();
        symlink(&node, self.at("class/block").join(name)).unwrap();
    }

    /// A disk whose content is `image`, with `partitions` nodes.
    fn disk(&self, name: &str, block_size: u64, partitions: u32) -> PathBuf {
        let image = self.at(&format!("{name}.img"));
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        self.device(name, image.to_str().unwrap());
        fs::create_dir(self.at("devices").join(name).join("queue")).unwrap();
        fs::write(self.at("devices").join(name).join("queue/logical_block_size"), format!("{block_size}\n")).unwrap();
        for number in 1..=partitions {
            self.device(&format!("{name}/{name}{number}"), &format!("{name}{number}"));
            fs::write(self.at("devices").join(format!("{name}/{name}{number}/partition")), format!("{number}\n"))
                .unwrap();
        }
        image
    }

    /// A disk with a table; returns the UUIDs of its partitions.
    fn gpt(&self, name: &str, block_size: u64, types: &[gpt::partition_types::Type]) -> Vec<String> {
        let image = self.disk(name, block_size, u32::try_from(types.len()).unwrap());
        write_gpt(&image, block_size, types)
    }

    /// A device on top of others, as LUKS, LVM and RAID make them.
    fn above(&self, name: &str, below: &[&str]) {
        self.device(name, name);
        for path in below {
            let lower = self.at("devices").join(path);
            for (dir, target) in [("devices", &lower), ("", &self.at("devices").join(name))] {
                let links = if dir.is_empty() { lower.join("holders") } else { self.at(dir).join(name).join("slaves") };
                fs::create_dir_all(&links).unwrap();
                symlink(target, links.join(target.file_name().unwrap())).unwrap();
            }
        }
    }

    fn dm(&self, name: &str, uuid: &str) {
        let dir = self.at("devices").join(name).join("dm");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("uuid"), uuid).unwrap();
    }

    /// What udev knows of a partition.
    fn udev(&self, name: &str, kind: &str, uuid: &str) {
        fs::create_dir_all(self.at("udev")).unwrap();
        let text = format!("S:x\nE:ID_PART_ENTRY_TYPE={kind}\nE:ID_PART_ENTRY_UUID={uuid}\n");
        fs::write(self.at(&format!("udev/b9:{name}")), text).unwrap();
    }

    fn booted(&self, uuid: &str) {
        let text = format!("{}\0", uuid.to_ascii_uppercase());
        let bytes: Vec<u8> = [6, 0, 0, 0].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect();
        let name = "firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
        fs::write(self.at(name), bytes).unwrap();
    }

    fn esps_below(&self, root: &str) -> Result<Vec<String>, String> {
        let link = self.at("dev/block/253:0");
        _ = fs::remove_file(&link);
        symlink(self.at("devices").join(root), link).unwrap();
        let found = devices::esps(self.0.path(), Ok((253, 0))).map_err(|error| format!("{error:#}"))?;
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        Ok(found.into_iter().map(name).collect())
    }
}

fn write_gpt(image: &Path, block_size: u64, types: &[gpt::partition_types::Type]) -> Vec<String> {
    let size =
        if block_size == 4096 { gpt::disk::LogicalBlockSize::Lb4096 } else { gpt::disk::LogicalBlockSize::Lb512 };
    let file = fs::File::options().read(true).write(true).open(image).unwrap();
    let mut device: Box<dyn gpt::DiskDevice> = Box::new(file);
    gpt::mbr::ProtectiveMBR::with_lb_size(0xfff).overwrite_lba0(&mut device).unwrap();
    let config = gpt::GptConfig::new().writable(true).logical_block_size(size);
    let mut table = config.create_from_device(device, None).unwrap();
    for kind in types {
        table.add_partition("x", 1 << 20, kind.clone(), 0, None).unwrap();
    }
    let uuids = table.partitions().values().map(|partition| partition.part_guid.to_string()).collect();
    table.write().unwrap();
    uuids
}

#[test]
fn esps_are_found_through_luks_on_raid_and_the_one_that_booted_is_last() {
    let tree = Tree::new();
    let uuids = ["sda", "sdb"].map(|name| tree.gpt(name, 512, &[ESP, DATA]));
    tree.above("md0", &["sda/sda2", "sdb/sdb2"]);
    tree.above("dm-0", &["md0"]);
    let mut found = tree.esps_below("dm-0").unwrap();
    found.sort();
    assert_eq!(found, ["sda1", "sdb1"]);
    for (uuids, last) in uuids.iter().zip(["sda1", "sdb1"]) {
        tree.booted(&uuids[0]);
        let found = tree.esps_below("dm-0").unwrap();
        assert_eq!((found.len(), found.last().unwrap().as_str()), (2, last));
    }
    assert!(devices::boot_partitions(tree.0.path(), (253, 0)).is_empty());
}

#[test]
fn disks_without_a_table_are_passed_over() {
    let tree = Tree::new();
    tree.gpt("sda", 512, &[ESP, DATA]);
    tree.disk("sdb", 512, 0);
    let mbr = tree.disk("sdc", 512, 2);
    fs::write(&mbr, [&[0; 510][..], &[0x55, 0xaa]].concat()).unwrap();
    tree.above("dm-0", &["sda/sda2", "sdb", "sdc/sdc1"]);
    assert_eq!(tree.esps_below("dm-0").unwrap(), ["sda1"]);
    let error = tree.esps_below("sdb").unwrap_err();
    assert!(error.contains("sdb has no partitions") && error.contains("--esp"), "{error}");
    let error = tree.esps_below("sdc/sdc1").unwrap_err();
    assert!(error.contains("sdc: reading the partition table"), "{error}");
    tree.udev("sdc2", "0xef", "0badcafe-02");
    tree.udev("sdc1", "0x83", "0badcafe-01");
    assert_eq!(tree.esps_below("sdc/sdc1").unwrap(), ["sdc2"]);
    let error = tree.esps_below("gone").unwrap_err();
    assert!(error.contains("dev/block/253:0"), "{error}");
}

#[test]
fn sectors_of_4096_bytes_are_read() {
    let tree = Tree::new();
    tree.gpt("nvme0n1", 4096, &[DATA, ESP]);
    assert_eq!(tree.esps_below("nvme0n1/nvme0n11").unwrap(), ["nvme0n12"]);
    fs::write(tree.at("devices/nvme0n1/queue/logical_block_size"), "2048\n").unwrap();
    assert!(tree.esps_below("nvme0n1/nvme0n11").unwrap_err().contains("sectors of 2048 bytes"));
}

#[test]
fn what_booted_is_found_on_another_disk_than_the_root() {
    let by_link = |tree: &Tree, uuid: &str| {
        fs::create_dir_all(tree.at("nodes/disk/by-partuuid")).unwrap();
        fs::write(tree.at("nodes/mmcblk01"), "").unwrap();
        symlink("../../mmcblk01", tree.at("nodes/disk/by-partuuid").join(uuid)).unwrap();
    };
    let by_udev = |tree: &Tree, uuid: &str| tree.udev("mmcblk01", ESP_GUID, uuid);
    let by_kernel = |tree: &Tree, uuid: &str| {
        let uevent = format!("DEVNAME=mmcblk01\nPARTUUID={uuid}\n");
        fs::write(tree.at("devices/mmcblk0/mmcblk01/uevent"), uevent).unwrap();
    };
    let by_table = |_: &Tree, _: &str| {};
    type Way<'a> = &'a dyn Fn(&Tree, &str);
    let ways: [Way<'_>; 4] = [&by_link, &by_udev, &by_kernel, &by_table];
    for known in ways {
        let tree = Tree::new();
        let booted = tree.gpt("mmcblk0", 512, &[ESP]).remove(0);
        tree.gpt("sda", 512, &[DATA]);
        tree.booted(&booted);
        known(&tree, &booted);
        assert_eq!(tree.esps_below("sda/sda1").unwrap(), ["mmcblk01"]);
        // Without a device below the root, as with a root that nobody knows.
        let found = devices::esps(tree.0.path(), Err(anyhow::anyhow!("no device"))).unwrap();
        assert!(found[0].ends_with("mmcblk01"), "{found:?}");
    }
}

#[test]
fn a_word_of_the_firmware_that_leads_nowhere_does_no_harm() {
    for uuid in ["00000000-0000-4000-8000-000000000000", "../../../etc/passwd", "", "\u{fffd}"] {
        let tree = Tree::new();
        tree.gpt("sda", 512, &[ESP, DATA]);
        tree.gpt("sdb", 512, &[DATA]);
        tree.booted(uuid);
        assert_eq!(tree.esps_below("sda/sda2").unwrap(), ["sda1"], "{uuid}");
        let error = tree.esps_below("sdb/sdb1").unwrap_err();
        let told = ["LoaderDevicePartUUID", "none of the 1 partitions of sdb is one"];
        assert!(told.iter().all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn a_multipath_map_is_the_disk_and_its_paths_are_not() {
    let tree = Tree::new();
    let [one, other] = ["sda", "sdb"].map(|name| tree.gpt(name, 512, &[ESP, DATA]));
    assert_ne!(one, other);
    tree.above("dm-0", &["sda", "sdb"]);
    tree.dm("dm-0", "mpath-3600\n");
    for (name, number, kind) in [("dm-1", "1", ESP_GUID), ("dm-2", "2", "0fc63daf-8483-4772-8e79-3d69d8477de4")] {
        tree.above(name, &["dm-0"]);
        tree.dm(name, &format!("part{number}-mpath-3600\n"));
        tree.udev(name, kind, "x");
    }
    assert_eq!(tree.esps_below("dm-2").unwrap(), ["dm-1"]);
}

#[test]
fn an_esp_that_is_mirrored_is_the_array() {
    let tree = Tree::new();
    for name in ["sda", "sdb"] {
        tree.gpt(name, 512, &[ESP, DATA]);
    }
    tree.above("md127", &["sda/sda1", "sdb/sdb1"]);
    fs::create_dir(tree.at("devices/md127/md")).unwrap();
    tree.above("md0", &["sda/sda2", "sdb/sdb2"]);
    assert_eq!(tree.esps_below("md0").unwrap(), ["md127"]);
}

#[test]
fn a_circle_of_devices_ends() {
    let tree = Tree::new();
    tree.gpt("sda", 512, &[ESP]);
    tree.above("dm-0", &["sda/sda1"]);
    tree.above("dm-1", &["dm-0"]);
    symlink(tree.at("devices/dm-1"), tree.at("devices/dm-0/slaves/dm-1")).unwrap();
    assert_eq!(tree.esps_below("dm-1").unwrap(), ["sda1"]);
}

#[test]
fn the_disks_that_guests_are_tried_with_have_tables() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tmt/tests/odd-disks-are-read/gpt.pl");
    for size in ["512", "4096"] {
        let tree = Tree::new();
        let image = tree.disk("sda", size.parse().unwrap(), 2);
        if !is_here("perl") {
            return;
        }
        ok(cmd!(shell("."), "perl {script} {image} {size}"));
        assert_eq!(tree.esps_below("sda/sda2").unwrap(), ["sda1"], "{size}");
    }
}

/// A loop device, detached in the end.
struct Loop(String);

impl Loop {
    fn new(image: &Path, sector: &str) -> Option<Self> {
        let output = output(cmd!(shell("."), "losetup --find --show --sector-size {sector} {image}"));
        let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
        if !output.status.success() {
            println!("SKIPPED: no loop device: {}", String::from_utf8_lossy(&output.stderr).trim());
            return None;
        }
        Some(Self(device))
    }
}

impl Loop {
    /// One with a file system.
    fn with_ext4(dir: &Path) -> Option<Self> {
        let image = dir.join("image");
        fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let device = Self::new(&image, "512")?;
        let of = &device.0;
        ok(cmd!(shell("."), "mkfs.ext4 -q {of}"));
        Some(device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let device = &self.0;
        output(cmd!(shell("."), "losetup --detach {device}"));
    }
}

/// Mounted for as long as this lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(args: &[&str], at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        ok(cmd!(shell("."), "mount {args...} {at}"));
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let at = &self.0;
        output(cmd!(shell("."), "umount {at}"));
    }
}

#[test]
fn a_mount_point_is_one_of_the_whole_file_system_that_can_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let Some(device) = Loop::with_ext4(dir.path()) else { return };
    let found = || mount::mount_point_of(Path::new(&device.0)).unwrap();
    assert_eq!(found(), None);
    let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
    let whole = Mounted::new(&[&device.0], &at("first"));
    fs::create_dir(at("first/sub")).unwrap();
    let _part = Mounted::new(&["--bind", at("first/sub").to_str().unwrap()], &at("part"));
    let second = Mounted::new(&["--bind", at("first").to_str().unwrap()], &at("second"));
    drop(whole);
    assert_eq!(found(), Some(at("second")), "a mount of a directory is not the file system");
    let over = Mounted::new(&["-t", "tmpfs", "over"], &at("second"));
    assert_eq!(found(), None, "nobody sees it below another one");
    drop(over);
    let source = mount::source_of(fs::File::open(at("second")).unwrap()).unwrap();
    assert_eq!(source, Path::new(&device.0));
    drop(second);
    assert_eq!(found(), None);
}

#[test]
fn looking_does_not_write_to_a_device() {
    let dir = tempfile::tempdir().unwrap();
    for kind in ["ext4", "xfs"] {
        let image = dir.path().join(kind);
        fs::File::create(&image).unwrap().set_len(320 << 20).unwrap();
        let Some(device) = Loop::new(&image, "512") else { return };
        let (mkfs, of) = (format!("mkfs.{kind}"), &device.0);
        if !is_here(&mkfs) {
            continue;
        }
        ok(cmd!(shell("."), "{mkfs} -q {of}"));
        let content = || fs::read(&device.0).unwrap();
        let before = content();
        drop(mount::detached_read_only(kind, Path::new(&device.0), &[]).unwrap());
        assert!(content() == before, "{kind}: looking has written");
        drop(mount::detached(kind, Path::new(&device.0), &[]).unwrap());
        assert!(content() != before, "{kind}: this test sees no writing");
    }
}

/// In another namespace somebody has the file system mounted: a detached mount is as invisible as that.
#[test]
fn whoever_looks_and_whoever_writes_share_a_file_system() {
    let dir = tempfile::tempdir().unwrap();
    let Some(device) = Loop::with_ext4(dir.path()) else { return };
    let of = Path::new(&device.0);
    let busy =
        |mounted: std::io::Result<std::os::fd::OwnedFd>| mounted.unwrap_err().raw_os_error() == Some(libc::EBUSY);
    let write = |mount: &std::os::fd::OwnedFd, name: &str| {
        let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
        rustix::fs::openat(mount, name, flags, 0o600.into()).map(drop)
    };
    let writer = mount::detached("ext4", of, &[]).unwrap();
    assert!(busy(mount::detached_read_only("ext4", of, &[])));
    let looks = mount::detached_beside_writer("ext4", of, &[]).unwrap();
    write(&writer, "written").unwrap();
    assert!(rustix::fs::statat(&looks, "written", rustix::fs::AtFlags::empty()).is_ok());
    assert_eq!(write(&looks, "no"), Err(rustix::io::Errno::ROFS));
    drop((writer, looks));
    let looks = mount::detached_read_only("ext4", of, &[]).unwrap();
    assert!(busy(mount::detached("ext4", of, &[])));
    let writer = mount::detached_beside_reader("ext4", of, &[]).unwrap();
    write(&writer, "written too").unwrap();
    assert_eq!(write(&looks, "no"), Err(rustix::io::Errno::ROFS));
}

#[test]
fn a_table_on_a_device_with_sectors_of_4096_bytes_is_read() {
    let tree = Tree::new();
    let image = tree.disk("loop9", 512, 2);
    let Some(device) = Loop::new(&image, "4096") else { return };
    write_gpt(Path::new(&device.0), 4096, &[DATA, ESP]);
    let name = device.0.trim_start_matches("/dev/");
    let size = fs::read_to_string(format!("/sys/block/{name}/queue/logical_block_size")).unwrap();
    fs::write(tree.at("devices/loop9/queue/logical_block_size"), size).unwrap();
    fs::write(tree.at("devices/loop9/uevent"), format!("DEVNAME={name}\n")).unwrap();
    assert_eq!(tree.esps_below("loop9/loop91").unwrap(), ["loop92"]);
}
