//! What is wrong with the input is said by name, and nothing is left behind.

use std::{fs, path::Path};

use crate::layout::{build, layer, system, write};

/// What cannot be read has failed.
const FAILED: i32 = 1;
/// What was read is refused.
const REFUSED: i32 = 3;

fn check((code, want): (i32, &[&str]), files: &[(String, Vec<u8>)], break_it: impl Fn(&Path), more: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    write(&layout, files);
    break_it(&layout);
    let output = build(&layout, None, &dir.path().join("disk"), more);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{message}");
    for want in want {
        assert!(message.contains(want), "{want:?} is not in: {message}");
    }
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["layout"]);
}

fn without(path: &str) -> Vec<(String, Vec<u8>)> {
    system().into_iter().filter(|(name, _)| name != path).collect()
}

fn with(path: &str) -> Vec<(String, Vec<u8>)> {
    system().into_iter().chain([(path.to_owned(), b"x".to_vec())]).collect()
}

#[test]
fn a_broken_layout_is_refused() {
    check((FAILED, &["opening the blob sha256:"]), &system(), |dir| fs::remove_file(layer(dir)).unwrap(), &[]);
    let corrupt = |dir: &Path| {
        let path = layer(dir);
        let mut bytes = fs::read(&path).unwrap();
        bytes[700] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    check((REFUSED, &["the blob sha256:", "corrupt"]), &system(), corrupt, &[]);
    check(
        (FAILED, &["opening the OCI layout"]),
        &system(),
        |dir| fs::remove_dir_all(dir).and_then(|()| fs::create_dir(dir)).unwrap(),
        &[],
    );
    check((FAILED, &["reading the index"]), &system(), |dir| fs::write(dir.join("index.json"), "{").unwrap(), &[]);
}

#[test]
fn a_layer_that_leads_out_of_the_image_is_refused() {
    for path in ["../outside", "usr/../../outside", "/../absolute"] {
        check((REFUSED, &["leads out of the image", path]), &with(path), |_| (), &[]);
    }
}

#[test]
fn an_image_that_does_not_boot_is_refused() {
    check((REFUSED, &["one kernel", "usr/lib/modules"]), &without("usr/lib/modules/6.1/vmlinuz"), |_| (), &[]);
    check(
        (REFUSED, &["usr/lib/modules/6.1/initramfs.img"]),
        &without("usr/lib/modules/6.1/initramfs.img"),
        |_| (),
        &[],
    );
    check((REFUSED, &["one kernel", "6.2"]), &with("usr/lib/modules/6.2/vmlinuz"), |_| (), &[]);
    check((REFUSED, &["systemd-boot-efi"]), &without("usr/lib/systemd/boot/efi/systemd-bootx64.efi"), |_| (), &[]);
    check((REFUSED, &["os-release"]), &without("usr/lib/os-release"), |_| (), &[]);
}

#[test]
fn a_disk_that_is_too_small_is_refused() {
    check((REFUSED, &["too small"]), &system(), |_| (), &["--size", "64"]);
}
