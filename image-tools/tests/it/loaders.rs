//! The boot loaders themselves, on the same table of cases as the model of what they do (`finalize`, `boot::order`). The
//! firmware's shell starts systemd-boot once for each case, with other entries and other variables; what is started in
//! place of a kernel prints what systemd-boot says of it, and of its menu.

#[path = "../../../finalize/tests/it/order/cases.rs"]
#[allow(dead_code, reason = "two tests include it, and each takes what it needs")]
mod cases;

use std::{
    fs,
    path::{Path, PathBuf},
};

use finalize::boot::{Loader, order::Item};
use image_tools::program;
use xshell::cmd;

use self::cases::{CASES, Case};
use crate::vm::Bench;

/// What a boot loader has said: what it started, and the lines of its menu.
#[derive(Debug, PartialEq)]
struct Said {
    selected: String,
    menu: Vec<String>,
}

/// Assembles a program for the firmware; `driver` is one that stays in memory.
fn assemble(to: &str, driver: &[&str]) {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/loaders/programs.S");
    let object = format!("{to}.o");
    let shell = program::shell().unwrap();
    program::run(cmd!(shell, "gcc -c {source} -o {object} {driver...}")).unwrap();
    program::run(cmd!(shell, "objcopy -O binary -j .text {object} {to}")).unwrap();
    fs::remove_file(object).unwrap();
}

/// The shell's lines that set a variable of the Boot Loader Interface, or remove it.
fn set(name: &str, value: Option<&str>) -> String {
    let value = value.map_or_else(String::new, |value| format!("L\"{value}\" =0000"));
    format!("setvar {name} -guid 4a67b082-0a4c-41cf-b6c7-440b29bb8c4f -bs -rt -nv ={value}")
}

/// Lets `loader` choose in each of the cases.
fn start(loader: &Path, cases: &[&Case]) -> Vec<Said> {
    let mut lines = vec!["@echo -off".to_owned(), "fs0:".to_owned(), "load quick.efi".to_owned()];
    for (at, case) in cases.iter().enumerate() {
        let variables = [("LoaderEntryOneShot", "one-shot"), ("LoaderEntryDefault", "default")];
        let more = [("LoaderEntryLastBooted", "last"), ("LoaderEntryPreferred", "preferred")];
        let variables = variables.into_iter().chain(more);
        lines.extend(variables.map(|(name, key)| set(name, case.setting(key).as_deref())));
        lines.extend([format!("mv case{at} loader"), format!("echo case {at} of it"), "boot.efi".to_owned()]);
        lines.push(format!("mv loader done{at}"));
    }
    lines.extend(["echo all cases are done", "reset -s"].map(str::to_owned));
    let bench = Bench::with_shell(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    for (at, case) in cases.iter().enumerate() {
        case.write(Path::new(&bench.path(&format!("files{at}"))));
        fs::rename(bench.path(&format!("files{at}/loader")), bench.path(&format!("case{at}"))).unwrap();
    }
    fs::create_dir(bench.path("k")).unwrap();
    assemble(&bench.path("k/v"), &[]);
    assemble(&bench.path("quick.efi"), &["-DDRIVER"]);
    fs::copy(loader, bench.path("boot.efi")).unwrap();
    let mut files: Vec<_> = (0..cases.len()).map(|at| bench.path(&format!("case{at}"))).collect();
    files.extend(["k", "quick.efi", "boot.efi"].map(|name| bench.path(name)));
    let (shell, disk) = (program::shell().unwrap(), bench.path("disk"));
    program::run(cmd!(shell, "mcopy -s -i {disk} {files...} ::")).unwrap();
    let output = bench.boot(&["--timeout", "90", "--until", "all cases are done", "--", "true"]);
    let console = String::from_utf8_lossy(&fs::read(bench.path("log")).unwrap()).into_owned();
    assert!(output.status.success(), "{}\n{console}", String::from_utf8_lossy(&output.stderr));
    let parts = (0..cases.len()).map(|at| {
        let rest = console.split_once(&format!("case {at} of it")).unwrap().1;
        rest.split(" of it").next().unwrap()
    });
    parts.map(said).collect()
}

fn said(console: &str) -> Said {
    let of = |name: &str| {
        let lines = console.lines().filter_map(|line| Some(line.split_once(&format!("{name} "))?.1.trim().to_owned()));
        lines.collect::<Vec<_>>()
    };
    let mut selected = of("LoaderEntrySelected");
    assert_eq!(selected.len(), 1, "{console}");
    let own = |line: &String| !line.starts_with("auto-");
    Said { selected: selected.remove(0), menu: of("LoaderEntries").into_iter().filter(own).collect() }
}

/// A boot loader of Debian's `suite`; says so where it is missing.
#[allow(clippy::print_stdout, reason = "what is skipped is said on standard output")]
fn loader(suite: &str, path: &str) -> Option<PathBuf> {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools")).join(suite).join(path);
    if !file.exists() {
        println!("SKIPPED: no {} on this machine: run hack/tools", file.display());
        return None;
    }
    Some(file)
}

/// Compares systemd-boot `version`, of Debian's `suite`, with the model.
fn check(suite: &str, version: &str) {
    let Some(loader) = loader(suite, "usr/lib/systemd/boot/efi/systemd-bootx64.efi") else { return };
    let fits = |case: &&Case| case.loader == Loader::SystemdBoot && case.is_about(version);
    let cases: Vec<_> = CASES.iter().filter(fits).collect();
    let found = start(&loader, &cases);
    let mut wrong = vec![];
    for (case, found) in cases.iter().zip(found) {
        let decision = case.decision_of(version);
        let name = |item: &Item| if version == "252" { &item.name } else { &item.id }.to_lowercase();
        let model =
            Said { selected: decision.next().map(name).unwrap(), menu: decision.order.iter().map(name).collect() };
        if found != model {
            wrong.push(format!("{}:\n  started {found:?}\n  model   {model:?}", case.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn systemd_boot_257_agrees_with_the_table() {
    check("trixie", "257.13");
}

#[test]
fn systemd_boot_262_agrees_with_the_table() {
    check("forky", "262");
}

#[test]
fn systemd_boot_252_agrees_with_the_table() {
    check("bookworm", "252");
}

/// GRUB 2.12 reads no entries. Where somebody has exchanged them for a directory without the generated menu, the main
/// grub.cfg of our images boots the first of them.
#[test]
fn grub_2_12_boots_entries_without_a_generated_menu() {
    let Some(loader) = loader("trixie", "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi") else { return };
    for spelling in ["composefs=?", "composefs=", "composefs.digest=v1-sha512-12:"] {
        boots_without_a_generated_menu(&loader, spelling);
    }
}

/// The digest, spelled so, is what leads to the kernel.
fn boots_without_a_generated_menu(loader: &Path, spelling: &str) {
    let bench = Bench::with_shell(&["reset -s"]);
    let entry = |place: u8, id: &str| {
        let text = format!(
            "title Debian GNU/Linux {id} (trixie)\nversion 13.{place}\nlinux /bootc_composefs-{id}/vmlinuz\ninitrd \
             /bootc_composefs-{id}/initrd\noptions {spelling}{id} rw\nsort-key bootc-debian-{}\n",
            1 - place
        );
        (format!("loader/entries/bootc_debian-13-{place}.conf"), text)
    };
    let fallback = include_str!("../../src/deployment/grub-fallback.cfg").replace("@BOOT@", "");
    let files = [
        ("EFI/debian/grub.cfg".to_owned(), format!("set timeout=0\n{fallback}")),
        entry(0, "abcd"),
        entry(1, "ef01"),
        ("bootc_composefs-ef01/vmlinuz".to_owned(), "no kernel".repeat(1 << 12)),
    ];
    for (path, text) in files {
        let path = bench.path(&path);
        fs::create_dir_all(Path::new(&path).parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    fs::create_dir(bench.path("EFI/BOOT")).unwrap();
    fs::copy(loader, bench.path("EFI/BOOT/BOOTX64.EFI")).unwrap();
    let [disk, efi, entries, kernel] = ["disk", "EFI", "loader", "bootc_composefs-ef01"].map(|name| bench.path(name));
    let shell = program::shell().unwrap();
    program::run(cmd!(shell, "mcopy -s -i {disk} {efi} {entries} {kernel} ::")).unwrap();
    let output = bench.boot(&["--timeout", "60", "--until", "invalid magic number", "--save", &bench.path("saved")]);
    let console = String::from_utf8_lossy(&fs::read(bench.path("log")).unwrap()).into_owned();
    assert!(output.status.success(), "{}\n{console}", String::from_utf8_lossy(&output.stderr));
    assert!(console.contains("Booting `Debian GNU/Linux ef01 (trixie) (13.1)'"), "{console}");
}
