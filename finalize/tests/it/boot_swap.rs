//! The exchange of boot entries on real directories, by both methods.

use std::{collections::BTreeMap, fs, path::Path};

use cap_std::{ambient_authority, fs::Dir};
use finalize::{
    boot::{
        BootDir, EntriesPlace, Loader, Place,
        swap::{Method, Staged, probe},
    },
    digest::DeploymentId,
};

fn id(letter: &str) -> DeploymentId {
    letter.repeat(128).parse().unwrap()
}

fn entry(letter: &str, place: u8) -> String {
    format!("title x\nversion 1\nlinux /v\noptions composefs={} rw\nsort-key bootc-debian-{place}\n", id(letter))
}

fn put(root: &Path, dir: &str, files: &[(&str, String)]) {
    let dir = root.join("loader").join(dir);
    fs::create_dir_all(&dir).unwrap();
    for (name, content) in files {
        fs::write(dir.join(name), content).unwrap();
    }
}

fn live(root: &Path) -> BTreeMap<String, String> {
    let read = |e: fs::DirEntry| (e.file_name().into_string().unwrap(), fs::read_to_string(e.path()).unwrap());
    fs::read_dir(root.join("loader/entries")).unwrap().map(|e| read(e.unwrap())).collect()
}

fn place(root: &Path, loader: Loader, method: Method) -> [Place; 1] {
    let root = Dir::open_ambient_dir(root, ambient_authority()).unwrap();
    [Place::Entries(EntriesPlace { root, boot: BootDir::Root, loader, method })]
}

fn finish(staged: Staged) -> anyhow::Result<()> {
    staged.sync()?.exchange()?.settle()?.clean_up()
}

const ALL: [(Loader, Method); 4] = [
    (Loader::SystemdBoot, Method::Exchange),
    (Loader::SystemdBoot, Method::OneByOne),
    (Loader::Grub, Method::Exchange),
    (Loader::Grub, Method::OneByOne),
];

fn staged_machine(root: &Path) -> BTreeMap<String, String> {
    let rescue = ("rescue.conf", "linux /rescue\n".to_owned());
    put(root, "entries", &[("bootc_debian-1-1.conf", entry("a", 0)), rescue.clone()]);
    let next = [("bootc_debian-1-1.conf", entry("b", 0)), ("bootc_debian-1-0.conf", entry("a", 1))];
    put(root, "entries.staged", &next);
    next.into_iter().chain([rescue]).map(|(name, content)| (name.to_owned(), content)).collect()
}

#[test]
fn the_staged_entries_become_the_live_ones_and_foreign_ones_survive() {
    for (loader, method) in ALL {
        let dir = tempfile::tempdir().unwrap();
        let want = staged_machine(dir.path());
        let place = place(dir.path(), loader, method);
        for _again in 0..2 {
            finish(probe(&place, &id("b")).unwrap()).unwrap();
            assert_eq!(live(dir.path()), want, "{loader} {method:?}");
            assert!(!dir.path().join("loader/entries.staged").exists());
        }
    }
}

#[test]
fn a_run_that_was_stopped_is_finished_by_the_next() {
    for (loader, method) in ALL {
        let dir = tempfile::tempdir().unwrap();
        let want = staged_machine(dir.path());
        let place = place(dir.path(), loader, method);
        let staged = probe(&place, &id("b")).unwrap();
        assert!(staged.is_untouched());
        staged.sync().unwrap().exchange().unwrap();
        let again = probe(&place, &id("b")).unwrap();
        assert!(again.is_exchanged(), "{loader} {method:?}");
        finish(again).unwrap();
        assert_eq!(live(dir.path()), want, "{loader} {method:?}");
    }
}

#[test]
fn what_does_not_name_the_deployment_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    staged_machine(dir.path());
    let before = live(dir.path());
    let place = place(dir.path(), Loader::SystemdBoot, Method::Exchange);
    let error = probe(&place, &id("c")).unwrap_err().to_string();
    assert!(error.contains("loader/entries.staged") && error.contains("stage the deployment again"), "{error}");
    assert_eq!(live(dir.path()), before);
}
