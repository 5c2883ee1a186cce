//! The boot loader's side of a finalization: which loader, where its entries live, and how they are exchanged.

pub mod bls;
