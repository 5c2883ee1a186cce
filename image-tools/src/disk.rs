//! The parts of a disk image.

pub mod esp;
pub mod ext4;
pub mod layout;
pub mod verity;
pub mod xfs;
