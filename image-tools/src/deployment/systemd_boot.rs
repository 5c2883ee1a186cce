//! systemd-boot: everything is on the ESP.

use anyhow::Result;
use finalize::{boot::bls::Role, layout};

use super::{Deployments, entries::kernel};
use crate::{
    node::{Content, Node},
    system::System,
};

/// Where an image has the boot loader.
const DIR: &str = "usr/lib/systemd/boot/efi";

/// The nodes of the ESP.
///
/// # Errors
///
/// When the image ships no systemd-boot.
pub fn esp(of: &Deployments<'_>) -> Result<Vec<Node>> {
    let arch = of.booted.arch;
    let name = arch.systemd_boot();
    let loader = of.booted.must_have(of.store, &format!("{DIR}/{name}"), "install systemd-boot-efi in it")?;
    let file = |path: &str, bytes: &[u8]| Node::file(path, Content::Bytes(bytes.to_vec()), 0);
    let dirs = ["EFI", "EFI/BOOT", "EFI/systemd", layout::EFI_LINUX, layout::EFI_LINUX_BOOTC, layout::LOADER];
    let mut nodes: Vec<_> = dirs.map(|path| Node::dir(path, 0)).into();
    nodes.push(file(&arch.default_loader(), &loader));
    nodes.push(file(&format!("EFI/systemd/{name}"), &loader));
    nodes.push(file("loader/loader.conf", b"timeout 1\nconsole-mode keep\n"));
    nodes.push(file("loader/entries.srel", b"type1\n"));
    let kernels = format!("/{}", layout::EFI_LINUX);
    nodes.extend(of.entries(&|system: &System, role: Role| of.entry(system, role, &kernels)));
    nodes.extend(of.each().flat_map(|system| kernel(system, layout::EFI_LINUX)));
    Ok(nodes)
}
