//! What may be on a disk when the power goes: everything up to a moment, or everything up to the last flush before it
//! and any part of what was written since, sector by sector.

use std::{fmt, ops::Range, str::FromStr};

use super::log::{Entry, Kind, SECTOR};

/// A moment, and what of the unflushed writes before it has reached the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// How many entries of the log have happened.
    pub moment: usize,
    /// Which of the unflushed ones are on the disk: all, or by this seed.
    pub chance: Option<u64>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.chance {
            None => write!(f, "{}", self.moment),
            Some(seed) => write!(f, "{}:{seed}", self.moment),
        }
    }
}

impl FromStr for Case {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |_| format!("{text:?} is no power cut; expected MOMENT or MOMENT:SEED");
        let (moment, seed) = text.split_once(':').map_or((text, None), |(moment, seed)| (moment, Some(seed)));
        Ok(Self { moment: moment.parse().map_err(wrong)?, chance: seed.map(str::parse).transpose().map_err(wrong)? })
    }
}

/// A part of an entry's bytes that is on the disk, in bytes from its first.
pub type Part = (usize, Range<u64>);

impl Case {
    /// Every moment from `mark` to the end of the log, and `random` subsets of what was unflushed at moments between.
    pub fn all(entries: &[Entry], mark: usize, random: usize, seed: u64) -> Vec<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut cases: Vec<_> = (mark..=entries.len()).map(|moment| Self { moment, chance: None }).collect();
        let is_open = |moment: &usize| entries[unflushed(entries, *moment)].iter().any(|e| e.kind == Kind::Write);
        let open: Vec<_> = (mark..=entries.len()).filter(is_open).collect();
        let subset = |_| Self { moment: *rng.choice(&open).unwrap_or(&mark), chance: Some(rng.u64(..)) };
        cases.extend((0..if open.is_empty() { 0 } else { random }).map(subset));
        cases
    }

    /// What is on the disk, in the order in which it was written.
    pub fn parts(&self, entries: &[Entry]) -> Vec<Part> {
        let whole = |number: usize| (number, 0..entries[number].length);
        let Some(seed) = self.chance else { return (0..self.moment).map(whole).collect() };
        let open = unflushed(entries, self.moment);
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut parts: Vec<_> = (0..open.start).map(whole).collect();
        for number in open {
            // Done, dropped, or torn.
            match rng.u8(0..3) {
                _ if entries[number].kind != Kind::Write => parts.push(whole(number)),
                0 => parts.push(whole(number)),
                1 => {}
                _ => {
                    let sectors = 0..entries[number].length / SECTOR;
                    let kept = sectors.filter(|_| rng.bool());
                    parts.extend(kept.map(|sector| (number, sector * SECTOR..(sector + 1) * SECTOR)));
                }
            }
        }
        parts
    }
}

/// The entries since the last flush before `moment`.
fn unflushed(entries: &[Entry], moment: usize) -> Range<usize> {
    let flushed = entries[..moment].iter().rposition(|entry| entry.kind == Kind::Flush);
    flushed.map_or(0, |flush| flush + 1)..moment
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]
    use super::{
        super::log::{Log, tests::written},
        *,
    };

    fn entries() -> Vec<Entry> {
        let file = written(&[
            (0, &[1; 1024], 0),
            (0, &[], 1),
            (1, &[2; 1024], 0),
            (9, &[3; 512], 2),
            (1, &[4; 512], 0),
            (0, &[], 1),
        ]);
        Log::open(file.path()).unwrap().entries
    }

    #[test]
    fn every_moment_is_a_case_and_what_is_flushed_is_never_missing() {
        let entries = entries();
        let cases = Case::all(&entries, 1, 200, 7);
        assert_eq!(cases.len(), 6 + 200);
        assert_eq!(cases, Case::all(&entries, 1, 200, 7), "the same seed, the same cases");
        let mut seen = std::collections::BTreeSet::new();
        for case in &cases {
            let parts = case.parts(&entries);
            assert_eq!(case.to_string().parse::<Case>().unwrap(), *case);
            assert!(parts.iter().all(|(number, _)| *number < case.moment));
            if case.moment > 1 {
                assert_eq!(parts[0], (0, 0..1024), "{case}: flushed");
            }
            if case.moment > 3 {
                assert!(parts.contains(&(3, 0..512)), "{case}: written through");
            }
            if case.moment == 5 {
                seen.insert(parts.into_iter().filter(|(n, _)| *n != 0 && *n != 1 && *n != 3).collect::<Vec<_>>().len());
            }
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3], "dropped, torn and done");
    }

    #[test]
    fn what_is_no_case_is_refused() {
        for text in ["", "x", "1:", ":1", "-1", "1:2:3"] {
            assert!(text.parse::<Case>().is_err(), "{text}");
        }
    }
}
