//! How versions compare, and file names with systemd-boot (the UAPI group's "Version Format Specification").

use std::cmp::Ordering;

/// The UAPI group's "Version Format Specification": runs of digits by value, runs of letters as text, `~` before the
/// end, `-` `^` `.` before other characters.
pub fn compare_versions(one: &str, other: &str) -> Ordering {
    let valid = |c: &u8| c.is_ascii_alphanumeric() || b"-.~^".contains(c);
    let (mut a, mut b) = (one.as_bytes(), other.as_bytes());
    // Who has the character comes first; where both have it, it is passed over.
    let special = |c: u8, a: &mut &[u8], b: &mut &[u8]| {
        let has = [a.first() == Some(&c), b.first() == Some(&c)];
        if has == [true, true] {
            (*a, *b) = (&a[1..], &b[1..]);
        }
        has[1].cmp(&has[0])
    };
    loop {
        a = &a[a.iter().position(&valid).unwrap_or(a.len())..];
        b = &b[b.iter().position(&valid).unwrap_or(b.len())..];
        let order = special(b'~', &mut a, &mut b);
        if order != Ordering::Equal {
            return order;
        }
        if a.is_empty() || b.is_empty() {
            return a.len().cmp(&b.len());
        }
        // In this order, one of each: `-.` is lower than `-~`, as with systemd itself.
        let order = b"-^.".iter().fold(Ordering::Equal, |order, c| order.then_with(|| special(*c, &mut a, &mut b)));
        if order != Ordering::Equal {
            return order;
        }
        let digits = [a, b].iter().any(|text| text.first().is_some_and(u8::is_ascii_digit));
        let (x, rest_a) = run(a, digits);
        let (y, rest_b) = run(b, digits);
        // No number at all comes before every number, zero too.
        let has_number = |rest: &[u8], whole: &[u8]| rest.len() < whole.len();
        let order = match digits {
            true => has_number(rest_a, a).cmp(&has_number(rest_b, b)).then((x.len(), x).cmp(&(y.len(), y))),
            false => x.cmp(y),
        };
        if order != Ordering::Equal {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The leading run of digits, without leading zeros, or of letters; and what follows.
fn run(text: &[u8], digits: bool) -> (&[u8], &[u8]) {
    let inside = |c: &u8| if digits { c.is_ascii_digit() } else { c.is_ascii_alphabetic() };
    let end = text.iter().position(|c| !inside(c)).unwrap_or(text.len());
    let (head, rest) = text.split_at(end);
    let zeros = if digits { head.iter().take_while(|c| **c == b'0').count() } else { 0 };
    (&head[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's own list ("Examples"), and what it says in words.
    #[test]
    fn versions_compare_as_the_specification_says() {
        let ascending = [
            "~rc1",
            "",
            "-",
            "-a",
            "0",
            "1~rc1",
            "1",
            "1-1",
            "1.0",
            "1.1",
            "1a",
            "9",
            "10",
            "122.1",
            "123~rc1-1",
            "123",
            "123-a",
            "123-a.1",
            "123-a1",
            "123.a",
            "123.a1",
            "123a",
            "123a-1",
            "124",
        ];
        for (at, one) in ascending.iter().enumerate() {
            for (other_at, other) in ascending.iter().enumerate() {
                assert_eq!(compare_versions(one, other), at.cmp(&other_at), "{one} {other}");
            }
        }
        assert_eq!(compare_versions("01", "1"), Ordering::Equal);
        assert_eq!(compare_versions("a_b", "a b"), Ordering::Equal);
        assert_eq!(compare_versions("-.", "-~"), Ordering::Less);
        assert_eq!(compare_versions("-.", "-"), Ordering::Less);
    }
}
