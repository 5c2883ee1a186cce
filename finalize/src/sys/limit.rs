//! Limits of this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many open files as the process may have: each level of a tree takes some. Best effort; the soft limit is 1,024 for
/// the sake of select(2) alone.
pub fn open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}

/// At least four threads read trees, on however few processors: who waits for the disk in one thread reads on in another, and
/// the disk gets more than one request to choose from.
pub fn threads() {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    // A second call would change nothing.
    _ = rayon::ThreadPoolBuilder::new().num_threads(processors.max(4)).build_global();
}
