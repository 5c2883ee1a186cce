//! What a merge does to the content of files, for people: unified diffs of text, sizes of the rest.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};

use super::{
    Merge, bytes,
    merge::{Reason, Take},
    plan::{SameBytes, Side},
    tree::{Kind, Node, RelPath},
};

/// For every file that does not just follow the image, in order: what differs between the image's and the merged one.
/// The content of files with passwords, and of those that not everybody may read, is never shown.
///
/// # Errors
///
/// Those of reading.
pub fn all(merge: &Merge<'_>) -> Result<Vec<(RelPath, String)>> {
    let mut files = bytes::Files::new(&merge.sources);
    let mut all = vec![];
    let interesting = |reason| !matches!(reason, Reason::Image | Reason::Converged);
    for (path, step) in merge.plan.steps.iter().filter(|(_, step)| interesting(step.reason)) {
        let is_file = |kind: Option<&Kind>| matches!(kind, None | Some(Kind::File { .. }));
        if !is_file(step.node.as_ref().map(|node| &node.kind)) {
            continue;
        }
        let mut read =
            |side| files.read(side, path).map_err(|error| anyhow!(error).context(format!("reading /etc/{path}")));
        let image = read(Side::New)?.unwrap_or_default();
        let merged = match (&step.content, &step.node, step.take) {
            (Some(content), ..) => content.clone(),
            (None, Some(_), Take::Current) => read(Side::Current)?.unwrap_or_default(),
            (None, Some(_), Take::New) => image.clone(),
            (None, None, _) => vec![],
        };
        if image != merged {
            let is_secret = is_secret(path, step.node.as_ref()) || [&image, &merged].iter().any(|b| is_private_key(b));
            all.push((path.clone(), describe(is_secret, &image, &merged)));
        }
    }
    Ok(all)
}

fn describe(is_secret: bool, image: &[u8], merged: &[u8]) -> String {
    match (is_secret, std::str::from_utf8(image), std::str::from_utf8(merged)) {
        (false, Ok(image), Ok(merged)) if !image.contains('\0') && !merged.contains('\0') => {
            let mut text = String::new();
            for hunk in similar::TextDiff::from_lines(image, merged).unified_diff().iter_hunks() {
                _ = write!(text, "{hunk}");
            }
            text
        }
        (true, ..) => "(its content is not shown)\n".to_owned(),
        _ => format!("({} bytes in the image, {} merged)\n", image.len(), merged.len()),
    }
}

/// Whether it holds passwords, also as a backup or an editor's copy (`shadow-`, `.gshadow.swp`, `opasswd`), or is not for
/// everybody.
fn is_secret(path: &RelPath, merged: Option<&Node>) -> bool {
    let by_name = [&b"shadow"[..], b"opasswd"].iter().any(|word| path.name().windows(word.len()).any(|w| w == *word));
    by_name || merged.is_some_and(|node| node.mode & 0o004 == 0)
}

fn is_private_key(bytes: &[u8]) -> bool {
    bytes.windows(11).any(|window| window == b"PRIVATE KEY")
}
