//! What the boot loader needs: its own files, kernels, and the entries of both roles.

pub mod grub;
pub mod systemd_boot;

use finalize::{
    boot::bls::{Entry, Role},
    layout,
};

use crate::{
    payload::{Boots, Payload},
    recipe::Sealing,
    tree::{Content, Meta, Node},
};

/// The machine's part of every kernel command line.
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// The UUID of the root file system.
    pub root: uuid::Uuid,
    /// Whether files must be verified.
    pub sealing: Sealing,
    /// More words.
    pub more: &'a [String],
}

impl Options<'_> {
    /// The command line that boots `payload`.
    pub fn of(&self, payload: &Payload) -> String {
        let mark = if self.sealing == Sealing::Sealed { "" } else { "?" };
        let mut line = format!("composefs={mark}{} root=UUID={} rw", payload.id, self.root);
        for word in self.more {
            line.push(' ');
            line.push_str(word);
        }
        line
    }
}

/// Where `payload` boots from, as an absolute path within the partition of `kernels`, and the key that names it.
///
/// UKIs are named by `efi`, which systemd-boot before 258 knows too; their command line is their own.
pub fn entry(payload: &Payload, role: Role, kernels: &str, options: &Options<'_>) -> (String, Entry) {
    let sort_key = role.sort_key(&payload.os.id);
    let (title, version) = (("title", payload.os.title.as_str()), ("version", payload.os.version.as_str()));
    let entry = match &payload.boots {
        Boots::Kernel(_) => {
            let dir = format!("{kernels}/{}", layout::kernel_dir(&payload.id));
            let (linux, initrd) = (format!("{dir}/vmlinuz"), format!("{dir}/initrd"));
            let options = options.of(payload);
            let boots = [("linux", linux.as_str()), ("initrd", &initrd), ("options", &options)];
            Entry::new([title, version].into_iter().chain(boots).chain([("sort-key", sort_key.as_str())]))
        }
        Boots::Uki(_) => {
            let uki = format!("/{}/{}", layout::EFI_LINUX_BOOTC, layout::uki(&payload.id));
            Entry::new([title, version, ("efi", &uki), ("sort-key", &sort_key)])
        }
    };
    (role.file_name(&payload.os.id, &payload.os.version), entry)
}

/// The entry directories `entries` and `entries.staged` below `loader`: the booted deployment, and the two of the next
/// boot.
pub fn entries(loader: &str, booted: &Payload, staged: Option<&Payload>, of: EntryMaker<'_>) -> Vec<Node> {
    let dir = |name: &str| Node::new(format!("{loader}/{name}"), Meta::root(0o755, 0), Content::Dir);
    let file = |name: &str, (file, entry): (String, Entry)| {
        let path = format!("{loader}/{name}/{file}");
        Node::new(path, Meta::root(0o644, 0), Content::Bytes(entry.to_string().into_bytes()))
    };
    let mut nodes = vec![dir(layout::ENTRIES), file(layout::ENTRIES, of(booted, Role::Primary))];
    if let Some(staged) = staged {
        nodes.push(dir(layout::ENTRIES_STAGED));
        nodes.push(file(layout::ENTRIES_STAGED, of(staged, Role::Primary)));
        nodes.push(file(layout::ENTRIES_STAGED, of(booted, Role::Secondary)));
    }
    nodes
}

/// Makes the entry of a deployment in a role.
pub type EntryMaker<'a> = &'a dyn Fn(&Payload, Role) -> (String, Entry);

/// What boots `payload`: a directory with its kernel and initrd below `kernels`, or its UKI and the addons.
pub fn kernel(payload: &Payload, kernels: &str) -> Vec<Node> {
    let dir = |path: &str| Node::new(path, Meta::root(0o755, 0), Content::Dir);
    let file =
        |path: String, from: &std::path::Path| Node::new(path, Meta::root(0o644, 0), Content::File(from.to_owned()));
    match &payload.boots {
        Boots::Kernel(kernel) => {
            let at = format!("{kernels}/{}", layout::kernel_dir(&payload.id));
            let at = at.trim_start_matches('/');
            let (vmlinuz, initrd) = (format!("{at}/vmlinuz"), format!("{at}/initrd"));
            vec![dir(at), file(vmlinuz, &kernel.vmlinuz), file(initrd, &kernel.initrd)]
        }
        Boots::Uki(uki) => {
            let at = format!("{}/{}", layout::EFI_LINUX_BOOTC, layout::uki(&payload.id));
            let extra = format!("{at}.extra.d");
            let mut nodes = vec![file(at, &uki.file)];
            nodes.extend((!uki.addons.is_empty()).then(|| dir(&extra)));
            nodes.extend(uki.addons.iter().map(|(name, from)| file(format!("{extra}/{name}"), from)));
            nodes
        }
    }
}
