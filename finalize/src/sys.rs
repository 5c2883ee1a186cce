//! System calls, one operation a file. Everything that changes a disk is here, so that a test can stop the program
//! before the n-th change (see [`fault`]), and nothing above needs `unsafe`.

pub mod fat;
pub mod fault;
pub mod file;
pub mod flags;
pub(crate) mod freeze;
pub mod limit;
pub mod mount;
pub mod node;
pub mod remove;
pub mod rename;
pub(crate) mod space;
pub mod stamp;
pub mod sync;
pub mod unit;
pub mod xattr;
