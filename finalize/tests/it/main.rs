//! Tests on real files, in temporary directories.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![allow(clippy::print_stdout, reason = "tests print how much they tried")]

mod bad_boot_files;
mod boot_swap;
mod bootc_files;
mod crash;
mod discovery;
mod endings;
mod esps;
mod etc_laws;
mod etc_merge;
mod etc_policy;
mod etc_program;
mod etc_traps;
mod finalize;
mod frozen;
mod fuzz;
mod machine;
mod order;
mod tidy;
