//! The man pages say everything that there is: each key of the configuration with its default, each kind of message, each
//! command.

use std::{collections::BTreeMap, fs, path::Path};

use clap::{Command, CommandFactory};
use finalize::{
    cli::Cli,
    config::Config,
    journal::{ATTENTION, BOOTED, FAILED, FELL_BACK, FINALIZED, GOOD, NOT_BOOTED, REFUSED, UNFINISHED},
};

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// The keys of composefs-finalize.toml(5), with what follows their names: `.BR key " = default"` below a section's heading.
fn described(page: &str) -> BTreeMap<String, String> {
    let (mut keys, mut section) = (BTreeMap::new(), None);
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(heading) = line.strip_prefix(".SH ") {
            section = heading.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
        } else if let (Some(section), ".TP") = (section, line) {
            let (key, default) = lines.next().unwrap().strip_prefix(".BR ").unwrap().split_once(' ').unwrap();
            let default = default[1..default.len() - 1].replace("\"\"", "\"");
            keys.insert(format!("{section}.{}", key.replace("\\-", "-")), default);
        }
    }
    keys
}

#[test]
fn each_key_is_described_with_its_default() {
    let described = described(&read("man/composefs-finalize.toml.5"));
    let source = read("src/config.rs");
    // The arms of `set`.
    let arms = source.lines().filter_map(|line| line.trim().strip_prefix('"')?.split_once("\" => "));
    let known: Vec<_> = arms.map(|(key, _)| key).filter(|key| key.contains('.')).collect();
    assert!(known.len() > 10, "{known:?}");
    for key in &known {
        assert!(described.contains_key(*key), "composefs-finalize.toml(5) lacks {key}");
    }
    assert_eq!(described.len(), known.len(), "{known:?} are known, and described are {described:?}");

    let mut text = String::new();
    for (key, default) in described.iter().filter_map(|(key, rest)| Some((key, rest.strip_prefix(" = ")?))) {
        text += &format!("{key} = {default}\n");
    }
    let (mut config, mut warnings) = (Config::default(), vec![]);
    for line in text.lines() {
        let (section, key) = line.split_once('.').unwrap();
        config.apply(line, &format!("[{section}]\n{key}\n"), &mut warnings);
    }
    assert_eq!(warnings, [""; 0]);
    assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()), "a default is another one: {text}");
}

#[test]
fn each_kind_of_message_is_described() {
    let page = read("man/composefs-finalize.roff");
    for id in [FINALIZED, FAILED, REFUSED, BOOTED, NOT_BOOTED, UNFINISHED, ATTENTION, FELL_BACK, GOOD] {
        assert!(page.contains(&format!("\n.B {id}\n")), "composefs-finalize(8) lacks {id}");
    }
    let consts = read("src/journal.rs").matches("MessageId = MessageId(").count();
    assert_eq!(page.lines().filter(|line| line.len() == 35 && line.starts_with(".B ")).count(), consts);
}

#[test]
fn when_and_why_is_said_of_each_command() {
    fn check(command: &Command) {
        let page = command.get_display_name().unwrap_or_else(|| command.get_name());
        let text = read(&format!("man/{page}.roff"));
        assert!(!text.starts_with(".SH") && text.len() > 80, "{page}.roff does not say when and why");
        for other in command.get_subcommands().filter(|other| !other.is_hide_set() && other.get_name() != "help") {
            check(other);
        }
    }
    let mut command = Cli::command();
    command.build();
    check(&command);
}
