//! The parts of a disk image.

pub mod verity;
