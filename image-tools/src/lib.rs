//! From OCI images to bootable composefs disk images, without root, loop devices, mounts or a helper VM.

pub mod arch;
pub mod build;
pub mod check;
pub mod cli;
pub mod crash;
pub mod deployment;
pub mod disk;
pub mod inspect;
pub mod live;
pub mod node;
pub mod oci;
pub mod own;
pub mod plan;
pub mod program;
pub mod progress;
pub mod seal;
pub mod secureboot;
pub mod sparse;
pub mod stage;
pub mod store;
pub mod system;
pub mod verity;
pub mod vm;
pub mod workshop;
