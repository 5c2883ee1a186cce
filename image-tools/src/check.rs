//! What an image lacks to boot and to be updated, all of it at once, each with the lines of a Containerfile that mend it.
//!
//! What is demanded is what the disk layout and the units need; the remedies are Debian's.

mod advice;
mod boot;
mod initramfs;
mod update;

use std::{fmt, path::Path};

use anyhow::Result;

use crate::{
    arch::Arch,
    oci::{Image, Reference},
    store::{self, At, Store, Tree},
    system::{CannotBoot, Incomplete, Way},
};

/// What brings the program, its units, the initramfs module, and the kernel where it belongs.
const PACKAGE: &str =
    "COPY composefs-finalize_*.deb /tmp/\nRUN apt-get install -y /tmp/composefs-finalize_*.deb && rm /tmp/*.deb";

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It does not boot, or is not updated.
    Missing,
    /// It does, and people will stumble.
    Advice,
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum About {
    /// Whether it boots.
    Boot,
    /// Whether it is updated.
    Update,
    /// Working with it.
    Use,
}

/// One thing that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// How much it matters.
    pub level: Level,
    /// For what.
    pub about: About,
    /// What is missing or wrong.
    pub what: String,
    /// Why that matters.
    pub why: String,
    /// The lines of a Containerfile that mend it.
    pub remedy: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = if self.level == Level::Missing { "missing" } else { "advice " };
        write!(f, "{level}  {}: {}", self.what, self.why)?;
        self.remedy.lines().try_for_each(|line| write!(f, "\n             {line}"))
    }
}

/// An image that lacks something without which it does not boot, or is not updated.
#[derive(Debug, thiserror::Error)]
#[error("{name} {what}; add to its Containerfile:\n{}", lines(findings))]
pub struct Unfit {
    name: String,
    what: &'static str,
    findings: Vec<Finding>,
}

fn lines(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Everything that is missing or wrong in `image`.
///
/// # Errors
///
/// When the image cannot be read, or is for an architecture that is not supported.
pub fn look(store: &Store, image: &Image, way: Way) -> Result<Vec<Finding>> {
    let arch = Arch::named(&image.arch.to_string()).map_err(|why| CannotBoot(why.to_string()))?;
    let mut looker = Looker { store, tree: store.look(image)?, arch, way, findings: vec![] };
    boot::look(&mut looker)?;
    update::look(&mut looker)?;
    advice::look(&mut looker)?;
    Ok(looker.findings)
}

/// Refuses an image of which a disk would be no good: for `about`, a machine that boots, or also one that is updated.
///
/// # Errors
///
/// [`Unfit`], with the whole list; and those of [`look`].
pub fn demand(store: &Store, image: &Image, way: Way, about: About) -> Result<()> {
    let counts =
        |finding: &Finding| finding.level == Level::Missing && (finding.about == About::Boot || finding.about == about);
    let mut findings = look(store, image, way)?;
    findings.retain(counts);
    match findings.is_empty() {
        true => Ok(()),
        false => Err(Unfit::of(&image.reference, findings).into()),
    }
}

impl Unfit {
    fn of(reference: &Reference, findings: Vec<Finding>) -> Self {
        let boots = findings.iter().all(|finding| finding.about != About::Boot);
        let what = if boots { "would never be updated" } else { "does not boot" };
        Self { name: reference.to_string(), what, findings }
    }
}

/// An image that is looked at, and what was found.
struct Looker<'a> {
    store: &'a Store,
    tree: Tree,
    arch: &'static Arch,
    way: Way,
    findings: Vec<Finding>,
}

/// Why something matters, and what mends it.
type Told<'a> = (&'a str, &'a str);

impl Looker<'_> {
    fn missing(&mut self, about: About, what: impl Into<String>, (why, remedy): Told<'_>) {
        self.add(Level::Missing, about, (what.into(), why, remedy));
    }

    fn advise(&mut self, what: impl Into<String>, (why, remedy): Told<'_>) {
        self.add(Level::Advice, About::Use, (what.into(), why, remedy));
    }

    fn add(&mut self, level: Level, about: About, (what, why, remedy): (String, &str, &str)) {
        self.findings.push(Finding { level, about, what, why: why.to_owned(), remedy: remedy.to_owned() });
    }

    fn at(&self, path: impl AsRef<Path>) -> Result<At> {
        store::at(&self.tree, path.as_ref())
    }

    /// Whether there is a regular file at `path`; something else of that name is none, nor is a link that leads nowhere.
    fn has_file(&self, path: impl AsRef<Path>) -> Result<bool> {
        match store::find(&self.tree, path.as_ref()) {
            Ok(found) => Ok(found.is_some()),
            Err(error) if error.is::<Incomplete>() => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn read(&self, path: impl AsRef<Path>) -> Result<Vec<u8>> {
        Ok(if self.has_file(&path)? { self.store.read(&self.tree, path.as_ref())?.unwrap_or_default() } else { vec![] })
    }

    fn names(&self, dir: impl AsRef<Path>) -> Result<Vec<String>> {
        let dir = dir.as_ref();
        if self.at(dir)? != At::Directory {
            return Ok(vec![]);
        }
        Ok(store::names(&self.tree, dir)?.into_iter().filter_map(|name| name.into_string().ok()).collect())
    }
}
