//! What `build`, `check`, `run` and `test` have in common, as typed: which machine, and how it boots.

use clap::Args;
use finalize::{boot::Loader, staged::BootType};

use crate::{arch::Arch, system::Way};

/// The machine's architecture, boot loader and boot type as typed.
#[derive(Clone, Copy, Debug, Args)]
pub struct Boots {
    /// The architecture, where an image is there for several; this machine's unless told
    #[arg(long, value_parser = super::arch)]
    pub arch: Option<&'static Arch>,
    /// systemd-boot or grub
    #[arg(long, default_value = "systemd-boot")]
    bootloader: Loader,
    /// bls or uki
    #[arg(long, default_value = "bls")]
    boot_type: BootType,
}

impl Boots {
    pub fn way(self) -> Way {
        Way { loader: self.bootloader, boot_type: self.boot_type }
    }
}
