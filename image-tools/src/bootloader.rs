//! What the boot loader needs: its own files, kernels, and the entries of both roles.

pub mod systemd_boot;

use finalize::{
    boot::bls::{Entry, Role},
    layout,
};

use crate::{
    payload::Payload,
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

/// The Type #1 entry of `payload`, and the name of its file; kernels are below `kernels`, an absolute path within
/// their partition.
pub fn entry(payload: &Payload, role: Role, kernels: &str, options: &Options<'_>) -> (String, Entry) {
    let dir = format!("{kernels}/{}", layout::kernel_dir(&payload.id));
    let entry = Entry::new([
        ("title", payload.os.title.as_str()),
        ("version", &payload.os.version),
        ("linux", &format!("{dir}/vmlinuz")),
        ("initrd", &format!("{dir}/initrd")),
        ("options", &options.of(payload)),
        ("sort-key", &role.sort_key(&payload.os.id)),
    ]);
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

/// The directory with the kernel and the initrd of `payload`, below `kernels`.
pub fn kernel(payload: &Payload, kernels: &str) -> [Node; 3] {
    let dir = format!("{kernels}/{}", layout::kernel_dir(&payload.id));
    let file = |name: &str, from: &std::path::Path| {
        Node::new(format!("{dir}/{name}"), Meta::root(0o644, 0), Content::File(from.to_owned()))
    };
    [
        Node::new(&dir, Meta::root(0o755, 0), Content::Dir),
        file("vmlinuz", &payload.kernel.vmlinuz),
        file("initrd", &payload.kernel.initrd),
    ]
}
