//! Boot counters in file names, `+LEFT` or `+LEFT-DONE` before the suffix (the Boot Loader Specification, "Boot Counting").

/// How often an entry may still be tried, and how often it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Tries left; with none the entry stands behind all others.
    pub left: u32,
    /// Tries that did not end well.
    pub done: u32,
}

impl Counter {
    /// The name without its counter, and the counter; a name without one is returned as it is.
    pub fn split(name: &str) -> (String, Option<Self>) {
        let suffix = [".conf", ".efi"].into_iter().find(|suffix| {
            let at = name.len().saturating_sub(suffix.len());
            name.get(at..).is_some_and(|end| end.eq_ignore_ascii_case(suffix))
        });
        let Some((stem, suffix)) = suffix.and_then(|suffix| name.split_at_checked(name.len() - suffix.len())) else {
            return (name.to_owned(), None);
        };
        let found = stem.rsplit_once('+').and_then(|(stem, text)| Some((stem, text.parse().ok()?)));
        match found {
            Some((stem, counter)) => (format!("{stem}{suffix}"), Some(counter)),
            None => (name.to_owned(), None),
        }
    }
}

impl std::str::FromStr for Counter {
    type Err = std::num::ParseIntError;

    /// `LEFT` or `LEFT-DONE`, digits only.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| match text.bytes().all(|c| c.is_ascii_digit()) {
            true => text.parse().map(|number: i32| number.unsigned_abs()),
            false => "".parse(),
        };
        let (left, done) = text.split_once('-').unwrap_or((text, "0"));
        Ok(Self { left: number(left)?, done: number(done)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_no_part_of_the_name() {
        let check = |name: &str, want: &str, counter: Option<(u32, u32)>| {
            let counter = counter.map(|(left, done)| Counter { left, done });
            assert_eq!(Counter::split(name), (want.to_owned(), counter), "{name}");
        };
        check("a+3.conf", "a.conf", Some((3, 0)));
        check("a+0-3.efi", "a.efi", Some((0, 3)));
        check("a+1-2.CONF", "a.CONF", Some((1, 2)));
        check("a+b+2.conf", "a+b.conf", Some((2, 0)));
        for name in [
            "a.conf",
            "a+.conf",
            "a+-1.conf",
            "a+1-.conf",
            "a+x.conf",
            "a+1.conf.x",
            "a+1",
            "a+3+.conf",
            "",
            "é",
            "a+99999999999.conf",
            "a++1x.conf",
        ] {
            check(name, name, None);
        }
    }
}
