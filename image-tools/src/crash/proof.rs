//! Which power cuts are tried, and what that came to.

use std::{collections::BTreeMap, fmt};

use super::{case::Case, judge::Verdict};

/// Which power cuts to try.
#[derive(Debug, Clone, Copy)]
pub struct Cuts {
    /// How many moments, one out of each of as many stretches of the log; every moment where nothing is said.
    pub moments: Option<usize>,
    /// How many random subsets of unflushed writes, besides the moments.
    pub random: usize,
    /// What all that is random is made from.
    pub seed: u64,
    /// When to end.
    pub enough: Enough,
}

/// When enough power cuts have been tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enough {
    /// When all have been.
    All,
    /// When one has broken the machine; the power cuts are tried in a random order.
    OneBroken,
}

/// What was tried, and what it came to.
#[derive(Debug)]
pub struct Proof {
    /// Every power cut that was tried.
    pub tried: Vec<(Case, Verdict)>,
    /// Writes and flushes of the recording.
    pub entries: (usize, usize),
    /// What the power cuts were drawn with.
    pub seed: u64,
}

impl Proof {
    /// The power cuts after which nothing boots, or not all of it.
    pub fn broken(&self) -> impl Iterator<Item = (&Case, &Verdict)> {
        self.tried.iter().filter(|(_, verdict)| matches!(verdict, Verdict::Broken(_))).map(|(case, v)| (case, v))
    }

    /// So many power cuts, evenly from all that were tried.
    pub fn sample(&self, count: usize) -> Vec<Case> {
        let step = (self.tried.len() / count.max(1)).max(1);
        self.tried.iter().skip(step / 2).step_by(step).map(|(case, _)| *case).take(count).collect()
    }
}

impl fmt::Display for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts = BTreeMap::from([("old", 0), ("new", 0), ("broken", 0)]);
        let mut random = 0;
        for (case, verdict) in &self.tried {
            random += usize::from(case.chance.is_some());
            let name = match verdict {
                Verdict::Old => "old",
                Verdict::New => "new",
                Verdict::Broken(_) => "broken",
            };
            *counts.entry(name).or_default() += 1;
        }
        let (writes, flushes) = self.entries;
        let (moments, all) = (self.tried.len() - random, writes + flushes + 1);
        write!(f, "{writes} writes, {flushes} flushes; {moments} of {all} moments and {random} random subsets, ")?;
        write!(f, "seed {}: {} old, {} new, {} broken", self.seed, counts["old"], counts["new"], counts["broken"])
    }
}
