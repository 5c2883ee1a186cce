//! `--cache`: a second build takes layers from there, and its disk is the same, whatever happened to the directory.

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use image_tools::program;
use xshell::cmd;

use crate::layout::{Layer, PROGRAM, archive, entries, entry, image, index, shell, system};

/// A layout in `dir/image` with two layers, the second of which has a file of 1 MiB and more; the blobs of the layers.
fn layout(dir: &Path) -> [PathBuf; 2] {
    let dir = dir.join("image");
    fs::create_dir(&dir).unwrap();
    let large: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let above = [entry("usr/share/large", tar::EntryType::Regular, &large)];
    let layers = [archive(&entries(&system())), archive(&above)].map(Layer::plain);
    index(&dir, &[image(&dir, &layers, "amd64")]);
    layers.map(|layer| dir.join("blobs/sha256").join(layer.diff_id.strip_prefix("sha256:").unwrap()))
}

fn start(dir: &Path, output: &str, options: &[&str]) -> Child {
    let shell = shell(dir);
    let build = cmd!(shell, "{PROGRAM} build --image oci:image --seed x --size 700 --output {output} {options...}");
    Command::from(build).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn build(dir: &Path, output: &str) -> Output {
    start(dir, output, &["--cache", "cache"]).wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The files of the cache.
fn kept(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir.join("cache")).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    names
}

fn same(dir: &Path, one: &str, other: &str) {
    let [one, other] = [one, other].map(|name| fs::read(dir.join(name)).unwrap());
    assert!(one == other, "the disks differ");
}

#[test]
fn a_second_build_reads_no_layer_and_makes_the_same_disk() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let blobs = layout(dir);
    said(&start(dir, "without", &[]).wait_with_output().unwrap());
    said(&build(dir, "first"));
    assert_eq!(kept(dir).len(), 2);
    blobs.iter().for_each(|blob| fs::remove_file(blob).unwrap());
    assert!(!start(dir, "none", &[]).wait_with_output().unwrap().status.success(), "the layers are still there");
    said(&build(dir, "second"));
    same(dir, "without", "first");
    same(dir, "first", "second");
}

#[test]
fn what_is_damaged_is_noticed_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    layout(dir);
    said(&build(dir, "first"));
    let whole: Vec<_> = kept(dir).iter().map(|path| fs::read(path).unwrap()).collect();
    let damage: [fn(&File, u64); 5] = [
        |file, _| file.write_all_at(b"X", 5000).unwrap(),
        |file, size| file.write_all_at(b"X", size - 100).unwrap(),
        |file, size| file.set_len(size - 1).unwrap(),
        |file, _| file.set_len(0).unwrap(),
        |file, size| file.set_len(size + 1).unwrap(),
    ];
    for damage in damage {
        for path in kept(dir) {
            let file = File::options().write(true).open(path).unwrap();
            damage(&file, file.metadata().unwrap().len());
        }
        let said = said(&build(dir, "again"));
        assert_eq!(said.matches("the cache has a damaged layer, which is made again").count(), 2, "{said}");
        same(dir, "first", "again");
        let now: Vec<_> = kept(dir).iter().map(|path| fs::read(path).unwrap()).collect();
        assert!(now == whole, "the cache is not what it was");
    }
    // One layer under the name of the other.
    let [one, other] = &kept(dir)[..] else { panic!("two layers") };
    fs::copy(one, other).unwrap();
    assert!(said(&build(dir, "again")).contains("it is of the layer sha256:"));
    same(dir, "first", "again");
}

#[test]
fn builds_share_a_cache_at_the_same_time() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    layout(dir);
    for round in ["new", "there"] {
        let names = ["a", "b", "c"].map(|name| format!("{round}-{name}"));
        let builds = names.each_ref().map(|name| start(dir, name, &["--cache", "cache"]));
        for build in builds {
            assert_eq!(said(&build.wait_with_output().unwrap()), "");
        }
        names.iter().for_each(|name| same(dir, "new-a", name));
        assert_eq!(kept(dir).len(), 2);
    }
}

#[test]
fn a_build_that_is_killed_leaves_nothing_in_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let [_, blob] = layout(dir);
    let bytes = fs::read(&blob).unwrap();
    fs::remove_file(&blob).unwrap();
    let shell = shell(dir);
    program::run(cmd!(shell, "mkfifo {blob}")).unwrap();
    let mut child = start(dir, "killed", &["--cache", "cache"]);
    // Once all of that is written, most of it has been read: a fifo holds 64 KiB.
    File::options()
        .write(true)
        .open(&blob)
        .unwrap()
        .write_all(&bytes[..bytes.len() / 2])
        .and_then(|()| child.kill())
        .unwrap();
    child.wait().unwrap();
    assert_eq!(kept(dir).len(), 1, "the layer that was complete");
    fs::remove_file(&blob).unwrap();
    fs::write(&blob, &bytes).unwrap();
    assert_eq!(said(&build(dir, "after")), "");
    said(&start(dir, "without", &[]).wait_with_output().unwrap());
    same(dir, "after", "without");
    assert_eq!(kept(dir).len(), 2);
}
