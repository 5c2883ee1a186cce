//! The configuration: TOML files, later ones win key by key.
//!
//! A typo must not lose an update: an unknown key is a warning, a wrong value a warning that names file, line and key,
//! and what was there before (the default, or an earlier file's value) stays.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};
use toml::de::{DeTable, DeValue};

use crate::{
    boot::count::MOST,
    etc::policy::{Accounts, Keep, Policy, Rule},
};

/// The settings, with their defaults.
#[derive(Debug, Clone)]
pub struct Config {
    /// How /etc is merged.
    pub policy: Policy,
    /// Whether /etc is merged at all (`[etc] merge`).
    pub merge_etc: bool,
    /// Whether the boot entries are exchanged (`[boot] update`).
    pub update_boot: bool,
    /// Whether what pins another entry than the new one is removed.
    pub unpin: bool,
    /// How often the boot loader tries the new deployment before it goes back to the old one (`[boot] tries`); 0 for ever.
    pub tries: u32,
    /// How often what may pass is tried again (`[finalize] retry-attempts`).
    pub retry_attempts: u32,
    /// When to give up, in seconds (`[finalize] timeout-seconds`).
    pub timeout_seconds: u64,
    /// Whether a failure undoes what was done (`[finalize] rollback-on-failure`).
    pub rollback_on_failure: bool,
    /// Whether the new deployment's original /etc is kept after it has booted (`[finalize] backup-original`).
    pub backup_original: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            merge_etc: true,
            update_boot: true,
            unpin: false,
            tries: 0,
            retry_attempts: 2,
            timeout_seconds: 240,
            rollback_on_failure: true,
            backup_original: false,
        }
    }
}

impl Config {
    /// The settings of `config.toml` in each of `dirs`, then of all `config.d/*.toml`, by name; and what a person should
    /// know about these files. Of one name in several of `dirs` only the last is read, as systemd reads its own
    /// (systemd.syntax(7)): an empty file, or a symlink to /dev/null, masks the vendor's.
    pub fn load(dirs: &[&Path]) -> (Self, Vec<String>) {
        let (mut config, mut warnings) = (Self::default(), vec![]);
        let mut files: Vec<_> = dirs.iter().map(|dir| dir.join("config.toml")).collect();
        let dropped = dirs.iter().filter_map(|dir| std::fs::read_dir(dir.join("config.d")).ok()).flatten();
        let dropped = dropped.filter_map(|entry| Some(entry.ok()?.path()));
        let dropped = dropped.filter(|path| path.extension().is_some_and(|ext| ext == "toml"));
        let dropped: BTreeMap<_, _> = dropped.map(|path| (path.file_name().map(ToOwned::to_owned), path)).collect();
        files.extend(dropped.into_values());
        for file in files.iter().filter(|file| file.exists()) {
            match std::fs::read_to_string(file) {
                Ok(text) => config.apply(&file.display().to_string(), &text, &mut warnings),
                Err(error) => warnings.push(format!("reading {}: {error}", file.display())),
            }
        }
        (config, warnings)
    }

    /// The settings of one file over the defaults.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn from_file(file: &Path) -> Result<(Self, Vec<String>)> {
        let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
        let (mut config, mut warnings) = (Self::default(), vec![]);
        config.apply(&file.display().to_string(), &text, &mut warnings);
        Ok((config, warnings))
    }

    /// Applies the text of the file `name`.
    pub fn apply(&mut self, name: &str, text: &str, warnings: &mut Vec<String>) {
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => return warnings.push(format!("{name} is not used: {}", error.to_string().trim())),
        };
        for (section, value) in table.get_ref() {
            let DeValue::Table(keys) = value.get_ref() else {
                warnings.push(format!("{name}: unknown key {}", section.get_ref()));
                continue;
            };
            for (key, value) in keys {
                let path = format!("{}.{}", section.get_ref(), key.get_ref());
                let line = text[..value.span().start].lines().count().max(1);
                match self.set(&path, value.get_ref()) {
                    Ok(()) => {}
                    Err(Wrong::Key) => warnings.push(format!("{name}, line {line}: unknown key {path}")),
                    Err(Wrong::Value(wanted)) => {
                        warnings.push(format!("{name}, line {line}: {path} must be {wanted}; it stays as it was"));
                    }
                }
            }
        }
    }

    fn set(&mut self, path: &str, value: &DeValue<'_>) -> Result<(), Wrong> {
        match path {
            "etc.merge" => self.merge_etc = boolean(value)?,
            "etc.accounts" => self.policy.accounts = choice(value, ACCOUNTS)?,
            "etc.type-clash" => self.policy.type_clash = choice(value, KEEPS)?,
            "etc.rule" => self.policy.rules.extend(rules(value)?),
            "etc.follow-ids" => self.policy.follow_ids = boolean(value)?,
            "etc.ignore" => self.policy.ignore.extend(globs(value)?),
            "boot.update" => self.update_boot = boolean(value)?,
            "boot.tries" => self.tries = tries(value)?,
            "boot.unpin" => self.unpin = boolean(value)?,
            "finalize.retry-attempts" => self.retry_attempts = number(value)?,
            "finalize.timeout-seconds" => self.timeout_seconds = number(value)?,
            "finalize.rollback-on-failure" => self.rollback_on_failure = boolean(value)?,
            "finalize.backup-original" => self.backup_original = boolean(value)?,
            _ => return Err(Wrong::Key),
        }
        Ok(())
    }
}

const ACCOUNTS: &[(&str, Accounts)] = &[("merge", Accounts::Merge), ("file", Accounts::File)];
const KEEPS: &[(&str, Keep)] =
    &[("image", Keep::Image), ("local", Keep::Local), ("both", Keep::Both), ("fail", Keep::Fail)];

enum Wrong {
    Key,
    Value(String),
}

fn wrong(wanted: &str) -> Wrong {
    Wrong::Value(wanted.to_owned())
}

fn boolean(value: &DeValue<'_>) -> Result<bool, Wrong> {
    value.as_bool().ok_or_else(|| wrong("true or false"))
}

fn number<N: std::str::FromStr>(value: &DeValue<'_>) -> Result<N, Wrong> {
    let integer = value.as_integer().filter(|integer| integer.radix() == 10);
    integer.and_then(|integer| integer.as_str().parse().ok()).ok_or_else(|| wrong("a whole number, not negative"))
}

fn tries(value: &DeValue<'_>) -> Result<u32, Wrong> {
    number(value).ok().filter(|tries| *tries <= MOST).ok_or_else(|| wrong(&format!("a whole number up to {MOST}")))
}

fn choice<T: Copy>(value: &DeValue<'_>, all: &[(&str, T)]) -> Result<T, Wrong> {
    let found = value.as_str().and_then(|text| all.iter().find(|(name, _)| *name == text));
    let names = || all.iter().map(|(name, _)| format!("\"{name}\"")).collect::<Vec<_>>().join(" or ");
    found.map(|(_, choice)| *choice).ok_or_else(|| wrong(&names()))
}

fn rules(value: &DeValue<'_>) -> Result<Vec<Rule>, Wrong> {
    let wanted = "tables with a path (a glob) and a keep";
    let list = value.as_array().ok_or_else(|| wrong(wanted))?;
    let rule = |value: &DeValue<'_>| {
        let table = value.as_table().ok_or_else(|| wrong(wanted))?;
        if table.iter().any(|(key, _)| !matches!(&**key.get_ref(), "path" | "keep")) {
            return Err(wrong(wanted));
        }
        let field = |key: &str| table.get(key).map(|value| value.get_ref()).ok_or_else(|| wrong(wanted));
        let path = field("path")?.as_str().ok_or_else(|| wrong("a glob"))?.to_owned();
        Rule::new(&path, choice(field("keep")?, KEEPS)?).map_err(|error| Wrong::Value(format!("a glob: {error}")))
    };
    list.iter().map(|value| rule(value.get_ref())).collect()
}

fn globs(value: &DeValue<'_>) -> Result<Vec<globset::GlobMatcher>, Wrong> {
    let list = value.as_array().ok_or_else(|| wrong("a list of globs"))?;
    let glob = |value: &DeValue<'_>| {
        let text = value.as_str().ok_or_else(|| wrong("a list of globs"))?;
        crate::etc::policy::glob(text).map_err(|error| Wrong::Value(format!("a list of globs: {error}")))
    };
    list.iter().map(|value| glob(value.get_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_file_masks_that_of_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let [vendor, local] = ["vendor", "local"].map(|side| dir.path().join(side));
        let write = |path: std::path::PathBuf, seconds: u64| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("[finalize]\ntimeout-seconds = {seconds}\n")).unwrap();
        };
        let seconds = || Config::load(&[&vendor, &local]).0.timeout_seconds;
        write(vendor.join("config.d/50-a.toml"), 50);
        write(local.join("config.toml"), 1);
        assert_eq!(seconds(), 50);
        std::os::unix::fs::symlink("/dev/null", dir.path().join("null")).unwrap();
        std::fs::create_dir(local.join("config.d")).unwrap();
        std::fs::rename(dir.path().join("null"), local.join("config.d/50-a.toml")).unwrap();
        assert_eq!(seconds(), 1, "an empty file of the same name masks the vendor's");
        // Names order all of them, wherever they are.
        write(vendor.join("config.d/60-b.toml"), 60);
        write(local.join("config.d/55-c.toml"), 55);
        assert_eq!(seconds(), 60);
    }

    #[test]
    fn later_files_win_key_by_key_and_mistakes_keep_what_was_there() {
        let mut config = Config::default();
        let mut warnings = vec![];
        config.apply(
            "a",
            "[etc]\naccounts = \"file\"\nmerge = false\n[finalize]\ntimeout-seconds = 9\n",
            &mut warnings,
        );
        config.apply("b", "[etc]\nmerge = true\n[[etc.rule]]\npath = \"ssl/**\"\nkeep = \"local\"\n", &mut warnings);
        assert_eq!((config.policy.accounts, config.merge_etc), (Accounts::File, true));
        assert_eq!((config.timeout_seconds, config.policy.rules.len(), warnings.len()), (9, 1, 0));
        config.apply(
            "c",
            "x = 1\n[boot]\n\nupdate = 7\ntypo = true\n[finalize]\ntimeout-seconds = -1\n",
            &mut warnings,
        );
        config.apply("d", "[etc", &mut warnings);
        config.apply("e", "[[etc.rule]]\npath = \"[\"\nkeep = \"local\"\n", &mut warnings);
        assert!(config.update_boot && config.timeout_seconds == 9);
        let said = warnings.join("\n");
        for want in
            ["c: unknown key x", "c, line 4: boot.update must be true or false", "line 5: unknown key boot.typo"]
        {
            assert!(said.contains(want), "{want}: {said}");
        }
        for want in
            ["finalize.timeout-seconds must be a whole number", "d is not used", "e, line 1: etc.rule must be a glob"]
        {
            assert!(said.contains(want), "{want}: {said}");
        }
        assert_eq!(warnings.len(), 6, "{said}");
    }
}
