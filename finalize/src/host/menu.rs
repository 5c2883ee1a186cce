//! The boot loader's menu of this machine, and what starts next: reads what [`crate::boot::order`] decides by.

use std::{io, path::Path};

use anyhow::{Context, Result};
use cap_std::fs::Dir;

use super::{Host, devices, place};
use crate::{
    boot::{
        EntriesPlace, Loader, Place,
        bls::{Entry, id_of_uki},
        count,
        entries::{Entries, is_entry},
        grub,
        loader::{utf16, version},
        order::{Decision, Environment, Item, Settings, Variables},
        uki,
    },
    layout::{EFI_LINUX, ENTRIES, USER_CFG},
    sys,
};

/// No file that GRUB or systemd-boot is set up with is larger.
const LIMIT: u64 = 1 << 20;

/// What starts next on the disk that booted, the last of `places`; nothing where there is no place.
///
/// # Errors
///
/// When entries cannot be read. Settings that cannot be read pin nothing.
pub fn decision(host: &Host, places: &[Place]) -> Result<Option<Decision>> {
    let Some(place) = places.last() else { return Ok(None) };
    Ok(Some(match place {
        Place::Entries(place) => {
            let (mut items, settings) = (items(place)?, settings(host, place.loader));
            if place.loader == Loader::Grub {
                let generated = text(&place.loader_dir()?, &format!("{ENTRIES}/{}", grub::GENERATED));
                count::mark(&mut items, &generated.unwrap_or_default(), &settings.environment);
            }
            Decision::of(place.loader, items, &settings)
        }
        Place::Menu { grub, .. } => {
            let (mut items, settings) = (menuentries(grub)?, settings(host, Loader::Grub));
            count::mark(&mut items, &text(grub, USER_CFG).unwrap_or_default(), &settings.environment);
            Decision::of(Loader::Grub, items, &settings)
        }
    }))
}

/// The lines of a directory of entries, and of the UKIs beside it that systemd-boot shows by themselves.
fn items(place: &EntriesPlace) -> Result<Vec<Item>> {
    let entries = match place.loader_dir() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        dir => Entries::read(&dir?, ENTRIES).context("reading loader/entries")?,
    };
    // systemd-boot shows no entry whose kernel is gone, GRUB does.
    let shows = |entry: &Entry| {
        let mut kernel = ["linux", "efi", "uki"].into_iter().filter_map(|key| entry.value(key));
        place.loader != Loader::SystemdBoot || kernel.all(|path| place.root.exists(path.trim_start_matches('/')))
    };
    let entries = entries.unwrap_or_default();
    let parsed = entries.files().filter(|(name, _)| is_entry(name));
    let parsed = parsed.filter_map(|(name, text)| Some((name, text.parse::<Entry>().ok()?)));
    let mut items: Vec<_> =
        parsed.filter(|(_, entry)| shows(entry)).map(|(name, entry)| Item::of_entry(name, &entry)).collect();
    if place.loader == Loader::SystemdBoot {
        ukis(&place.root, &mut items)?;
    }
    Ok(items)
}

fn ukis(esp: &Dir, items: &mut Vec<Item>) -> Result<()> {
    let dir = match esp.open_dir(EFI_LINUX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        dir => dir.with_context(|| format!("opening {EFI_LINUX}"))?,
    };
    for entry in dir.entries().with_context(|| format!("reading {EFI_LINUX}"))? {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else { continue };
        if uki::is_uki(&name) && entry.file_type()?.is_file() {
            let os_release = dir.open(&name).ok().and_then(|file| uki::os_release(file.into_std()));
            items.extend(os_release.map(|text| Item::of_uki(&name, &text, uki::deployment(&dir, &name))));
        }
    }
    Ok(())
}

fn menuentries(grub_dir: &Dir) -> Result<Vec<Item>> {
    let menu = text(grub_dir, USER_CFG).context("reading grub2/user.cfg")?;
    let entries = grub::chainloaded(&menu).into_iter();
    Ok(entries.map(|(title, path)| Item::of_menuentry("", &title, id_of_uki(&path))).collect())
}

/// Everything beside the entries that takes part in the choice. What cannot be read is as if it were not there.
fn settings(host: &Host, loader: Loader) -> Settings {
    let variable = |name| variable(&host.ambient.sys, name);
    let mut settings = Settings { version: variable("LoaderInfo").as_deref().and_then(version), ..Settings::default() };
    match loader {
        Loader::SystemdBoot => {
            let esp = place::esps(host).ok().and_then(|mut esps| esps.pop());
            settings.loader_conf = esp.and_then(|esp| text(&esp, "loader/loader.conf").ok()).unwrap_or_default();
            settings.variables = Variables {
                one_shot: variable("LoaderEntryOneShot"),
                preferred: variable("LoaderEntryPreferred"),
                default: variable("LoaderEntryDefault"),
                last_booted: variable("LoaderEntryLastBooted"),
            };
        }
        Loader::Grub => {
            let Ok((_, boot)) = place::boot_dir(host) else { return settings };
            for dir in ["grub2", "grub"].into_iter().filter_map(|name| boot.open_dir(name).ok()) {
                let block = sys::file::read_bytes(&dir, "grubenv", LIMIT).ok().flatten();
                settings.environment = Environment::parse(&block.unwrap_or_default());
                settings.grub_cfg = text(&dir, "grub.cfg").unwrap_or_default();
                if !settings.grub_cfg.is_empty() {
                    break;
                }
            }
        }
        Loader::GrubCc => {}
    }
    settings
}

/// The text of a variable of the Boot Loader Interface; none where it cannot be read.
pub fn variable(sys: &Path, name: &str) -> Option<String> {
    let value = devices::efi_variable(sys, name).ok().flatten();
    value.as_deref().and_then(utf16).filter(|text| !text.is_empty())
}

/// A file in whatever encoding; empty where there is none.
fn text(dir: &Dir, name: &str) -> io::Result<String> {
    let bytes = sys::file::read_bytes(dir, name, LIMIT)?;
    Ok(String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned())
}
