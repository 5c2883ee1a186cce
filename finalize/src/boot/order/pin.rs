//! What pins a line of the menu: where the choice is written down, whose it is, and how to undo it.

use std::fmt;

use super::Item;

/// Where a choice is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// The EFI variable `LoaderEntryOneShot`.
    OneShotVariable,
    /// The EFI variable `LoaderEntryPreferred`.
    PreferredVariable,
    /// `preferred` in loader.conf.
    PreferredByConf,
    /// The EFI variable `LoaderEntryDefault`.
    DefaultVariable,
    /// `@saved` in `LoaderEntryDefault`: the entry that was chosen last.
    SavedByVariable,
    /// `default` in loader.conf.
    LoaderConf,
    /// `default @saved` in loader.conf.
    SavedByConf,
    /// `next_entry` in GRUB's environment block.
    NextEntry,
    /// `saved_entry` in GRUB's environment block.
    SavedEntry,
    /// A fixed `default=` in grub.cfg.
    GrubCfg,
}

impl Pin {
    /// Whether an entry without tries is passed over.
    pub(super) fn is_preferred(self) -> bool {
        matches!(self, Self::PreferredVariable | Self::PreferredByConf)
    }
}

/// A choice that is in force.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pinned {
    /// Where it is written down.
    pub pin: Pin,
    /// What is written there.
    pub value: String,
    /// Whether it names exactly one entry, and that is one of ours: then it may follow to the new one. A pattern, an
    /// index, or somebody else's entry is somebody's decision and stays.
    pub names_ours: bool,
}

impl Pinned {
    pub(super) fn new(pin: Pin, value: &str, item: &Item) -> Self {
        let exact = [&item.name, &item.id].into_iter().any(|name| name.eq_ignore_ascii_case(value))
            || item.title.as_deref() == Some(value)
            || item.stem() == value;
        Self { pin, value: value.to_owned(), names_ours: exact && item.ours }
    }

    /// Whether it is gone after the next boot.
    pub fn is_for_one_boot(&self) -> bool {
        matches!(self.pin, Pin::OneShotVariable | Pin::NextEntry)
    }

    /// How a person undoes it.
    pub fn undo(&self) -> &'static str {
        match self.pin {
            Pin::OneShotVariable => "to undo: bootctl set-oneshot \"\"",
            Pin::DefaultVariable | Pin::SavedByVariable => "to undo: bootctl set-default \"\"",
            Pin::LoaderConf | Pin::SavedByConf => {
                "to undo: remove the line \"default\" from loader/loader.conf on the ESP"
            }
            Pin::PreferredVariable => "to undo: remove the EFI variable LoaderEntryPreferred",
            Pin::PreferredByConf => "to undo: remove the line \"preferred\" from loader/loader.conf on the ESP",
            Pin::NextEntry => "to undo: grub-editenv - unset next_entry (grub2-editenv on some systems)",
            Pin::SavedEntry => "to undo: grub-editenv - unset saved_entry (grub2-editenv on some systems)",
            Pin::GrubCfg => "to undo: set default=0 in grub.cfg",
        }
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = &self.value;
        match self.pin {
            Pin::OneShotVariable => write!(f, "the EFI variable LoaderEntryOneShot ({value})"),
            Pin::PreferredVariable => write!(f, "the EFI variable LoaderEntryPreferred ({value})"),
            Pin::PreferredByConf => write!(f, "loader.conf (preferred {value})"),
            Pin::DefaultVariable => write!(f, "the EFI variable LoaderEntryDefault ({value})"),
            Pin::SavedByVariable => write!(f, "the EFI variable LoaderEntryDefault (@saved: {value})"),
            Pin::LoaderConf => write!(f, "loader.conf (default {value})"),
            Pin::SavedByConf => write!(f, "loader.conf (default @saved: {value})"),
            Pin::NextEntry => write!(f, "grubenv (next_entry={value})"),
            Pin::SavedEntry => write!(f, "grubenv (saved_entry={value})"),
            Pin::GrubCfg => write!(f, "grub.cfg (default={value})"),
        }
    }
}
