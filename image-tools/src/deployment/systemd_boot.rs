//! systemd-boot: everything is on the ESP.

use anyhow::{Context, Result};
use finalize::{boot::bls::Role, layout};

use super::{Deployments, When, entries::kernel};
use crate::{
    arch::Arch,
    node::{Content, Node},
    system::System,
};

/// Where an image has the boot loader.
const DIR: &str = "usr/lib/systemd/boot/efi";

/// Where the loader finds the keys that it enrols by itself (systemd-boot(7)).
const KEYS: &str = "loader/keys/auto";

/// The nodes of the ESP.
///
/// # Errors
///
/// When the image ships no systemd-boot, or none with a signature where there are keys.
pub fn esp(of: &Deployments<'_>) -> Result<Vec<Node>> {
    let name = of.booted.arch.systemd_boot();
    let loader = loader(of)?;
    let mut dirs = vec!["EFI", "EFI/BOOT", "EFI/systemd", layout::EFI_LINUX, layout::EFI_LINUX_BOOTC, layout::LOADER];
    let mut conf = "timeout 1\nconsole-mode keep\n".to_owned();
    let mut keys = vec![];
    if let Some(enrol) = &of.choice.enrol {
        keys.extend(enrol.keys.iter().map(|(name, bytes)| file(&format!("{KEYS}/{name}"), bytes.clone())));
        dirs.extend(["loader/keys", KEYS]);
        let when = enrol.when.map(|when| format!("secure-boot-enroll {}\n", word(when)));
        conf.extend(when);
    }
    let mut nodes: Vec<_> = dirs.into_iter().map(|path| Node::dir(path, 0)).collect();
    nodes.push(file(&of.booted.arch.default_loader(), loader.clone()));
    nodes.push(file(&format!("EFI/systemd/{name}"), loader));
    nodes.push(file("loader/loader.conf", conf.into_bytes()));
    nodes.push(file("loader/entries.srel", b"type1\n".to_vec()));
    nodes.extend(keys);
    let kernels = format!("/{}", layout::EFI_LINUX);
    nodes.extend(of.entries(&|system: &System, role: Role| of.entry(system, role, &kernels)));
    nodes.extend(of.each().flat_map(|system| kernel(system, layout::EFI_LINUX)));
    Ok(nodes)
}

/// Where an image has the loader with a signature.
pub fn signed(arch: &Arch) -> String {
    format!("{DIR}/{}", arch.signed_systemd_boot())
}

fn file(path: &str, bytes: Vec<u8>) -> Node {
    Node::file(path, Content::Bytes(bytes), 0)
}

/// The loader: the one with a signature where there is one, as bootctl(1) prefers it.
fn loader(of: &Deployments<'_>) -> Result<Vec<u8>> {
    let (arch, store) = (of.booted.arch, of.store);
    let signed = signed(arch);
    if of.choice.enrol.is_some() {
        return of.booted.must_have(store, &signed, "seal the image with --secureboot-key and --secureboot-cert");
    }
    let found = store.read(&of.booted.tree, signed.as_ref());
    match found.with_context(|| format!("looking for {signed} in {}", of.booted.image.reference))? {
        Some(loader) => Ok(loader),
        None => of.booted.must_have(store, &format!("{DIR}/{}", arch.systemd_boot()), "install systemd-boot-efi in it"),
    }
}

/// As loader.conf(5) has it.
fn word(when: When) -> &'static str {
    match when {
        When::Off => "off",
        When::Manual => "manual",
        When::IfSafe => "if-safe",
        When::Force => "force",
    }
}
