//! What is to be done where the table leaves a choice: for type conflicts, for paths by glob, for account files.

use globset::{GlobBuilder, GlobMatcher};

use super::tree::RelPath;

/// What is in place after a conflict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The image's node; the local one of a type conflict goes to `etc.conflicts`.
    Image,
    /// The local node.
    Local,
    /// The image's node, and the local one beside it as `NAME.etc-local`.
    Both,
    /// Nothing: the merge is refused before the first write.
    Fail,
}

/// How account files that both sides changed are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accounts {
    /// By record.
    Merge,
    /// As any file.
    File,
}

/// What a rule says of the paths that its glob matches. `local` and `image` hold whether or not there is a conflict:
/// a pinned path stays the local one, a forgotten one becomes the image's.
#[derive(Debug, Clone)]
pub struct Rule {
    path: GlobMatcher,
    keep: Keep,
}

impl Rule {
    /// A rule for the paths in /etc that `path` matches: `*` stops at `/`, `**` does not.
    ///
    /// # Errors
    ///
    /// When `path` is no glob.
    pub fn new(path: &str, keep: Keep) -> Result<Self, globset::Error> {
        Ok(Self { path: glob(path)?, keep })
    }
}

/// A glob over paths in /etc.
///
/// # Errors
///
/// When `text` is no glob.
pub fn glob(text: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(text.trim_start_matches('/')).literal_separator(true).build()?.compile_matcher())
}

/// All choices.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Account files.
    pub accounts: Accounts,
    /// Type conflicts.
    pub type_clash: Keep,
    /// Single paths; the last rule that matches counts.
    pub rules: Vec<Rule>,
    /// Paths that are never carried, beside lock files and `.updated`.
    pub ignore: Vec<GlobMatcher>,
    /// Whether local files change their owner where the owner's number is another one in the image.
    pub follow_ids: bool,
}

impl Default for Policy {
    fn default() -> Self {
        Self { accounts: Accounts::Merge, type_clash: Keep::Image, rules: vec![], ignore: vec![], follow_ids: false }
    }
}

impl Policy {
    /// What the rules say of a path.
    pub fn rule(&self, path: &RelPath) -> Option<Keep> {
        if self.rules.is_empty() {
            return None;
        }
        let path = as_path(path);
        self.rules.iter().rev().find(|rule| rule.path.is_match(path)).map(|rule| rule.keep)
    }

    /// Whether no rule and nothing to be ignored can be deeper than in /etc itself, where the built-in ones are.
    pub fn is_silent_below_the_root(&self) -> bool {
        self.rules.is_empty() && self.ignore.is_empty()
    }

    /// Whether a path is never carried, with all below it: lock files, the stamp by which `systemd-update-done` knows that
    /// /etc is older than /usr, and what the configuration adds.
    pub fn ignores(&self, path: &RelPath) -> bool {
        let built_in = matches!(
            path.components().next(),
            Some(b".updated" | b".pwd.lock" | b"passwd.lock" | b"group.lock" | b"shadow.lock" | b"gshadow.lock")
        );
        let ignored = |path: &RelPath| self.ignore.iter().any(|glob| glob.is_match(as_path(path)));
        let with_all_above = || std::iter::successors(Some(path.clone()), RelPath::parent);
        built_in || (!self.ignore.is_empty() && with_all_above().any(|path| ignored(&path)))
    }
}

/// Whether a path is decided by more than the table: account files and the machine's id.
pub fn is_special(path: &RelPath) -> bool {
    path.as_bytes() == b"machine-id"
        || super::accounts::File::ALL.iter().any(|file| path.as_bytes() == file.name().as_bytes())
}

fn as_path(path: &RelPath) -> &std::path::Path {
    use std::os::unix::ffi::OsStrExt;
    std::path::Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()))
}
