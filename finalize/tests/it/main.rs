//! Tests on real files, in temporary directories.

mod boot_swap;
mod crash;
mod etc_merge;
mod finalize;
mod machine;
