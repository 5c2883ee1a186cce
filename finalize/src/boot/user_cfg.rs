//! GRUB's `user.cfg`: the menu of UKIs, in a file that belongs to people too.
//!
//! GRUB's password (`grub2-setpassword` writes it here), timeouts, functions and somebody's own menuentries stand beside
//! our menuentries. Only those that chainload a deployment's UKI are ours; every other byte stays, in its place.

use std::io;

use cap_std::fs::Dir;

use super::{
    bls::id_of_uki,
    count::{
        Trial,
        script::{self, Defaults},
    },
    grub,
};
use crate::{digest::DeploymentId, layout::BOOT_PREFIX, sys};

/// A `user.cfg`. Its bytes are kept whatever their encoding is: each stands for one character.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserCfg(String);

/// A part of a `user.cfg`, with its last line break.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    /// A menuentry that chainloads a deployment's UKI.
    Ours(&'a str),
    /// A menuentry or a submenu of somebody else.
    Entry(&'a str),
    /// What stands outside.
    Text(&'a str),
    /// What counts boots.
    Count(&'a str),
}

/// The file `name` in GRUB's directory; nothing where there is none.
///
/// # Errors
///
/// Those of openat2(2) and read(2); `InvalidData` when the file is larger than 16 MiB.
pub fn read(grub: &Dir, name: &str) -> io::Result<Option<UserCfg>> {
    Ok(sys::file::read_bytes(grub, name, 16 << 20)?.map(|bytes| UserCfg::from_bytes(&bytes)))
}

impl UserCfg {
    /// The content of a file.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| char::from(*byte)).collect())
    }

    /// The counterpart of [`UserCfg::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        // Every character was a byte.
        self.0.chars().map(|c| c as u8).collect()
    }

    /// The deployments that it boots, the first one first.
    pub fn deployments(&self) -> Vec<DeploymentId> {
        grub::chainloaded(&self.0).into_iter().filter_map(|(_, path)| id_of_uki(&path)).collect()
    }

    /// What the menuentry of deployment `id` chainloads, a path on the ESP.
    pub fn uki(&self, id: &DeploymentId) -> Option<String> {
        let mut paths = grub::chainloaded(&self.0).into_iter().map(|(_, path)| path);
        paths.find(|path| id_of_uki(path).as_ref() == Some(id))
    }

    /// The menuentry of deployment `id`.
    pub fn menuentry(&self, id: &DeploymentId) -> Option<String> {
        let boots = |text: &str| grub::chainloaded(text).iter().any(|(_, path)| id_of_uki(path).as_ref() == Some(id));
        pieces(&self.0).into_iter().find_map(|piece| match piece {
            Piece::Ours(text) if boots(text) => Some(text.to_owned()),
            _ => None,
        })
    }

    /// This menu with the menuentry of deployment `first` in the place of the first of ours, and the others behind it in the
    /// order that they had, and nothing that counts. Where it has none for `first`, that is `kept`. Nothing where there is neither.
    pub fn arranged(&self, first: &DeploymentId, kept: Option<&str>) -> Option<Self> {
        let found = self.menuentry(first);
        let primary = found.clone().or_else(|| kept.map(str::to_owned))?;
        let mut waiting = vec![primary.as_str()];
        let live = pieces(&self.0);
        let ours = live.iter().filter_map(|piece| match piece {
            Piece::Ours(text) => Some(*text),
            _ => None,
        });
        let mut skipped = found.is_none();
        for text in ours {
            let is_it = !skipped && Some(text) == found.as_deref();
            skipped |= is_it;
            waiting.extend((!is_it).then_some(text));
        }
        let mut waiting = waiting.into_iter();
        let mut menu = String::new();
        for piece in &live {
            match piece {
                Piece::Ours(_) => push(&mut menu, &script::not_counting(waiting.next().unwrap_or_default())),
                Piece::Entry(text) | Piece::Text(text) => push(&mut menu, text),
                Piece::Count(_) => {}
            }
        }
        for text in waiting {
            let between = if menu.is_empty() || menu.ends_with("\n\n") { "" } else { "\n" };
            push(&mut menu, between);
            push(&mut menu, &script::not_counting(text));
        }
        Some(Self(menu))
    }

    /// This menu with our menuentries as `next` has them, in the place of the first of ours. What `next` has besides, and
    /// this menu has not (the lines that find the ESP, say), stands right before them.
    pub fn with_entries_of(&self, next: &Self) -> Self {
        let is_there = |text: &str| {
            let finds_esp = |text: &str| text.contains(grub::EFI_UUID);
            text.trim().is_empty() || self.0.contains(text.trim()) || (finds_esp(text) && finds_esp(&self.0))
        };
        let mut ours = String::new();
        for piece in pieces(&next.0) {
            match piece {
                Piece::Ours(text) => {
                    // An empty line between two, as whoever stages writes them.
                    let between = if ours.is_empty() || ours.ends_with("\n\n") { "" } else { "\n" };
                    push(&mut ours, between);
                    push(&mut ours, &script::not_counting(text));
                }
                Piece::Entry(text) | Piece::Text(text) if !is_there(text) => push(&mut ours, text),
                _ => {}
            }
        }
        let mut merged = String::new();
        let live = pieces(&self.0);
        let is_ours =
            |at: Option<usize>| at.and_then(|at| live.get(at)).is_some_and(|piece| matches!(piece, Piece::Ours(_)));
        for (at, piece) in live.iter().enumerate() {
            match piece {
                // What was between two of ours.
                Piece::Text(text) if text.trim().is_empty() && is_ours(at.checked_sub(1)) && is_ours(Some(at + 1)) => {}
                // All of them, where the first one stood.
                Piece::Ours(_) => push(&mut merged, &std::mem::take(&mut ours)),
                Piece::Entry(text) | Piece::Text(text) => push(&mut merged, text),
                Piece::Count(_) => {}
            }
        }
        push(&mut merged, &ours);
        Self(merged)
    }

    /// This menu without the menuentries of deployment `id`, and without a count.
    pub fn without(&self, id: &DeploymentId) -> Self {
        let is_of = |text: &str| grub::chainloaded(text).iter().any(|(_, path)| id_of_uki(path).as_ref() == Some(id));
        let kept = pieces(&self.0).into_iter().filter_map(|piece| match piece {
            Piece::Ours(text) => (!is_of(text)).then(|| script::not_counting(text)),
            Piece::Entry(text) | Piece::Text(text) => Some(text.to_owned()),
            Piece::Count(_) => None,
        });
        Self(kept.collect())
    }

    /// This menu, where GRUB counts the boots of the deployment of `trial`; none where there is no other one to go back to.
    pub fn counting(&self, trial: &Trial) -> Option<Self> {
        let titled: Vec<_> =
            grub::chainloaded(&self.0).into_iter().filter_map(|(t, p)| Some((t, id_of_uki(&p)?))).collect();
        let title = |is_new: bool| {
            let found = titled.iter().find(|(_, id)| (*id == trial.deployment) == is_new);
            found.map(|(title, _)| title.clone())
        };
        let pieces = pieces(&self.0);
        let first = pieces.iter().find(|piece| matches!(piece, Piece::Ours(_) | Piece::Entry(_)));
        let is_new = |text: &str| {
            grub::chainloaded(text).iter().any(|(_, path)| id_of_uki(path).as_ref() == Some(&trial.deployment))
        };
        let is_first = matches!(first, Some(Piece::Ours(text)) if is_new(text));
        let defaults = Defaults { new: title(true)?, is_first, old: title(false)? };
        let mut head = Some(script::head(trial, &defaults));
        let mut counting = String::new();
        for piece in pieces {
            match piece {
                Piece::Ours(text) => {
                    push(&mut counting, &head.take().unwrap_or_default());
                    let text = if is_new(text) { script::counting(text) } else { script::not_counting(text) };
                    push(&mut counting, &text);
                }
                Piece::Entry(text) | Piece::Text(text) => push(&mut counting, text),
                Piece::Count(_) => {}
            }
        }
        Some(Self(counting))
    }
}

fn push(to: &mut String, text: &str) {
    if !text.is_empty() && !to.is_empty() && !to.ends_with('\n') {
        to.push('\n');
    }
    to.push_str(text);
}

/// The whole menu, in order: put together again, the pieces are the text.
fn pieces(menu: &str) -> Vec<Piece<'_>> {
    let mut found = vec![];
    let mut end = 0;
    for block in blocks(menu) {
        if block.start > end {
            texts(&menu[end..block.start], &mut found);
        }
        end = block.end;
        let text = &menu[block];
        let ours = text.trim_start().starts_with("menuentry")
            && grub::chainloaded(text).iter().any(|(_, path)| id_of_uki(path).is_some() || path.contains(BOOT_PREFIX));
        found.push(if ours { Piece::Ours(text) } else { Piece::Entry(text) });
    }
    if end < menu.len() {
        texts(&menu[end..], &mut found);
    }
    found
}

/// What stands outside of menuentries, what counts boots apart from the rest.
fn texts<'a>(text: &'a str, found: &mut Vec<Piece<'a>>) {
    let (before, after) = match script::span(text) {
        Some(span) => {
            let (before, rest) = text.split_at(span.start);
            let (count, after) = rest.split_at(span.len());
            found.extend((!before.is_empty()).then_some(Piece::Text(before)));
            found.push(Piece::Count(count));
            ("", after)
        }
        None => (text, ""),
    };
    found.extend([before, after].into_iter().filter(|text| !text.is_empty()).map(Piece::Text));
}

/// Where the menuentries and submenus of a menu are, each with its closing brace. Braces in quotes do not count; a block
/// that is never closed goes to the end.
fn blocks(menu: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = vec![];
    let mut open: Option<usize> = None;
    let (mut depth, mut quote, mut at) = (0i64, None, 0);
    for line in menu.split_inclusive('\n') {
        if open.is_none() && ["menuentry ", "submenu "].iter().any(|word| line.trim_start().starts_with(word)) {
            (open, depth, quote) = (Some(at), 0, None);
        }
        let began = depth;
        for c in line.chars() {
            match (quote, c) {
                (None, '"' | '\'') => quote = Some(c),
                (Some(q), c) if q == c => quote = None,
                (None, '{') => depth += 1,
                (None, '}') => depth -= 1,
                _ => {}
            }
        }
        at += line.len();
        if let Some(start) = open.filter(|_| depth <= 0 && (began > 0 || line.contains('{'))) {
            found.push(start..at);
            open = None;
        }
    }
    found.extend(open.map(|start| start..menu.len()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(menu: &str) -> Vec<&str> {
        blocks(menu).into_iter().map(|block| &menu[block]).collect()
    }

    #[test]
    fn menuentries_are_told_apart_whatever_is_in_them() {
        let one = "menuentry \"a } b\" {\n  if x; then {\n echo '}'\n }; fi\n}\n";
        let two = "submenu 'more' {\n menuentry x {\n boot\n }\n}\n";
        let text = format!("source ${{x}}\n{one}set a=b\n{two}");
        assert_eq!(texts(&text), [one, two]);
        assert_eq!(texts("menuentry x {\n never closed"), ["menuentry x {\n never closed"]);
        for odd in ["", "}}}}", "menuentry", "menuentry \"", "'\n{{", "menuentry \"é\n{ }"] {
            let whole: String = pieces(odd)
                .into_iter()
                .map(|piece| match piece {
                    Piece::Ours(text) | Piece::Entry(text) | Piece::Text(text) | Piece::Count(text) => text,
                })
                .collect();
            assert_eq!(whole, odd);
        }
    }

    #[test]
    fn only_our_menuentries_are_replaced_and_every_other_byte_stays_in_its_place() {
        let id = |letter: &str| letter.repeat(128).parse::<DeploymentId>().unwrap();
        let menu = |letters: &[&str]| {
            let ids: Vec<_> = letters.iter().map(|letter| id(letter)).collect();
            grub::user_cfg(&ids.iter().map(|id| ("A system", id)).collect::<Vec<_>>())
        };
        let password = "GRUB2_PASSWORD=grub.pbkdf2.sha512.10000.AA.BB\nset superusers=\"root\"\nset timeout=5\n";
        let mine = "menuentry \"Windows\" {\n  chainloader /EFI/Microsoft/Boot/bootmgfw.efi\n}\n";
        let live = format!("{password}{}{mine}# the end", menu(&["a"]));
        let merged = UserCfg::from_bytes(live.as_bytes()).with_entries_of(&UserCfg(menu(&["b", "a"])));
        let text = String::from_utf8(merged.to_bytes()).unwrap();
        assert_eq!(merged.deployments(), [id("b"), id("a")]);
        assert!(text.starts_with(password) && text.ends_with(&format!("}}\n{mine}# the end")), "{text}");
        assert_eq!(text.matches(grub::EFI_UUID).count(), 2, "{text}");
        // Once more changes nothing, and there is an empty line between the two.
        assert_eq!(merged.with_entries_of(&UserCfg(menu(&["b", "a"]))), merged);
        assert_eq!(merged.with_entries_of(&merged), merged);
        assert!(text.contains("}\n\nmenuentry") && !text.contains("\n\n\n"), "{text}");
    }

    #[test]
    fn menuentries_change_places_and_every_other_byte_stays() {
        let id = |letter: &str| letter.repeat(128).parse::<DeploymentId>().unwrap();
        let ids = ["a", "b", "c"].map(id);
        let menu = grub::user_cfg(&ids.iter().map(|id| ("A system", id)).collect::<Vec<_>>());
        let text = format!("set timeout=5\n{menu}menuentry x {{\n boot\n}}\n");
        let live = UserCfg::from_bytes(text.as_bytes());
        let b_first = live.arranged(&ids[1], None).unwrap();
        assert_eq!(b_first.deployments(), [id("b"), id("a"), id("c")]);
        assert_eq!(b_first.arranged(&ids[0], None).unwrap(), live);
        assert!(live.arranged(&id("d"), None).is_none());
        let kept = live.menuentry(&ids[2]).unwrap().replace(ids[2].as_str(), id("d").as_str());
        let more = live.arranged(&id("d"), Some(&kept)).unwrap();
        assert_eq!(more.deployments(), [id("d"), id("a"), id("b"), id("c")]);
    }

    #[test]
    fn a_menu_without_ours_gets_all_of_the_staged_one_and_bytes_are_kept_in_any_encoding() {
        let bytes = b"set title=\xe9\xff\nmenuentry x { boot }";
        let live = UserCfg::from_bytes(bytes);
        assert_eq!(live.to_bytes(), bytes);
        let id = "ab".repeat(64).parse().unwrap();
        let next = UserCfg(grub::user_cfg(&[("New", &id)]));
        let merged = live.with_entries_of(&next);
        assert_eq!(merged.to_bytes(), [bytes.as_slice(), b"\n", &next.to_bytes()].concat());
    }
}
