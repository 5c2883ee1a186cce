//! The real program on OCI layouts made here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod bad_input;
mod boot_paths;
mod build;
mod layout;
mod vm;
