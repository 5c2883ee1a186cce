//! The entries of both roles, and the kernels that they name.

use finalize::{
    boot::bls::{Entry, Role},
    cmdline::{Target, Verity},
    layout,
};

use super::{Deployments, Sealing};
use crate::{
    node::{Content, HostFile, Node},
    system::{Boots, System},
};

/// The entry of a deployment, and the name of its file.
#[derive(Debug)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The entry.
    pub entry: Entry,
}

impl Deployments<'_> {
    /// The command line that boots `system`.
    fn options(&self, system: &System) -> String {
        let verity = if self.choice.sealing == Sealing::Sealed { Verity::Required } else { Verity::Optional };
        let target = Target { id: system.id.clone(), verity, format: self.store.format };
        let mut line = format!("{target} root=UUID={} rw", self.ids.root);
        for word in system.kargs.iter().chain(&self.choice.options) {
            line.push(' ');
            line.push_str(word);
        }
        line
    }

    /// The entry of `system`: where it boots from, as an absolute path within the partition of `kernels`, and the key
    /// that names that.
    ///
    /// UKIs are named by `efi`, which systemd-boot before 258 knows too; their command line is their own.
    pub(super) fn entry(&self, system: &System, role: Role, kernels: &str) -> Named {
        // Both of the next boot are keyed by one name, so that the role decides, also after a switch to another system.
        let next = self.staged.filter(|_| role == Role::Secondary).unwrap_or(system);
        let sort_key = role.sort_key(&next.os.id);
        let (title, version) = (("title", system.os.title.as_str()), ("version", system.os.version.as_str()));
        let entry = match &system.boots {
            Boots::Kernel(_) => {
                let dir = format!("{kernels}/{}", layout::kernel_dir(&system.id));
                let (linux, initrd) = (format!("{dir}/vmlinuz"), format!("{dir}/initrd"));
                let options = self.options(system);
                let boots = [("linux", linux.as_str()), ("initrd", &initrd), ("options", &options)];
                Entry::new([title, version].into_iter().chain(boots).chain([("sort-key", sort_key.as_str())]))
            }
            Boots::Uki(_) => {
                let uki = format!("/{}/{}", layout::EFI_LINUX_BOOTC, layout::uki(&system.id));
                Entry::new([title, version, ("efi", &uki), ("sort-key", &sort_key)])
            }
        };
        Named { name: role.file_name(&system.os.id, &system.os.version), entry }
    }

    /// The entry directories `entries` and `entries.staged` below `loader`: the booted deployment, and the two of the
    /// next boot.
    pub(super) fn entries(&self, of: &dyn Fn(&System, Role) -> Named) -> Vec<Node> {
        let dir = |name: &str| Node::dir(format!("{}/{name}", layout::LOADER), 0);
        let file = |dir: &str, Named { name, entry }: Named| {
            let path = format!("{}/{dir}/{name}", layout::LOADER);
            Node::file(path, Content::Bytes(entry.to_string().into_bytes()), 0)
        };
        let mut nodes = vec![dir(layout::ENTRIES), file(layout::ENTRIES, of(self.booted, Role::Primary))];
        if let Some(staged) = self.staged {
            nodes.push(dir(layout::ENTRIES_STAGED));
            nodes.push(file(layout::ENTRIES_STAGED, of(staged, Role::Primary)));
            nodes.push(file(layout::ENTRIES_STAGED, of(self.booted, Role::Secondary)));
        }
        nodes
    }
}

/// What boots `system`: a directory with its kernel and initrd below `kernels`, or its UKI and the addons.
pub(super) fn kernel(system: &System, kernels: &str) -> Vec<Node> {
    let file = |path: String, from: &HostFile| Node::file(path, Content::File(from.clone()), 0);
    match &system.boots {
        Boots::Kernel(kernel) => {
            let at = format!("{kernels}/{}", layout::kernel_dir(&system.id));
            let at = at.trim_start_matches('/');
            let (vmlinuz, initrd) = (format!("{at}/vmlinuz"), format!("{at}/initrd"));
            vec![Node::dir(at, 0), file(vmlinuz, &kernel.vmlinuz), file(initrd, &kernel.initrd)]
        }
        Boots::Uki(uki) => {
            let at = format!("{}/{}", layout::EFI_LINUX_BOOTC, layout::uki(&system.id));
            let extra = format!("{at}.extra.d");
            let mut nodes = vec![file(at, &uki.file)];
            nodes.extend((!uki.addons.is_empty()).then(|| Node::dir(&extra, 0)));
            nodes.extend(uki.addons.iter().map(|addon| file(format!("{extra}/{}", addon.name), &addon.file)));
            nodes
        }
    }
}
