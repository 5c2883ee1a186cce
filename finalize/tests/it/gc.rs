//! Garbage of deployments: what is removed, what stays, and that composefs finds the repository whole afterwards.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::PathBuf, sync::Arc};

use composefs::{
    dumpfile::dumpfile_to_filesystem,
    fsverity::{Algorithm, FsVerityHashValue, Sha512HashValue},
    repository::{Repository, RepositoryConfig},
};
use finalize::{boot::Loader, layout, staged::BootType};
use rustix::fs::{CWD, FlockOperation, flock};
use serde_json::Value;

use crate::{
    life::{in_b, ours, updated},
    machine::{Machine, PATHS, id},
};

type Repo = Arc<Repository<Sha512HashValue>>;

fn manifest(letter: &str) -> String {
    format!("sha256:{}", letter.repeat(64))
}

fn link(repository: &Repo, name: &str, object: &Sha512HashValue) {
    repository.symlink(name, format!("objects/{}", object.to_object_pathname())).unwrap();
}

/// An image of the deployment in the repository, as pulling it leaves it: a file of its own and one of all of them, a layer,
/// configuration, manifest, tag, EROFS image.
fn image(machine: &Machine, repository: &Repo, letter: &str) {
    let object = |text: &str| repository.ensure_object(text.repeat(100).as_bytes()).unwrap();
    let (own, all) = (object(&format!("of {letter}")), object("of all"));
    let file = |name: &str, id: &Sha512HashValue| {
        format!("/{name} 400 100644 1 0 0 0 0.0 {} - {}\n", id.to_object_pathname(), id.to_hex())
    };
    let dump = format!("/ 0 40755 2 0 0 0 0.0 - - -\n{}{}", file("all", &all), file("own", &own));
    let tree = dumpfile_to_filesystem::<Sha512HashValue>(&dump).unwrap();
    let erofs = tree.commit_image(repository, None).unwrap();
    fs::remove_file(machine.path("sysroot/composefs/images").join(erofs.to_hex())).unwrap();
    link(repository, &format!("images/{}", id(letter)), &erofs);
    let mut layer = repository.create_stream(1).unwrap();
    [own, all].iter().for_each(|object| layer.add_object_ref_for(object));
    let layer = layer.done().unwrap();
    let mut config = repository.create_stream(2).unwrap();
    config.add_named_stream_ref("layer", &layer);
    config.add_named_stream_ref("image", &erofs);
    let config = config.done().unwrap();
    let mut stream = repository.create_stream(3).unwrap();
    stream.add_named_stream_ref("config", &config);
    let stream = stream.done().unwrap();
    for (name, object) in [("layer", &layer), ("config", &config), ("manifest", &stream)] {
        let digest = manifest(letter);
        link(repository, &format!("streams/oci-{name}-{digest}"), object);
    }
    tag(machine, &format!("localhost%2Fbootc-{}", manifest(letter)), letter);
    let state = machine.state(letter);
    if state.is_dir() {
        let text =
            format!("[boot]\nboot_type = {}\n\n[image]\nmanifest_digest = {}\n", machine.boot_type, manifest(letter));
        fs::write(state.join(layout::origin(&id(letter))), text).unwrap();
    }
}

fn tag(machine: &Machine, name: &str, letter: &str) {
    let refs = machine.path("sysroot/composefs/streams/refs/oci");
    fs::create_dir_all(&refs).unwrap();
    symlink(format!("../../oci-manifest-{}", manifest(letter)), refs.join(name)).unwrap();
}

trait AddObject {
    fn add_object_ref_for(&mut self, object: &Sha512HashValue);
}

impl AddObject for composefs::splitstream::SplitStreamWriter<Sha512HashValue> {
    fn add_object_ref_for(&mut self, object: &Sha512HashValue) {
        self.add_external_size(400);
        self.write_reference(object.clone()).unwrap();
    }
}

fn open(machine: &Machine) -> Repo {
    let mut repository = Repository::open_path(CWD, machine.path("sysroot/composefs")).unwrap();
    repository.set_insecure();
    Arc::new(repository)
}

/// `b` is booted, `a` the fallback, `c` garbage with everything that a deployment has.
pub fn littered(loader: Loader, boot_type: BootType) -> Machine {
    let machine = updated(loader, boot_type);
    machine.deployment("c", &[("hosts", "1"), ("d/x", "2")]);
    if boot_type == BootType::Uki {
        let extra = format!("{}.extra.d", machine.kernel("c").display());
        fs::create_dir(&extra).unwrap();
        fs::write(format!("{extra}/x.addon.efi"), "addon").unwrap();
    }
    fs::remove_dir_all(machine.path("sysroot/composefs")).unwrap();
    let config = RepositoryConfig::new(Algorithm::for_hash::<Sha512HashValue>()).set_insecure();
    let (repository, _) = Repository::init_path(CWD, machine.path("sysroot/composefs"), config).unwrap();
    let repository = Arc::new(repository);
    ["a", "b", "c"].iter().for_each(|letter| image(&machine, &repository, letter));
    machine
}

/// All that names a deployment, as file names.
fn things(machine: &Machine, letter: &str) -> BTreeSet<PathBuf> {
    let all = walkdir::WalkDir::new(machine.path("")).into_iter().map(|entry| entry.unwrap().into_path());
    let (id, manifest) = (id(letter), manifest(letter));
    let has = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.contains(id.as_str()) || name.contains(&manifest)
    };
    all.filter(has).collect()
}

/// Everything that `letter` needs is here, and composefs can read it.
pub fn assert_whole(machine: &Machine, letter: &str) {
    let repository = open(machine);
    for object in repository.objects_for_image(id(letter).as_str()).unwrap() {
        repository.open_object(&object).unwrap();
    }
    for name in ["layer", "config", "manifest"] {
        let mut stream = repository.open_stream(&format!("oci-{name}-{}", manifest(letter)), None, None).unwrap();
        let mut objects = vec![];
        stream.get_object_refs(|object| objects.push(object.clone())).unwrap();
        objects.extend(stream.iter_named_refs().map(|(_, object)| object.clone()));
        objects.iter().for_each(|object| _ = repository.open_object(object).unwrap());
    }
    assert!(machine.state(letter).join("etc/hosts").is_file());
    assert!(machine.kernel(letter).exists());
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn what_nothing_names_goes_and_what_an_entry_names_stays() {
    for (loader, boot_type) in PATHS {
        let machine = littered(loader, boot_type);
        let before = machine.tree(&machine.path("sysroot/state"));
        let would = json(&in_b(&machine, &["gc", "--dry-run", "--json"]));
        assert_eq!(
            (&would["outcome"], machine.tree(&machine.path("sysroot/state"))),
            (&"would-be-done".into(), before)
        );
        assert!(things(&machine, "c").len() >= 7, "{:?}", things(&machine, "c"));
        let did = json(&in_b(&machine, &["gc", "--json"]));
        assert_eq!((&did["garbage"], &did["objects"]), (&would["garbage"], &would["objects"]), "{loader} {boot_type}");
        // A file of its own, the image, and three streams.
        assert_eq!(did["objects"]["number"], 5);
        assert!(things(&machine, "c").is_empty(), "{:?}", things(&machine, "c"));
        ["a", "b"].iter().for_each(|letter| assert_whole(&machine, letter));
        assert_eq!(ours(&machine), "ba");
        let after = json(&in_b(&machine, &["gc", "--json"]));
        assert_eq!((&after["outcome"], &after["objects"]["number"]), (&"nothing-to-do".into(), &0.into()));
        assert_eq!(after["garbage"]["kept"][id("a").as_str()], serde_json::json!(["entry"]));
    }
}

#[test]
fn the_staged_and_the_pinned_stay_and_go_once_they_are_neither() {
    for (loader, boot_type) in PATHS {
        let machine = littered(loader, boot_type);
        in_b(&machine, &["pin", "aaaa"]);
        machine.restage("c");
        image_origin(&machine, "c");
        assert_eq!(json(&in_b(&machine, &["gc", "--json"]))["outcome"], "nothing-to-do");
        in_b(&machine, &["staged"]);
        // No entry boots `a` any more.
        assert_eq!(
            (ours(&machine).as_str(), &json(&in_b(&machine, &["gc", "--json"]))["outcome"]),
            ("cb", &"nothing-to-do".into())
        );
        ["a", "b", "c"].iter().for_each(|letter| assert_whole(&machine, letter));
        in_b(&machine, &["pin", "--remove", "aaaa"]);
        assert_eq!(json(&in_b(&machine, &["gc", "--json"]))["objects"]["number"], 5);
        assert!(things(&machine, "a").is_empty(), "{loader} {boot_type}: {:?}", things(&machine, "a"));
        ["b", "c"].iter().for_each(|letter| assert_whole(&machine, letter));
    }
}

fn image_origin(machine: &Machine, letter: &str) {
    let text =
        format!("[boot]\nboot_type = {}\n\n[image]\nmanifest_digest = {}\n", machine.boot_type, manifest(letter));
    fs::write(machine.state(letter).join(layout::origin(&id(letter))), text).unwrap();
}

#[test]
fn what_an_unstaged_update_has_alone_goes() {
    for (loader, boot_type) in PATHS {
        let machine = littered(loader, boot_type);
        machine.restage("c");
        in_b(&machine, &["unstage"]);
        assert_eq!(json(&in_b(&machine, &["gc", "--json"]))["outcome"], "done");
        assert!(things(&machine, "c").is_empty(), "{loader} {boot_type}: {:?}", things(&machine, "c"));
    }
}

#[test]
fn an_entry_that_nobody_understands_still_names_what_it_names() {
    let machine = littered(Loader::SystemdBoot, BootType::Bls);
    let entries = machine.boot("loader/entries");
    fs::write(entries.join("odd.conf"), [b"\xff\xfe composefs=", id("c").as_str().as_bytes()].concat()).unwrap();
    assert_eq!(json(&in_b(&machine, &["gc", "--json"]))["outcome"], "nothing-to-do");
    // The kernel of another one: that is all it needs.
    let text = format!("linux /EFI/Linux/bootc_composefs-{}/vmlinuz\n", id("c"));
    fs::write(entries.join("odd.conf"), text).unwrap();
    in_b(&machine, &["gc"]);
    assert_eq!(things(&machine, "c"), BTreeSet::from([machine.kernel("c")]));
    fs::remove_file(entries.join("odd.conf")).unwrap();
    // A kernel as an older bootc calls it.
    fs::rename(machine.kernel("c"), machine.path("esp/EFI/Linux").join(id("c").as_str())).unwrap();
    in_b(&machine, &["gc"]);
    assert!(things(&machine, "c").is_empty());
}

#[test]
fn tags_of_others_and_deployments_without_a_known_manifest_keep_what_they_may_need() {
    let machine = littered(Loader::SystemdBoot, BootType::Bls);
    tag(&machine, "mine", "c");
    in_b(&machine, &["gc"]);
    // Its state and kernel are gone; the image is somebody's.
    assert_eq!(things(&machine, "c").len(), 4, "{:?}", things(&machine, "c"));
    fs::remove_file(machine.path("sysroot/composefs/streams/refs/oci/mine")).unwrap();
    let origin = machine.state("a").join(layout::origin(&id("a")));
    let text = fs::read_to_string(&origin).unwrap();
    fs::write(&origin, "no origin").unwrap();
    let said = in_b(&machine, &["gc"]);
    assert!(said.contains("names no manifest"), "{said}");
    assert_eq!(things(&machine, "c").len(), 4, "{:?}", things(&machine, "c"));
    fs::write(&origin, text).unwrap();
    in_b(&machine, &["gc"]);
    assert!(things(&machine, "c").is_empty());
}

#[test]
fn where_nobody_knows_what_is_needed_nothing_goes() {
    for (loader, boot_type) in PATHS {
        let machine = littered(loader, boot_type);
        let run = |args: &[&str]| machine.command_after(&format!("composefs={}", id("b")), args).output().unwrap();
        let before = things(&machine, "c");
        let repository = open(&machine);
        let busy = run(&["gc"]);
        assert!(busy.status.code() == Some(3), "{busy:?}");
        flock(repository.repo_fd(), FlockOperation::Unlock).unwrap();
        drop(repository);
        machine.files("sysroot", &[(layout::PINS, "garbage")]);
        let output = run(&["gc"]);
        assert!(output.status.code() == Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("not a list of pins"), "{output:?}");
        fs::remove_file(machine.path("sysroot").join(layout::PINS)).unwrap();
        let live = if boot_type == BootType::Uki && loader == Loader::Grub {
            machine.path("sysroot/boot/grub2/user.cfg")
        } else {
            machine.boot("loader/entries")
        };
        fs::rename(&live, live.with_extension("away")).unwrap();
        let output = run(&["gc"]);
        assert!(output.status.code() == Some(3), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stdout).contains("nobody knows"), "{output:?}");
        assert_eq!(things(&machine, "c"), before);
    }
}

#[test]
fn a_repository_of_an_older_bootc_keeps_its_objects() {
    let machine = littered(Loader::SystemdBoot, BootType::Bls);
    fs::remove_file(machine.path("sysroot/composefs/meta.json")).unwrap();
    let said = in_b(&machine, &["gc"]);
    assert!(said.contains("no meta.json") && !machine.state("c").exists(), "{said}");
    assert_eq!(things(&machine, "c").len(), 4, "{:?}", things(&machine, "c"));
}
