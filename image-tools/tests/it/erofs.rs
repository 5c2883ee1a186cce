//! Both formats of EROFS images: each has its digest, its spelling on the kernel command line, and disks that are whole.

use std::{fs, path::Path};

use crate::{
    boot_paths::{uki, version},
    build::inspect,
    layout::{build, ok, run, write},
};

fn digest(dir: &Path, format: &str) -> String {
    let output = ok(run(&["digest", &format!("oci:{}", dir.display()), "--erofs-format", format]));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Two versions, each with a UKI that names it in the format `v1`.
fn layouts(dir: &Path) {
    for (name, version_id) in [("one", "1"), ("two", "2")] {
        let (layout, mut files) = (dir.join(name), version(version_id));
        write(&layout, &files);
        let id = digest(&layout, "v1");
        fs::remove_dir_all(&layout).unwrap();
        files.push(("boot/EFI/Linux/test.efi".to_owned(), uki(&format!("composefs.digest=v1-sha512-12:{id} rw"))));
        write(&layout, &files);
        assert_eq!(digest(&layout, "v1"), id);
    }
}

#[test]
fn a_disk_of_either_format_is_whole_and_its_entries_spell_it() {
    let dir = tempfile::tempdir().unwrap();
    layouts(dir.path());
    let (one, two, disk) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("disk"));
    let paths: [&[&str]; 3] = [&[], &["--bootloader", "grub"], &["--boot-type", "uki"]];
    for (format, spelling) in [("v1", "composefs.digest=v1-sha512-12:"), ("v2", "composefs=")] {
        for path in paths.iter().filter(|path| format == "v1" || !path.contains(&"uki")) {
            ok(build(&one, Some(&two), &disk, &[path, &["--erofs-format", format][..]].concat()));
            let (report, code) = inspect(&disk);
            assert_eq!((&report["wrong"], code), (&serde_json::json!([]), Some(0)), "{format} {path:?}");
            let (booted, staged) = (digest(&one, format), digest(&two, format));
            assert_eq!(
                (&report["entries"][0]["deployment"], &report["staged"]),
                (&booted.clone().into(), &staged.into())
            );
            let options = report["entries"][0]["options"].as_str().unwrap_or_default();
            assert!(path.contains(&"uki") || options.contains(&format!("{spelling}{booted} ")), "{options}");
        }
    }
    assert_ne!(digest(&one, "v1"), digest(&one, "v2"));
}

#[test]
fn what_is_missing_from_a_staged_etc_is_found_in_the_image_of_either_format() {
    let dir = tempfile::tempdir().unwrap();
    layouts(dir.path());
    let (one, two, disk) = (dir.path().join("one"), dir.path().join("two"), dir.path().join("disk"));
    let shell = image_tools::program::shell().unwrap();
    for format in ["v1", "v2"] {
        ok(build(&one, Some(&two), &disk, &["--erofs-format", format]));
        let (report, _) = inspect(&disk);
        let (start, staged) = (&report["partitions"][1]["start"], report["staged"].as_str().unwrap());
        let (image, command) =
            (format!("{}?offset={start}", disk.display()), format!("rm state/deploy/{staged}/etc/passwd"));
        xshell::cmd!(shell, "debugfs -w -R {command} {image}").ignore_stderr().run().unwrap();
        let wrong = inspect(&disk).0["wrong"].to_string();
        assert!(wrong.contains("etc/passwd is in the image but not in the deployment"), "{format}: {wrong}");
    }
}

#[test]
fn a_uki_of_the_other_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    layouts(dir.path());
    let output = build(&dir.path().join("one"), None, &dir.path().join("disk"), &["--boot-type", "uki"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("must say composefs=") && said.contains("but says composefs.digest=v1-sha512-12:"), "{said}");
}
