//! Somebody's own image: what it lacks is said at once, each with the line that mends it; `build` says the same.

use std::{fs, io::Write, path::Path};

use serde_json::Value;

use crate::layout::{INITRAMFS, build, initramfs, ok, run, system, write};

type Files = Vec<(String, Vec<u8>)>;

const IMAGE: &str = "usr/lib/modules/6.1/initramfs.img";

/// What is missing in an image with `files`: what and remedy of each, and what they are about.
fn missing(files: &Files, more: &[&str]) -> Vec<(String, String, String)> {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), files);
    let image = format!("oci:{}", dir.path().display());
    let output = run(&[&["check", "--json", &image], more].concat());
    let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap().to_owned();
    let findings = said["findings"].as_array().unwrap();
    let missing = findings.iter().filter(|finding| finding["level"] == "missing");
    let missing: Vec<_> =
        missing.map(|finding| (text(finding, "what"), text(finding, "remedy"), text(finding, "about"))).collect();
    assert_eq!(output.status.code(), Some(if missing.is_empty() { 0 } else { 3 }));
    missing
}

fn without(path: &str) -> Files {
    system().into_iter().filter(|(name, _)| name != path).collect()
}

fn with(path: &str, content: Vec<u8>) -> Files {
    without(path).into_iter().chain([(path.to_owned(), content)]).collect()
}

#[track_caller]
fn check(files: &Files, wanted: (&str, &str, &str)) {
    let found = missing(files, &[]);
    let [(what, remedy, about)] = &found[..] else { panic!("one thing is missing, not {found:?}") };
    assert!(what.contains(wanted.0) && remedy.contains(wanted.1) && about == wanted.2, "{found:?}");
}

#[test]
fn one_thing_that_is_missing_is_said_with_its_remedy() {
    assert_eq!(missing(&system(), &[]), []);
    check(&without("usr/lib/modules/6.1/vmlinuz"), ("one kernel", "linux-image-amd64", "boot"));
    check(&with("usr/lib/modules/6.0/vmlinuz", b"x".to_vec()), ("6.0, 6.1", "purge -y linux-image-6.0", "boot"));
    check(&without(IMAGE), (IMAGE, "composefs-finalize_*.deb", "boot"));
    check(&without("usr/lib/systemd/boot/efi/systemd-bootx64.efi"), ("systemd-bootx64", "systemd-boot-efi", "boot"));
    check(&without("usr/lib/os-release"), ("os-release", "base-files", "boot"));
    check(&without("usr/sbin/init"), ("usr/sbin/init", "systemd-sysv", "boot"));
    check(
        &with("usr/lib/modules/6.1/modules.builtin", b"kernel/fs/erofs/erofs.ko\n".to_vec()),
        ("driver overlay", "", "boot"),
    );
    check(&without("usr/bin/composefs-finalize"), ("usr/bin/composefs-finalize", "composefs-finalize_*.deb", "update"));
    let unit = "composefs-finalize-report.service";
    let enabled = format!("etc/systemd/system/multi-user.target.wants/{unit}");
    check(&without(&enabled), ("not enabled", &format!("systemctl enable {unit}"), "update"));
    check(&without(&format!("usr/lib/systemd/system/{unit}")), (unit, "composefs-finalize_*.deb", "update"));
    assert!(missing(&system(), &["--bootloader", "grub"])[0].1.contains("grub-efi-amd64-bin"));
    assert!(missing(&system(), &["--boot-type", "uki"])[0].1.contains("image-tools seal"));
}

#[test]
fn an_initramfs_is_looked_into_however_it_is_packed() {
    let whole = initramfs(&INITRAMFS);
    let early = [initramfs(&[("kernel/x86/microcode/x", "early")]), vec![0; 512]].concat();
    let gzip = |bytes: &[u8]| {
        let mut to = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        to.write_all(bytes).unwrap();
        to.finish().unwrap()
    };
    let behind = |bytes: Vec<u8>| with(IMAGE, [early.clone(), bytes].concat());
    let xz = |bytes: &[u8]| {
        let shell = image_tools::program::shell().unwrap();
        let packed = xshell::cmd!(shell, "xz --stdout --check=crc32").stdin(bytes).quiet().output().unwrap();
        packed.stdout
    };
    for packed in [whole.clone(), gzip(&whole), zstd::encode_all(&whole[..], 0).unwrap(), xz(&whole)] {
        assert_eq!(missing(&behind(packed), &[]), []);
    }
    assert!(missing(&behind(vec![]), &[])[0].0.contains("composefs-setup-root in"));
}

#[test]
fn an_initramfs_that_mounts_no_deployment_is_found_out() {
    let lacks = |name: &str| {
        with(IMAGE, initramfs(&INITRAMFS.into_iter().filter(|(path, _)| !path.contains(name)).collect::<Vec<_>>()))
    };
    check(&lacks("composefs-setup-root"), ("composefs-setup-root in", "composefs-finalize_*.deb", "boot"));
    check(&lacks("conf.toml"), ("mount = \"bind\"", "composefs-finalize_*.deb", "boot"));
    check(&lacks("ext4"), ("the driver ext4", "composefs-finalize_*.deb", "boot"));
    let overlay = [INITRAMFS[0], (INITRAMFS[1].0, "[etc]\nmount = \"overlay\"\n"), INITRAMFS[2]];
    check(&with(IMAGE, initramfs(&overlay)), ("mount = \"bind\"", "composefs-finalize_*.deb", "boot"));
    for broken in [b"an initramfs".to_vec(), initramfs(&INITRAMFS)[..200].to_vec(), b"\x1f\x8bno".to_vec(), vec![]] {
        check(&with(IMAGE, broken), (IMAGE, "composefs-finalize_*.deb", "boot"));
    }
}

#[test]
fn build_refuses_with_the_whole_list_and_only_what_matters_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let bad = ["os-release", "systemd-bootx64.efi", "bin/composefs-finalize"];
    let mut files = system();
    files.retain(|(name, _)| !bad.iter().any(|part| name.ends_with(part)));
    write(&at("bad"), &files);
    let output = build(&at("bad"), None, &at("disk"), &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    for part in ["does not boot", "os-release", "RUN apt-get install -y base-files", "systemd-boot-efi"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!said.contains("usr/bin/composefs-finalize"), "nothing is staged: {said}");
    // An update that nobody would finalize.
    write(&at("old"), &without("usr/bin/composefs-finalize"));
    write(&at("new"), &with("usr/lib/os-release", b"ID=test\nVERSION_ID=2\n".to_vec()));
    ok(build(&at("old"), None, &at("disk"), &[]));
    let output = build(&at("old"), Some(&at("new")), &at("disk"), &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("would never be updated") && said.contains("usr/bin/composefs-finalize"), "{said}");
    ok(build(&at("new"), Some(&at("old")), &at("disk"), &[]));
}

/// The line of a Containerfile is advice, and no reason to refuse.
#[test]
fn advice_is_no_refusal() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &with("etc/machine-id", b"0123456789abcdef0123456789abcdef\n".to_vec()));
    let output = ok(run(&["check", &format!("oci:{}", dir.path().display())]));
    let said = String::from_utf8(output.stdout).unwrap();
    for part in ["/etc/machine-id is not empty", "RUN : >/etc/machine-id", "/opt is no link", "openssh-server"] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    assert!(!said.contains("missing"), "{said}");
}

#[test]
fn init_writes_a_containerfile_once() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("os");
    let init = || run(&["init", at.to_str().unwrap()]);
    ok(init());
    let path = at.join("Containerfile");
    assert!(fs::read_to_string(&path).unwrap().contains("composefs-finalize_*.deb"));
    fs::write(&path, "mine").unwrap();
    let output = init();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("must not be there yet"));
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn what_is_neither_an_image_nor_a_directory_is_said_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let said = |image: &Path| String::from_utf8(run(&["check", image.to_str().unwrap()]).stderr).unwrap();
    assert!(said(dir.path()).contains("image-tools init"));
    assert!(said(&dir.path().join("none")).contains("or a directory with a Containerfile"));
}
