//! Every file system of this machine in which boot entries, kernels or UKIs may lie, whatever takes part in the next exchange.

use anyhow::Result;
use cap_std::fs::Dir;

use super::{
    Host,
    place::{boot_dir, boot_of_systemd_boot, esps, loader},
};
use crate::{
    boot::Loader,
    layout::{GRUB, USER_CFG, USER_CFG_STAGED},
};

/// The root of each ESP, the directory that holds GRUB's files, and the boot partition that systemd-boot reads.
///
/// # Errors
///
/// When one of those that the boot loader reads cannot be found or mounted: what it names is then not known.
pub fn roots(host: &Host) -> Result<Vec<Dir>> {
    let loader = loader(host)?;
    let boot = match boot_dir(host) {
        Ok((_, boot)) => Some(boot),
        Err(error) if loader == Loader::Grub => return Err(error),
        Err(_) => None,
    };
    let has_ukis = |boot: &Dir| [USER_CFG, USER_CFG_STAGED].iter().any(|name| boot.exists(format!("{GRUB}/{name}")));
    let mut roots = match esps(host) {
        Ok(esps) => esps,
        // A machine with a BIOS has none.
        Err(_) if loader == Loader::Grub && !boot.as_ref().is_some_and(has_ukis) => vec![],
        Err(error) => return Err(error),
    };
    if loader != Loader::Grub {
        roots.extend(boot_of_systemd_boot(host)?);
    }
    roots.extend(boot);
    Ok(roots)
}
