//! What is done ahead, while nobody waits. As soon as an update is staged, its finalization is planned, what is wrong with it is
//! said, the files that will boot are checked, and the merged /etc is made. At shutdown, what has moved since is done again.
//!
//! All of it may be lost at any moment: what is known is in /run, which a crash empties, and belongs to one boot, one image,
//! one staged deployment, one configuration and one version of this program; the tree is `etc.merging`, which is rubbish
//! whenever nobody knows of it. A finalization takes what is known away before it changes the tree.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use cap_std::fs::Dir;
use serde::{Deserialize, Serialize};

use crate::{
    boot::Checked,
    config::Config,
    deployment::Deployment,
    digest::DeploymentId,
    etc::{Ahead, Merge},
    failed,
    host::{Access, Host, open},
    layout::{MARKER_DIR, PREPARED, name_of},
    lock::Lock,
    outlook::Outlook,
    pending,
    staged::Marker,
    stop::Stop,
    sys::{self, stamp::Clock},
    trees::EtcTrees,
    update::Update,
};

/// No machine has so much to remember.
const LIMIT: u64 = 1 << 30;

/// What was done ahead.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Prepared {
    /// The merge of /etc.
    pub etc: Option<Ahead>,
    /// The files that will boot.
    pub boots: Vec<Checked>,
    /// The clocks when this began: where one was set back since, nothing of this is believed.
    clock: Option<Clock>,
}

impl Prepared {
    /// What was done ahead for deployment `id`; nothing where it was for another one or with other settings. It is taken: a
    /// second run finds nothing.
    pub fn take(host: &Host, id: &DeploymentId, config: &Config) -> Option<Self> {
        let taken = Self::read(host, id, config);
        // What cannot be taken away is not used: the next run could not know that it has been.
        let removed = pending::remove(host, PREPARED).and_then(|()| Outlook::remove(host));
        match removed {
            Ok(()) => taken,
            Err(error) => {
                tracing::warn!("{error:#}");
                None
            }
        }
    }

    fn read(host: &Host, id: &DeploymentId, config: &Config) -> Option<Self> {
        let bytes = sys::file::read_bytes(&open(&host.ambient.run).ok()?, PREPARED, LIMIT).ok()??;
        let prepared: Self = postcard::from_bytes(bytes.strip_prefix(heading(host, id, config).as_bytes())?).ok()?;
        Some(prepared).filter(|prepared| prepared.clock.is_some_and(|clock| !clock.went_back()))
    }

    fn write(&self, host: &Host, id: &DeploymentId, config: &Config) -> Result<()> {
        let mut bytes = heading(host, id, config).into_bytes();
        bytes.extend(postcard::to_stdvec(self)?);
        let run = open(&host.ambient.run)?;
        let write = || {
            sys::file::create_dir_all(&run, MARKER_DIR)?;
            sys::file::write_volatile(&run.open_dir(MARKER_DIR)?, name_of(PREPARED), 0o600, &bytes)
        };
        write().with_context(|| format!("writing {}/{PREPARED}", host.ambient.run.display()))
    }
}

/// What has to be the same, as text, and an empty line.
fn heading(host: &Host, id: &DeploymentId, config: &Config) -> String {
    let mut text = format!("composefs-finalize {}\n", env!("CARGO_PKG_VERSION"));
    let boot = host.boot_id.as_deref().unwrap_or("unknown");
    _ = write!(text, "{boot}\n{}\n{}\n{config:?}\n\n", host.booted.id, id);
    text
}

/// Prepares the update that `marker` names; nothing where another one is staged by now. What would keep the finalization from
/// its end is said in the outlook, and is no error.
///
/// # Errors
///
/// Those of the lock and of writing; when it is time to stop. The finalization does without.
pub fn prepare(host: &Host, marker: &Marker, stop: &Stop) -> Result<Option<Outlook>> {
    let id = &marker.depl_id;
    // What has just been written is too young to be known again.
    stop.pause(std::time::Duration::from_secs(sys::fault::tick().unsigned_abs()))?;
    let _lock = Lock::take(&host.sysroot, stop)?;
    if host.marker()?.is_none_or(|marker| marker.depl_id != *id) {
        return Ok(None);
    }
    let mut outlook = Outlook::of(id.clone());
    let config = host.config(&mut outlook.attention);
    outlook.attention.extend(failed::of_or_warn(&host.sysroot, id).map(|failed| failed.to_string()));
    pending::remove(host, PREPARED)?;
    // Whoever looks at a boot file system does not mount it writable.
    let look = Host::open(&host.ambient, Access::Read)?;
    let mut prepared = Prepared { clock: Some(Clock::now()), ..Prepared::default() };
    let found =
        Deployment::open(&look.sysroot, id).and_then(|staged| Update::find(&look, staged, config.clone(), stop));
    match found {
        Ok(update) => boots(&update, &mut prepared, &mut outlook, stop),
        Err(error) => outlook.fails("the finalization", &error),
    }
    // An ESP that is mounted to look cannot be mounted to write, by whoever staged this.
    drop(look);
    stop.check()?;
    let staged = Deployment::open(&host.sysroot, id);
    let made = staged.and_then(|staged| Making { host, config: &config, stop }.etc(&staged, &mut outlook));
    match made {
        Ok(ahead) => prepared.etc = ahead,
        Err(error) => {
            stop.check()?;
            tracing::warn!("{error:#}");
            outlook.attention.push("the merge of /etc would fail: composefs-finalize plan says why".to_owned());
        }
    }
    outlook.prepared = true;
    prepared.write(host, id, &config)?;
    outlook.write(host)?;
    Ok(Some(outlook))
}

/// Checks what will boot.
fn boots(update: &Update<'_>, prepared: &mut Prepared, outlook: &mut Outlook, stop: &Stop) {
    match update.probe_ahead(stop) {
        Ok(checked) => prepared.boots = checked,
        Err(error) => outlook.fails("the finalization", &error),
    }
    match update.pinned() {
        Ok(None) => {}
        Ok(Some(pinned)) => outlook
            .attention
            .push(format!("{pinned} pins what starts: the update may not start by itself; {}", pinned.undo())),
        Err(error) => outlook.attention.push(format!("what starts after the update is not known: {error:#}")),
    }
}

/// What is needed to make the merged tree.
struct Making<'a> {
    host: &'a Host,
    config: &'a Config,
    stop: &'a Stop,
}

impl Making<'_> {
    /// Plans the merge of /etc, and makes the merged tree.
    fn etc(&self, staged: &Deployment, outlook: &mut Outlook) -> Result<Option<Ahead>> {
        let Some(trees) = EtcTrees::open(self.host, staged, self.config, &mut vec![])? else { return Ok(None) };
        sys::sync::root(trees.current.open(".")?).context("syncing /etc")?;
        let (merge, mut ahead) =
            Merge::plan_ahead(trees.sources(), &self.config.policy, sys::fault::tick(), self.stop)?;
        outlook.learn(&merge.plan);
        if !merge.plan.refused.is_empty() || self.config.backup_original {
            return Ok(Some(ahead));
        }
        _ = staged.begin_merge(false)?;
        if let Err(error) = sys::space::check(&staged.state, merge.plan.bytes()) {
            outlook.fails("the merge of /etc", &anyhow::Error::from(error).context("looking for room for etc.merging"));
            return Ok(Some(ahead));
        }
        let made = merge.make(&mut ahead, &staged.state, Deployment::MERGE, self.stop).context("building etc.merging");
        if let Err(error) = made {
            staged.remove_rubbish().context("removing etc.merging")?;
            return Err(error);
        }
        sys::sync::root(staged.state.open(".")?).context("syncing the merged /etc")?;
        Ok(Some(ahead))
    }
}

/// No update is staged any more: what was done ahead is undone.
///
/// # Errors
///
/// Those of the lock, and of unlink(2).
pub fn forget(host: &Host, stop: &Stop) -> Result<()> {
    let run = open(&host.ambient.run)?;
    let Some(bytes) = sys::file::read_bytes(&run, PREPARED, LIMIT).with_context(|| format!("reading {PREPARED}"))?
    else {
        return Outlook::remove(host);
    };
    let _lock = Lock::take(&host.sysroot, stop)?;
    pending::remove(host, PREPARED)?;
    Outlook::remove(host)?;
    match of_whom(&host.sysroot, &bytes) {
        Some(staged) if staged.id != host.booted.id => {
            staged.remove_rubbish().with_context(|| format!("removing what was merged ahead for {}", staged.id.short()))
        }
        _ => Ok(()),
    }
}

/// The deployment that something was done ahead for, where it is still there.
fn of_whom(sysroot: &Dir, bytes: &[u8]) -> Option<Deployment> {
    let id = bytes.split(|byte| *byte == b'\n').nth(3)?;
    Deployment::open(sysroot, &std::str::from_utf8(id).ok()?.parse().ok()?).ok()
}
