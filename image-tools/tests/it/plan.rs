//! What `--dry-run` prints: every change of what a disk holds, and of how it is made, shows in these snapshots.

use std::fs;

use image_tools::program;
use xshell::cmd;

use crate::layout::{PROGRAM, shell, system, write};

/// The plan of a disk with two deployments; the layouts are named as they are seen from their own directory, for an origin
/// says where its image came from.
fn plan(more: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let mut two = system();
    two.push(("etc/new".to_owned(), b"new".to_vec()));
    for (name, mut files) in [("one", system()), ("two", two)] {
        files.push(("usr/lib/grub/x86_64-efi/monolithic/grubx64.efi".to_owned(), b"MZ not really".to_vec()));
        write(&dir.path().join(name), &files);
    }
    let shell = shell(dir.path());
    let build = cmd!(
        shell,
        "{PROGRAM} build --dry-run --image oci:one --stage oci:two --output no/such/disk --size 1600 --seed composefs"
    );
    let printed = program::run(build.args(more)).unwrap();
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    printed
}

#[test]
fn a_disk_of_systemd_boot() {
    insta::assert_snapshot!(plan(&[]));
}

#[test]
fn a_disk_of_grub_with_a_boot_partition() {
    insta::assert_snapshot!(plan(&["--bootloader", "grub", "--boot-partition", "xfs", "--format", "qcow2"]));
}

#[test]
fn programs_read_it_as_json() {
    let plan: serde_json::Value = serde_json::from_str(&plan(&["--json", "--mirror-esp"])).unwrap();
    let names: Vec<_> = plan["partitions"].as_array().unwrap().iter().map(|part| part["name"].as_str()).collect();
    assert_eq!(names, [Some("esp"), Some("esp-mirror"), Some("root")]);
    let nodes = plan["partitions"][2]["nodes"].as_array().unwrap();
    let sealed = nodes.iter().filter(|node| node["verity"] == true).count();
    let objects = nodes.iter().filter(|node| {
        node["type"] == "file" && node["path"].as_str().is_some_and(|path| path.starts_with("composefs/objects/"))
    });
    // And meta.json.
    assert_eq!(sealed, objects.count() + 1);
}

#[test]
fn steps_and_programs_are_shown_when_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("one"), &system());
    let shell = shell(dir.path());
    let said = |verbose: &[&str]| {
        let build = cmd!(shell, "{PROGRAM} {verbose...} build --image oci:one --output disk --size 1024");
        let output = program::output(build).unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    assert_eq!(said(&[]), "");
    let lines = said(&["-v"]);
    for want in
        ["pull{image=oci:one}", "write{partition=\"esp\"}:program{command=mkfs.vfat -F 32", "ended=exit status: 0"]
    {
        assert!(lines.contains(want), "{want:?} is not in: {lines}");
    }
    shell.set_var("RUST_LOG", "image_tools=info");
    assert_eq!(said(&[]).lines().count(), lines.lines().count());
}
