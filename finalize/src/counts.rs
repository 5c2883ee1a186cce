//! What became of the paths of /etc, as numbers: the merge counts, the record keeps, and both say it in the same words.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How many paths of /etc each reason decided.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Paths that follow the image.
    pub image: u64,
    /// Paths that keep their local state.
    pub local: u64,
    /// Paths that both sides changed in the same way.
    pub converged: u64,
    /// Account files merged by record.
    pub merged: u64,
    /// Conflicts.
    pub conflicts: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image, local, converged, merged, conflicts } = self;
        write!(f, "/etc: {image} from the image, {local} local, {converged} changed alike on both sides, ")?;
        write!(f, "{merged} merged by record, {conflicts} conflict{}", if *conflicts == 1 { "" } else { "s" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_one_wording() {
        let counts = Counts { image: 673, local: 11, converged: 4, merged: 4, conflicts: 2 };
        let want = "/etc: 673 from the image, 11 local, 4 changed alike on both sides, 4 merged by record, 2 conflicts";
        assert_eq!(counts.to_string(), want);
    }
}
