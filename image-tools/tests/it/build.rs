//! What is built is what was asked for.

use std::{
    fs,
    os::unix::fs::{FileExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
};

use image_tools::{inspect::table, program, sparse};
use xshell::cmd;

use crate::layout::{self, Layer, PROGRAM, archive, build, entries, image, index, link, ok, run, system, write};

fn two_versions(dir: &Path) {
    write(&dir.join("one"), &system());
    let mut two = system();
    two.push(("etc/new".to_owned(), b"new".to_vec()));
    write(&dir.join("two"), &two);
}

/// A disk with one deployment.
fn one_disk(dir: &Path) -> PathBuf {
    two_versions(dir);
    let disk = dir.join("disk");
    ok(build(&dir.join("one"), None, &disk, &[]));
    disk
}

pub fn inspect(disk: &Path) -> (serde_json::Value, Option<i32>) {
    let output = run(&["inspect", "--json", "--check", disk.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    (report, output.status.code())
}

#[test]
fn a_disk_with_a_staged_deployment_is_whole_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    two_versions(dir.path());
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    let mut seen = vec![];
    for (name, format) in [("a", "raw"), ("b", "qcow2")] {
        let disk = dir.path().join(name);
        ok(build(&one, Some(&two), &disk, &["--format", format, "--seed", "x"]));
        let (report, code) = inspect(&disk);
        assert_eq!((&report["wrong"], code), (&serde_json::json!([]), Some(0)), "{format}");
        assert_eq!(report["deployments"].as_array().unwrap().len(), 2);
        let (booted, staged) = (&report["entries"][0]["deployment"], &report["staged_entries"][0]["deployment"]);
        assert_eq!((staged, booted == staged), (&report["staged"], false));
        assert_eq!(&report["staged_entries"][1]["deployment"], booted);
        seen.push((report["partitions"].clone(), report["entries"].clone(), report["staged_entries"].clone()));
    }
    assert_eq!(seen[0], seen[1], "the same input has other identifiers");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
}

/// B6, B7: a setting that outlives updates.
#[test]
fn what_pins_another_entry_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let disk = one_disk(dir.path());
    let partitions = inspect(&disk).0["partitions"].clone();
    let esp = partitions.as_array().unwrap().iter().find(|part| part["name"] == "esp").unwrap();
    let image = format!("{}@@{}", disk.display(), esp["start"]);
    let shell = layout::shell(dir.path());
    let put = |text: &str, path: &str| {
        fs::write(dir.path().join("text"), text).unwrap();
        program::run(cmd!(shell, "mcopy -o -i {image} text {path}")).unwrap();
    };
    put("title Other\nlinux /other\n", "::/loader/entries/other.conf");
    assert_eq!(inspect(&disk).0["wrong"], serde_json::json!([]), "the last of the menu");
    put("default other.conf\n", "::/loader/loader.conf");
    let (report, code) = inspect(&disk);
    let wrong = report["wrong"].to_string();
    assert!(code == Some(1) && wrong.contains("loader.conf") && wrong.contains("starts other.conf next"), "{wrong}");
}

#[test]
fn a_flipped_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let disk = one_disk(dir.path());
    let bytes = fs::read(&disk).unwrap();
    let at = bytes.windows(16).position(|window| window == b"big big big big ").unwrap();
    fs::File::options().write(true).open(&disk).unwrap().write_all_at(b"B", at as u64).unwrap();
    let (report, code) = inspect(&disk);
    let wrong = report["wrong"].to_string();
    assert_eq!(code, Some(1));
    assert!(wrong.contains("composefs/objects/") && wrong.contains("another digest"), "{wrong}");
}

/// More pieces than an inode has room for, and more blocks than a group.
#[test]
fn a_large_file_is_sealed_and_its_holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let piece = |number: u8| vec![if number.is_multiple_of(2) { number + 1 } else { 0 }; 1 << 20];
    let mut files = system();
    files.push(("usr/share/holes".to_owned(), (0..128).flat_map(piece).collect()));
    files.push(("usr/share/whole".to_owned(), (0..140).flat_map(|_| piece(8)).collect()));
    write(dir.path(), &files);
    let disk = dir.path().join("disk");
    ok(build(dir.path(), None, &disk, &["--size", "2048"]));
    let (report, code) = inspect(&disk);
    assert_eq!((&report["wrong"], code), (&serde_json::json!([]), Some(0)));
    let mib = disk.metadata().unwrap().blocks() / 2048;
    assert!((204..256).contains(&mib), "{mib} MiB");
}

#[test]
fn a_signal_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    two_versions(dir.path());
    // A program that never ends, and says that it was started.
    let (program, tmp) = (dir.path().join("mke2fs"), tempfile::tempdir().unwrap());
    fs::write(&program, "#!/bin/sh\ncp /dev/null \"$0.started\"\nexec cat\n").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
    let shell = layout::shell(dir.path());
    let build = cmd!(shell, "{PROGRAM} build --image oci:one --output disk").env("PATH", path);
    let mut child = Command::from(build.env("TMPDIR", tmp.path())).spawn().unwrap();
    while !dir.path().join("mke2fs.started").exists() {
        assert_eq!(child.try_wait().unwrap(), None);
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(128 + 15));
    let mut left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["mke2fs", "mke2fs.started", "one", "two"]);
    assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 0);
}

/// The root file system of a disk, and where in it the /etc of its only deployment is.
pub fn root(dir: &Path, disk: &Path) -> (ext4_view::Ext4, String) {
    let root = table::read(disk).unwrap().into_iter().find(|partition| partition.name == "root").unwrap();
    let path = dir.join("root.part");
    sparse::part(disk, root.start..root.start + root.size, &path).unwrap();
    let ext4 = ext4_view::Ext4::load_from_path(&path).unwrap();
    let names =
        ext4.read_dir("/state/deploy").unwrap().map(|entry| entry.unwrap().file_name().as_str().unwrap().to_owned());
    let id = names.into_iter().find(|name| name.len() == 128).unwrap();
    (ext4, format!("/state/deploy/{id}/etc"))
}

#[test]
fn links_in_etc_lead_where_the_image_has_them_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    let long = format!("../{}/x", "a//./b/".repeat(18));
    let targets = ["../usr//lib/x", "dir/./f", "./f", "dir/", &long[..99], &long[..100]];
    let links = targets.iter().zip(0..).map(|(target, n)| link(&format!("etc/l{n}"), tar::EntryType::Symlink, target));
    let layers =
        [Layer::plain(archive(&entries(&layout::system()))), Layer::plain(archive(&links.collect::<Vec<_>>()))];
    let mut tar = tar::Builder::new(vec![]);
    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink").unwrap();
    header.set_entry_type(tar::EntryType::GNULongLink);
    header.set_size(long.len() as u64);
    header.set_cksum();
    tar.append(&header, long.as_bytes()).unwrap();
    tar.append(&link("etc/long", tar::EntryType::Symlink, "").0, std::io::empty()).unwrap();
    let [base, links] = layers;
    index(dir.path(), &[image(dir.path(), &[base, links, Layer::plain(tar.into_inner().unwrap())], "amd64")]);
    let disk = dir.path().join("disk");
    ok(layout::build(dir.path(), None, &disk, &[]));
    let (ext4, etc) = root(dir.path(), &disk);
    let names = (0..targets.len()).map(|n| format!("l{n}")).chain(["long".to_owned()]);
    let found: Vec<_> = names
        .map(|name| ext4.read_link(format!("{etc}/{name}").as_str()).unwrap())
        .map(|target| String::from_utf8(target.as_ref().to_vec()).unwrap())
        .collect();
    assert_eq!(found, [&targets[..], &[&long]].concat());
}

#[test]
fn etc_and_var_have_the_labels_of_the_images_policy() {
    let dir = tempfile::tempdir().unwrap();
    let mut files = layout::system();
    let contexts = "/.* system_u:object_r:default_t:s0\n/etc(/.*)? system_u:object_r:etc_t:s0\n\
                    /var(/.*)? system_u:object_r:var_t:s0\n";
    for (path, text) in [
        ("etc/selinux/config", "SELINUX=enforcing\nSELINUXTYPE=test\n"),
        ("etc/selinux/test/contexts/files/file_contexts", contexts),
    ] {
        files.push((path.to_owned(), text.as_bytes().to_vec()));
    }
    layout::write(dir.path(), &files);
    let disk = dir.path().join("disk");
    ok(layout::build(dir.path(), None, &disk, &[]));
    let (_, etc) = root(dir.path(), &disk);
    for (path, label) in [
        (etc.clone(), "etc_t"),
        (format!("{etc}/passwd"), "etc_t"),
        ("/state/os/default/var/lib/x".to_owned(), "var_t"),
    ] {
        let (shell, part) = (program::shell().unwrap(), dir.path().join("root.part"));
        let command = format!("ea_get \"{path}\" security.selinux");
        let output = program::output(cmd!(shell, "debugfs -R {command} {part}")).unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(said.contains(&format!("system_u:object_r:{label}:s0")), "{path}: {said}");
    }
}
