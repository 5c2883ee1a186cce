//! Files as bootc 1.16.9 wrote them on real machines: read, written back to the byte, and finalized as bootc did.

use std::{
    fs,
    path::{Path, PathBuf},
};

use cap_std::{ambient_authority, fs::Dir};
use finalize::{
    boot::{
        BootDir, EntriesPlace, Loader, Place,
        bls::Entry,
        entries::Entries,
        swap::{Method, probe},
    },
    staged::{Marker, Origin},
};

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/bootc").join(path)
}

fn files() -> impl Iterator<Item = (PathBuf, String)> {
    let all = walkdir::WalkDir::new(fixture("")).into_iter().map(Result::unwrap).filter(|e| e.file_type().is_file());
    all.map(|entry| (entry.path().to_owned(), fs::read_to_string(entry.path()).unwrap()))
}

fn files_with(extension: &str) -> Vec<(PathBuf, String)> {
    files().filter(|(path, _)| path.extension().is_some_and(|e| e == extension)).collect()
}

fn entries(dir: &Path, name: &str) -> Entries {
    let loader = Dir::open_ambient_dir(dir.join("loader"), ambient_authority()).unwrap();
    Entries::read(&loader, name).unwrap().unwrap()
}

#[test]
fn entries_survive_the_round_trip() {
    let all = files_with("conf");
    assert!(all.len() > 8, "{all:?}");
    for (path, text) in all.iter().filter(|(path, _)| path.parent().unwrap().ends_with("entries")) {
        let entry: Entry = text.parse().unwrap();
        assert_eq!(entry.to_string(), *text, "{}", path.display());
        assert!(entry.is_ours() && entry.deployment().is_some(), "{}", path.display());
    }
}

#[test]
fn origin_files_and_markers_survive_the_round_trip() {
    let origins = files_with("origin");
    assert_eq!(origins.len(), 3);
    for (path, text) in origins {
        assert_eq!(text.parse::<Origin>().unwrap().to_string(), text, "{}", path.display());
    }
    let markers: Vec<_> = files().filter(|(path, _)| path.ends_with("staged-deployment")).collect();
    assert_eq!(markers.len(), 2);
    for (path, text) in markers {
        assert_eq!(text.parse::<Marker>().unwrap().to_string(), text, "{}", path.display());
    }
}

/// What bootc staged, finalized by us in a copy: the entries that are live then.
fn finalized(boot: &str, marker: &str, loader: Loader, method: Method) -> Entries {
    let marker: Marker = fs::read_to_string(fixture(marker)).unwrap().parse().unwrap();
    let copy = tempfile::tempdir().unwrap();
    for (path, text) in files().filter(|(path, _)| path.starts_with(fixture(boot))) {
        let to = copy.path().join(path.strip_prefix(fixture(boot)).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::write(to, text).unwrap();
    }
    let root = Dir::open_ambient_dir(copy.path(), ambient_authority()).unwrap();
    let place = Place::Entries(EntriesPlace { root, boot: BootDir::Root, loader, method });
    let staged = probe(&[place], &marker.depl_id).unwrap();
    assert!(staged.is_untouched());
    staged.sync().unwrap().exchange().unwrap().settle().unwrap().clean_up().unwrap();
    let live = entries(copy.path(), "entries");
    assert_eq!(live.first_deployment(loader), Some(marker.depl_id));
    live
}

#[test]
fn what_bootc_staged_is_finalized_to_what_bootc_makes_of_it() {
    for method in [Method::Exchange, Method::OneByOne] {
        let marker = "1-staged-by-switch/run/composefs/staged-deployment";
        let live = finalized("1-staged-by-switch/boot", marker, Loader::SystemdBoot, method);
        assert_eq!(live, entries(&fixture("2-booted-after-finalize/boot"), "entries"), "{method:?}");
    }
    let marker = "6-grub-bls/run/composefs/staged-deployment";
    let live = finalized("6-grub-bls/sysroot/boot", marker, Loader::Grub, Method::Exchange);
    assert_eq!(live, entries(&fixture("6-grub-bls/sysroot/boot"), "entries.staged"));
}

#[test]
fn the_order_after_bootcs_rollback_is_the_loaders() {
    let before = entries(&fixture("2-booted-after-finalize/boot"), "entries");
    let after = entries(&fixture("3-rollback/boot"), "entries");
    let ids = |entries: &Entries| -> Vec<_> {
        entries.ordered(Loader::SystemdBoot).into_iter().map(|(_, entry)| entry.deployment().unwrap()).collect()
    };
    assert_eq!(ids(&after), ids(&before).into_iter().rev().collect::<Vec<_>>());
}
