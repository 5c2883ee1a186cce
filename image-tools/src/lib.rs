//! From OCI images to bootable composefs disk images. So far: the fs-verity metadata of a sealed repository, made offline.

pub mod disk;
