//! Takes a deployment that has failed out of a menu of GRUB, which counts no more then.

use anyhow::{Context, Result};
use cap_std::fs::Dir;

use super::{
    super::{
        Loader, Place,
        bls::Entry,
        entries::{Entries, is_entry},
        grub, user_cfg,
    },
    script,
};
use crate::{
    digest::DeploymentId,
    layout::{ENTRIES, USER_CFG},
    sys,
};

/// Takes deployment `id` out of the menu at `place`, durably. Only a menu that counts the boots of `id` is changed, and it keeps
/// another deployment: at every instant one of both menus is there as a whole. The one that is generated goes last: as long as it
/// counts, this can be done again.
///
/// # Errors
///
/// Those of reading and writing.
pub fn forgo(place: &Place, id: &DeploymentId) -> Result<()> {
    let is_counted = |menu: &str| script::trial(menu).is_some_and(|trial| trial.deployment == *id);
    match place {
        Place::Menu { grub, .. } => {
            let menu = user_cfg::read(grub, USER_CFG).context("reading grub2/user.cfg")?.unwrap_or_default();
            let without = menu.without(id);
            if is_counted(&String::from_utf8_lossy(&menu.to_bytes())) && !without.deployments().is_empty() {
                sys::file::write_atomic_like(grub, USER_CFG, &without.to_bytes(), USER_CFG)
                    .context("writing grub2/user.cfg")?;
                settle(grub)?;
            }
        }
        Place::Entries(entries) => {
            let loader = entries.loader_dir().context("opening loader/")?;
            let live = Entries::read(&loader, ENTRIES).context("reading loader/entries")?.unwrap_or_default();
            let is_of = |name: &str, text: &str| {
                is_entry(name) && text.parse::<Entry>().is_ok_and(|entry| entry.deployment().as_ref() == Some(id))
            };
            let (gone, kept): (Vec<_>, Vec<_>) = live.files().partition(|(name, text)| is_of(name, text));
            let kept: Entries = kept.into_iter().map(|(name, text)| (name.to_owned(), text.to_owned())).collect();
            if live.get(grub::GENERATED).is_some_and(is_counted) && kept.first_deployment(Loader::Grub).is_some() {
                let dir = loader.open_dir(ENTRIES).context("opening loader/entries")?;
                for (name, _) in gone {
                    sys::remove::file(&dir, name).with_context(|| format!("removing loader/entries/{name}"))?;
                }
                sys::sync::file_system(dir.open(".")?).context("syncing the boot file system")?;
                sys::file::write_atomic(&dir, grub::GENERATED, grub::menuentries(&kept).as_bytes())
                    .context("writing loader/entries/grub.cfg")?;
                settle(&dir)?;
            }
        }
    }
    Ok(())
}

/// On the disk, also for GRUB, which replays no journal.
fn settle(dir: &Dir) -> Result<()> {
    sys::sync::file_system(dir.open(".")?).context("syncing the boot file system")?;
    sys::sync::checkpoint(dir).context("writing the boot file system's journal back")
}
