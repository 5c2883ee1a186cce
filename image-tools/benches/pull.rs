//! Reading an image into a repository, and making a disk of it, against what else does such things: tar, umoci, composefs' own
//! way, and mke2fs. In one run, one after the other, several rounds; what is printed is the median of each, and its ratio to tar.
//!
//! `BENCH_IMAGE` is an OCI layout with the tag `latest`, the demo's v2 unless told; `BENCH_BEFORE`, the demo's v1, is what the
//! cache has seen before; `hack/large-image` makes such layouts of any size, and `BENCH_SIZE` MiB is what mke2fs makes of
//! others' trees. Temporary files are best in memory (`TMPDIR`). systemd-repart, which is what mkosi makes disks with, takes part
//! where it can do without loop devices (254 and later; `REPART` names another one than the machine's), and mkosi itself where it
//! is there (`MKOSI` likewise).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use composefs::{
    erofs::format::{FormatConfig, FormatVersion},
    fsverity::{Algorithm, Sha512HashValue},
    generic_tree::OciTransformOptions,
    repository::{Repository, RepositoryConfig},
};
use composefs_oci::{PullOptions, boot::generate_boot_image};
use image_tools::{oci::Image, program, store::Store};
use rustix::fs::CWD;
use tokio::runtime::Runtime;
use xshell::cmd;

/// What is timed: a name, and the work, which gets an empty directory.
type Rival<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

fn layout(variable: &str, version: &str) -> PathBuf {
    let demo = format!("{}/../target/oci/trixie/{version}", env!("CARGO_MANIFEST_DIR"));
    PathBuf::from(std::env::var(variable).unwrap_or(demo))
}

fn name(layout: &Path) -> String {
    format!("oci:{}:latest", layout.display())
}

fn resolve(layout: &Path, scratch: &Path) -> Image {
    Image::resolve(name(layout).parse().unwrap(), None, scratch).unwrap()
}

fn untar(layout: &Path, scratch: &Path) {
    let shell = program::shell().unwrap();
    for layer in &resolve(layout, scratch).layers {
        let blob = layout.join("blobs/sha256").join(layer.descriptor.digest().digest());
        // Where a layer replaces a link, tar stumbles, and goes on.
        let tar = cmd!(shell, "tar --extract --file {blob} --directory {scratch}");
        _ = tar.quiet().ignore_stderr().ignore_status().run();
    }
}

fn umoci(layout: &Path, scratch: &Path) -> PathBuf {
    let (shell, bundle) = (program::shell().unwrap(), scratch.join("bundle"));
    program::run(cmd!(shell, "umoci unpack --image {layout}:latest {bundle}")).unwrap();
    bundle.join("rootfs")
}

fn theirs(layout: &Path, scratch: &Path) -> PathBuf {
    let (runtime, path) = (Runtime::new().unwrap(), scratch.join("repository"));
    let mut config = RepositoryConfig::new(Algorithm::for_hash::<Sha512HashValue>()).set_insecure();
    config.erofs_formats = FormatConfig::single(FormatVersion::V2);
    let (repository, _) = Repository::init_path(CWD, &path, config).unwrap();
    let repository: Arc<Repository<Sha512HashValue>> = Arc::new(repository);
    let name = name(layout);
    let pulled = composefs_oci::pull(&repository, &name, None, PullOptions::default());
    let pulled = runtime.block_on(pulled).unwrap();
    generate_boot_image(&repository, &pulled.manifest_digest, &OciTransformOptions::default()).unwrap();
    path
}

fn mke2fs(dir: &Path) {
    let (shell, image) = (program::shell().unwrap(), dir.with_extension("ext4"));
    let size = format!("{}M", number("BENCH_SIZE", 3584));
    program::run(cmd!(shell, "mke2fs -q -t ext4 -d {dir} {image} {size}")).unwrap();
}

fn build(layout: &Path, scratch: &Path, more: &[&Path]) {
    let (shell, disk, program) = (program::shell().unwrap(), scratch.join("disk"), env!("CARGO_BIN_EXE_image-tools"));
    let image = name(layout);
    let build = cmd!(shell, "{program} build --image {image} --output {disk}");
    program::run(build.args(more)).unwrap();
}

/// A systemd-repart that needs neither root nor loop devices.
fn repart() -> Option<String> {
    let program = std::env::var("REPART").unwrap_or_else(|_| "systemd-repart".to_owned());
    let shell = program::shell().unwrap();
    let help = program::output(cmd!(shell, "{program} --help")).ok()?;
    String::from_utf8_lossy(&help.stdout).contains("--offline").then_some(program)
}

/// A disk with the tree at `root`, without composefs and fs-verity.
fn partitioned(repart: &str, root: &Path, scratch: &Path) {
    let definition = |kind: &str, more: &str| format!("[Partition]\nType={kind}\nCopyFiles={more}\n");
    let (definitions, disk) = (scratch.join("definitions"), scratch.join("disk"));
    std::fs::create_dir(&definitions).unwrap();
    std::fs::write(definitions.join("1.conf"), definition("esp", "/boot:/\nFormat=vfat\nSizeMinBytes=512M")).unwrap();
    std::fs::write(definitions.join("2.conf"), definition("root", "/:/\nFormat=ext4\nSizeMinBytes=2G")).unwrap();
    let shell = program::shell().unwrap();
    let words = ["--empty=create", "--size=3G", "--dry-run=no", "--offline=yes"];
    let make = cmd!(shell, "{repart} {words...} --definitions {definitions} --root {root} {disk}");
    program::run(make).unwrap();
}

/// mkosi, where it is there.
fn mkosi() -> Option<String> {
    let program = std::env::var("MKOSI").unwrap_or_else(|_| "mkosi".to_owned());
    let shell = program::shell().unwrap();
    program::output(cmd!(shell, "{program} --version")).ok()?.status.success().then_some(program)
}

/// The same disk by mkosi, which copies the tree first, and reads devices in it as if they were files.
fn by_mkosi(mkosi: &str, root: &Path, scratch: &Path) {
    let shell = program::shell().unwrap();
    program::run(cmd!(shell, "find {root}/dev -type c -delete")).unwrap();
    let config = format!(
        "[Distribution]\nDistribution=custom\n[Output]\nFormat=disk\nOutputDirectory={0}/out\n[Build]\nWorkspaceDirectory={0}\n\
         [Content]\nBootable=no\nBaseTrees={1}\n",
        scratch.display(),
        root.display()
    );
    std::fs::create_dir_all(scratch.join("mkosi/mkosi.repart")).unwrap();
    std::fs::create_dir(scratch.join("out")).unwrap();
    std::fs::write(scratch.join("mkosi/mkosi.conf"), config).unwrap();
    let partition = "[Partition]\nType=root\nCopyFiles=/\nFormat=ext4\nSizeMinBytes=2G\n";
    std::fs::write(scratch.join("mkosi/mkosi.repart/1.conf"), partition).unwrap();
    program::run(cmd!(shell, "{mkosi} --directory {scratch}/mkosi --force build")).unwrap();
}

/// A cache that has seen an image, and how one builds with it: what is new is removed again.
struct Cache {
    dir: tempfile::TempDir,
    there: HashSet<PathBuf>,
}

impl Cache {
    fn of(layout: &Path) -> Self {
        let (dir, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        build(layout, scratch.path(), &[Path::new("--cache"), dir.path()]);
        let mut cache = Self { dir, there: HashSet::new() };
        cache.there = cache.kept();
        cache
    }

    fn kept(&self) -> HashSet<PathBuf> {
        std::fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    fn build(&self, layout: &Path, scratch: &Path) {
        build(layout, scratch, &[Path::new("--cache"), self.dir.path()]);
        self.kept().difference(&self.there).for_each(|layer| std::fs::remove_file(layer).unwrap());
    }
}

fn main() {
    let (image, before) = (&layout("BENCH_IMAGE", "v2"), layout("BENCH_BEFORE", "v1"));
    let (same, other) = (Cache::of(image), Cache::of(&before));
    let pull = |scratch: &Path| {
        let store = Store::create(&scratch.join("store")).unwrap();
        store.pull(&resolve(image, scratch)).unwrap();
    };
    let mut rivals: Vec<Rival<'_>> = vec![
        ("tar, all layers", Box::new(|dir| untar(image, dir))),
        ("umoci unpack", Box::new(|dir| drop(umoci(image, dir)))),
        ("umoci unpack, and mke2fs -d", Box::new(|dir| mke2fs(&umoci(image, dir)))),
        ("composefs-oci, nothing verified: objects and EROFS image", Box::new(|dir| drop(theirs(image, dir)))),
        ("the same, and mke2fs -d", Box::new(|dir| mke2fs(&theirs(image, dir)))),
        ("ours, all verified: objects and EROFS image", Box::new(pull)),
        ("ours, a bootable disk", Box::new(|dir| build(image, dir, &[]))),
        ("ours, a bootable disk, --cache has seen the image before", Box::new(|dir| other.build(image, dir))),
        ("ours, a bootable disk, --cache has seen this image", Box::new(|dir| same.build(image, dir))),
    ];
    if let Some(repart) = repart() {
        let work = move |dir: &Path| partitioned(&repart, &umoci(image, dir), dir);
        rivals.insert(3, ("umoci unpack, and systemd-repart", Box::new(work)));
    }
    if let Some(mkosi) = mkosi() {
        let work = move |dir: &Path| by_mkosi(&mkosi, &umoci(image, dir), dir);
        rivals.insert(3, ("umoci unpack, and mkosi", Box::new(work)));
    }
    let mut times = vec![vec![]; rivals.len()];
    for _ in 0..number("BENCH_ROUNDS", 7) {
        for ((_, work), times) in rivals.iter().zip(&mut times) {
            let scratch = tempfile::tempdir().unwrap();
            let (begun, before) = (Instant::now(), processor());
            work(scratch.path());
            times.push([begun.elapsed(), processor() - before]);
        }
    }
    let median = |which: usize, times: &[[Duration; 2]]| median(times.iter().map(|both| both[which]).collect());
    println!("wall           processor");
    for ((name, _), mine) in rivals.iter().zip(&times) {
        for which in [0, 1] {
            let (time, tar) = (median(which, mine), median(which, &times[0]));
            print!("{:5} ms {:5.2}  ", time.as_millis(), time.as_secs_f64() / tar.as_secs_f64());
        }
        println!("{name}");
    }
}

/// The processor time of this program and of those that it has run (proc_pid_stat(5); hundredths of a second), which says more
/// than the clock where others are at work too.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(')').next().unwrap().split_whitespace();
    let ticks: u64 = fields.skip(11).take(4).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
