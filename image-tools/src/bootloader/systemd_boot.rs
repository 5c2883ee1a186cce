//! systemd-boot: everything is on the ESP.

use anyhow::{Context, Result};
use finalize::layout;

use super::{Options, entries, entry, kernel};
use crate::{
    payload::{Payload, Store},
    tree::{Content, Meta, Node},
};

/// The boot loader in the image, and where the firmware looks for it on the ESP.
const LOADER: &str = "usr/lib/systemd/boot/efi/systemd-bootx64.efi";

/// The nodes of the ESP.
///
/// # Errors
///
/// When the image ships no systemd-boot.
pub fn esp(store: &Store, booted: &Payload, staged: Option<&Payload>, options: &Options<'_>) -> Result<Vec<Node>> {
    let loader = store.read(booted, LOADER)?;
    let loader =
        loader.with_context(|| format!("{} has no {LOADER}: install systemd-boot-efi in it", booted.source))?;
    let dir = |path: &str| Node::new(path, Meta::root(0o755, 0), Content::Dir);
    let file = |path: &str, bytes: &[u8]| Node::new(path, Meta::root(0o644, 0), Content::Bytes(bytes.to_vec()));
    let mut nodes: Vec<_> =
        ["EFI", "EFI/BOOT", "EFI/systemd", layout::EFI_LINUX, layout::EFI_LINUX_BOOTC, layout::LOADER].map(dir).into();
    nodes.push(file("EFI/BOOT/BOOTX64.EFI", &loader));
    nodes.push(file("EFI/systemd/systemd-bootx64.efi", &loader));
    nodes.push(file("loader/loader.conf", b"timeout 1\nconsole-mode keep\n"));
    nodes.push(file("loader/entries.srel", b"type1\n"));
    let kernels = format!("/{}", layout::EFI_LINUX);
    let of = |payload: &Payload, role| entry(payload, role, &kernels, options);
    nodes.extend(entries(layout::LOADER, booted, staged, &of));
    for payload in [Some(booted), staged].into_iter().flatten() {
        nodes.extend(kernel(payload, layout::EFI_LINUX));
    }
    Ok(nodes)
}
