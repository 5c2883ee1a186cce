//! GRUB's default: the variable `default`, and where grub.cfg takes it from (the GNU GRUB manual, "default", "Environment
//! block", "grub-reboot").

use std::collections::BTreeMap;

use super::{Item, Pin, Pinned, Settings};

/// GRUB's environment block.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

/// What begins an environment block.
const SIGNATURE: &[u8] = b"# GRUB Environment Block\n";

impl Environment {
    /// Reads a block of any length; bytes that are no UTF-8 are replaced. Without its signature GRUB takes nothing from it.
    pub fn parse(block: &[u8]) -> Self {
        let Some(body) = block.strip_prefix(SIGNATURE) else { return Self::default() };
        let text = String::from_utf8_lossy(body).replace("\\\n", "\u{0}").replace("\\\\", "\\");
        // A line without a newline at its end is no variable.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.split('\n').filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.split_once('=')).filter(|(name, _)| !name.is_empty());
        Self(pairs.map(|(name, value)| (name.to_owned(), value.replace('\u{0}', "\n"))).collect())
    }

    /// The block with the variable `name` set to `value`, or removed; as long as before, every other line as it was. None where
    /// the block has no signature, or no room.
    pub fn edited(block: &[u8], name: &str, value: Option<&str>) -> Option<Vec<u8>> {
        let body = block.strip_prefix(SIGNATURE)?;
        let mut edited = SIGNATURE.to_vec();
        let mut added = value.map(|value| {
            let escaped = value.replace('\\', "\\\\").replace('\n', "\\\n");
            format!("{name}={escaped}\n").into_bytes()
        });
        for line in lines(body) {
            if line.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"=")) {
                edited.append(&mut added.take().unwrap_or_default());
            } else {
                edited.extend(line);
            }
        }
        edited.append(&mut added.unwrap_or_default());
        if edited.len() > block.len() {
            return None;
        }
        edited.resize(block.len(), b'#');
        Some(edited)
    }

    /// A variable that is set to something.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }
}

/// The lines of a block, without the padding behind them. A line break behind a backslash is part of a value.
fn lines(body: &[u8]) -> Vec<&[u8]> {
    let (mut found, mut start, mut escaped) = (vec![], 0, false);
    for (at, byte) in body.iter().enumerate() {
        match byte {
            b'\\' => escaped = !escaped,
            b'\n' if !escaped => {
                found.push(&body[start..=at]);
                start = at + 1;
            }
            _ => escaped = false,
        }
    }
    found
}

/// Where a grub.cfg takes its default from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GrubDefault {
    /// `next_entry` of the environment block counts, for one boot.
    pub next_entry: bool,
    /// `saved_entry` of the environment block counts.
    pub saved_entry: bool,
    /// A fixed value, where there is no saved one.
    pub fixed: Option<String>,
}

impl GrubDefault {
    /// Reads what grub.cfg says. It is a program; this knows the form that grub-mkconfig and people write: assignments of
    /// `default`, one of which a condition on `next_entry` guards.
    pub fn parse(grub_cfg: &str) -> Self {
        let mut found = Self::default();
        let mut loads = false;
        let statements = grub_cfg.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        for statement in statements.flat_map(|line| line.split(';')).map(str::trim) {
            loads |= statement == "load_env" || statement.starts_with("load_env ");
            let assignment = statement.strip_prefix("set ").unwrap_or(statement).trim_start();
            let Some(value) = assignment.strip_prefix("default=") else { continue };
            let value = value.trim().trim_matches(['"', '\'']);
            match value {
                "${next_entry}" | "$next_entry" => found.next_entry = loads,
                "${saved_entry}" | "$saved_entry" => found.saved_entry = loads,
                _ if value.contains('$') => {}
                _ => found.fixed = Some(value.to_owned()),
            }
        }
        found
    }
}

/// What chooses a line of the menu. The variable may be an index, an id, or a title; what fits nothing means the first.
pub fn chosen(order: &[Item], settings: &Settings) -> Option<(usize, Pinned)> {
    let from = GrubDefault::parse(&settings.grub_cfg);
    let environment = &settings.environment;
    let fixed = from.fixed.as_deref().filter(|value| !value.is_empty());
    let (pin, value) = match (environment.get("next_entry"), environment.get("saved_entry"), fixed) {
        (Some(value), ..) if from.next_entry => (Pin::NextEntry, value),
        (_, Some(value), _) if from.saved_entry => (Pin::SavedEntry, value),
        (_, _, Some(value)) if !from.saved_entry && value != "0" => (Pin::GrubCfg, value),
        _ => return None,
    };
    // What stands before `>` names the line, what is behind it a line of its submenu.
    let name = value.split('>').next().unwrap_or_default();
    let at = match index(name) {
        Some(at) => usize::try_from(at).ok().filter(|at| *at < order.len())?,
        None => order.iter().position(|item| means(name, item))?,
    };
    Some((at, Pinned::new(pin, value, &order[at])))
}

fn means(name: &str, item: &Item) -> bool {
    [item.id.as_str(), item.name.as_str(), item.stem()].contains(&name) || item.title.as_deref() == Some(name)
}

/// The number that a text begins with, as strtoul(3) reads it, base 8, 10 or 16: `3f…` is the fourth line to GRUB.
fn index(text: &str) -> Option<u64> {
    let (digits, radix) = match text.strip_prefix("0x") {
        Some(hex) => (hex, 16),
        None if text.starts_with('0') && text[1..].starts_with(|c: char| c.is_digit(8)) => (text, 8),
        None => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let number = &digits[..end];
    // What does not fit is past the end of every menu.
    (!number.is_empty()).then(|| u64::from_str_radix(number, radix).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_edited_in_place_and_nothing_else_of_it_changes() {
        let block = |text: &str| format!("# GRUB Environment Block\n{text:#<999}").into_bytes();
        let before = block("# a comment\nsaved_entry=old\nodd=a\\\nsaved_entry=b\nboot_success=1\n");
        let set = Environment::edited(&before, "saved_entry", Some("new")).unwrap();
        assert_eq!(set, block("# a comment\nsaved_entry=new\nodd=a\\\nsaved_entry=b\nboot_success=1\n"));
        let unset = Environment::edited(&before, "saved_entry", None).unwrap();
        assert_eq!(unset, block("# a comment\nodd=a\\\nsaved_entry=b\nboot_success=1\n"));
        let added = Environment::edited(&block(""), "x", Some("1\\2\n3")).unwrap();
        assert_eq!(Environment::parse(&added).get("x"), Some("1\\2\n3"));
        assert_eq!(Environment::edited(&before, "x", Some(&"y".repeat(999))), None);
        assert_eq!(Environment::edited(b"no block", "x", None), None);
    }

    #[test]
    fn an_environment_block_is_read_as_grub_does() {
        let block = |text: &str| format!("# GRUB Environment Block\n{text}");
        let check = |bytes: &[u8], name: &str, want: Option<&str>| {
            assert_eq!(Environment::parse(bytes).get(name), want, "{}", String::from_utf8_lossy(bytes));
        };
        check(block("saved_entry=a b\n####").as_bytes(), "saved_entry", Some("a b"));
        check(block("a=1\na=2\n").as_bytes(), "a", Some("2"));
        check(block("a=b=c\n").as_bytes(), "a", Some("b=c"));
        check(block("a=x\\\\y\n").as_bytes(), "a", Some("x\\y"));
        check(block("a=x\\\ny\n").as_bytes(), "a", Some("x\ny"));
        check(block("a=\n").as_bytes(), "a", None);
        check(block("a=cut").as_bytes(), "a", None);
        check(b"saved_entry=a\n", "saved_entry", None);
        check(&[SIGNATURE, &[0xff, b'=', 0xfe, b'\n']].concat(), "a", None);
        check(b"", "a", None);
    }

    #[test]
    fn a_default_that_begins_with_digits_is_an_index() {
        for (text, want) in
            [("0", 0), ("1", 1), ("3fa9", 3), ("0x1f", 31), ("010", 8), ("09", 9), ("7 x", 7), ("0X1", 0)]
        {
            assert_eq!(index(text), Some(want), "{text}");
        }
        assert_eq!(index("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(["", "a", "x1", "é", "0xg"].map(index), [None; 5]);
    }

    #[test]
    fn grub_cfg_says_where_the_default_comes_from() {
        let check = |text: &str, next_entry, saved_entry, fixed: Option<&str>| {
            let want = GrubDefault { next_entry, saved_entry, fixed: fixed.map(str::to_owned) };
            assert_eq!(GrubDefault::parse(text), want, "{text}");
        };
        let mkconfig = "if [ -s $prefix/grubenv ]; then\n  load_env\nfi\nif [ \"${next_entry}\" ] ; then\n   \
                        set default=\"${next_entry}\"\n   set next_entry=\n   save_env next_entry\nelse\n   \
                        set default=\"${saved_entry}\"\nfi\n";
        check(mkconfig, true, true, None);
        check("set default=\"${saved_entry}\"\n", false, false, None);
        check("load_env; default=$saved_entry", false, true, None);
        check("set default=0\nload_env\nset default=\"$default\"", false, false, Some("0"));
        check("# set default=1\nset defaults=2\n", false, false, None);
        check("set default='Debian GNU/Linux'\n", false, false, Some("Debian GNU/Linux"));
    }
}
