//! Limits of this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// As many open files as the process may have: each level of a tree takes some. Best effort; the soft limit is 1,024 for
/// the sake of select(2) alone.
pub fn open_files() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
}
