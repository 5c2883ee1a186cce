//! Tests on real files, in temporary directories.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "tests print how much they tried")]

mod boot_swap;
mod crash;
mod etc_merge;
mod finalize;
mod machine;
