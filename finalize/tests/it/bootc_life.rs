//! Both ways with bootc: what bootc 1.16.9 left on real machines is shown, collected and rolled back by us, and what we leave is
//! named as bootc names it. The fixtures have entries, marker and one origin; kernels, /etc and images are put beside them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use finalize::{
    boot::{Loader, entries::Entries},
    digest::DeploymentId,
    layout,
    staged::Marker,
};
use serde_json::Value;
use sha2::{Digest, Sha256};
use xshell::cmd;

use crate::programs::{PROGRAM, output, shell};

struct Machine {
    dir: tempfile::TempDir,
    loader: Loader,
    booted: DeploymentId,
}

/// The first deployment of the fixtures; its kernel is that of the second one too.
fn first() -> DeploymentId {
    id_beginning("91faf4f839f1")
}

fn second() -> DeploymentId {
    id_beginning("c9fd8026cf12")
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bootc").join(path)
}

/// The id in the fixtures that begins with `text`.
fn id_beginning(text: &str) -> DeploymentId {
    let files =
        walkdir::WalkDir::new(fixture("")).into_iter().map(Result::unwrap).filter(|it| it.file_type().is_file());
    let all: String = files.map(|file| fs::read_to_string(file.path()).unwrap()).collect();
    all.split(|c: char| !c.is_ascii_hexdigit()).find(|word| word.starts_with(text)).unwrap().parse().unwrap()
}

fn copy(from: &Path, to: &Path) {
    let all = walkdir::WalkDir::new(from).into_iter().filter_map(Result::ok);
    for entry in all.filter(|it| it.file_type().is_file()) {
        let to = to.join(entry.path().strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, fs::read(entry.path()).unwrap()).unwrap();
    }
}

impl Machine {
    /// The files of a step, `booted` running, with what its deployments need.
    fn of(step: &str, loader: Loader, booted: DeploymentId) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let machine = Self { dir, loader, booted };
        for (from, to) in [("boot", "esp"), ("sysroot", "sysroot"), ("run", "run")] {
            copy(&fixture(step).join(from), &machine.path(to));
        }
        for name in ["run", "esp/loader", "sys", "pristine", "sysroot/boot"] {
            fs::create_dir_all(machine.path(name)).unwrap();
        }
        let origin =
            fs::read_dir(fixture("1-staged-by-switch/sysroot/state/deploy")).unwrap().next().unwrap().unwrap().path();
        let origin = fs::read_dir(origin).unwrap().next().unwrap().unwrap().path();
        let digest = hex::encode(Sha256::new().chain_update("kernel").chain_update("initrd").finalize());
        let origin = fs::read_to_string(origin).unwrap();
        let old = origin.lines().find_map(|line| line.strip_prefix("digest = ")).unwrap();
        let origin = origin.replace(old, &digest);
        for id in machine.ids() {
            let state = machine.state(&id);
            fs::create_dir_all(state.join("etc")).unwrap();
            fs::write(state.join("etc/hosts"), "1").unwrap();
            fs::write(state.join(layout::origin(&id)), &origin).unwrap();
            machine.image(&id);
        }
        for (kernel, text) in machine.kernels() {
            fs::create_dir_all(kernel.parent().unwrap()).unwrap();
            fs::write(kernel, text).unwrap();
        }
        machine
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn state(&self, id: &DeploymentId) -> PathBuf {
        self.path("sysroot").join(layout::deployment(id))
    }

    fn image(&self, id: &DeploymentId) -> PathBuf {
        let image = self.path("sysroot").join(layout::image(id));
        fs::create_dir_all(image.parent().unwrap()).unwrap();
        fs::write(&image, "an image").unwrap();
        image
    }

    fn root(&self) -> PathBuf {
        self.path(if self.loader == Loader::Grub { "sysroot" } else { "esp" })
    }

    fn loader_dir(&self) -> PathBuf {
        if self.loader == Loader::Grub { self.path("sysroot/boot/loader") } else { self.path("esp/loader") }
    }

    fn entries(&self, name: &str) -> Entries {
        let dir = cap_std::fs::Dir::open_ambient_dir(self.loader_dir(), cap_std::ambient_authority()).unwrap();
        Entries::read(&dir, name).unwrap().unwrap_or_default()
    }

    fn ids(&self) -> Vec<DeploymentId> {
        let all = [self.entries("entries"), self.entries("entries.staged")];
        all.iter().flat_map(|all| all.ordered(self.loader)).filter_map(|(_, entry)| entry.deployment()).collect()
    }

    fn live(&self) -> Vec<DeploymentId> {
        self.entries("entries").ordered(self.loader).into_iter().filter_map(|(_, entry)| entry.deployment()).collect()
    }

    fn kernels(&self) -> Vec<(PathBuf, &'static str)> {
        let all = [self.entries("entries"), self.entries("entries.staged")];
        let entries = all.iter().flat_map(|all| all.ordered(self.loader));
        let paths = entries.flat_map(|(_, entry)| entry.files().map(str::to_owned).collect::<Vec<_>>());
        let text = |path: &String| if path.ends_with("initrd") { "initrd" } else { "kernel" };
        paths.map(|path| (self.root().join(path.trim_start_matches('/')), text(&path))).collect()
    }

    fn run(&self, args: &[&str]) -> Output {
        let (cmdline, loader) = (format!("composefs={} rw", self.booted), self.loader.to_string());
        let etc = self.state(&self.booted).join("etc");
        let [sysroot, run, pristine, esp, sys] =
            ["sysroot", "run", "pristine", "esp", "sys"].map(|name| self.path(name));
        output(
            cmd!(
                shell("/"),
                "{PROGRAM} {args...} --cmdline {cmdline} --loader {loader} --etc {etc} --sysroot {sysroot}"
            )
            .args(["--run".as_ref(), run.as_path()])
            .args(["--pristine".as_ref(), pristine.as_path()])
            .args(["--esp".as_ref(), esp.as_path()])
            .args(["--sys".as_ref(), sys.as_path()]),
        )
    }

    fn json(&self, args: &[&str]) -> Value {
        let output = self.run(&[args, &["--json"]].concat());
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// All that entries name is here.
    fn assert_whole(&self) {
        self.kernels().into_iter().for_each(|(path, _)| assert!(path.is_file(), "{}", path.display()));
        self.ids().iter().for_each(|id| assert!(self.state(id).join("etc/hosts").is_file(), "{id:?}"));
    }
}

fn roles(status: &Value, id: &DeploymentId) -> String {
    let found = status["deployments"].as_array().unwrap().iter().find(|it| it["id"] == id.as_str()).unwrap();
    found["roles"].as_array().unwrap().iter().map(|role| role.as_str().unwrap()).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_bootc_has_staged_is_shown_kept_and_unstaged() {
    let machine = Machine::of("1-staged-by-switch", Loader::SystemdBoot, first());
    let status = machine.json(&["status"]);
    assert_eq!([roles(&status, &first()), roles(&status, &second())], ["booted next", "staged"]);
    let staged = &status["deployments"][1];
    assert_eq!(staged["image_reference"], "ostree-unverified-image:oci:/var/tmp/oci-c:c");
    assert_eq!((&staged["title"], &staged["version"]), (&"Debian GNU/Linux 13 (trixie)".into(), &"13".into()));
    assert_eq!(status["attention"], serde_json::json!([]), "{status:#}");
    assert_eq!(machine.json(&["gc"])["outcome"], "nothing-to-do");
    machine.assert_whole();
    assert_eq!(machine.run(&["rollback"]).status.code(), Some(3));
    assert_eq!(machine.json(&["unstage"])["deployment"], second().as_str());
    assert!(!machine.path("run").join(layout::MARKER).exists());
    assert_eq!(machine.live(), [first()]);
    assert_eq!(machine.json(&["gc"])["outcome"], "done");
    assert!(!machine.state(&second()).exists() && !machine.path("sysroot").join(layout::image(&second())).exists());
    // The kernel is the first one's too.
    machine.assert_whole();
}

#[test]
fn what_bootc_has_finalized_is_rolled_back_to_the_order_that_bootc_makes_and_forward_again() {
    let machine = Machine::of("2-booted-after-finalize", Loader::SystemdBoot, second());
    assert_eq!(machine.live(), [second(), first()]);
    assert_eq!(roles(&machine.json(&["status"]), &first()), "fallback");
    machine.json(&["rollback"]);
    let by_bootc = Machine::of("3-rollback", Loader::SystemdBoot, second());
    assert_eq!(machine.live(), by_bootc.live());
    let names: Vec<_> = machine.entries("entries").files().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names, ["bootc_debian-1-0.conf", "bootc_debian-1-1.conf"]);
    // What bootc insists on: a version and a composefs= in each, and nothing else has changed.
    for (_, entry) in machine.entries("entries").ordered(Loader::SystemdBoot) {
        let before = by_bootc.entries("entries");
        let (_, before) = before.of_deployment(Loader::SystemdBoot, &entry.deployment().unwrap()).unwrap();
        let lines = |text: String| {
            text.lines().filter(|line| !line.starts_with("sort-key")).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(lines(entry.to_string()), lines(before.to_string()));
    }
    machine.json(&["rollback"]);
    assert_eq!(machine.live(), [second(), first()]);
    by_bootc.json(&["rollback"]);
    assert_eq!(by_bootc.live(), [second(), first()]);
    by_bootc.assert_whole();
}

/// bootc leaves its marker after it has finalized; with it a second run of its unit fails.
#[test]
fn a_marker_that_bootc_has_left_is_no_staged_update_after_a_rollback() {
    let machine = Machine::of("2-booted-after-finalize", Loader::SystemdBoot, first());
    let marker = Marker { depl_id: second(), finalization_locked: false };
    fs::create_dir_all(machine.path("run/composefs")).unwrap();
    fs::write(machine.path("run").join(layout::MARKER), marker.to_string()).unwrap();
    assert_eq!(machine.run(&["unstage"]).status.code(), Some(3));
    let said = machine.json(&["rollback"]);
    assert_eq!((&said["outcome"], &said["cancelled"]), (&"done".into(), &Value::Null));
    assert_eq!(machine.live(), [first(), second()]);
    assert!(!machine.path("run").join(layout::MARKER).exists());
    let said = machine.run(&["staged"]);
    assert_eq!(String::from_utf8_lossy(&said.stdout).trim(), "nothing is staged");
}

#[test]
fn bootcs_entries_for_grub_change_places() {
    // GRUB goes by the names of files, not by the keys in them.
    let booted = id_beginning("1d2076f66c88");
    let machine = Machine::of("6-grub-bls", Loader::Grub, booted.clone());
    let status = machine.json(&["status"]);
    assert_eq!([roles(&status, &booted), roles(&status, &second())], ["booted next", "staged"]);
    let before = machine.live();
    machine.json(&["gc"]);
    machine.assert_whole();
    let said = machine.json(&["rollback"]);
    assert_eq!(said["cancelled"], second().as_str());
    assert_eq!(machine.live(), before.iter().rev().cloned().collect::<Vec<_>>());
    machine.json(&["rollback"]);
    assert_eq!(machine.live(), before);
    machine.json(&["gc"]);
    machine.assert_whole();
    assert!(!machine.state(&second()).exists());
}

/// Kernel directories without a prefix, UKIs too, and what `<D>.imginfo` says instead of `[image]`.
#[test]
fn names_of_an_older_bootc_are_kept_where_they_are_named_and_go_where_they_are_not() {
    let machine = Machine::of("2-booted-after-finalize", Loader::SystemdBoot, second());
    let linux = machine.path("esp/EFI/Linux");
    let prefixed = format!("bootc_composefs-{}", first());
    fs::rename(linux.join(&prefixed), linux.join(first().as_str())).unwrap();
    for (name, text) in machine.entries("entries").files() {
        fs::write(machine.loader_dir().join("entries").join(name), text.replace(&prefixed, first().as_str())).unwrap();
    }
    let origin = machine.state(&first()).join(layout::origin(&first()));
    let text = fs::read_to_string(&origin).unwrap();
    fs::write(&origin, text.split("[image]").next().unwrap()).unwrap();
    fs::write(machine.state(&first()).join(format!("{}.imginfo", first())), "{}").unwrap();
    let dead: DeploymentId = "d".repeat(128).parse().unwrap();
    fs::create_dir_all(linux.join(dead.as_str())).unwrap();
    fs::create_dir_all(linux.join("bootc")).unwrap();
    fs::write(linux.join(format!("bootc/{dead}.efi")), "a UKI").unwrap();
    fs::write(linux.join("bootc/mine.efi"), "mine").unwrap();
    machine.json(&["rollback"]);
    assert_eq!(machine.live(), [first(), second()]);
    machine.json(&["gc"]);
    machine.assert_whole();
    assert!(!linux.join(dead.as_str()).exists() && !linux.join(format!("bootc/{dead}.efi")).exists());
    assert!(linux.join("bootc/mine.efi").exists());
}
