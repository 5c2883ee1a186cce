//! From OCI images to bootable composefs disk images.
