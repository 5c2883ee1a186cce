//! One line of a boot menu, wherever it comes from.

use super::Counter;
use crate::{
    boot::{
        bls::Entry,
        loader::{Loader, Version},
    },
    digest::DeploymentId,
};

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Type #1 entry: `loader/entries/*.conf`.
    Type1,
    /// A Type #2 entry: a UKI in `EFI/Linux`.
    Type2,
    /// A menuentry in GRUB's language: the order is that of the file.
    Menu,
}

/// One line of a boot menu.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// The file's name as it lies on the disk; of a menuentry its id, else its title.
    pub name: String,
    /// The name without its counter.
    pub id: String,
    /// The counter in the name.
    pub counter: Option<Counter>,
    /// Where the line comes from.
    pub kind: Kind,
    /// The title that is shown, where it has one.
    pub title: Option<String>,
    /// The deployment that the line boots.
    pub deployment: Option<DeploymentId>,
    /// Whether it is an entry of ours.
    pub ours: bool,
    /// The key that systemd-boot sorts by.
    pub(super) sort_key: Option<String>,
    pub(super) machine_id: String,
    pub(super) version: String,
    boots: Boots,
}

/// What an entry names to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Boots {
    /// A key that every version knows.
    Known,
    /// Only `uki`, which systemd-boot knows from version 258 on.
    Uki,
    /// Something for another architecture, which GRUB does not ask for.
    Foreign,
    /// Nothing.
    Nothing,
}

/// This machine's architecture as entries name it (the Boot Loader Specification): as UEFI does in names of EFI programs.
const ARCHITECTURE: &str = match () {
    () if cfg!(target_arch = "x86_64") => "x64",
    () if cfg!(target_arch = "aarch64") => "aa64",
    () if cfg!(target_arch = "riscv64") => "riscv64",
    () => "",
};

impl Item {
    /// The line of a Type #1 entry in the file `name`, on this machine.
    pub fn of_entry(name: &str, entry: &Entry) -> Self {
        Self::of_entry_on(ARCHITECTURE, name, entry)
    }

    /// The same on a machine that entries call `architecture`: `x64`, say.
    pub fn of_entry_on(architecture: &str, name: &str, entry: &Entry) -> Self {
        let value = |key| entry.value(key).map(str::to_owned);
        let bare = |key| entry.value(key).map(|value| unquoted(value).to_owned());
        let known = ["linux", "efi"].into_iter().any(|key| entry.value(key).is_some());
        let foreign = bare("architecture").is_some_and(|name| !name.eq_ignore_ascii_case(architecture));
        let boots = match (foreign, known, entry.value("uki")) {
            (false, true, _) => Boots::Known,
            (false, false, Some(_)) => Boots::Uki,
            (true, true, _) | (true, _, Some(_)) => Boots::Foreign,
            _ => Boots::Nothing,
        };
        let (id, counter) = Counter::split(name);
        Self {
            name: name.to_owned(),
            id,
            counter,
            kind: Kind::Type1,
            title: value("title"),
            deployment: entry.deployment(),
            ours: entry.is_ours(),
            sort_key: bare("sort-key"),
            machine_id: bare("machine-id").unwrap_or_default(),
            version: bare("version").unwrap_or_default(),
            boots,
        }
    }

    /// The line of a UKI in the file `name`, by its section `.osrel`; a UKI without one is not shown (systemd-boot(7)).
    pub fn of_uki(name: &str, os_release: &str, deployment: Option<DeploymentId>) -> Self {
        let value = |keys: &[&str]| keys.iter().find_map(|key| os_release_value(os_release, key));
        let title = value(&["PRETTY_NAME", "IMAGE_ID", "NAME", "ID"]);
        let (id, counter) = Counter::split(name);
        Self {
            name: name.to_owned(),
            id,
            counter,
            kind: Kind::Type2,
            boots: if title.is_some() { Boots::Known } else { Boots::Nothing },
            title,
            ours: deployment.is_some(),
            deployment,
            sort_key: value(&["IMAGE_ID", "ID"]),
            machine_id: String::new(),
            version: value(&["IMAGE_VERSION", "VERSION", "VERSION_ID", "BUILD_ID"]).unwrap_or_default(),
        }
    }

    /// A menuentry of GRUB.
    pub fn of_menuentry(id: &str, title: &str, deployment: Option<DeploymentId>) -> Self {
        let name = if id.is_empty() { title } else { id };
        Self {
            name: name.to_owned(),
            id: id.to_owned(),
            counter: None,
            kind: Kind::Menu,
            title: Some(title.to_owned()),
            ours: deployment.is_some(),
            deployment,
            sort_key: None,
            machine_id: String::new(),
            version: String::new(),
            boots: Boots::Known,
        }
    }

    /// The file's name without `.conf` or `.efi`.
    pub fn stem(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(stem, _)| stem)
    }

    /// Whether the boot loader shows the line. systemd-boot leaves out names that begin with `auto-` or a dot, and before
    /// version 258 entries that boot a UKI by the key `uki`.
    pub fn is_shown(&self, loader: Loader, version: Option<Version>) -> bool {
        if loader != Loader::SystemdBoot {
            return self.boots != Boots::Nothing;
        }
        let auto = self.name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("auto-"));
        let hidden = self.kind != Kind::Menu && self.name.starts_with('.');
        match self.boots {
            _ if auto || hidden => false,
            Boots::Known => true,
            Boots::Uki => version.is_none_or(|version| version >= Version(258, 0)),
            Boots::Foreign | Boots::Nothing => false,
        }
    }
}

/// A value as systemd-boot takes it, in an entry or in loader.conf: without the quotes around it.
pub(super) fn unquoted(value: &str) -> &str {
    let inside = |quote| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    inside('"').or_else(|| inside('\'')).unwrap_or(value)
}

/// A value of os-release(5), without its quotes.
fn os_release_value(text: &str, key: &str) -> Option<String> {
    let line = text.lines().filter_map(|line| line.trim().strip_prefix(key)?.strip_prefix('=')).next_back()?;
    let value = line.trim().trim_matches(['"', '\'']);
    (!value.is_empty()).then(|| value.to_owned())
}
