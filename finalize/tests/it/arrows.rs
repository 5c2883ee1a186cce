//! Which room of a crate knows which: the table in README.md is compared with what the files name. A room is a module at
//! the top of a crate, with all that is below it. Whoever is known stands lower in the table, so no circle can be drawn.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// A room, and the rooms that it knows.
type Arrows = BTreeMap<String, BTreeSet<String>>;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The paths that a file names, as the modules below the crate that they lead through.
struct Names<'a> {
    module: Vec<String>,
    found: &'a mut BTreeSet<String>,
}

impl Names<'_> {
    fn stream(&mut self, stream: TokenStream) {
        let tokens: Vec<_> = stream.into_iter().collect();
        let ident = |at: usize| match tokens.get(at) {
            Some(TokenTree::Ident(name)) => Some(name.to_string()),
            _ => None,
        };
        for (at, token) in tokens.iter().enumerate() {
            let TokenTree::Group(group) = token else { continue };
            let inner = (at >= 2 && ident(at - 2).as_deref() == Some("mod")).then(|| ident(at - 1)).flatten();
            self.module.extend(inner.clone());
            self.stream(group.stream());
            self.module.truncate(self.module.len() - usize::from(inner.is_some()));
        }
        let mut at = 0;
        while at < tokens.len() {
            let begins = matches!(ident(at).as_deref(), Some("crate" | "super")) && colons(&tokens, at + 1);
            at = if begins { self.follow(self.module.clone(), &tokens[at..], at) } else { at + 1 };
        }
    }

    /// Follows the path that `tokens` begin with, from `module` on; returns where it ends, counted from `at`.
    fn follow(&mut self, mut module: Vec<String>, tokens: &[TokenTree], at: usize) -> usize {
        let mut next = 0;
        loop {
            match tokens.get(next) {
                Some(TokenTree::Ident(name)) if name == "crate" => module.clear(),
                Some(TokenTree::Ident(name)) if name == "super" => _ = module.pop(),
                Some(TokenTree::Ident(name)) => module.push(name.to_string()),
                Some(TokenTree::Group(list)) if list.delimiter() == Delimiter::Brace => {
                    let list: Vec<_> = list.stream().into_iter().collect();
                    let comma = |token: &TokenTree| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',');
                    list.split(comma).for_each(|part| _ = self.follow(module.clone(), part, 0));
                    return at + next + 1;
                }
                _ => {}
            }
            if !colons(tokens, next + 1) {
                break;
            }
            next += 3;
        }
        self.found.extend(module.into_iter().next());
        at + next + 1
    }
}

fn colons(tokens: &[TokenTree], at: usize) -> bool {
    let colon = |at: usize| matches!(tokens.get(at), Some(TokenTree::Punct(colon)) if colon.as_char() == ':');
    colon(at) && colon(at + 1)
}

/// The modules at the top of the crate that the file `name`, relative to `src`, names in `text`.
fn named(name: &str, text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let module = name.trim_end_matches(".rs").split('/').filter(|part| *part != "lib").map(str::to_owned).collect();
    Names { module, found: &mut found }.stream(text.parse().unwrap());
    found
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(|entry| entry.unwrap().into_path());
    entries.filter(|path| path.extension().is_some_and(|ext| ext == "rs")).collect()
}

/// What the files of a crate say. What is named in the crate itself is the room `lib`.
fn drawn_by_files(of: &str) -> Arrows {
    let src = root().join(of).join("src");
    let name = |path: &PathBuf| path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
    let room = |name: &str| name.split(['/', '.']).next().unwrap().to_owned();
    let files: Vec<_> = files(&src).iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect();
    let mut arrows: Arrows = files.iter().map(|(name, _)| (room(name), BTreeSet::new())).collect();
    let rooms: BTreeSet<_> = arrows.keys().cloned().collect();
    for (name, text) in &files {
        let known =
            named(name, text).into_iter().map(|name| if rooms.contains(&name) { name } else { "lib".to_owned() });
        arrows.get_mut(&room(name)).unwrap().extend(known.filter(|known| *known != room(name)));
    }
    arrows.remove("main");
    arrows.retain(|room, known| room != "lib" || !known.is_empty());
    arrows
}

/// What the table in the text says, and what is wrong with it: the block of lines that begins with `of`.
fn drawn_in_text(of: &str, text: &str) -> (Arrows, Vec<String>) {
    let lines = text.lines().map(str::trim_end).skip_while(|line| *line != format!("    {of}:")).skip(1);
    let lines: Vec<_> = lines.take_while(|line| line.starts_with("      ")).collect();
    let split = |line: &&str| {
        let (room, known) = line.split_once('→').unwrap_or((line, ""));
        (room.trim().to_owned(), known.split_whitespace().map(str::to_owned).collect::<BTreeSet<_>>())
    };
    let arrows: Vec<_> = lines.iter().map(split).collect();
    let place = |room: &str| arrows.iter().position(|(name, _)| name == room);
    let wrong = arrows.iter().enumerate().flat_map(|(at, (room, known))| {
        let up = known.iter().filter(move |known| place(known).is_none_or(|place| place <= at));
        up.map(move |known| format!("{of}: the arrow {room} → {known} runs up"))
    });
    let wrong = wrong.collect();
    (arrows.into_iter().collect(), wrong)
}

/// Arrows that only one side has.
fn differences(of: &str, files: &Arrows, text: &Arrows) -> Vec<String> {
    let nobody = BTreeSet::new();
    let only = |a: &Arrows, b: &Arrows, what: &str| -> Vec<String> {
        let all = a.iter().flat_map(|(room, known)| known.iter().map(move |known| (room, known)));
        let missing = all.filter(|(room, known)| !b.get(*room).unwrap_or(&nobody).contains(*known));
        missing.map(|(room, known)| format!("{of}: {room} → {known} {what}")).collect()
    };
    let mut wrong = only(files, text, "is not allowed by the table in README.md");
    wrong.extend(only(text, files, "is in the table in README.md, and nobody goes that way"));
    wrong
}

#[test]
fn rooms_know_whom_the_table_says() {
    let text = fs::read_to_string(root().join("README.md")).unwrap();
    let mut wrong = vec![];
    for of in ["image-tools", "finalize"] {
        let (table, up) = drawn_in_text(of, &text);
        wrong.extend(differences(of, &drawn_by_files(of), &table));
        wrong.extend(up);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_way_to_name_a_room_is_seen() {
    let check = |file: &str, text: &str, want: &[&str]| {
        assert_eq!(named(file, text), want.iter().map(|name| (*name).to_owned()).collect(), "{file}: {text}");
    };
    check("a.rs", "use crate::b;", &["b"]);
    check("a.rs", "use crate::{b::{c, d}, e};", &["b", "e"]);
    check("a.rs", "fn f() { json!({ \"x\": crate::b::C }); }", &["b"]);
    check("a.rs", "pub(crate) fn f() {} use super::b;", &["b"]);
    check("a/c.rs", "use super::b; use super::super::d; use super::{super::e};", &["a", "d", "e"]);
    check("a/c.rs", "mod tests { use super::*; use super::super::b; }", &["a"]);
    check("a.rs", "use std::{fs, io}; use self::b::c;", &[]);
}

#[test]
fn an_arrow_that_is_added_is_found() {
    let (table, up) = drawn_in_text("x", "    x:\n      a → b\n      b\n\n");
    assert_eq!(up, Vec::<String>::new());
    let mut files = table.clone();
    files.get_mut("b").unwrap().insert("a".to_owned());
    assert_eq!(differences("x", &files, &table), ["x: b → a is not allowed by the table in README.md"]);
    let (_, up) = drawn_in_text("x", "    x:\n      a → b\n      b → a\n");
    assert_eq!(up, ["x: the arrow b → a runs up"]);
}
