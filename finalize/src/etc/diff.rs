//! What a merge does to the content of files, for people: unified diffs of text, sizes of the rest.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};

use super::{
    Merge, bytes,
    merge::{Reason, Take},
    plan::{SameBytes, Side},
    tree::{Kind, RelPath},
};

/// For every file that does not just follow the image, in order: what differs between the image's and the merged one.
/// The content of files with passwords is never shown.
///
/// # Errors
///
/// Those of reading.
pub fn all(merge: &Merge<'_>) -> Result<Vec<(RelPath, String)>> {
    let mut files = bytes::Files::new(&merge.sources)?;
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
            all.push((path.clone(), describe(path, &image, &merged)));
        }
    }
    Ok(all)
}

fn describe(path: &RelPath, image: &[u8], merged: &[u8]) -> String {
    let secret = [&b"shadow"[..], b"gshadow", b"shadow-", b"gshadow-"].contains(&path.name()) || is_private_key(merged);
    match (secret, std::str::from_utf8(image), std::str::from_utf8(merged)) {
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

fn is_private_key(bytes: &[u8]) -> bool {
    bytes.windows(11).take(256).any(|window| window == b"PRIVATE KEY")
}
