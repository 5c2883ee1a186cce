//! The name of an image, as typed.

use std::{fmt, path::PathBuf, str::FromStr};

/// An image, as containers-transports(5) has them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reference {
    /// `oci:DIR[:TAG]`
    Directory(Layout),
    /// `oci-archive:FILE[:TAG]`
    Archive(Layout),
    /// `docker://NAME`, or `containers-storage:NAME`: skopeo's to understand.
    Remote(String),
}

/// An image in an OCI layout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// A directory, or a tar archive of one.
    pub path: PathBuf,
    /// The name of the image in it; needed where it holds several.
    pub tag: Option<String>,
}

/// What skopeo fetches.
const REMOTE: [&str; 2] = ["docker://", "containers-storage:"];

impl FromStr for Reference {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(name) = REMOTE.iter().find_map(|prefix| text.strip_prefix(prefix)) {
            let wrong = name.is_empty() || name.starts_with('-') || text.contains(char::is_whitespace);
            return if wrong { Err(format!("{text:?} names no image")) } else { Ok(Self::Remote(text.to_owned())) };
        }
        let Some((kind @ ("oci" | "oci-archive"), rest)) = text.split_once(':') else {
            let known = "oci:DIR[:TAG], oci-archive:FILE[:TAG], docker://NAME or containers-storage:NAME";
            return Err(format!("{text:?} is no image: expected {known}"));
        };
        let (path, tag) = match rest.split_once(':') {
            Some((path, tag)) => (path, Some(tag.to_owned())),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(format!("{text:?} names no path"));
        }
        let layout = Layout { path: path.into(), tag };
        Ok(if kind == "oci" { Self::Directory(layout) } else { Self::Archive(layout) })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, Layout { path, tag }) = match self {
            Self::Directory(layout) => ("oci", layout),
            Self::Archive(layout) => ("oci-archive", layout),
            Self::Remote(name) => return f.write_str(name),
        };
        write!(f, "{kind}:{}", path.display())?;
        tag.as_ref().map_or(Ok(()), |tag| write!(f, ":{tag}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_spelled_as_other_tools_spell_them() {
        for text in
            ["oci:/a/b", "oci:b:v1", "oci-archive:x.tar:latest", "docker://x/y:z", "containers-storage:localhost/x"]
        {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), text);
        }
        for text in ["", "docker:x", "docker://", "docker://a b", "oci:", "/a/b"] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
