//! From OCI images to bootable composefs disk images, without root, loop devices, mounts or a helper VM.

pub mod bootloader;
pub mod build;
pub mod cli;
pub mod cmd;
pub mod crash;
pub mod deploy;
pub mod disk;
pub mod inspect;
pub mod oci;
pub mod payload;
pub mod recipe;
pub mod seal;
pub mod sparse;
pub mod tree;
pub mod uki;
pub mod vm;
