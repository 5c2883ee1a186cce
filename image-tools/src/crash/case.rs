//! What may be on a disk when the power goes: everything up to a moment, or everything up to the last flush before it
//! and any part of what was written since, sector by sector.

use std::{fmt, ops::Range, str::FromStr};

use super::{
    log::{Entry, Kind, SECTOR},
    proof::{Cuts, Enough},
};

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
    /// Moments from `mark` to the end of the log, and random subsets of what was unflushed at moments between. The same
    /// seed draws the same ones.
    pub fn draw(entries: &[Entry], mark: usize, cuts: Cuts) -> Vec<Self> {
        let mut rng = fastrand::Rng::with_seed(cuts.seed);
        let all = entries.len() + 1 - mark;
        let drawn = cuts.moments.filter(|count| *count < all);
        let mut cases: Vec<_> = match drawn {
            Some(count) => (0..count).map(|n| mark + rng.usize(n * all / count..(n + 1) * all / count)).collect(),
            None => (mark..=entries.len()).collect::<Vec<_>>(),
        }
        .into_iter()
        .map(|moment| Self { moment, chance: None })
        .collect();
        let is_open = |moment: &usize| entries[unflushed(entries, *moment)].iter().any(|e| e.kind == Kind::Write);
        let open: Vec<_> = (mark..=entries.len()).filter(is_open).collect();
        let subset = |_| Self { moment: *rng.choice(&open).unwrap_or(&mark), chance: Some(rng.u64(..)) };
        cases.extend((0..if open.is_empty() { 0 } else { cuts.random }).map(subset));
        if cuts.enough == Enough::OneBroken {
            rng.shuffle(&mut cases);
        }
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
                    let Entry { length, joined, .. } = entries[number];
                    let mut is_kept = false;
                    for sector in 0..length / SECTOR {
                        is_kept = if joined == Some(sector) { is_kept } else { rng.bool() };
                        if is_kept {
                            parts.push((number, sector * SECTOR..(sector + 1) * SECTOR));
                        }
                    }
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
        Log::open(file.path(), &[]).unwrap().entries
    }

    const CUTS: Cuts = Cuts { moments: None, random: 200, seed: 7, enough: Enough::All };

    #[test]
    fn a_sample_has_a_moment_of_every_stretch_and_a_shuffled_one_has_all() {
        let entries = entries();
        let moments = |cuts| Case::draw(&entries, 1, cuts).into_iter().map(|case| case.moment).collect::<Vec<_>>();
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let drawn = moments(Cuts { moments: Some(3), random: 0, seed, ..CUTS });
            assert!(matches!(drawn[..], [1 | 2, 3 | 4, 5 | 6]), "{drawn:?}");
            seen.extend(drawn);
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6], "no moment is out of reach");
        let mut shuffled = moments(Cuts { moments: Some(9), random: 0, enough: Enough::OneBroken, ..CUTS });
        assert_ne!(shuffled, [1, 2, 3, 4, 5, 6]);
        shuffled.sort_unstable();
        assert_eq!(shuffled, [1, 2, 3, 4, 5, 6]);
    }

    #[test]
    fn every_moment_is_a_case_and_what_is_flushed_is_never_missing() {
        let entries = entries();
        let cases = Case::draw(&entries, 1, CUTS);
        assert_eq!(cases.len(), 6 + 200);
        assert_eq!(cases, Case::draw(&entries, 1, CUTS), "the same seed, the same cases");
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
    fn a_superblock_of_ext4_is_never_torn() {
        let file = written(&[(0, &[1; 4096], 0), (8, &[2; 1024], 0)]);
        let seen = |superblocks: &[u64]| {
            let entries = Log::open(file.path(), superblocks).unwrap().entries;
            let mut seen = std::collections::BTreeSet::new();
            for seed in 0..500 {
                let parts = Case { moment: 2, chance: Some(seed) }.parts(&entries);
                let has = |at| parts.iter().any(|(number, part)| *number == 0 && part.contains(&at));
                seen.insert([512, 1024, 1536, 2048].map(has));
            }
            seen
        };
        assert_eq!(seen(&[]).len(), 16, "any sector without any other");
        assert_eq!(seen(&[1024, 4096 - 512]).len(), 8, "but for the two in the middle");
        assert!(seen(&[1024]).iter().all(|[_, first, second, _]| first == second));
    }

    #[test]
    fn what_is_no_case_is_refused() {
        for text in ["", "x", "1:", ":1", "-1", "1:2:3"] {
            assert!(text.parse::<Case>().is_err(), "{text}");
        }
    }
}
