//! Secure Boot: what is signed, what is enrolled, and what is refused, by the real sbsigntool. `hack/secure` boots it.

#![allow(clippy::print_stdout, reason = "a test that is skipped says so")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};

use image_tools::{program, secureboot::VARIABLES};
use xshell::cmd;

use crate::{
    boot_paths::uki,
    layout::{self, build, ok, run, system, write},
};

const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// A system whose programs can be signed, beside two keys, and what stands for ukify.
struct Bench(tempfile::TempDir);

impl Bench {
    /// None where a program is missing here.
    fn new() -> Option<Self> {
        let shell = program::shell().unwrap();
        for program in ["sbsign", "sbverify", "sbsiglist", "sbvarsign", "openssl"] {
            if program::output(cmd!(shell, "{program} --help")).is_err() {
                println!("SKIPPED: no {program} on this machine");
                return None;
            }
        }
        let bench = Self(tempfile::tempdir().unwrap());
        shell.change_dir(bench.0.path());
        for name in ["mine", "other"] {
            let request = format!("openssl req -new -x509 -newkey rsa:2048 -nodes -days 9 -subj /CN={name}");
            let words = request.split(' ').skip(1);
            program::run(cmd!(shell, "openssl {words...} -keyout {name}.key -out {name}.crt")).unwrap();
        }
        let mut files: Vec<_> = system().into_iter().filter(|(path, _)| path != LOADER).collect();
        files.push((LOADER.to_owned(), uki("the loader")));
        files.push(("usr/lib/systemd/boot/efi/linuxx64.efi.stub".to_owned(), uki("the stub")));
        write(&bench.path("layout"), &files);
        // Its UKI has the command line that it is given, which is padded to the length of this one.
        let id = "0".repeat(128);
        fs::write(bench.path("uki"), uki(&format!("composefs={id} rw"))).unwrap();
        let script = "#!/bin/sh\nwhile [ \"$1\" != --cmdline ]; do shift; done\nid=${2#composefs=} && id=${id%% *}\n\
                      for last; do :; done\nsed \"s/0000*/$id/\" \"$(dirname \"$0\")/uki\" >\"$last\"\n";
        fs::write(bench.path("ukify"), script).unwrap();
        fs::set_permissions(bench.path("ukify"), fs::Permissions::from_mode(0o755)).unwrap();
        Some(bench)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn seal(&self, more: &[&str]) -> Output {
        let (image, output, ukify) = (format!("oci:{}", self.text("layout")), self.text("sealed"), self.text("ukify"));
        run(&[&["seal", &image, "--output", &output, "--ukify", &ukify], more].concat())
    }

    /// Seals with these two files.
    fn sign(&self, key: &str, cert: &str) -> Output {
        let (key, cert, keys) = (self.text(key), self.text(cert), self.text("keys"));
        self.seal(&["--secureboot-key", &key, "--secureboot-cert", &cert, "--secureboot-keys", &keys])
    }

    fn build(&self, layout: &str, more: &[&str]) -> Output {
        let keys = self.text("keys");
        let options = ["--boot-type", "uki", "--secureboot-keys", &keys];
        build(&self.path(layout), None, &self.path("disk"), &[&options, more].concat())
    }

    /// A file of the ESP, which is the first partition.
    fn esp(&self, path: &str) -> PathBuf {
        let (shell, to) = (layout::shell(self.0.path()), self.path("from-esp"));
        program::run(cmd!(shell, "mcopy -o -i disk@@1M ::/{path} {to}")).unwrap();
        to
    }
}

#[track_caller]
fn refused(output: &Output, code: i32, wanted: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    for want in wanted {
        assert!(said.contains(want), "{want:?} is not in: {said}");
    }
}

fn verifies(cert: &Path, program: &Path) -> bool {
    let shell = program::shell().unwrap();
    program::run(cmd!(shell, "sbverify --cert {cert} {program}")).is_ok()
}

#[test]
fn what_starts_from_the_esp_has_the_signature_and_the_keys_are_beside_it() {
    let Some(bench) = Bench::new() else { return };
    let id = String::from_utf8(ok(bench.sign("mine.key", "mine.crt")).stdout).unwrap().trim().to_owned();
    ok(bench.build("sealed", &["--secureboot-enroll", "force"]));
    let uki = format!("EFI/Linux/bootc/bootc_composefs-{id}.efi");
    for program in ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi", &uki] {
        assert!(verifies(&bench.path("mine.crt"), &bench.esp(program)), "{program}");
        assert!(!verifies(&bench.path("other.crt"), &bench.esp(program)), "{program}");
    }
    for name in VARIABLES.map(|name| format!("{name}.auth")) {
        let found = fs::read(bench.esp(&format!("loader/keys/auto/{name}"))).unwrap();
        assert_eq!(found, fs::read(bench.path("keys").join(name)).unwrap());
        // Whoever enrols the certificate enrols all of it.
        let shell = layout::shell(bench.0.path());
        program::run(cmd!(shell, "openssl x509 -in mine.crt -outform DER -out mine.der")).unwrap();
        let der = fs::read(bench.path("mine.der")).unwrap();
        assert!(found.windows(der.len()).any(|window| window == der));
    }
    let conf = fs::read_to_string(bench.esp("loader/loader.conf")).unwrap();
    assert!(conf.ends_with("secure-boot-enroll force\n"), "{conf}");
    // The file without a signature is in the image still; without keys the signed one is taken as well.
    ok(build(&bench.path("sealed"), None, &bench.path("disk"), &["--boot-type", "uki"]));
    assert!(verifies(&bench.path("mine.crt"), &bench.esp("EFI/BOOT/BOOTX64.EFI")));
}

#[test]
fn keys_that_do_not_serve_are_refused_and_nothing_is_made() {
    let Some(bench) = Bench::new() else { return };
    let failed = |key: &str, cert: &str, wanted: &[&str]| {
        refused(&bench.sign(key, cert), 1, wanted);
        assert!(!bench.path("sealed").exists() && !bench.path("keys").exists());
    };
    failed("none.key", "mine.crt", &["opening the key", "none.key", "--secureboot-key names"]);
    failed("mine.key", "none.crt", &["opening the certificate", "none.crt", "--secureboot-cert names"]);
    failed("mine.key", "other.crt", &["signing usr/lib/systemd/boot", "other.crt, which must be its certificate"]);
    failed("mine.crt", "mine.crt", &["signing usr/lib/systemd/boot", "with the key", "mine.crt"]);
    refused(&bench.seal(&["--secureboot-key", "mine.key"]), 2, &["--secureboot-cert"]);
    fs::create_dir(bench.path("keys")).unwrap();
    refused(&bench.sign("mine.key", "mine.crt"), 1, &["keys exists: remove it, or leave --secureboot-keys out"]);
}

#[test]
fn a_machine_that_would_refuse_its_own_programs_is_not_built() {
    let Some(bench) = Bench::new() else { return };
    ok(bench.seal(&[]));
    fs::rename(bench.path("sealed"), bench.path("unsigned")).unwrap();
    ok(bench.sign("mine.key", "mine.crt"));
    let remedy = "seal the image with --secureboot-key and --secureboot-cert";
    refused(&bench.build("unsigned", &[]), 3, &["the UKI of", "unsigned has no signature", remedy]);
    let stage = format!("oci:{}", bench.text("unsigned"));
    refused(&bench.build("sealed", &["--stage", &stage]), 3, &["the UKI of", "unsigned has no signature", remedy]);
    // Somebody else has signed them.
    let pem = bench.path("keys/db.pem");
    fs::copy(bench.path("other.crt"), &pem).unwrap();
    refused(&bench.build("sealed", &[]), 3, &["the UKI of", "has no signature of", "keys/db.pem", remedy]);
    fs::remove_file(&pem).unwrap();
    ok(bench.build("sealed", &[]));
    fs::remove_file(bench.path("disk")).unwrap();
    // Only the UKI is signed.
    let script = fs::read_to_string(bench.path("ukify")).unwrap();
    let sign = "cd \"$(dirname \"$0\")\" && sbsign --key mine.key --cert mine.crt --output \"$last\" \"$last\"\n";
    fs::write(bench.path("ukify"), script + sign).unwrap();
    fs::rename(bench.path("sealed"), bench.path("signed")).unwrap();
    ok(bench.seal(&[]));
    refused(&bench.build("sealed", &[]), 3, &["sealed has no", &format!("{LOADER}.signed"), remedy]);
    refused(&bench.build("sealed", &["--bootloader", "grub"]), 2, &["--secureboot-keys needs --boot-type uki"]);
    fs::remove_file(bench.path("keys/KEK.auth")).unwrap();
    let missing = ["reading", "keys/KEK.auth", "image-tools seal --secureboot-keys makes it"];
    refused(&bench.build("signed", &[]), 1, &missing);
    assert!(!bench.path("disk").exists());
}

#[test]
fn a_machine_without_such_firmware_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("disk"), vec![0; 1 << 20]).unwrap();
    let (disk, log) = (dir.path().join("disk"), dir.path().join("log"));
    let words = ["--secure-boot", "--arch", "arm64", "--accel", "tcg", "--log", log.to_str().unwrap()];
    let output = run(&[&["boot", disk.to_str().unwrap()], &words[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr);
    if said.contains("is it installed?") {
        return println!("SKIPPED: {said}");
    }
    refused(&output, 1, &["booting with Secure Boot: no firmware is known for aarch64"]);
}
