//! The merge against what the reference implementation does first: hashing every file of the three trees with SHA-256.
//! And against a bare walk of the three trees, which is the floor. In one run, so that the ratios mean something.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::{
    cell::LazyCell,
    fs,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use cap_std::{ambient_authority, fs::Dir};
use criterion::{BatchSize, Criterion};
use finalize::{
    etc::{
        Merge, Sources,
        policy::{Keep, Policy, Rule},
    },
    stop::Stop,
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, StatxFlags, flistxattr, linkat, openat, statx},
    io::read,
    time::{ClockId, clock_gettime},
};
use sha2::{Digest, Sha256};
use xshell::{Shell, cmd};

const SIZES: [usize; 3] = [2_000, 20_000, 100_000];

/// The sizes of the files in the /etc of this repository's Debian image: every twentieth of the sorted 414, and the mean
/// of those above. 5.3 KB on average.
const BYTES: [usize; 20] =
    [0, 10, 10, 20, 45, 89, 123, 188, 367, 483, 520, 574, 813, 1_088, 1_384, 1_768, 2_342, 3_974, 10_080, 77_000];

/// Three trees of `files` files as large as those of a real /etc, a hundred a directory: 2 % edited, 1 % removed and 1 %
/// added locally, 10 % changed in the image.
fn trees(root: &Path, files: usize) {
    for side in ["p", "c", "n"] {
        for number in 0..files {
            let dir = root.join(side).join(format!("d{}", number / 100));
            if number % 100 == 0 {
                fs::create_dir_all(&dir).unwrap();
            }
            let size = BYTES[number * 7 % BYTES.len()];
            let mut content = format!("setting {number} = value\n").repeat(size / 16 + 1);
            content.truncate(size);
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

/// Merges into a directory that never was, as a machine does: ext4 hesitates to use inodes that were just deleted.
fn merge(root: &Path, output: &str) {
    merge_by(&Policy::default(), root, output);
}

fn merge_by(policy: &Policy, root: &Path, output: &str) {
    let open = |name: &str| Dir::open_ambient_dir(root.join(name), ambient_authority()).unwrap();
    let (p, c, n) = (open("p"), open("c"), open("n"));
    let sources = Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() };
    Merge::plan(sources, policy).unwrap().write(&open(""), output, "x", &Stop::never()).unwrap();
}

/// What is left for the shutdown where the same merge was made ahead into `output` and one file was edited since. Returns what was
/// remembered, as it is stored.
fn ahead(root: &Path, output: &str) -> Vec<u8> {
    let open = |name: &str| Dir::open_ambient_dir(root.join(name), ambient_authority()).unwrap();
    let (p, c, n) = (open("p"), open("c"), open("n"));
    let sources = Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() };
    let (merge, mut ahead) = Merge::plan_ahead(sources, &Policy::default(), 0, &Stop::never()).unwrap();
    merge.make(&mut ahead, &open(""), (output, "x"), &Stop::never()).unwrap();
    fs::write(root.join("c/d0/f50.conf"), output).unwrap();
    postcard::to_stdvec(&ahead).unwrap()
}

fn merge_after(root: &Path, output: &str, ahead: &[u8]) {
    let open = |name: &str| Dir::open_ambient_dir(root.join(name), ambient_authority()).unwrap();
    let (p, c, n) = (open("p"), open("c"), open("n"));
    let sources = Sources { pristine: Some(p.as_fd()), current: c.as_fd(), new: n.as_fd() };
    let ahead = postcard::from_bytes(ahead).unwrap();
    let merge = Merge::plan_after(sources, &Policy::default(), Some(ahead), &Stop::never()).unwrap();
    assert!(merge.correct(&open(""), output, &Stop::never()).unwrap().is_some());
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

/// Peak resident memory of the real program, in MiB: what the kernel last said of it (`VmHWM`, proc_pid_status(5)); the
/// figure of getrusage(2) begins with the size of the process that started it.
fn memory(root: &Path) -> u64 {
    let (shell, program) = (Shell::new().unwrap(), env!("CARGO_BIN_EXE_composefs-finalize"));
    shell.change_dir(root);
    let merge = cmd!(shell, "{program} etc merge --pristine p --current c --new n --output m");
    let mut child = Command::from(merge.ignore_stdout()).spawn().unwrap();
    let mut peak = 0;
    while child.try_wait().unwrap().is_none() {
        let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib: Option<u64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        peak = kib.unwrap_or_default().max(peak);
    }
    peak / 1024
}

/// Microseconds that each system call takes which an untouched path cannot do without, measured alone: the best of five
/// rounds over all files of the new tree.
fn calls(root: &Path) -> String {
    const NAMES: [&str; 6] = ["openat", "statx", "flistxattr", "read", "close", "linkat"];
    let mut best = [f64::INFINITY; 6];
    for round in 0..5 {
        let (mut spent, mut files) = ([Duration::ZERO; 6], 0);
        let output = root.join(format!("calls{round}"));
        for entry in fs::read_dir(root.join("n")).unwrap() {
            let (from, to) = (entry.as_ref().unwrap().path(), output.join(entry.unwrap().file_name()));
            fs::create_dir_all(&to).unwrap();
            let names: Vec<_> = fs::read_dir(&from).unwrap().map(|name| name.unwrap().file_name()).collect();
            let (from, to) = (fs::File::open(from).unwrap(), fs::File::open(to).unwrap());
            files += names.len();
            let mut clock = Instant::now();
            let mut lap = |call: usize| spent[call] += std::mem::replace(&mut clock, Instant::now()).elapsed();
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let open: Vec<_> = names.iter().map(|name| openat(&from, name, flags, Mode::empty()).unwrap()).collect();
            lap(0);
            let stat = |file| statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).unwrap().stx_size;
            let sizes: Vec<_> = open.iter().map(stat).collect();
            lap(1);
            open.iter().for_each(|file| _ = flistxattr(file, &mut [0; 512]).unwrap());
            lap(2);
            let mut buffer = vec![0; 1 << 17];
            open.iter().zip(sizes).for_each(|(file, size)| _ = read(file, &mut buffer[..size as usize]).unwrap());
            lap(3);
            drop(open);
            lap(4);
            names.iter().for_each(|name| linkat(&from, name, &to, name, AtFlags::empty()).unwrap());
            lap(5);
        }
        let each = spent.map(|spent| spent.as_secs_f64() * 1e6 / files as f64);
        best = std::array::from_fn(|call| best[call].min(each[call]));
    }
    NAMES.iter().zip(best).map(|(name, best)| format!("{name} {best:.2}")).collect::<Vec<_>>().join(", ")
}

const CONFLICTS: usize = 4_000;

/// So many files in one directory, on which both sides differ: by content, or by type (a file here, a directory with a
/// file in it in both images); or which only were edited here. And as many in directories of their own (`dirs`).
fn conflicts(root: &Path, kind: &str) {
    for (side, content) in [("p", "1"), ("c", "2"), ("n", if kind.starts_with("local") { "1" } else { "3" })] {
        for number in 0..CONFLICTS {
            let path = root.join(side).join("d").join(format!("f{number}"));
            let is_dir = kind == "local dirs" || (kind == "type" && side != "c");
            let path = if is_dir { path.join("a") } else { path };
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
}

/// The time that this process has had a processor, which does not grow with what else the machine does.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// What conflicts cost, beside as many files that were only edited here. A type conflict has a directory more on each
/// side than a file that is edited in place: what it costs is to be seen beside files in directories of their own.
fn measure_conflicts(criterion: &mut Criterion) {
    let rows = [("local", None), ("local dirs", None), ("content", Some(Keep::Local)), ("content", Some(Keep::Image))];
    let rows = rows.into_iter().chain([("content", Some(Keep::Both)), ("type", Some(Keep::Local))]);
    let rows = rows.chain([("type", Some(Keep::Image)), ("type", Some(Keep::Both))]);
    let group_name = format!("conflicts {CONFLICTS}");
    let mut local = None;
    for (kind, keep) in rows {
        let name = keep.map_or(kind.to_owned(), |keep| format!("{kind} {keep:?}").to_lowercase());
        // In memory: what grows with the number of conflicts is work, and not what a disk does.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let root = LazyCell::new(|| {
            conflicts(dir.path(), kind);
            dir.path()
        });
        // A rule would match what is below too: the policy is for the conflicts alone.
        let rules = keep.filter(|_| kind == "content").map(|keep| Rule::new("d/*", keep).unwrap());
        let type_clash = keep.unwrap_or(Keep::Image);
        let policy = Policy { rules: rules.into_iter().collect(), type_clash, ..Policy::default() };
        let (mut run, mut least) = (0, f64::INFINITY);
        criterion.benchmark_group(&group_name).bench_function(&name, |b| {
            b.iter(|| {
                run += 1;
                let before = processor_time();
                merge_by(&policy, &root, &format!("m{run}"));
                // Once the trees are there.
                least = if run == 1 { least } else { least.min(processor_time() - before) };
            });
        });
        let (Some(spent), 2..) = (mean(&group_name, &name), run) else { continue };
        let base = *local.get_or_insert((spent, least));
        let (times, of_a_processor) = (spent / base.0, least / base.1);
        print!("{CONFLICTS} {name:14} {:8.1} ms, {times:.2} times the first; ", spent / 1e6);
        println!("{:8.1} ms of a processor, {of_a_processor:.2} times", least * 1e3);
    }
}

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(8))
        .without_plots()
        .configure_from_args();
    measure_conflicts(&mut criterion);
    println!(
        "files    hashing / merge    merge / walk    merge, µs a file    merge / what is left of it    peak memory"
    );
    for files in SIZES {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        // Made when the first row is measured, which a filter on the command line may leave out.
        let root = LazyCell::new(|| {
            trees(dir.path(), files);
            dir.path()
        });
        let group_name = format!("etc {files}");
        let mut group = criterion.benchmark_group(&group_name);
        let mut run = 0;
        group.bench_function("merge", |b| {
            b.iter(|| {
                run += 1;
                merge(&root, &format!("m{run}"));
            });
        });
        group.bench_function("after", |b| {
            let prepare = || {
                run += 1;
                let output = format!("m{run}");
                (ahead(&root, &output), output)
            };
            let finish = |(memory, output): (Vec<u8>, String)| merge_after(&root, &output, &memory);
            b.iter_batched(prepare, finish, BatchSize::PerIteration);
        });
        group.bench_function("sha256", |b| {
            b.iter(|| three(&root, &mut |path| _ = std::hint::black_box(Sha256::digest(fs::read(path).unwrap()))));
        });
        group.bench_function("walk", |b| {
            b.iter(|| three(&root, &mut |path| _ = std::hint::black_box(fs::symlink_metadata(path).unwrap())));
        });
        group.finish();
        let means = ["merge", "sha256", "walk", "after"].map(|what| mean(&group_name, what));
        let ([Some(merge), Some(sha256), Some(walk), Some(after)], 1..) = (means, run) else { continue };
        let (ratio, floor, each) = (sha256 / merge, merge / walk, merge / files as f64 / 1000.0);
        let left = merge / after;
        println!("{files:6} {ratio:15.1} {floor:15.1} {each:17.1} {left:17.1} {:22} MiB", memory(&root));
        println!("       each call alone, µs: {}", calls(&root));
    }
}
