//! Boot entries in GRUB's own language, for a GRUB that cannot read Type #1 entries (2.12 without the module `blscfg`),
//! and for UKIs, which GRUB chainloads from the ESP.
//!
//! What is generated holds what the entries hold, in GRUB's order: the first menuentry is what boots.

use std::{collections::BTreeSet, fmt::Write as _};

use super::{
    Loader,
    bls::Entry,
    count::{
        Trial,
        script::{self, Defaults},
    },
    entries::Entries,
    order,
};
use crate::{cmdline, digest::DeploymentId, layout};

/// The name of the generated file. It lies between the entries, so that it is exchanged with them.
pub const GENERATED: &str = "grub.cfg";

/// The file that names the ESP, beside the main grub.cfg.
pub const EFI_UUID: &str = "efiuuid.cfg";

/// The directories below EFI on the ESP in which this build of GRUB looks for its grub.cfg: its prefix (`-p` of
/// grub-mkimage(1)), which stands in the file as text and is that of the distribution which has built it, whatever one that is
/// derived from that calls itself.
pub fn homes(program: &[u8]) -> BTreeSet<String> {
    const BEFORE: &[u8] = b"/EFI/";
    let places = program.windows(BEFORE.len()).enumerate().filter(|(_, bytes)| *bytes == BEFORE);
    let named = places.filter_map(|(at, _)| {
        let name = program[at + BEFORE.len()..].split(|byte| *byte == 0).next()?;
        let is_name = !name.is_empty() && name.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(byte));
        is_name.then(|| String::from_utf8_lossy(name).into_owned())
    });
    named.collect()
}

/// The menuentries of all Type #1 entries, somebody else's too, in GRUB's order. An entry that boots nothing is left out.
/// The keys that GRUB's own reader of entries honours (`blscfg`, "GRUB-specific keys") are honoured: `grub_users`,
/// `grub_class`, `grub_hotkey`, `grub_arg`. Titles that are equal get what tells them apart.
pub fn menuentries(entries: &Entries) -> String {
    counting(entries, None).unwrap_or_default()
}

/// The same, where GRUB counts the boots of the deployment of `trial`; none where there is no other one to go back to.
pub fn counting(entries: &Entries, trial: Option<&Trial>) -> Option<String> {
    let mut text = "# Generated from the .conf files beside it.\n".to_owned();
    let entries = entries.ordered(Loader::Grub);
    if let Some(trial) = trial {
        text.push_str(&script::head(trial, &defaults(&entries, trial)?));
    }
    for ((name, entry), title) in entries.iter().zip(order::titles(&entries)) {
        let is_counted = trial.is_some_and(|trial| entry.deployment().as_ref() == Some(&trial.deployment));
        let Some(commands) = commands(entry, is_counted) else { continue };
        let id = id_of(name);
        _ = write!(text, "menuentry {}", quoted(&title));
        for (key, flag) in [("grub_class", "--class"), ("grub_users", "--users"), ("grub_hotkey", "--hotkey")] {
            for value in entry.values(key) {
                _ = write!(text, " {flag} {}", expanded(value));
            }
        }
        for word in entry.values("grub_arg").flat_map(str::split_whitespace) {
            _ = write!(text, " {}", expanded(word));
        }
        _ = write!(text, " --id {} {{\n{commands}}}\n", quoted(id));
    }
    Some(text)
}

/// Whether `text` is the menu of these entries, counting or not.
pub fn is_menu_of(text: &str, entries: &Entries) -> bool {
    text == menuentries(entries) || counting(entries, script::trial(text).as_ref()).as_deref() == Some(text)
}

/// The menuentry's id for an entry in the file `name`.
fn id_of(name: &str) -> &str {
    name.trim_end_matches(".conf")
}

/// Which menuentry is the new deployment's, and which one is that to go back to.
fn defaults(entries: &[(&str, Entry)], trial: &Trial) -> Option<Defaults> {
    let of = |is_new: bool| {
        entries.iter().position(|(_, entry)| {
            entry.deployment().is_some_and(|id| (id == trial.deployment) == is_new) && commands(entry, false).is_some()
        })
    };
    let (new, old) = (of(true)?, of(false)?);
    let first = entries.iter().position(|(_, entry)| commands(entry, false).is_some());
    let id = |at: usize| id_of(entries[at].0).to_owned();
    Some(Defaults { new: id(new), is_first: first == Some(new), old: id(old) })
}

/// The files that an entry boots, absolute within their partition. `initrd` holds words; one with a variable in it names
/// no file that anybody but GRUB knows.
pub fn files(entry: &Entry) -> Vec<String> {
    let words = |key| entry.values(key).flat_map(str::split_whitespace);
    let named = ["efi", "uki"].into_iter().filter_map(|key| entry.value(key));
    let kernel = entry.value("linux").into_iter().chain(words("initrd"));
    kernel.chain(named).filter(|path| !path.contains('$')).map(str::to_owned).collect()
}

fn commands(entry: &Entry, is_counted: bool) -> Option<String> {
    let mut text = String::new();
    if is_counted {
        _ = writeln!(text, "  {}", script::CALL);
    }
    if let Some(uki) = ["efi", "uki"].into_iter().find_map(|key| entry.value(key)) {
        _ = writeln!(text, "  chainloader {}", quoted(uki));
        return Some(text);
    }
    let options = entry.options();
    _ = write!(text, "  linux {}", quoted(entry.value("linux")?));
    for word in cmdline::words(&options) {
        _ = write!(text, " {}", expanded(&word.replace('"', "")));
    }
    if is_counted {
        _ = write!(text, " {}", script::WORDS);
    }
    text.push('\n');
    let initrds: Vec<_> = entry.values("initrd").flat_map(str::split_whitespace).map(expanded).collect();
    if !initrds.is_empty() {
        _ = writeln!(text, "  initrd {}", initrds.join(" "));
    }
    Some(text)
}

/// A word as GRUB's shell reads it back, whatever is in it. GRUB itself quotes words with spaces for the kernel.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-=:,+@?".contains(c);
    match !word.is_empty() && word.chars().all(plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// The same, but for variables (`$name`, `${name}`), which GRUB puts the value of in their place.
fn expanded(word: &str) -> String {
    let mut text = String::new();
    let mut rest = word;
    while let Some((at, length)) = variable(rest) {
        if at > 0 {
            text.push_str(&quoted(&rest[..at]));
        }
        text.push_str(&rest[at..at + length]);
        rest = &rest[at + length..];
    }
    if !rest.is_empty() || word.is_empty() {
        text.push_str(&quoted(rest));
    }
    text
}

/// Where the first variable of a text begins, and how long it is.
fn variable(text: &str) -> Option<(usize, usize)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let name = |text: &str| text.find(|c| !is_name(c)).unwrap_or(text.len());
    text.match_indices('$').find_map(|(at, _)| {
        let rest = &text[at + 1..];
        let length = match rest.strip_prefix('{') {
            Some(rest) => Some(name(rest)).filter(|end| *end > 0 && rest[*end..].starts_with('}'))? + 2,
            None => Some(name(rest)).filter(|end| *end > 0 && !rest.starts_with(|c: char| c.is_ascii_digit()))?,
        };
        Some((at, length + 1))
    })
}

/// GRUB's `user.cfg` for UKIs on the ESP, the first one first: label and deployment. Titles are in the form that bootc's
/// parser knows; characters that it or GRUB would take for more than text become `_`.
pub fn user_cfg(ukis: &[(&str, &DeploymentId)]) -> String {
    let mut text =
        format!("if [ -f ${{config_directory}}/{EFI_UUID} ]; then\n  source ${{config_directory}}/{EFI_UUID}\nfi\n");
    for (label, id) in ukis {
        let label: String =
            label.chars().map(|c| if c.is_control() || "\"\\$`(){}".contains(c) { '_' } else { c }).collect();
        let path = format!("/{}/{}", layout::EFI_LINUX_BOOTC, layout::uki(id));
        _ = write!(
            text,
            "\nmenuentry \"{label}: ({id})\" {{\n    insmod fat\n    insmod chain\n    \
             search --no-floppy --set=root --fs-uuid \"${{EFI_PART_UUID}}\"\n    chainloader {path}\n}}\n"
        );
    }
    text
}

/// What the menuentries of a `user.cfg` chainload: title and path, in order. Lines that are not understood are passed over.
pub fn chainloaded(user_cfg: &str) -> Vec<(String, String)> {
    let mut title = None;
    let mut found = vec![];
    for line in user_cfg.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("menuentry ") {
            title =
                rest.trim().strip_prefix('"').and_then(|rest| rest.split_once('"')).map(|(title, _)| title.to_owned());
        } else if let Some(path) = line.strip_prefix("chainloader ")
            && let Some(title) = title.take()
        {
            found.push((title, path.trim().trim_matches(['"', '\'']).to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(files: &[(&str, &str)]) -> Entries {
        files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn menuentries_hold_what_the_entries_hold_in_grubs_order() {
        let text = menuentries(&entries(&[
            (
                "bootc_a-1-0.conf",
                "title Old\nlinux /boot/k\ninitrd /boot/i\ninitrd /boot/j\noptions composefs=x rw\noptions quiet\n",
            ),
            ("bootc_a-1-1.conf", "title It's $new; {x}\nlinux /k\noptions a=\"b c\" d\n"),
            ("a.conf", "efi /EFI/x.efi\n"),
            ("nothing.conf", "title nothing\n"),
            ("grub.cfg", "menuentry stale {}\n"),
        ]));
        let wanted = "# Generated from the .conf files beside it.\n\
            menuentry 'It'\\''s $new; {x}' --id bootc_a-1-1 {\n  linux /k 'a=b c' d\n}\n\
            menuentry Old --id bootc_a-1-0 {\n  linux /boot/k composefs=x rw quiet\n  initrd /boot/i /boot/j\n}\n\
            menuentry a.conf --id a {\n  chainloader /EFI/x.efi\n}\n";
        assert_eq!(text, wanted);
    }

    #[test]
    fn keys_and_variables_that_grub_honours_reach_the_menu() {
        let text = menuentries(&entries(&[
            (
                "bootc_a-1-1.conf",
                "title A\nlinux /k\ninitrd /i $tuned_initrd /j\noptions composefs=x a=${b}c $tuned_params $ $1 x'y\n\
                 grub_arg --unrestricted\ngrub_class kernel\ngrub_hotkey n\n",
            ),
            ("bootc_a-1-0.conf", "title B\nlinux /k\ngrub_users root admin\n"),
        ]));
        let wanted = "# Generated from the .conf files beside it.\n\
            menuentry A --class kernel --hotkey n --unrestricted --id bootc_a-1-1 {\n\
            \x20 linux /k composefs=x a=${b}c $tuned_params '$' '$1' 'x'\\''y'\n  initrd /i $tuned_initrd /j\n}\n\
            menuentry B --users 'root admin' --id bootc_a-1-0 {\n  linux /k\n}\n";
        assert_eq!(text, wanted);
        let entry: Entry = "linux /k\ninitrd /i $tuned_initrd\ninitrd /j\n".parse().unwrap();
        assert_eq!(files(&entry), ["/k", "/i", "/j"]);
    }

    #[test]
    fn entries_with_one_title_are_told_apart() {
        let text = menuentries(&entries(&[
            ("a-3.conf", "title Same\nversion 2\nlinux /k\n"),
            ("a-2.conf", "title Same\nversion 1\nlinux /k\n"),
            ("a-1.conf", "title Same\nversion 1\nlinux /k\n"),
            ("a-0.conf", "title Other\nversion 1\nlinux /k\n"),
        ]));
        let titles: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("menuentry ")).collect();
        let wanted = ["'Same (2)'", "'Same (1) (a-2.conf)'", "'Same (1) (a-1.conf)'", "Other"];
        assert!(titles.iter().zip(wanted).all(|(title, wanted)| title.starts_with(wanted)), "{titles:?}");
    }

    #[test]
    fn no_entries_make_no_menuentries() {
        assert_eq!(menuentries(&Entries::default()).matches("menuentry").count(), 0);
    }

    #[test]
    fn a_user_cfg_is_read_back() {
        let (one, two) = ("ab".repeat(64).parse().unwrap(), "cd".repeat(32).parse().unwrap());
        let text = user_cfg(&[("Debian \"13\" $x", &one), ("Old", &two)]);
        let path = |id: &DeploymentId| format!("/EFI/Linux/bootc/bootc_composefs-{id}.efi");
        let wanted = [(format!("Debian _13_ _x: ({one})"), path(&one)), (format!("Old: ({two})"), path(&two))];
        assert_eq!(chainloaded(&text), wanted);
        assert!(chainloaded("menuentry {\nchainloader\nmenuentry \"x\n}\nchainloader /a\n").is_empty());
    }
}
