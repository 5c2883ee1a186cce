//! An update that is staged on a machine which runs is what `build --stage` writes. The machine is one of directories, taken
//! from a disk of ours; the real program stages on it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Output,
};

use clap::Parser as _;
use image_tools::{inspect::table, program, sparse};
use walkdir::WalkDir;
use xshell::{Shell, cmd};

use crate::{
    boot_paths::{version, write_with_uki_that},
    layout::{PROGRAM, build, write},
};

/// How a machine boots, as options of `build`.
const PATHS: [&[&str]; 5] = [
    &["--bootloader", "systemd-boot"],
    &["--bootloader", "systemd-boot", "--boot-type", "uki"],
    &["--bootloader", "grub"],
    &["--bootloader", "grub", "--boot-partition"],
    &["--bootloader", "grub", "--boot-type", "uki"],
];

/// The inputs of the program, as typed.
#[derive(clap::Parser)]
struct Typed {
    #[command(flatten)]
    ambient: finalize::host::Ambient,
}

/// The file systems of a machine, as directories.
pub struct Machine {
    dir: PathBuf,
    loader: &'static str,
    options: String,
}

impl Machine {
    /// The machine that boots from `disk`.
    pub fn of(disk: &Path, dir: &Path, loader: &'static str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let shell = program::shell().unwrap();
        for part in table::read(disk).unwrap() {
            let (file, to) = (dir.join(format!("{}.part", part.name)), dir.join(&part.name));
            sparse::part(disk, part.start..part.start + part.size, &file).unwrap();
            fs::create_dir_all(&to).unwrap();
            match part.name.as_str() {
                "esp" => program::run(cmd!(shell, "mcopy -s -Q -i {file} ::/ {to}")).unwrap(),
                _ => {
                    let dump = format!("rdump / {}", to.display());
                    program::run(cmd!(shell, "debugfs -R {dump} {file}")).unwrap()
                }
            };
        }
        fs::create_dir_all(dir.join("run")).unwrap();
        let mut this = Self { dir: dir.to_owned(), loader, options: String::new() };
        let deployment = fs::read_dir(this.path("root/state/deploy")).unwrap().next().unwrap().unwrap().file_name();
        this.options = format!("composefs=?{}", deployment.into_string().unwrap());
        this
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// The booted deployment's /etc.
    fn etc(&self) -> PathBuf {
        self.path(&format!("root/state/deploy/{}/etc", self.options.trim_start_matches("composefs=?")))
    }

    /// Finalizes what is staged, as the unit does at shutdown; the image that runs has the /etc `pristine`.
    fn finalize(&self, pristine: &Path) {
        let mut words = self.ambient();
        words.extend(
            ["--pristine", pristine.to_str().unwrap(), "--etc", self.etc().to_str().unwrap()].map(str::to_owned),
        );
        let ambient = Typed::parse_from(std::iter::once("x".to_owned()).chain(words)).ambient;
        let outcome = finalize::finalize(&ambient, &mut finalize::stop::Stop::never());
        assert_eq!(outcome.exit_code(), 0, "{outcome:?}");
    }

    /// What a power-off leaves of /run.
    fn rebooted(&self) {
        fs::remove_dir_all(self.path("run")).unwrap();
        fs::create_dir_all(self.path("run")).unwrap();
    }

    fn ambient(&self) -> Vec<String> {
        let [sysroot, esp, run] = ["root", "esp", "run"].map(|name| self.path(name).display().to_string());
        let mut words = vec!["--sysroot", &sysroot, "--esp", &esp, "--run", &run];
        let boot = self.path("boot").display().to_string();
        if self.path("boot").is_dir() {
            words.extend(["--boot", &boot]);
        }
        words.extend(["--loader", self.loader, "--cmdline", &self.options]);
        words.into_iter().map(str::to_owned).collect()
    }

    pub fn stage(&self, words: &[&str]) -> Output {
        self.stage_from(&program::shell().unwrap(), words)
    }

    /// The same in somebody's environment.
    pub fn stage_from(&self, shell: &Shell, words: &[&str]) -> Output {
        let ambient = self.ambient();
        program::output(cmd!(shell, "{PROGRAM} stage {words...} {ambient...}")).unwrap()
    }

    /// What says what boots and what waits: each file below the boot loader's directories, and each marker.
    pub fn boots(&self) -> BTreeMap<String, String> {
        let mut all = self.tree();
        all.retain(|path, _| ["loader", "grub2", "staged", "EFI"].iter().any(|name| path.contains(name)));
        all
    }

    /// The marker of the update that waits.
    pub fn marker(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.path("run/composefs/staged-deployment")).unwrap()).unwrap()
    }

    /// The origin file of a deployment.
    pub fn origin(&self, id: &serde_json::Value) -> String {
        let id = id.as_str().unwrap();
        fs::read_to_string(self.path(&format!("root/state/deploy/{id}/{id}.origin"))).unwrap()
    }

    /// Every file system, a line a node, without what differs between any two machines.
    fn tree(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for name in ["root", "esp", "boot", "run"].iter().filter(|name| self.path(name).is_dir()) {
            for entry in WalkDir::new(self.path(name)).min_depth(1) {
                let entry = entry.unwrap();
                let path = entry.path().strip_prefix(&self.dir).unwrap().display().to_string();
                let meta = entry.metadata().unwrap();
                let content = match meta.file_type() {
                    kind if kind.is_dir() => "directory".to_owned(),
                    kind if kind.is_symlink() => fs::read_link(entry.path()).unwrap().display().to_string(),
                    _ => in_order(&String::from_utf8_lossy(&fs::read(entry.path()).unwrap())),
                };
                let mode = if path.contains("/etc/") { meta.mode() & 0o7777 } else { 0 };
                found.insert(path, format!("{mode:o} {content}"));
            }
        }
        let of_any = ["lost+found", "finalize/lock"];
        found.retain(|path, _| !of_any.iter().any(|name| path.ends_with(name)));
        found
    }
}

/// A text with the words of each command line in order: what an update brings comes last, and in an image first.
fn in_order(text: &str) -> String {
    let line = |line: &str| {
        let mut words: Vec<_> = line.split(' ').collect();
        if line.contains("composefs=") {
            words.sort_unstable();
        }
        words.join(" ")
    };
    text.split('\n').map(line).collect::<Vec<_>>().join("\n")
}

pub fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The layouts `v1` and `v2`.
pub fn layouts(dir: &Path, with_uki: bool) {
    for name in ["v1", "v2"] {
        let mut files = version(&name[1..]);
        files.push(("etc/new".to_owned(), format!("of {name}").repeat(40).into_bytes()));
        let kargs = format!("kargs = [\"both\", \"only={name}\"]\n");
        files.push(("usr/lib/bootc/kargs.d/x.toml".to_owned(), kargs.into_bytes()));
        match with_uki {
            true => write_with_uki_that(&dir.join(name), files, "composefs=?"),
            false => write(&dir.join(name), &files),
        }
    }
}

pub fn disk(dir: &Path, stage: bool, how: &[&str]) -> PathBuf {
    let disk = dir.join(if stage { "both.raw" } else { "one.raw" });
    let staged = dir.join("v2");
    let more = ["--unsealed", "--seed", "x", "--size", "300", "--esp-size", "40"];
    let partition = if how.contains(&"--boot-partition") { &["--boot-size", "64"][..] } else { &[] };
    let target = ["--target-imgref", "oci:somewhere"];
    let more = [&more[..], how, partition, &target].concat();
    let output = build(&dir.join("v1"), stage.then_some(staged.as_path()), &disk, &more);
    assert!(output.status.success(), "{}", said(&output));
    disk
}

#[test]
fn an_update_is_staged_as_a_disk_is_built_with_one() {
    for how in PATHS {
        let dir = tempfile::tempdir().unwrap();
        let loader = how[1];
        let with_uki = how.contains(&"uki");
        layouts(dir.path(), with_uki);
        let built = Machine::of(&disk(dir.path(), true, how), &dir.path().join("built"), loader);
        let live = Machine::of(&disk(dir.path(), false, how), &dir.path().join("live"), loader);
        let v2 = format!("oci:{}", dir.path().join("v2").display());
        let output = live.stage(&[&v2, "--target-imgref", "oci:somewhere", "--json"]);
        assert!(output.status.success(), "{how:?}: {}", said(&output));
        let (built, mut live) = (built.tree(), live.tree());
        live.retain(|path, _| !path.starts_with("run/"));
        let differing: Vec<_> = built
            .iter()
            .filter(|(path, content)| live.get(*path) != Some(*content))
            .map(|(path, content)| format!("built {path}: {content:.300}, live {:.300?}", live.get(path)))
            .chain(live.keys().filter(|path| !built.contains_key(*path)).map(|path| format!("only live: {path}")))
            .collect();
        assert!(differing.is_empty(), "{how:?}\n{}", differing.join("\n"));
    }
}

/// A machine that runs v1, and the name of v2.
fn machine(dir: &Path, how: &[&str]) -> (Machine, String) {
    layouts(dir, how.contains(&"uki"));
    let loader = if how.contains(&"grub") { "grub" } else { "systemd-boot" };
    let machine = Machine::of(&disk(dir, false, how), &dir.join("live"), loader);
    (machine, format!("oci:{}", dir.join("v2").display()))
}

fn refused(machine: &Machine, words: &[&str], code: i32, part: &str) {
    let before = machine.boots();
    let output = machine.stage(words);
    assert!(output.status.code() == Some(code) && said(&output).contains(part), "{words:?}: {}", said(&output));
    assert_eq!(machine.boots(), before, "{words:?}");
}

#[test]
fn what_is_staged_is_finalized_and_the_deployment_before_is_staged_again() {
    for how in PATHS {
        let dir = tempfile::tempdir().unwrap();
        let (mut machine, v2) = machine(dir.path(), how);
        let v1 = format!("oci:{}", dir.path().join("v1").display());
        let shell = program::shell().unwrap();
        let keep = |machine: &Machine, name: &str| {
            let (from, to) = (machine.etc(), dir.path().join(name));
            program::run(cmd!(shell, "cp -a {from} {to}")).unwrap();
            to
        };
        let first = machine.options.clone();
        let mut pristine = keep(&machine, "etc-v1");
        fs::write(machine.etc().join("local"), "made here").unwrap();
        for (image, brings) in [(&v2, "of v2"), (&v1, "of v1")] {
            let output = machine.stage(&[image]);
            assert!(output.status.success(), "{how:?} {image}: {}", said(&output));
            let next = format!("composefs=?{}", machine.marker()["depl_id"].as_str().unwrap());
            let before = std::mem::replace(&mut machine.options, next.clone());
            let staged = if image == &v2 { keep(&machine, "etc-v2") } else { PathBuf::new() };
            machine.options = before;
            machine.finalize(&pristine);
            (machine.options, pristine) = (next, staged);
            machine.rebooted();
            let read = |name: &str| fs::read_to_string(machine.etc().join(name)).unwrap();
            assert!(read("local") == "made here" && read("new").starts_with(brings), "{how:?} {image}");
        }
        assert_eq!(machine.options, first, "{how:?}");
    }
}

#[test]
fn a_second_update_replaces_the_first_and_a_download_waits() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, v2) = machine(dir.path(), PATHS[0]);
    assert!(machine.stage(&[&v2, "--lock"]).status.success());
    assert_eq!(machine.marker()["finalization_locked"], true);
    let first = machine.marker()["depl_id"].clone();
    let mut files = version("3");
    files.push(("etc/new".to_owned(), b"of v3".to_vec()));
    write(&dir.path().join("v3"), &files);
    let v3 = format!("oci:{}", dir.path().join("v3").display());
    assert!(machine.stage(&[&v3]).status.success());
    let marker = machine.marker();
    assert!(marker["depl_id"] != first && marker["finalization_locked"] == false, "{marker}");
    let entries: Vec<_> = machine.boots().into_iter().filter(|(path, _)| path.contains("entries.staged/")).collect();
    assert!(
        entries.len() == 2 && entries.iter().all(|(_, text)| !text.contains(first.as_str().unwrap())),
        "{entries:?}"
    );
}

#[test]
fn what_this_machine_cannot_boot_is_refused_and_nothing_that_boots_has_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, v2) = machine(dir.path(), PATHS[0]);
    let layout = |name: &str| format!("oci:{}", dir.path().join(name).display());
    let mut files = version("4");
    crate::layout::write_for("arm64", &dir.path().join("arm64"), &files);
    refused(&machine, &[&layout("arm64")], 3, "is for aarch64, and this machine is x86_64");
    files.retain(|(path, _)| !path.contains("vmlinuz"));
    write(&dir.path().join("bare"), &files);
    refused(&machine, &[&layout("bare")], 3, "must have one kernel");
    refused(&machine, &[&layout("none")], 1, "it has no file oci-layout");
    refused(&machine, &["oci"], 2, "is no image");
    let v1 = machine.stage(&[&layout("v1")]);
    assert!(said(&v1).contains("is what this machine runs: nothing to do"), "{}", said(&v1));
    // What the origin names is on another machine.
    refused(&machine, &[], 1, "looking for oci:somewhere, which this machine follows");
    let blob = crate::layout::layer(&dir.path().join("v2"));
    let mut bytes = fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&blob, &bytes).unwrap();
    refused(&machine, &[&v2], 3, "is corrupt");
    bytes[middle] ^= 1;
    fs::write(&blob, bytes).unwrap();
    // The boot loader has given it up.
    let id = crate::layout::run(&["digest", &v2]);
    let id = String::from_utf8(id.stdout).unwrap();
    let failed = format!("{{\"deployment\": \"{}\", \"boots\": 2, \"at\": \"2026-01-02T03:04:05Z\"}}", id.trim());
    let file = machine.path("root/state/finalize/failed.json");
    fs::write(&file, format!("{{\"schema\": 1, \"failed\": [{failed}]}}")).unwrap();
    refused(&machine, &[&v2], 3, "try-again");
}

#[test]
fn a_uki_that_needs_fs_verity_is_refused_where_there_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let (machine, _) = machine(dir.path(), PATHS[1]);
    let other = dir.path().join("strict");
    write_with_uki_that(&other, version("5"), "composefs=");
    refused(&machine, &[&format!("oci:{}", other.display())], 3, "requires fs-verity");
}
