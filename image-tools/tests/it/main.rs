//! The real program on OCI layouts made here.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod arch;
mod asked;
mod bad_input;
mod boot_paths;
mod build;
mod cache;
mod erofs;
mod found;
mod layers;
mod layout;
mod loaders;
mod manual;
mod oci;
mod oracle;
mod others;
mod own;
mod plan;
mod registry;
mod same;
mod secure;
mod stage;
mod vm;
