//! GRUB's `user.cfg`, one file, exchanged as a whole: a rename is one journal commit, so at every instant `user.cfg` is
//! the old menu or the new one. What is not ours in the live menu is carried into the staged one first.

use std::io;

use anyhow::{Context, Result, bail, ensure};
use cap_std::fs::Dir;

use super::{
    super::{
        count::Trial,
        user_cfg::{self, UserCfg},
    },
    Exchange, Stands,
};
use crate::{
    digest::DeploymentId,
    layout::{USER_CFG, USER_CFG_STAGED},
    sys,
};

/// The two menus of a machine.
#[derive(Debug)]
pub struct Menu {
    dir: Dir,
    id: DeploymentId,
    live: UserCfg,
    next: Option<UserCfg>,
    /// Whose boots are counted.
    trial: Option<Trial>,
    exchanged: bool,
}

impl Menu {
    /// Finds out, by content, where the exchange for deployment `id` stands in GRUB's directory. Writes nothing.
    ///
    /// # Errors
    ///
    /// When neither menu boots `id` first, or they cannot be read.
    pub fn probe(dir: &Dir, id: &DeploymentId) -> Result<(Self, Stands)> {
        let read = |name: &str| user_cfg::read(dir, name).with_context(|| format!("reading grub2/{name}"));
        let live = read(USER_CFG)?.unwrap_or_default();
        let next = read(USER_CFG_STAGED)?;
        let menu = Self { dir: dir.try_clone()?, id: id.clone(), live, next, trial: None, exchanged: false };
        if menu.live.deployments().first() == Some(id) {
            return Ok((menu, Stands::Exchanged));
        }
        match menu.next.as_ref().and_then(|next| next.deployments().into_iter().next()) {
            Some(next) if next == *id => Ok((menu, Stands::Ready)),
            Some(next) => bail!("grub2/user.cfg.staged boots {next}, not {id}: stage the deployment again"),
            None => bail!("grub2/user.cfg.staged boots no deployment: stage the deployment again"),
        }
    }

    fn swap(&self) -> Result<()> {
        let unsupported = |error: &io::Error| {
            matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOENT))
        };
        match sys::rename::exchange(&self.dir, USER_CFG, USER_CFG_STAGED) {
            Err(error) if unsupported(&error) => sys::rename::replace(&self.dir, USER_CFG_STAGED, USER_CFG),
            other => other,
        }
        .context("exchanging grub2/user.cfg and grub2/user.cfg.staged")
    }

    fn make_durable(&self) -> Result<()> {
        sys::sync::file_system(self.dir.open(".")?).context("syncing the boot file system")?;
        sys::sync::checkpoint(&self.dir).context("writing the boot file system's journal back")
    }
}

impl Exchange for Menu {
    fn boots(&self) -> Vec<String> {
        self.next.as_ref().and_then(|next| next.uki(&self.id)).into_iter().collect()
    }

    fn count(&mut self, trial: Option<&Trial>) -> Result<(), String> {
        let counts = |trial: &Trial| self.next.as_ref().and_then(|next| next.counting(trial)).is_some();
        if trial.is_some_and(|trial| !counts(trial)) {
            return Err("user.cfg.staged has no other deployment to go back to".to_owned());
        }
        self.trial = trial.cloned();
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        let next = self.next.take().unwrap_or_default();
        let mut merged = self.live.with_entries_of(&next);
        if let Some(counting) = self.trial.as_ref().and_then(|trial| merged.counting(trial)) {
            merged = counting;
        }
        ensure!(
            merged.deployments().first() == Some(&self.id),
            "grub2/user.cfg has a menuentry that would boot before that of {}: move it behind the others",
            self.id
        );
        if merged != next {
            sys::file::write_atomic_like(&self.dir, USER_CFG_STAGED, &merged.to_bytes(), USER_CFG)
                .context("carrying what is not ours into grub2/user.cfg.staged")?;
        }
        self.next = Some(merged);
        self.make_durable()
    }

    fn exchange(&mut self) -> Result<()> {
        self.swap()?;
        self.exchanged = true;
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.make_durable()?;
        let live = user_cfg::read(&self.dir, USER_CFG).context("reading grub2/user.cfg back")?.unwrap_or_default();
        let first = live.deployments().into_iter().next();
        ensure!(
            first.as_ref() == Some(&self.id),
            "grub2/user.cfg still boots {} first; expected {}",
            first.as_ref().map_or("nothing", DeploymentId::short),
            self.id.short()
        );
        Ok(())
    }

    fn take_back(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.exchanged) {
            return Ok(());
        }
        let old = user_cfg::read(&self.dir, USER_CFG_STAGED).context("reading grub2/user.cfg.staged")?;
        if old.is_none() && self.live == UserCfg::default() {
            // There was no menu before.
            sys::rename::move_to(&self.dir, USER_CFG, USER_CFG_STAGED).context("taking grub2/user.cfg away")?;
            return self.make_durable();
        }
        ensure!(old.as_ref() == Some(&self.live), "grub2/user.cfg.staged is not the old menu: nothing to go back to");
        self.swap()?;
        self.make_durable()
    }

    fn clean_up(&mut self) -> Result<()> {
        sys::remove::file(&self.dir, USER_CFG_STAGED).context("removing grub2/user.cfg.staged")?;
        sys::sync::file_system(self.dir.open(".")?).context("syncing the boot file system")
    }
}
