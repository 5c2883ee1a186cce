//! systemd-boot's order and default (systemd-boot(7), loader.conf(5), and the Boot Loader Interface).

use std::cmp::{Ordering, Reverse};

use super::{Item, Pin, Pinned, Settings, compare_versions, item::unquoted};
use crate::boot::loader::Version;

/// The variables of the Boot Loader Interface that choose an entry, as text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variables {
    /// `LoaderEntryOneShot`: for the next boot only.
    pub one_shot: Option<String>,
    /// `LoaderEntryPreferred`: as the default, but never an entry without tries.
    pub preferred: Option<String>,
    /// `LoaderEntryDefault`: `bootctl set-default`, and the key `d` in the menu.
    pub default: Option<String>,
    /// `LoaderEntryLastBooted`: what `@saved` means.
    pub last_booted: Option<String>,
}

/// Entries without tries left last; then those with a sort key, by it, machine, and version; then by name, descending.
pub fn compare(one: &Item, other: &Item) -> Ordering {
    let spent = |item: &Item| item.counter.is_some_and(|counter| counter.left == 0);
    let by_key = match (&one.sort_key, &other.sort_key) {
        (Some(a), Some(b)) => a
            .cmp(b)
            .then_with(|| one.machine_id.cmp(&other.machine_id))
            .then_with(|| compare_versions(&other.version, &one.version)),
        (one, other) => one.is_none().cmp(&other.is_none()),
    };
    let by_counter = || match (one.counter, other.counter) {
        (Some(a), Some(b)) => Reverse(a.left).cmp(&Reverse(b.left)).then(a.done.cmp(&b.done)),
        _ => Ordering::Equal,
    };
    let name = |item: &Item| item.id.to_ascii_lowercase();
    let by_name = || compare_versions(&name(other), &name(one));
    spent(one).cmp(&spent(other)).then(by_key).then_with(by_name).then_with(by_counter)
}

/// What chooses a line of the menu: the variable for one boot; then the preferred entry, the variable before loader.conf
/// (systemd-boot 260 and later); then the default, likewise. A pattern that fits no line chooses nothing, and the next place
/// is looked at.
pub fn chosen(order: &[Item], settings: &Settings) -> Option<(usize, Pinned)> {
    let variables = &settings.variables;
    let find = |pin: Pin, pattern: Option<&str>| {
        let pattern = pattern?.to_ascii_lowercase();
        let is_spent = |item: &Item| item.counter.is_some_and(|counter| counter.left == 0);
        let may_be = |item: &Item| !pin.is_preferred() || !is_spent(item);
        let at = order.iter().position(|item| fits(&pattern, item, settings.version) && may_be(item))?;
        Some((at, Pinned::new(pin, &pattern, &order[at])))
    };
    let either = |text: Option<&str>, (plain, saved): (Pin, Pin)| match text {
        Some(text) if text.eq_ignore_ascii_case("@saved") => find(saved, variables.last_booted.as_deref()),
        text => find(plain, text),
    };
    let conf = |key| loader_conf(&settings.loader_conf, key);
    let knows_preferred = settings.version.is_none_or(|version| version >= Version(260, 0));
    let preferred = || {
        let variable = (Pin::PreferredVariable, Pin::PreferredVariable);
        let by_variable = either(variables.preferred.as_deref(), variable);
        by_variable.or_else(|| either(conf("preferred").as_deref(), (Pin::PreferredByConf, Pin::PreferredByConf)))
    };
    find(Pin::OneShotVariable, variables.one_shot.as_deref())
        .or_else(|| knows_preferred.then(preferred)?)
        .or_else(|| either(variables.default.as_deref(), (Pin::DefaultVariable, Pin::SavedByVariable)))
        .or_else(|| either(conf("default").as_deref(), (Pin::LoaderConf, Pin::SavedByConf)))
}

/// The key `default` of loader.conf.
pub fn loader_conf_default(text: &str) -> Option<String> {
    loader_conf(text, "default")
}

/// A key of loader.conf; the last one counts. Special names but `@saved` are passed over.
fn loader_conf(text: &str, wanted: &str) -> Option<String> {
    let line = |line: &str| {
        let (key, value) = line.trim().split_once([' ', '\t'])?;
        let value = value.trim();
        let value = unquoted(value);
        let special = value.starts_with('@') && !value.eq_ignore_ascii_case("@saved");
        (key == wanted && !value.is_empty() && !special).then(|| value.to_owned())
    };
    text.split(['\n', '\r']).filter_map(line).next_back()
}

/// Whether a pattern in lower case means the line. The counter was a part of the name that is compared until it was mended
/// in version 258, and in 257 by an update.
fn fits(pattern: &str, item: &Item, version: Option<Version>) -> bool {
    let name = match version {
        Some(version) if version < Version(257, 10) => &item.name,
        _ => &item.id,
    };
    fnmatch(pattern.as_bytes(), name.to_ascii_lowercase().as_bytes())
}

/// fnmatch(3) as systemd-boot has it: `*`, `?`, `[…]` with ranges, and `\` before a character that means itself.
fn fnmatch(pattern: &[u8], text: &[u8]) -> bool {
    let (mut pattern, mut text) = (pattern, text);
    // Where the last star was, and how much of the text it has taken: enough to come back to.
    let mut star: Option<(&[u8], &[u8])> = None;
    loop {
        let step = match pattern.split_first() {
            None if text.is_empty() => return true,
            Some((b'*', rest)) => {
                star = Some((rest, text));
                pattern = rest;
                continue;
            }
            Some(_) => text.split_first().and_then(|(c, after)| Some((one_of(pattern, *c)?, after))),
            None => None,
        };
        match (step, star) {
            (Some(next), _) => (pattern, text) = next,
            (None, Some((after, [_, rest @ ..]))) => {
                star = Some((after, rest));
                (pattern, text) = (after, rest);
            }
            (None, _) => return false,
        }
    }
}

/// What follows in the pattern, when its first element means `c`.
fn one_of(pattern: &[u8], c: u8) -> Option<&[u8]> {
    match pattern {
        [b'?', rest @ ..] => Some(rest),
        [b'\\', literal, rest @ ..] => (*literal == c).then_some(rest),
        [b'[', set @ ..] => {
            // A bracket that comes first is one of the set.
            let end = set.iter().skip(1).position(|c| *c == b']')? + 1;
            let (mut members, rest) = (&set[..end], &set[end + 1..]);
            let mut found = false;
            while let [first, more @ ..] = members {
                members = match more {
                    [b'-', last, after @ ..] => {
                        found |= (*first..=*last).contains(&c);
                        after
                    }
                    _ => {
                        found |= *first == c;
                        more
                    }
                };
            }
            found.then_some(rest)
        }
        [literal, rest @ ..] => (*literal == c).then_some(rest),
        [] => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_fnmatch() {
        let check = |pattern: &str, text: &str, want: bool| {
            assert_eq!(fnmatch(pattern.as_bytes(), text.as_bytes()), want, "{pattern} {text}");
        };
        let fit = [
            ("", ""),
            ("*", ""),
            ("a*c", "abc"),
            ("a*c*e", "abcde"),
            ("*a", "aaa"),
            ("a?c", "abc"),
            ("[a-c]x", "bx"),
            ("[]x]", "]"),
            ("[x-]", "-"),
            ("\\*", "*"),
            ("**", "x"),
            ("*.conf", "a.conf"),
            ("a*b?d", "abxbyd"),
        ];
        fit.iter().for_each(|(pattern, text)| check(pattern, text, true));
        let differ =
            [("", "a"), ("a", ""), ("a?", "a"), ("[a-c]", "d"), ("[", "["), ("\\", "x"), ("a*", "ba"), ("*a", "ab")];
        differ.iter().for_each(|(pattern, text)| check(pattern, text, false));
    }

    #[test]
    fn the_last_default_of_loader_conf_counts() {
        let check = |text: &str, want: Option<&str>| assert_eq!(loader_conf_default(text).as_deref(), want, "{text:?}");
        check("", None);
        check("default", None);
        check("#default x\n default\ta.conf \r\ntimeout 3\n", Some("a.conf"));
        check("default a\ndefault \"b c\"\ndefault @other\n", Some("b c"));
        check("defaults a\nDEFAULT b\n", None);
    }
}
