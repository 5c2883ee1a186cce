//! What pins the default entry, and follows to a new deployment, or is removed.
//!
//! `LoaderEntryDefault` and GRUB's `saved_entry` that name exactly one entry, and that one of ours, say "the system that I
//! have": they follow to the new deployment. Anything else is somebody's decision. It stays, unless the configuration says
//! `[boot] unpin = true`; then the pin is removed. Either is done after the exchange is durable: a power cut before, and the
//! pin is as it was.

use anyhow::{Context, Result};

use super::{Host, devices, place};
use crate::{
    boot::order::{Decision, Environment, Item, Pin, Pinned},
    digest::DeploymentId,
    sys,
};

/// Lets the pin of `decision` follow to deployment `to`, or removes the pin where `unpin` says so. Says what was done;
/// nothing where there is nothing to do.
///
/// # Errors
///
/// When the variable, the environment block or loader.conf cannot be written; then the pin is as it was.
pub fn follow(host: &Host, decision: &Decision, to: &DeploymentId, unpin: bool) -> Result<Option<String>> {
    let Some(pinned) = decision.pinned.as_ref().filter(|_| decision.deployment() != Some(to)) else { return Ok(None) };
    let target = decision.order.iter().find(|item| item.deployment.as_ref() == Some(to));
    if let Some(item) = target.filter(|_| pinned.names_ours && !unpin)
        && set(host, pinned.pin, Some(item)).with_context(|| format!("changing {pinned}"))?
    {
        return Ok(Some(format!(
            "{pinned} named an entry of this system, and names {} now",
            name_of(pinned.pin, item)
        )));
    }
    if unpin && remove(host, pinned).with_context(|| format!("removing {pinned}"))? {
        return Ok(Some(format!("removed what pinned another entry ([boot] unpin = true): {pinned}")));
    }
    Ok(None)
}

/// What the pin has to say to mean this line.
fn name_of(pin: Pin, item: &Item) -> &str {
    match pin {
        Pin::SavedEntry if item.id.is_empty() => &item.name,
        Pin::SavedEntry => item.stem(),
        _ => &item.id,
    }
}

/// Makes a lasting pin mean `item`, or nothing at all. False where the pin is not one that this program sets.
fn set(host: &Host, pin: Pin, item: Option<&Item>) -> Result<bool> {
    let value = item.map(|item| name_of(pin, item));
    match pin {
        Pin::DefaultVariable => devices::set_efi_variable(&host.ambient.sys, "LoaderEntryDefault", value)?,
        Pin::SavedEntry => set_grub(host, "saved_entry", value)?,
        _ => return Ok(false),
    }
    Ok(true)
}

fn remove(host: &Host, pinned: &Pinned) -> Result<bool> {
    match pinned.pin {
        Pin::SavedByVariable => devices::set_efi_variable(&host.ambient.sys, "LoaderEntryDefault", None)?,
        Pin::PreferredVariable => devices::set_efi_variable(&host.ambient.sys, "LoaderEntryPreferred", None)?,
        Pin::OneShotVariable => devices::set_efi_variable(&host.ambient.sys, "LoaderEntryOneShot", None)?,
        Pin::NextEntry => set_grub(host, "next_entry", None)?,
        Pin::LoaderConf | Pin::SavedByConf => remove_from_loader_conf(host, "default")?,
        Pin::PreferredByConf => remove_from_loader_conf(host, "preferred")?,
        // A program of somebody's.
        Pin::GrubCfg => return Ok(false),
        pin => return set(host, pin, None),
    }
    Ok(true)
}

/// Sets or removes a variable of GRUB's environment block, in place, as GRUB itself does (`save_env`).
pub fn set_grub(host: &Host, name: &str, value: Option<&str>) -> Result<()> {
    let (_, boot) = place::boot_dir(host)?;
    for path in ["grub2/grubenv", "grub/grubenv"] {
        let Some(block) = sys::file::read_bytes(&boot, path, 1 << 16).with_context(|| format!("reading {path}"))?
        else {
            continue;
        };
        let edited = Environment::edited(&block, name, value).with_context(|| format!("{path} has no room"))?;
        return sys::file::overwrite(&boot, path, &edited).with_context(|| format!("writing {path}"));
    }
    Ok(())
}

/// Why GRUB cannot write its environment block (`save_env`), as far as can be told from here; nothing where it can.
///
/// It writes the blocks of the file in place: on file systems that hold data elsewhere too, and on what several devices hold
/// together, it cannot ("Environment block" in the GNU GRUB manual). Directories in memory are those of tests.
///
/// # Errors
///
/// When the boot directory cannot be opened.
pub fn grub_cannot_write(host: &Host) -> Result<Option<String>> {
    const FILE_SYSTEMS: [rustix::fs::FsWord; 3] = [0xef53, 0x4d44, 0x0102_1994];
    let (_, boot) = place::boot_dir(host)?;
    if !FILE_SYSTEMS.contains(&rustix::fs::fstatfs(&boot).context("looking at the boot file system")?.f_type) {
        return Ok(Some("GRUB writes no grubenv on this boot file system; it can on ext4 and FAT".to_owned()));
    }
    let device = rustix::fs::fstat(&boot).context("looking at the boot file system")?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let below = host.ambient.sys.join(format!("dev/block/{major}:{minor}"));
    if ["dm", "md"].iter().any(|kind| below.join(kind).exists()) {
        return Ok(Some("GRUB writes no grubenv on LVM, RAID or an encrypted device".to_owned()));
    }
    for path in ["grub2/grubenv", "grub/grubenv"] {
        match sys::file::read_bytes(&boot, path, 1 << 16).with_context(|| format!("reading {path}"))? {
            Some(block) if Environment::edited(&block, "composefs_trial", Some(&"x".repeat(64))).is_some() => {
                return Ok(None);
            }
            Some(_) => {
                return Ok(Some(format!("{path} is no environment block with room: make one with grub-editenv")));
            }
            None => {}
        }
    }
    Ok(Some("there is no grubenv: make one with grub-editenv".to_owned()))
}

/// Takes the lines with `key` out of the loader.conf of each ESP; every other byte stays.
fn remove_from_loader_conf(host: &Host, key: &str) -> Result<()> {
    for esp in place::esps(host)? {
        let Ok(loader) = esp.open_dir("loader") else { continue };
        let name = "loader.conf";
        let Some(text) = sys::file::read_bytes(&loader, name, 1 << 20).context("reading loader/loader.conf")? else {
            continue;
        };
        let lines = text.split_inclusive(|byte| *byte == b'\n');
        let has_key =
            |line: &&[u8]| line.trim_ascii_start().split(u8::is_ascii_whitespace).next() == Some(key.as_bytes());
        let kept: Vec<u8> = lines.filter(|line| !has_key(line)).flatten().copied().collect();
        if kept != text {
            sys::file::write_atomic_like(&loader, name, &kept, name).context("writing loader/loader.conf")?;
            sys::sync::file_system(loader.open(".")?).context("syncing the ESP")?;
        }
    }
    Ok(())
}
