//! The merge against what the reference implementation does first: hashing every file of the three trees with SHA-256.
//! And against a bare walk of the three trees, which is the floor. In one run, so that the ratios mean something.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::{
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    time::Duration,
};

use cap_std::{ambient_authority, fs::Dir};
use criterion::{BatchSize, Criterion};
use finalize::etc::{Merge, Sources, policy::Policy};
use nix::sys::resource::{UsageWho, getrusage};
use sha2::{Digest, Sha256};

const SIZES: [usize; 3] = [2_000, 20_000, 100_000];

/// Three trees of `files` files of half a kilobyte to four, a hundred a directory: 2 % edited, 1 % removed and 1 % added
/// locally, 10 % changed in the image.
fn trees(root: &Path, files: usize) {
    for side in ["p", "c", "n"] {
        for number in 0..files {
            let dir = root.join(side).join(format!("d{}", number / 100));
            if number % 100 == 0 {
                fs::create_dir_all(&dir).unwrap();
            }
            let mut content = format!("setting {number} = value\n").repeat(20 + number % 150);
            match (side, number % 100) {
                ("c", 1 | 2) => content.push_str("edited\n"),
                ("c", 3) => continue,
                ("c", 4) => fs::write(dir.join(format!("added{number}")), "mine\n").unwrap(),
                ("n", 10..20) => content.push_str("newer\n"),
                _ => {}
            }
            fs::write(dir.join(format!("f{number}.conf")), content).unwrap();
        }
    }
}

fn merge(root: &Path) {
    let open = |name: &str| Dir::open_ambient_dir(root.join(name), ambient_authority()).unwrap();
    let (p, c, n) = (open("p"), open("c"), open("n"));
    let sources = Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() };
    Merge::plan(sources, &Policy::default()).unwrap().write(&open(""), "m", "x").unwrap();
}

fn walk(root: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(root).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => walk(&entry.path(), visit),
            false => visit(&entry.path()),
        }
    }
}

fn three(root: &Path, visit: &mut dyn FnMut(&Path)) {
    ["p", "c", "n"].iter().for_each(|side| walk(&root.join(side), visit));
}

/// Mean nanoseconds that criterion has written down.
fn mean(group: &str, what: &str) -> Option<f64> {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("../criterion");
    let path = dir.join(group).join(what).join("new/estimates.json");
    let estimates: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).ok()?).ok()?;
    estimates["mean"]["point_estimate"].as_f64()
}

/// Peak resident memory of the real program, in MiB.
fn memory(root: &Path) -> i64 {
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_composefs-finalize"))
        .current_dir(root)
        .args(["etc", "merge", "--pristine", "p", "--current", "c", "--new", "n", "--output", "m2"])
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    assert!(child.wait().unwrap().success());
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() / 1024
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(8))
        .without_plots()
        .configure_from_args();
    println!("files    hashing / merge    merge / walk    merge, µs a file    peak memory");
    for files in SIZES {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let root = dir.path();
        trees(root, files);
        let group_name = format!("etc {files}");
        let mut group = criterion.benchmark_group(&group_name);
        let remove = || _ = fs::remove_dir_all(root.join("m"));
        group.bench_function("merge", |b| b.iter_batched(remove, |()| merge(root), BatchSize::PerIteration));
        remove();
        group.bench_function("sha256", |b| {
            b.iter(|| three(root, &mut |path| _ = std::hint::black_box(Sha256::digest(fs::read(path).unwrap()))));
        });
        group.bench_function("walk", |b| {
            b.iter(|| three(root, &mut |path| _ = std::hint::black_box(fs::symlink_metadata(path).unwrap())));
        });
        group.finish();
        // A filter on the command line leaves groups out.
        let means = ["merge", "sha256", "walk"].map(|what| mean(&group_name, what));
        let [Some(merge), Some(sha256), Some(walk)] = means else { continue };
        let (ratio, floor, each) = (sha256 / merge, merge / walk, merge / files as f64 / 1000.0);
        println!("{files:6} {ratio:15.1} {floor:15.1} {each:17.1} {:13} MiB", memory(root));
    }
}
