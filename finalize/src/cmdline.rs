//! The kernel command line, as far as a deployment is named on it.
//!
//! Two spellings exist, `composefs=[?]<D>` and `composefs.digest=[?]v1-sha512-12:<D>`; a `?` says that the machine may
//! lack fs-verity. Words are split as the kernel does (`Documentation/admin-guide/kernel-parameters.rst`): at white
//! space outside double quotes. Words that are not ours are kept as they are.

use std::fmt;

use crate::digest::DeploymentId;

/// Whether the files of a deployment must have fs-verity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verity {
    /// `composefs=<D>`: a file without the right digest is not read.
    Required,
    /// `composefs=?<D>`: verity is not enforced.
    Optional,
}

/// The EROFS format whose digest names the deployment; composefs has two, with different digests for one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `composefs.digest=v1-…`
    V1,
    /// `composefs=`, what we and bootc write.
    V2,
}

/// What a kernel command line says of the deployment that it boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The deployment.
    pub id: DeploymentId,
    /// Whether its files must be verified.
    pub verity: Verity,
    /// Which spelling named it.
    pub format: Format,
}

impl Target {
    /// The first deployment that `cmdline` names, `composefs.digest=` before `composefs=`, as the initramfs reads it.
    /// Words with a malformed digest name nothing.
    pub fn find(cmdline: &str) -> Option<Self> {
        let all = || words(cmdline).filter_map(Self::from_word);
        all().find(|t| t.format == Format::V1).or_else(|| all().next())
    }

    fn from_word(word: &str) -> Option<Self> {
        let (key, value) = word.split_once('=')?;
        let (verity, value) = match value.strip_prefix('?') {
            Some(rest) => (Verity::Optional, rest),
            None => (Verity::Required, value),
        };
        let (format, hex) = match key {
            "composefs" => (Format::V2, value),
            "composefs.digest" => {
                let (kind, hex) = value.split_once(':')?;
                match (kind, hex.len()) {
                    ("v1-sha512-12", 128) | ("v1-sha256-12", 64) => (Format::V1, hex),
                    ("v2-sha512-12", 128) | ("v2-sha256-12", 64) => (Format::V2, hex),
                    _ => return None,
                }
            }
            _ => return None,
        };
        let id = hex.parse().ok()?;
        Some(Self { id, verity, format })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.verity {
            Verity::Required => "",
            Verity::Optional => "?",
        };
        match (self.format, self.id.as_str().len()) {
            (Format::V2, _) => write!(f, "composefs={mark}{}", self.id),
            (Format::V1, 64) => write!(f, "composefs.digest={mark}v1-sha256-12:{}", self.id),
            (Format::V1, _) => write!(f, "composefs.digest={mark}v1-sha512-12:{}", self.id),
        }
    }
}

/// The words of a command line, quotes kept.
pub fn words(cmdline: &str) -> impl Iterator<Item = &str> {
    let mut quoted = false;
    cmdline
        .split(move |c: char| {
            quoted ^= c == '"';
            c.is_ascii_whitespace() && !quoted
        })
        .filter(|word| !word.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(cmdline: &str, want: Option<(&str, Verity, Format)>) {
        let got = Target::find(cmdline);
        let got = got.as_ref().map(|t| (t.id.as_str(), t.verity, t.format));
        assert_eq!(got, want, "{cmdline}");
    }

    #[test]
    fn finds_the_deployment() {
        let (long, short) = ("ab".repeat(64), "cd".repeat(32));
        let (v1, v2) = (Format::V1, Format::V2);
        use Verity::{Optional, Required};
        check(&format!("rw composefs={long} quiet"), Some((&long, Required, v2)));
        check(&format!("composefs=?{short}"), Some((&short, Optional, v2)));
        check(&format!("composefs.digest=?v1-sha256-12:{short}"), Some((&short, Optional, v1)));
        check(&format!("composefs={short} composefs.digest=v1-sha512-12:{long}"), Some((&long, Required, v1)));
        check(&format!("x=\"a composefs={long} b\""), None);
        check(&format!("composefs.digest=v1-sha512-12:{short}"), None);
        check("composefs=xyz composefs quiet", None);
        check("", None);
    }

    #[test]
    fn display_is_the_counterpart_of_find() {
        for word in [
            format!("composefs={}", "ab".repeat(64)),
            format!("composefs=?{}", "ab".repeat(32)),
            format!("composefs.digest=?v1-sha256-12:{}", "ab".repeat(32)),
            format!("composefs.digest=v1-sha512-12:{}", "ab".repeat(64)),
        ] {
            assert_eq!(Target::find(&word).unwrap().to_string(), word);
        }
    }
}
