//! The same seed, images and time make the same bytes: elsewhere, later, by somebody else, in every format.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use image_tools::program;
use xshell::cmd;

use crate::layout::{PROGRAM, shell, system, write};

const FORMATS: [&str; 4] = ["raw", "qcow2", "vmdk", "vhdx"];

/// A directory that everybody may write to, with the layouts and the program.
fn place() -> tempfile::TempDir {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let mut two = system();
    two.push(("etc/new".to_owned(), b"new".to_vec()));
    for (name, mut files) in [("one", system()), ("two", two)] {
        files.push(("usr/lib/grub/x86_64-efi/monolithic/grubx64.efi".to_owned(), b"MZ not really".to_vec()));
        write(&dir.path().join(name), &files);
    }
    fs::copy(PROGRAM, dir.path().join("image-tools")).unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    for path in [dir.path().to_owned(), dir.path().join("out")] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    dir
}

/// A boot partition with XFS, too, whose program takes the clock's time.
const XFS: [&str; 6] = ["--bootloader", "grub", "--boot-partition", "xfs", "--boot-size", "300"];

fn build(dir: &Path, format: &str, before: &[&str]) {
    let shell = shell(dir);
    let more = ["--format", format, "--output", &format!("out/{format}")].map(str::to_owned);
    let words =
        cmd!(shell, "env {before...} SOURCE_DATE_EPOCH=1700000000 ./image-tools build --image oci:one --stage oci:two");
    program::run(words.args(["--seed", "x", "--esp-size", "40", "--size", "550"]).args(XFS).args(more)).unwrap();
}

#[test]
fn every_format_has_the_same_bytes_elsewhere_later_and_by_somebody_else() {
    let (here, there) = (place(), place());
    let others: &[&str] = match rustix::process::geteuid().is_root() {
        true => &["TZ=Asia/Tokyo", "setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "env"],
        false => &["TZ=Asia/Tokyo"],
    };
    let shell = program::shell().unwrap();
    let at = |dir: &tempfile::TempDir, format: &str| dir.path().join("out").join(format);
    for format in FORMATS {
        build(here.path(), format, &["TZ=UTC"]);
    }
    for format in FORMATS {
        build(there.path(), format, others);
        let (one, other) = (at(&here, format), at(&there, format));
        program::run(cmd!(shell, "cmp {one} {other}")).unwrap_or_else(|error| panic!("{format}: {error:#}"));
    }
    // And each is what it should be.
    let raw = at(&here, "raw");
    for format in &FORMATS[1..] {
        let disk = at(&here, format);
        program::run(cmd!(shell, "qemu-img compare -f raw -F {format} {raw} {disk}")).unwrap();
        program::run(cmd!(shell, "qemu-img check -f {format} {disk}")).unwrap();
    }
    let report = crate::build::inspect(&raw);
    assert_eq!(report.1, Some(0), "{}", report.0["wrong"]);
    // A VHDX whose headers had wrong checksums would not open; one that is written to makes new ones.
    let vhdx = at(&here, "vhdx");
    program::run(cmd!(shell, "qemu-io -f vhdx -c 'write -P 7 1M 64k' -c 'read -P 7 1M 64k' {vhdx}")).unwrap();
}

#[test]
fn another_seed_is_another_disk_in_every_format() {
    let dir = place();
    let shell = shell(dir.path());
    let identity = |format: &str, seed: &str| {
        let build = cmd!(
            shell,
            "./image-tools build --image oci:one --seed {seed} --size auto --format {format} --output out/disk"
        );
        program::run(build.env("SOURCE_DATE_EPOCH", "1")).unwrap();
        let bytes = fs::read(dir.path().join("out/disk")).unwrap();
        match format {
            "vmdk" => bytes[512..1024].to_vec(),
            _ => bytes[64 << 10..(64 << 10) + 48].to_vec(),
        }
    };
    for format in ["vmdk", "vhdx"] {
        assert_ne!(identity(format, "x"), identity(format, "y"), "{format}");
    }
}
