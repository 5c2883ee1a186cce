//! How GRUB compares the names of entries: its reader of entries takes the comparison of GNU's version sort ("Version sort
//! ordering" in the manual of coreutils), which is not that of the UAPI group's specification.

use std::cmp::Ordering;

/// Which of two file names, suffix included, is the lower. A name that begins with a dot comes first; suffixes of letters
/// count only where all before them is equal.
pub fn compare(one: &str, other: &str) -> Ordering {
    let (a, b) = (one.as_bytes(), other.as_bytes());
    let hidden = |name: &[u8]| name.first() == Some(&b'.');
    hidden(b).cmp(&hidden(a)).then_with(|| parts(stem(a), stem(b))).then_with(|| parts(a, b))
}

/// The name without the suffixes at its end, each a dot, a letter or `~`, and more of them or digits.
fn stem(name: &[u8]) -> &[u8] {
    let is_suffix = |part: &[u8]| match part {
        [first, rest @ ..] => {
            (first.is_ascii_alphabetic() || *first == b'~')
                && rest.iter().all(|c| c.is_ascii_alphanumeric() || *c == b'~')
        }
        [] => false,
    };
    let mut stem = name;
    while let Some(dot) = stem.iter().rposition(|c| *c == b'.').filter(|dot| *dot > 0)
        && is_suffix(&stem[dot + 1..])
    {
        stem = &stem[..dot];
    }
    stem
}

/// Runs of other bytes and of digits by turns. A number has the value of its digits, none is zero.
fn parts(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !(a.is_empty() && b.is_empty()) {
        let is_text = |text: &[u8]| text.first().is_some_and(|c| !c.is_ascii_digit());
        while is_text(a) || is_text(b) {
            let order = weight(a.first()).cmp(&weight(b.first()));
            if order != Ordering::Equal {
                return order;
            }
            (a, b) = (a.get(1..).unwrap_or_default(), b.get(1..).unwrap_or_default());
        }
        let (x, y);
        ((x, a), (y, b)) = (number(a), number(b));
        let order = (x.len(), x).cmp(&(y.len(), y));
        if order != Ordering::Equal {
            return order;
        }
    }
    Ordering::Equal
}

/// Where a byte stands: `~`, the end, a digit, letters, all others.
fn weight(byte: Option<&u8>) -> (u8, u8) {
    match byte {
        Some(b'~') => (0, 0),
        None => (1, 0),
        Some(c) if c.is_ascii_digit() => (2, 0),
        Some(c) if c.is_ascii_alphabetic() => (3, *c),
        Some(c) => (4, *c),
    }
}

/// The digits at the beginning, without leading zeros, and what follows.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let zeros = text[..end].iter().take_while(|c| **c == b'0').count();
    (&text[zeros..end], &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_compare_as_in_gnus_version_sort() {
        let ascending = [
            ".a.conf",
            ".b.conf",
            "1.conf",
            "1a.conf",
            "B.conf",
            "a~1.conf",
            "a.b.conf",
            "a.b.c.conf",
            "a.conf",
            "a1.conf",
            "a9.conf",
            "a10.conf",
            "aa.conf",
            "a-1.conf",
            "a.1.conf",
            "a_1.conf",
            "b.conf",
        ];
        for (at, one) in ascending.iter().enumerate() {
            for (other_at, other) in ascending.iter().enumerate() {
                assert_eq!(compare(one, other), at.cmp(&other_at), "{one} {other}");
            }
        }
        assert_eq!(compare("a01.conf", "a1.conf"), Ordering::Equal);
    }
}
