//! GRUB's `user.cfg`: the menu of UKIs, one file, exchanged as a whole.
//!
//! A rename is one journal commit, so at every instant `user.cfg` is the old menu or the new one. Menuentries that are
//! not ours are carried into the staged file first.

use std::io;

use anyhow::{Context, Result, bail, ensure};
use cap_std::fs::Dir;

use super::{bls::id_of_uki, grub};
use crate::{
    digest::DeploymentId,
    layout::{BOOT_PREFIX, USER_CFG, USER_CFG_STAGED},
    sys,
};

/// The two menus of a machine.
#[derive(Debug)]
pub struct Menu {
    dir: Dir,
    id: DeploymentId,
    live: String,
    next: Option<String>,
}

/// Where the exchange stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stands {
    /// The staged menu boots the deployment.
    Ready,
    /// The live one does already.
    Exchanged,
}

impl Menu {
    /// Finds out, by content, where the exchange for deployment `id` stands in GRUB's directory. Writes nothing.
    ///
    /// # Errors
    ///
    /// When neither menu boots `id` first, or they cannot be read.
    pub fn probe(dir: &Dir, id: &DeploymentId) -> Result<(Self, Stands)> {
        let read = |name: &str| sys::file::read(dir, name).with_context(|| format!("reading grub2/{name}"));
        let live = read(USER_CFG)?.unwrap_or_default();
        let menu = Self { dir: dir.try_clone()?, id: id.clone(), live, next: read(USER_CFG_STAGED)? };
        if first(&menu.live).as_ref() == Some(id) {
            return Ok((menu, Stands::Exchanged));
        }
        match menu.next.as_deref().and_then(first) {
            Some(next) if next == *id => Ok((menu, Stands::Ready)),
            Some(next) => bail!("grub2/user.cfg.staged boots {next}, not {id}: stage the deployment again"),
            None => bail!("grub2/user.cfg.staged boots no deployment: stage the deployment again"),
        }
    }

    /// What the deployment's menuentry chainloads, a path on the ESP.
    pub fn uki(&self) -> Option<String> {
        let next = self.next.as_deref()?;
        grub::chainloaded(next)
            .into_iter()
            .map(|(_, path)| path)
            .find(|path| id_of_uki(path).as_ref() == Some(&self.id))
    }

    /// Carries the menuentries that are not ours into the staged menu, and makes it durable.
    ///
    /// # Errors
    ///
    /// Those of writing; the live menu is untouched.
    pub fn sync(&self) -> Result<()> {
        let next = self.next.clone().unwrap_or_default();
        let foreign: Vec<_> = blocks(&self.live).into_iter().filter(|block| !is_ours(block)).collect();
        let missing: String =
            foreign.into_iter().filter(|block| !next.contains(*block)).map(|b| format!("\n{b}")).collect();
        if !missing.is_empty() {
            let carried = format!("{}{missing}", ended(&next));
            sys::file::write_atomic(&self.dir, USER_CFG_STAGED, carried.as_bytes())
                .context("carrying menuentries into grub2/user.cfg.staged")?;
        }
        sys::sync::file_system(self.dir.open(".")?).context("syncing the boot file system")?;
        sys::sync::checkpoint(&self.dir).context("writing the boot file system's journal back")
    }

    /// The exchange.
    ///
    /// # Errors
    ///
    /// Those of renameat2(2); then the old menu is in place.
    pub fn exchange(&self) -> Result<()> {
        let unsupported = |error: &io::Error| {
            matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOENT))
        };
        match sys::rename::exchange(&self.dir, USER_CFG, USER_CFG_STAGED) {
            Err(error) if unsupported(&error) => sys::rename::replace(&self.dir, USER_CFG_STAGED, USER_CFG),
            other => other,
        }
        .context("exchanging grub2/user.cfg and grub2/user.cfg.staged")
    }

    /// Makes the exchange durable, also for GRUB, which replays no journal, and reads it back.
    ///
    /// # Errors
    ///
    /// Those of syncing, and when what is read back boots another deployment.
    pub fn settle(&self) -> Result<()> {
        sys::sync::file_system(self.dir.open(".")?).context("syncing grub2")?;
        sys::sync::checkpoint(&self.dir).context("writing the boot file system's journal back")?;
        let live = sys::file::read(&self.dir, USER_CFG).context("reading grub2/user.cfg back")?.unwrap_or_default();
        ensure!(first(&live).as_ref() == Some(&self.id), "after the exchange grub2/user.cfg boots {:?}", first(&live));
        Ok(())
    }

    /// Makes the old menu the live one again, durably.
    ///
    /// # Errors
    ///
    /// When there is no old menu, and those of renameat2(2) and syncing.
    pub fn take_back(&self) -> Result<()> {
        let old = self.next.as_deref().and_then(first);
        ensure!(old.is_some_and(|id| id != self.id), "grub2/user.cfg.staged has no deployment to go back to");
        self.exchange()?;
        sys::sync::file_system(self.dir.open(".")?).context("syncing grub2")?;
        sys::sync::checkpoint(&self.dir).context("writing the boot file system's journal back")
    }

    /// Removes the old menu.
    ///
    /// # Errors
    ///
    /// Those of unlink(2).
    pub fn clean_up(&self) -> Result<()> {
        sys::file::remove(&self.dir, USER_CFG_STAGED).context("removing grub2/user.cfg.staged")?;
        sys::sync::file_system(self.dir.open(".")?).context("syncing the boot file system")
    }
}

/// The deployments of a menu, the first one first.
pub fn deployments(menu: &str) -> impl Iterator<Item = DeploymentId> {
    grub::chainloaded(menu).into_iter().filter_map(|(_, path)| id_of_uki(&path))
}

fn first(menu: &str) -> Option<DeploymentId> {
    deployments(menu).next()
}

fn is_ours(block: &str) -> bool {
    block.contains(BOOT_PREFIX)
}

fn ended(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// The menuentries and submenus of a menu, each with its closing brace. Braces in quotes do not count; one that is never
/// closed goes to the end.
fn blocks(menu: &str) -> Vec<&str> {
    let mut found = vec![];
    let mut open: Option<usize> = None;
    let (mut depth, mut quote, mut at) = (0i64, None, 0);
    for line in menu.split_inclusive('\n') {
        if open.is_none() && ["menuentry ", "submenu "].iter().any(|word| line.trim_start().starts_with(word)) {
            (open, depth, quote) = (Some(at), 0, None);
        }
        let began = depth;
        for c in line.chars() {
            match (quote, c) {
                (None, '"' | '\'') => quote = Some(c),
                (Some(q), c) if q == c => quote = None,
                (None, '{') => depth += 1,
                (None, '}') => depth -= 1,
                _ => {}
            }
        }
        at += line.len();
        if let Some(start) = open.filter(|_| depth <= 0 && (began > 0 || line.contains('{'))) {
            found.push(&menu[start..at]);
            open = None;
        }
    }
    found.extend(open.map(|start| &menu[start..]));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn menuentries_are_told_apart_whatever_is_in_them() {
        let one = "menuentry \"a } b\" {\n  if x; then {\n echo '}'\n }; fi\n}\n";
        let two = "submenu 'more' {\n menuentry x {\n boot\n }\n}\n";
        let text = format!("source ${{x}}\n{one}set a=b\n{two}");
        assert_eq!(blocks(&text), [one, two]);
        assert_eq!(blocks("menuentry x {\n never closed"), ["menuentry x {\n never closed"]);
        for odd in ["", "}}}}", "menuentry", "menuentry \"", "'\n{{", "menuentry \"é\n{ }"] {
            _ = blocks(odd);
        }
    }
}
