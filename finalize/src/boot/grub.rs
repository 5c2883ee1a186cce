//! Boot entries in GRUB's own language, for a GRUB that cannot read Type #1 entries (2.12 without the module `blscfg`),
//! and for UKIs, which GRUB chainloads from the ESP.
//!
//! What is generated holds what the entries hold, in GRUB's order: the first menuentry is what boots.

use std::fmt::Write as _;

use super::{Loader, bls::Entry, entries::Entries};
use crate::{cmdline, digest::DeploymentId, layout};

/// The name of the generated file. It lies between the entries, so that it is exchanged with them.
pub const GENERATED: &str = "grub.cfg";

/// The file that names the ESP, beside the main grub.cfg.
pub const EFI_UUID: &str = "efiuuid.cfg";

/// The menuentries of all Type #1 entries, somebody else's too, in GRUB's order. An entry that boots nothing is left out.
pub fn menuentries(entries: &Entries) -> String {
    let mut text = "# Generated from the .conf files beside it.\n".to_owned();
    for (name, entry) in entries.ordered(Loader::Grub) {
        let Some(commands) = commands(&entry) else { continue };
        let title = entry.value("title").unwrap_or(name);
        let id = name.trim_end_matches(".conf");
        text.push_str(&format!("menuentry {} --id {} {{\n{commands}}}\n", quoted(title), quoted(id)));
    }
    text
}

fn commands(entry: &Entry) -> Option<String> {
    let mut text = String::new();
    if let Some(uki) = ["efi", "uki"].into_iter().find_map(|key| entry.value(key)) {
        _ = writeln!(text, "  chainloader {}", quoted(uki));
        return Some(text);
    }
    let options = entry.options();
    _ = write!(text, "  linux {}", quoted(entry.value("linux")?));
    for word in cmdline::words(&options) {
        _ = write!(text, " {}", quoted(&word.replace('"', "")));
    }
    text.push('\n');
    let initrds: Vec<_> = entry.values("initrd").map(quoted).collect();
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
