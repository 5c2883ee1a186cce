//! What is built is what was asked for.

use std::{fs, os::unix::fs::FileExt, path::Path};

use crate::layout::{build, run, system, write};

fn two_versions(dir: &Path) {
    write(&dir.join("one"), &system());
    let mut two = system();
    two.push(("etc/new".to_owned(), b"new".to_vec()));
    write(&dir.join("two"), &two);
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
        let output = build(&one, Some(&two), &disk, &["--format", format]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
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

#[test]
fn a_flipped_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    two_versions(dir.path());
    let disk = dir.path().join("disk");
    let output = build(&dir.path().join("one"), None, &disk, &[]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let bytes = fs::read(&disk).unwrap();
    let at = bytes.windows(16).position(|window| window == b"big big big big ").unwrap();
    fs::File::options().write(true).open(&disk).unwrap().write_all_at(b"B", at as u64).unwrap();
    let (report, code) = inspect(&disk);
    let wrong = report["wrong"].to_string();
    assert_eq!(code, Some(1));
    assert!(wrong.contains("composefs/objects/") && wrong.contains("another digest"), "{wrong}");
}
