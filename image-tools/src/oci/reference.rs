//! The name of an image, as typed.

use std::{fmt, path::PathBuf, str::FromStr};

/// An image in an OCI layout: `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`, as containers-transports(5) has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// A directory, or a tar archive of one.
    pub kind: Kind,
    /// Where it is.
    pub path: PathBuf,
    /// The name of the image in it; needed where it holds several.
    pub tag: Option<String>,
}

/// The form of a layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `oci:`
    Directory,
    /// `oci-archive:`
    Archive,
}

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (kind, rest) = match text.split_once(':') {
            Some(("oci", rest)) => (Kind::Directory, rest),
            Some(("oci-archive", rest)) => (Kind::Archive, rest),
            _ => return Err(format!("{text:?} is no image: expected oci:DIR[:TAG] or oci-archive:FILE[:TAG]")),
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(format!("{text:?} names no path"));
        }
        Ok(Self { kind, path: path.into(), tag })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Directory => "oci",
            Kind::Archive => "oci-archive",
        };
        write!(f, "{kind}:{}", self.path.display())?;
        self.tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_spelled_as_other_tools_spell_them() {
        for text in ["oci:/a/b", "oci:b:v1", "oci-archive:x.tar:latest"] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
        for text in ["", "docker://x", "oci:", "/a/b"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
