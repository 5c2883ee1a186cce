//! An image as somebody names it who has just written it: by its reference, or by the directory with its Containerfile.

use std::{
    convert::Infallible,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context, Result, bail, ensure};
use xshell::cmd;

use crate::{
    oci::{Layout, Reference},
    program,
};

/// What a directory is built from, as podman and buildah look for it.
const NAMES: [&str; 2] = ["Containerfile", "Dockerfile"];

/// Who builds it; the first that is installed.
const BUILDERS: [&str; 2] = ["podman", "buildah"];

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// It is there already.
    Image(Reference),
    /// It is built from this directory.
    Directory(PathBuf),
}

impl FromStr for Source {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Directory(text.into()), Self::Image))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(reference) => reference.fmt(f),
            Self::Directory(dir) => dir.display().fmt(f),
        }
    }
}

impl Source {
    /// The image; one that is built goes to the OCI layout `to`. What the builder keeps is its cache.
    ///
    /// # Errors
    ///
    /// When there is no Containerfile, nobody to build it, or the builder fails, which has said why.
    pub fn image(self, to: &Path) -> Result<Reference> {
        match self {
            Self::Image(reference) => Ok(reference),
            Self::Directory(dir) => build(&dir, to).with_context(|| format!("building {}", dir.display())),
        }
    }
}

fn build(dir: &Path, to: &Path) -> Result<Reference> {
    let known = "an image is oci:DIR[:TAG], oci-archive:FILE[:TAG], docker://NAME, containers-storage:NAME, or a directory with a \
                 Containerfile";
    ensure!(dir.is_dir(), "{known}; there is no such directory");
    let Some(file) = NAMES.iter().map(|name| dir.join(name)).find(|file| file.is_file()) else {
        bail!("it has no Containerfile: write one with `image-tools init {}`", dir.display());
    };
    let shell = program::shell()?;
    let id = to.with_extension("id");
    for builder in BUILDERS {
        // podman keeps layers by itself, buildah only when it is told.
        let built = program::aloud(cmd!(shell, "{builder} build --layers --iidfile {id} --file {file} {dir}"));
        match built {
            Err(error) if matches!(error.downcast_ref(), Some(program::Error::Missing { .. })) => continue,
            built => built?,
        }
        let id = std::fs::read_to_string(&id).with_context(|| format!("reading {}", id.display()))?;
        let (id, tag) = (id.trim(), "latest");
        let layout = format!("oci:{}:{tag}", to.display());
        program::run(cmd!(shell, "{builder} push --quiet {id} {layout}"))?;
        return Ok(Reference::Directory(Layout { path: to.to_owned(), tag: Some(tag.to_owned()) }));
    }
    bail!("neither podman nor buildah is installed: install one of them")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_reference_is_a_directory() {
        let check = |text: &str, want: bool| {
            let Ok(source) = text.parse::<Source>();
            assert_eq!(matches!(source, Source::Image(_)), want, "{text}");
            assert_eq!(source.to_string(), text);
        };
        check("oci:dir:tag", true);
        check("containers-storage:localhost/x", true);
        check(".", false);
        check("some/dir", false);
    }
}
