//! The boot loader's side of a finalization: which loader, where its entries live, and how they are exchanged.

pub mod bls;
pub mod entries;
pub mod esp;
pub mod loader;
pub mod swap;

use cap_std::fs::Dir;

pub use loader::Loader;

/// Where a boot loader finds its entries.
#[derive(Debug)]
pub struct Place {
    /// The root of the file system that holds kernels: paths in entries are absolute within it.
    pub root: Dir,
    /// The directory that holds `loader/`, relative to `root`: empty on an ESP or a boot partition, `boot` where boot
    /// is a directory of the root file system.
    pub boot: &'static str,
    /// Who reads the entries, and so how they are ordered.
    pub loader: Loader,
    /// How entries can be exchanged there.
    pub method: swap::Method,
}

impl Place {
    /// The directory that holds `entries` and `entries.staged`.
    ///
    /// # Errors
    ///
    /// Those of openat2(2); `NotFound` on a machine without Type #1 entries.
    pub fn loader_dir(&self) -> std::io::Result<Dir> {
        let boot = if self.boot.is_empty() { "." } else { self.boot };
        self.root.open_dir(boot)?.open_dir(crate::layout::LOADER)
    }
}
