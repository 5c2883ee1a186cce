//! Tests on real files, in temporary directories.

mod boot_swap;
mod etc_merge;
