//! The three trees of /etc of a machine, opened.

use std::os::fd::AsFd;

use anyhow::{Result, bail};
use cap_std::fs::Dir;

use crate::{
    config::Config,
    deployment::Deployment,
    etc::Sources,
    host::{EtcMount, Host, Pristine},
};

/// The three trees of a machine.
#[derive(Debug)]
pub struct EtcTrees {
    pristine: Pristine,
    /// The live /etc.
    pub current: Dir,
    new: Dir,
}

impl EtcTrees {
    /// The trees to merge; nothing where there is nothing to merge, with a note that says why.
    ///
    /// # Errors
    ///
    /// When a tree cannot be opened, and where /etc is mounted in a way that cannot be merged: says what to set.
    pub fn open(host: &Host, staged: &Deployment, config: &Config, notes: &mut Vec<String>) -> Result<Option<Self>> {
        let current = host.etc()?;
        match host.etc_mount(&current)? {
            _ if !config.merge_etc => {
                notes.push("the configuration says not to merge /etc".to_owned());
                return Ok(None);
            }
            EtcMount::Bind => {}
            EtcMount::Transient => {
                notes.push("/etc is transient: local changes vanish, nothing was merged".to_owned());
                return Ok(None);
            }
            EtcMount::Overlay => bail!(
                "/etc is an overlay (mount = \"overlay\" in [etc] of setup-root-conf.toml), which is not supported: \
                 set mount = \"bind\" in the image"
            ),
        }
        Ok(Some(Self { pristine: host.pristine()?, current, new: staged.new_etc()? }))
    }

    /// As the merge takes them.
    pub fn sources(&self) -> Sources<'_> {
        Sources {
            pristine: self.pristine.etc.as_ref().map(AsFd::as_fd),
            current: self.current.as_fd(),
            new: self.new.as_fd(),
        }
    }
}
