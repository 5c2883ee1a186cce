//! Boot counting in GRUB's own language, at the head of a menu that is exchanged as a whole.
//!
//! The count is two variables of GRUB's environment block. The script begins a count where the block has another one, writes
//! down each start of the new deployment before the kernel is loaded, and makes the old one the default when no try is left.
//! GRUB's language has no arithmetic: there is a branch for each value. Where GRUB cannot write the block, the new deployment
//! boots uncounted, as it would without the script.

use std::fmt::Write as _;

use super::Trial;

/// The variable that says which count the block has.
pub const TRIAL: &str = "composefs_trial";
/// The variable with the tries that are left, or [`GOOD`].
pub const LEFT: &str = "composefs_left";
/// The deployment was found good.
pub const GOOD: &str = "good";
/// What a menuentry that is counted calls first.
pub const CALL: &str = "composefs_count now";
/// What its kernel gets: nothing where the start is not counted.
pub const WORDS: &str = "$composefs_words";
/// A kernel that was started as a try has this word, with the tries that were left before it.
pub const WORD: &str = "composefs-finalize.try";

const BEGIN: &str = "# composefs-finalize counts boots:";
const END: &str = "# composefs-finalize counts boots, the end";

/// The values of GRUB's variable `default` that mean the new deployment, and one that means the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// The id or the title of the new deployment's menuentry.
    pub new: String,
    /// Whether it is the first of the menu, which starts when nothing is chosen.
    pub is_first: bool,
    /// The id or the title of the old one's.
    pub old: String,
}

/// The script for the head of a menu.
pub fn head(trial: &Trial, defaults: &Defaults) -> String {
    let Trial { deployment, tries, token } = trial;
    let mut text =
        format!("{BEGIN} {deployment} {tries} {token}\nfunction composefs_count {{\n  set composefs_words=\n");
    text.push_str("  set composefs_now=\"${composefs_left}\"\n");
    for left in (1..=*tries).rev() {
        let word = if left == *tries { "if" } else { "elif" };
        _ = writeln!(text, "  {word} [ \"${{composefs_now}}\" = {left} ]; then\n    set {LEFT}={}", left - 1);
    }
    _ = write!(
        text,
        "  else\n    set composefs_now=\n  fi\n  if [ -n \"${{composefs_now}}\" ]; then\n    \
         if save_env {TRIAL} {LEFT}; then\n      \
         set composefs_words=\"{WORD}=${{composefs_now}} panic=10 rd.shell=0 rd.emergency=reboot\"\n    fi\n  fi\n}}\n\
         load_env {TRIAL} {LEFT}\n\
         if [ \"${{{TRIAL}}}\" != \"{token}\" ]; then\n  set {TRIAL}={token}\n  set {LEFT}={tries}\nfi\n\
         if [ \"${{{LEFT}}}\" = 0 ]; then\n"
    );
    let (new, old) = (quoted(&defaults.new), quoted(&defaults.old.replace('>', ">>")));
    let first = if defaults.is_first { "-z \"${default}\" -o \"${default}\" = 0 -o " } else { "" };
    _ = write!(text, "  if [ {first}\"${{default}}\" = {new} ]; then\n    set default={old}\n  fi\nfi\n{END}\n");
    text
}

/// A text that GRUB's shell reads back as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The count that a menu has at its head.
pub fn trial(menu: &str) -> Option<Trial> {
    let line = menu.lines().find_map(|line| line.strip_prefix(BEGIN))?;
    let mut words = line.split_ascii_whitespace();
    let (deployment, tries) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Trial { deployment, tries, token: words.next()?.to_owned() })
}

/// Where the script is in a text.
pub fn span(text: &str) -> Option<std::ops::Range<usize>> {
    let start = text.find(BEGIN).filter(|at| *at == 0 || text[..*at].ends_with('\n'))?;
    let end = start + text[start..].find(&format!("\n{END}"))? + 1 + END.len();
    Some(start..end + usize::from(text[end..].starts_with('\n')))
}

/// A menuentry that is counted.
pub fn counting(menuentry: &str) -> String {
    let bare = not_counting(menuentry);
    match bare.split_once('\n') {
        Some((first, rest)) => format!("{first}\n    {CALL}\n{rest}"),
        None => bare,
    }
}

/// The same menuentry, not counted.
pub fn not_counting(menuentry: &str) -> String {
    menuentry.split_inclusive('\n').filter(|line| line.trim() != CALL).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trial_of(tries: u32) -> Trial {
        Trial::new("ab".repeat(64).parse().unwrap(), tries, Some("b00t"))
    }

    #[test]
    fn a_count_is_read_back_from_its_menu() {
        let defaults = Defaults { new: "it's".to_owned(), is_first: true, old: "a > b".to_owned() };
        for tries in 1..=super::super::MOST {
            let text = head(&trial_of(tries), &defaults);
            assert_eq!(trial(&text), Some(trial_of(tries)));
            assert_eq!(span(&text), Some(0..text.len()));
            let menu = format!("set x=1\n{text}menuentry y {{\n}}\n");
            assert_eq!(&menu[span(&menu).unwrap()], text);
        }
        assert_eq!([trial(""), trial(BEGIN), trial("# composefs-finalize counts boots: x 1 y")], [None, None, None]);
        assert_eq!([span(""), span(BEGIN), span(&format!("x{BEGIN}\n{END}\n"))], [None, None, None]);
    }

    #[test]
    fn a_menuentry_is_counted_once_and_not_for_ever() {
        let bare = "menuentry \"x\" {\n    chainloader /a\n}\n";
        let once = counting(bare);
        assert_eq!(once, "menuentry \"x\" {\n    composefs_count now\n    chainloader /a\n}\n");
        assert_eq!((counting(&once), not_counting(&once)), (once.clone(), bare.to_owned()));
    }
}
