//! What will become of the staged update, as far as can be told before the reboot: for `status`, for programs, and for whoever
//! logs in. Nothing in it names a file of /etc: everybody may read it.

use std::{fmt, io};

use anyhow::{Context, Result};
use cap_std::fs::Dir;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    counts::Counts,
    digest::DeploymentId,
    etc::plan::Plan,
    host::{Host, open},
    layout::{MARKER_DIR, MOTD, OUTLOOK, name_of},
    pending, sys,
};

/// The outlook for one update.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// 1.
    pub schema: u32,
    /// The staged deployment.
    pub deployment: DeploymentId,
    /// When this was looked at.
    pub at: Timestamp,
    /// What the merge of /etc will do; none where nothing is merged, or where that is not known.
    pub counts: Option<Counts>,
    /// Whether all that can be done ahead is done.
    pub prepared: bool,
    /// What a person should know before the reboot, a sentence each.
    pub attention: Vec<String>,
}

impl Outlook {
    /// Nothing is known yet.
    pub fn of(deployment: DeploymentId) -> Self {
        Self { schema: 1, deployment, at: Timestamp::now(), counts: None, prepared: false, attention: vec![] }
    }

    /// What the plan of the merge says.
    pub fn learn(&mut self, plan: &Plan) {
        let counts = plan.counts();
        let look = "composefs-finalize plan";
        if !plan.refused.is_empty() {
            let number = plan.refused.len();
            self.attention
                .push(format!("the update will be refused: {number} conflicts in /etc are set to \"fail\": {look}"));
        } else if counts.conflicts > 0 {
            let files = if counts.conflicts == 1 {
                "1 path of /etc was"
            } else {
                &format!("{} paths of /etc were", counts.conflicts)
            };
            self.attention.push(format!("{files} changed here and in the image, in different ways: {look}"));
        }
        self.counts = Some(counts);
    }

    /// What keeps the update from being finalized, if nobody does anything.
    pub fn fails(&mut self, what: &str, error: &anyhow::Error) {
        self.attention.push(format!("{what} would fail: {error:#}"));
    }

    /// The outlook that was written down for deployment `id`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read or is malformed.
    pub fn read(host: &Host, id: &DeploymentId) -> Result<Option<Self>> {
        let named = || format!("reading {}/{OUTLOOK}", host.ambient.run.display());
        let text = sys::file::read(&open(&host.ambient.run)?, OUTLOOK).with_context(named)?;
        let outlook: Option<Self> = text.map(|text| serde_json::from_str(&text)).transpose().with_context(named)?;
        Ok(outlook.filter(|outlook| outlook.deployment == *id))
    }

    /// Writes it down, and where it has something to say, for whoever logs in too.
    ///
    /// # Errors
    ///
    /// Those of writing.
    pub fn write(&self, host: &Host) -> Result<()> {
        let run = open(&host.ambient.run)?;
        let put =
            |path: &str, content: &str| write(&run, path, content).with_context(|| format!("writing /run/{path}"));
        put(OUTLOOK, &format!("{:#}\n", serde_json::to_value(self)?))?;
        match self.attention.is_empty() {
            true => pending::remove(host, MOTD),
            false => put(MOTD, &self.to_string()),
        }
    }

    /// Nobody needs it any more.
    ///
    /// # Errors
    ///
    /// Those of unlink(2).
    pub fn remove(host: &Host) -> Result<()> {
        [OUTLOOK, MOTD].into_iter().try_for_each(|path| pending::remove(host, path))
    }
}

fn write(run: &Dir, path: &str, content: &str) -> io::Result<()> {
    let dir = path.rsplit_once('/').map_or(MARKER_DIR, |(dir, _)| dir);
    sys::file::create_dir_all(run, dir)?;
    sys::file::write_volatile(&run.open_dir(dir)?, name_of(path), 0o644, content.as_bytes())
}

impl fmt::Display for Outlook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.deployment.short();
        if self.attention.is_empty() {
            return writeln!(f, "Update {id} is staged; the next shutdown finalizes it.");
        }
        writeln!(f, "Update {id} is staged, and needs attention before the next shutdown:")?;
        self.attention.iter().try_for_each(|line| writeln!(f, "  - {line}"))
    }
}
