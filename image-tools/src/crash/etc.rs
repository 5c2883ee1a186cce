//! An /etc on a disk, as a value that can be compared.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use ext4_view::Ext4;
use finalize::{digest::DeploymentId, layout};
use sha2::{Digest, Sha256};

/// Paths of an /etc, and what is there: type, mode, owner and content.
pub type Etc = BTreeMap<String, String>;

/// The directory `name` of deployment `id`.
///
/// # Errors
///
/// When it is not there, or anything in it cannot be read.
pub fn etc(ext4: &Ext4, id: &DeploymentId, name: &str) -> Result<Etc> {
    let top = format!("/{}/{name}", layout::deployment(id));
    let mut found = Etc::new();
    let mut dirs = vec![top.clone()];
    while let Some(dir) = dirs.pop() {
        let at = || format!("reading {dir}");
        for entry in ext4.read_dir(dir.as_str()).with_context(at)? {
            let entry = entry.with_context(at)?;
            let name = entry.file_name().as_str().with_context(at)?.to_owned();
            if name == "." || name == ".." {
                continue;
            }
            let path = format!("{dir}/{name}");
            let meta = entry.metadata().with_context(at)?;
            let content = match meta.file_type() {
                kind if kind.is_dir() => {
                    dirs.push(path.clone());
                    "dir".to_owned()
                }
                kind if kind.is_symlink() => format!("link to {}", ext4.read_link(path.as_str())?.display()),
                kind if kind.is_regular_file() => {
                    let bytes = ext4.read(path.as_str()).with_context(|| format!("reading {path}"))?;
                    format!("{} bytes {}", bytes.len(), &hex::encode(Sha256::digest(&bytes))[..16])
                }
                _ => "special".to_owned(),
            };
            let owned = format!("{:o} {}:{} {content}", meta.mode(), meta.uid(), meta.gid());
            found.insert(path[top.len() + 1..].to_owned(), owned);
        }
    }
    Ok(found)
}

/// Fails with the first paths at which a tree is as none of `wanted` is.
///
/// # Errors
///
/// Names them.
pub fn same(found: &Etc, wanted: &[Etc]) -> Result<()> {
    let all: BTreeSet<_> = wanted.iter().flat_map(Etc::keys).chain(found.keys()).collect();
    let is_wanted = |path: &str| wanted.iter().any(|etc| etc.get(path) == found.get(path));
    let said = |etc: &Etc, path: &str| etc.get(path).map_or("absent", String::as_str).to_owned();
    let differs = all.into_iter().filter(|path| !is_wanted(path)).map(|path| {
        let must: BTreeSet<_> = wanted.iter().map(|etc| said(etc, path)).collect();
        let must = must.into_iter().collect::<Vec<_>>().join(" or ");
        format!("{path} is {}, must be {must}", said(found, path))
    });
    let differs: Vec<_> = differs.collect();
    ensure!(differs.is_empty(), "{} paths differ: {}", differs.len(), differs[..differs.len().min(3)].join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::*;

    #[test]
    fn trees_that_differ_say_where() {
        let tree = |text: &str| -> Etc {
            text.split(' ').map(|pair| pair.split_once('=').unwrap()).map(|(a, b)| (a.into(), b.into())).collect()
        };
        assert!(same(&tree("a=1 b=2"), &[tree("b=2 a=1")]).is_ok());
        let said = same(&tree("a=1 b=2"), &[tree("a=1 b=3 c=4")]).unwrap_err().to_string();
        assert_eq!(said, "2 paths differ: b is 2, must be 3; c is absent, must be 4");
        let either = [tree("a=1 b=2"), tree("a=1 b=3 c=4")];
        assert!(same(&tree("a=1 b=3"), &either).is_ok(), "path by path");
        let said = same(&tree("a=1 b=4 d=5"), &either).unwrap_err().to_string();
        assert_eq!(said, "2 paths differ: b is 4, must be 2 or 3; d is 5, must be absent");
    }
}
