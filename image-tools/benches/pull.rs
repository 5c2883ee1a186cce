//! Reading an image into a repository, and making a disk of it, against what else reads its layers: tar, umoci, and composefs'
//! own way. In one run, one after the other, several rounds; what is printed is the median of each, and its ratio to tar.
//!
//! `BENCH_IMAGE` is an OCI layout with the tag `latest`, the demo's unless told; temporary files are best in memory (`TMPDIR`).
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark")]

use std::{
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

const ROUNDS: usize = 7;

/// What is timed: a name, and the work, which gets an empty directory.
type Rival<'a> = (&'a str, Box<dyn Fn(&Path) + 'a>);

fn main() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/oci/trixie/v2");
    let layout = PathBuf::from(std::env::var("BENCH_IMAGE").unwrap_or_else(|_| demo.to_owned()));
    let name = format!("oci:{}:latest", layout.display());
    let runtime = Runtime::new().unwrap();
    let resolve = |scratch: &Path| Image::resolve(name.parse().unwrap(), None, scratch).unwrap();
    let untar = |scratch: &Path| {
        let shell = program::shell().unwrap();
        for layer in &resolve(scratch).layers {
            let blob = layout.join("blobs/sha256").join(layer.descriptor.digest().digest());
            // Where a layer replaces a link, tar stumbles, and goes on.
            _ = cmd!(shell, "tar --extract --file {blob} --directory {scratch}")
                .quiet()
                .ignore_stderr()
                .ignore_status()
                .run();
        }
    };
    let umoci = |scratch: &Path| {
        let (shell, bundle) = (program::shell().unwrap(), scratch.join("bundle"));
        program::run(cmd!(shell, "umoci unpack --image {layout}:latest {bundle}")).unwrap();
    };
    let theirs = |scratch: &Path| {
        let mut config = RepositoryConfig::new(Algorithm::for_hash::<Sha512HashValue>()).set_insecure();
        config.erofs_formats = FormatConfig::single(FormatVersion::V2);
        let (repository, _) = Repository::init_path(CWD, scratch.join("repository"), config).unwrap();
        let repository: Arc<Repository<Sha512HashValue>> = Arc::new(repository);
        let pulled = runtime.block_on(composefs_oci::pull(&repository, &name, None, PullOptions::default())).unwrap();
        generate_boot_image(&repository, &pulled.manifest_digest, &OciTransformOptions::default()).unwrap();
    };
    let ours = |scratch: &Path| {
        let store = Store::create(&scratch.join("store"), runtime.handle().clone()).unwrap();
        store.pull(&resolve(scratch)).unwrap();
    };
    let build = |scratch: &Path| {
        let (shell, disk, program) =
            (program::shell().unwrap(), scratch.join("disk"), env!("CARGO_BIN_EXE_image-tools"));
        program::run(cmd!(shell, "{program} build --image {name} --output {disk}")).unwrap();
    };
    let rivals: [Rival<'_>; 5] = [
        ("tar, all layers", Box::new(untar)),
        ("umoci unpack", Box::new(umoci)),
        ("composefs-oci, nothing verified: objects and EROFS image", Box::new(theirs)),
        ("ours, all verified: objects and EROFS image", Box::new(ours)),
        ("ours, a bootable disk", Box::new(build)),
    ];
    let mut times = vec![vec![]; rivals.len()];
    for _ in 0..ROUNDS {
        for ((_, work), times) in rivals.iter().zip(&mut times) {
            let scratch = tempfile::tempdir().unwrap();
            let begun = Instant::now();
            work(scratch.path());
            times.push(begun.elapsed());
        }
    }
    let medians: Vec<Duration> = times.into_iter().map(median).collect();
    for ((name, _), time) in rivals.iter().zip(&medians) {
        println!("{:6} ms {:5.2}  {name}", time.as_millis(), time.as_secs_f64() / medians[0].as_secs_f64());
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
