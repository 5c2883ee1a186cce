//! What a merge does to the content of files, for people: unified diffs of text, sizes of the rest.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};
use serde::Serialize;

use super::{
    bytes,
    merge::{Reason, Take},
    plan::{SameBytes, Side},
    tree::{Kind, Node, RelPath},
    view::View,
};
use crate::stop::Stop;

/// What differs between two versions of a file.
#[derive(Debug, Serialize)]
pub struct Diff {
    /// Which file.
    pub path: RelPath,
    /// Which version the lines with `-` are from.
    pub from: &'static str,
    /// Which version the lines with `+` are from.
    pub to: &'static str,
    /// The hunks of a unified diff, or a line that says why there are none.
    pub diff: String,
}

/// For every file, in order: what differs between the image's and the merged one where the merged one does not just
/// follow the image, else between the booted image's and the staged one's. The content of files with passwords, and of
/// those that not everybody may read, is never shown.
///
/// # Errors
///
/// Those of reading.
pub fn all(view: &View<'_>) -> Result<Vec<Diff>> {
    let never = Stop::never();
    let mut files = bytes::Files::new(&view.merge.sources, &never);
    let mut all = vec![];
    for (path, row) in &view.rows {
        let is_other = |node: &Node| !matches!(node.kind, Kind::File { .. });
        if row.step.node.as_ref().is_some_and(is_other) || row.sides.iter().flatten().all(is_other) {
            continue;
        }
        let mut read = |side: Side| {
            if row.sides[side as usize].as_ref().is_none_or(is_other) {
                return Ok(vec![]);
            }
            let bytes = files.read(side, path).map_err(|error| anyhow!(error).context(format!("reading /etc/{path}")));
            bytes.map(Option::unwrap_or_default)
        };
        let new = read(Side::New)?;
        let follows = matches!(row.step.reason, Reason::Image | Reason::Converged);
        let (from, to, old, new) = match (&row.step.content, &row.step.node, row.step.take) {
            _ if follows => ("the booted image's", "the staged image's", read(Side::Pristine)?, new),
            (Some(content), ..) => ("the staged image's", "merged", new, content.clone()),
            (None, Some(_), Take::Current) => ("the staged image's", "merged", new, read(Side::Current)?),
            (None, Some(_), Take::New) => ("the staged image's", "merged", new.clone(), new),
            (None, None, _) => ("the staged image's", "merged", new, vec![]),
        };
        if old != new {
            let nodes = row.sides.iter().flatten().chain(&row.step.node);
            let is_secret = is_secret(path, nodes) || [&old, &new].iter().any(|b| is_private_key(b));
            all.push(Diff { path: path.clone(), from, to, diff: describe(is_secret, &old, &new) });
        }
    }
    Ok(all)
}

fn describe(is_secret: bool, old: &[u8], new: &[u8]) -> String {
    match (is_secret, std::str::from_utf8(old), std::str::from_utf8(new)) {
        (false, Ok(old), Ok(new)) if !old.contains('\0') && !new.contains('\0') => {
            let mut text = String::new();
            for hunk in similar::TextDiff::from_lines(old, new).unified_diff().iter_hunks() {
                _ = write!(text, "{hunk}");
            }
            text
        }
        (true, ..) => "(its content is not shown)\n".to_owned(),
        _ => format!("({} bytes before, {} after)\n", old.len(), new.len()),
    }
}

/// Whether it holds passwords, also as a backup or an editor's copy (`shadow-`, `.gshadow.swp`, `opasswd`), or is not for
/// everybody on any side.
fn is_secret<'a>(path: &RelPath, mut nodes: impl Iterator<Item = &'a Node>) -> bool {
    let by_name = [&b"shadow"[..], b"opasswd"].iter().any(|word| path.name().windows(word.len()).any(|w| w == *word));
    by_name || nodes.any(|node| !node.is_dir() && node.mode & 0o004 == 0)
}

fn is_private_key(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|window| window == b"PRIVATE KEY")
}
