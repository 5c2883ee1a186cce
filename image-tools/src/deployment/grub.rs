//! GRUB: its own files and the entries are in the boot directory, or on a partition of their own; the ESP holds GRUB
//! itself, and UKIs.
//!
//! The image brings GRUB as its distribution builds it, in one file. Whether it reads Type #1 entries is decided from its
//! modules, not from its version; where it cannot, the entries are generated in its own language beside them.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};
use finalize::{
    boot::{bls::Role, entries::Entries, grub},
    layout,
    staged::BootType,
};

use super::{
    Boot, Deployments,
    entries::{Named, kernel},
};
use crate::{
    node::{Content, Node},
    store::names,
    system::System,
};

/// What is chosen: the first entry, or for one boot what grub-reboot(8) noted in grubenv.
const CHOICE: &str = "set default=0\nset timeout=1\nload_env\nif [ \"${next_entry}\" ]; then\n  \
                      set default=\"${next_entry}\"\n  set next_entry=\n  save_env next_entry\nfi\n";

/// The generated menu, or the entries where there is none.
const FALLBACK: &str = include_str!("grub-fallback.cfg");

/// What goes where.
#[derive(Debug)]
pub struct Files {
    /// The nodes of the ESP.
    pub esp: Vec<Node>,
    /// The nodes of the boot directory.
    pub boot: Vec<Node>,
}

/// All files of GRUB, and what it boots.
///
/// # Errors
///
/// When the image ships no GRUB.
pub fn files(of: &Deployments<'_>) -> Result<Files> {
    let arch = of.booted.arch;
    let remedy = format!("install GRUB for EFI in it, as Debian's {}", arch.grub_package());
    let loader = of.booted.must_have(of.store, &arch.grub_loader(), &remedy)?;
    let mut esp: Vec<_> = ["EFI", "EFI/BOOT", layout::EFI_LINUX, layout::EFI_LINUX_BOOTC].map(dir).into();
    for name in homes(&loader, &of.booted.os.id) {
        esp.push(dir(&format!("EFI/{name}")));
        esp.push(file(&format!("EFI/{name}/grub.cfg"), early(of)));
    }
    esp.push(file(&arch.default_loader(), loader));
    let mut boot = vec![dir(layout::GRUB)];
    let prefix = prefix(of);
    let main = match of.choice.way.boot_type {
        BootType::Uki => {
            boot.extend(user_cfgs(of));
            format!("source ($root){prefix}/{}/{}\n", layout::GRUB, layout::USER_CFG)
        }
        BootType::Bls => {
            let modules = modules(of)?;
            let entries = format!("{prefix}/{}/{}", layout::LOADER, layout::ENTRIES);
            boot.extend(type1(of, &modules));
            match modules.is_empty() {
                true => FALLBACK.replace("@BOOT@", prefix),
                false => format!("insmod blsuki\nblscfg --path {entries} --enable-fallback\n"),
            }
        }
    };
    for system in of.each() {
        match of.choice.way.boot_type {
            BootType::Uki => esp.extend(kernel(system, layout::EFI_LINUX)),
            BootType::Bls => boot.extend(kernel(system, "")),
        }
    }
    boot.push(file(&format!("{}/grub.cfg", layout::GRUB), format!("{CHOICE}{main}")));
    boot.push(file(&format!("{}/grubenv", layout::GRUB), format!("{:#<1024}", "# GRUB Environment Block\n")));
    Ok(Files { esp, boot })
}

/// Where GRUB looks for its configuration, and the directory of the image's own name, where another build of GRUB may look.
fn homes(loader: &[u8], id: &str) -> BTreeSet<String> {
    // These are there anyway, and FAT does not tell BOOT from boot.
    let is_there = |name: &String| ["boot", "linux", id].iter().any(|there| name.eq_ignore_ascii_case(there));
    grub::homes(loader).into_iter().filter(|name| !is_there(name)).chain([id.to_owned()]).collect()
}

/// Where the boot directory is in its file system.
fn prefix(of: &Deployments<'_>) -> &'static str {
    match of.choice.boot {
        Boot::Directory => "/boot",
        Boot::Partition => "",
    }
}

fn dir(path: &str) -> Node {
    Node::dir(path, 0)
}

fn file(path: &str, bytes: impl Into<Vec<u8>>) -> Node {
    Node::file(path, Content::Bytes(bytes.into()), 0)
}

/// The configuration on the ESP, which leads to the one in the boot directory.
fn early(of: &Deployments<'_>) -> String {
    let uuid = match of.choice.boot {
        Boot::Directory => of.ids.root,
        Boot::Partition => of.ids.boot,
    };
    let at = format!("($root){}/{}", prefix(of), layout::GRUB);
    format!("search --no-floppy --fs-uuid --set=root {uuid}\nset prefix={at}\nconfigfile {at}/grub.cfg\n")
}

/// GRUB's modules, when one of them reads Type #1 entries; else none, since the one file has all that is needed.
fn modules(of: &Deployments<'_>) -> Result<Vec<Node>> {
    let tree = &of.booted.tree;
    let (arch, dir_in_image) = (of.booted.arch, of.booted.arch.grub_modules());
    let names: Vec<_> =
        names(tree, Path::new(&dir_in_image))?.into_iter().filter_map(|name| name.into_string().ok()).collect();
    if !names.iter().any(|name| name == "blsuki.mod") {
        return Ok(vec![]);
    }
    let at = format!("{}/{}", layout::GRUB, arch.grub);
    let mut nodes = vec![dir(&at)];
    for name in names.into_iter().filter(|name| name.ends_with(".mod") || name.ends_with(".lst")) {
        let from = of.store.file(tree, &Path::new(&dir_in_image).join(&name))?.context("a module is gone")?;
        nodes.push(Node::file(format!("{at}/{name}"), Content::File(from), 0));
    }
    Ok(nodes)
}

/// The entry directories, with the entries in GRUB's own language where it has no module for them.
fn type1(of: &Deployments<'_>, modules: &[Node]) -> Vec<Node> {
    // GRUB sorts by file name, in which the version stands before the priority: both roles are named alike.
    let named = |system: &System, role: Role| {
        let other = of.staged.filter(|staged| role == Role::Secondary && staged.id != system.id).unwrap_or(system);
        let name = role.file_name(&other.os.id, &other.os.version);
        Named { name, ..of.entry(system, role, prefix(of)) }
    };
    let mut nodes = vec![dir(layout::LOADER)];
    nodes.extend(of.entries(&named));
    if !modules.is_empty() {
        nodes.extend(modules.iter().cloned());
        return nodes;
    }
    let dirs = [layout::ENTRIES, layout::ENTRIES_STAGED].map(|name| format!("{}/{name}", layout::LOADER));
    for at in dirs {
        let inside = nodes.iter().filter(|node| node.path.parent() == Some(Path::new(&at)));
        let named = inside.filter_map(|node| match &node.content {
            Content::Bytes(bytes) => {
                Some((node.path.file_name()?.to_str()?.to_owned(), String::from_utf8_lossy(bytes).into_owned()))
            }
            _ => None,
        });
        let found: Entries = named.collect();
        if found.files().next().is_some() {
            nodes.push(file(&format!("{at}/{}", grub::GENERATED), grub::menuentries(&found)));
        }
    }
    nodes
}

/// The menu entries of UKIs, live and staged, and what tells GRUB which file system the ESP is.
fn user_cfgs(of: &Deployments<'_>) -> Vec<Node> {
    let cfg = |name: &str, systems: &[&System]| {
        let items: Vec<_> = systems.iter().map(|system| (system.os.title.as_str(), &system.id)).collect();
        file(&format!("{}/{name}", layout::GRUB), grub::user_cfg(&items))
    };
    let esp = format!("set EFI_PART_UUID=\"{:04X}-{:04X}\"\n", of.ids.esp >> 16, of.ids.esp & 0xffff);
    let mut nodes = vec![file(&format!("{}/{}", layout::GRUB, grub::EFI_UUID), esp)];
    nodes.push(cfg(layout::USER_CFG, &[of.booted]));
    nodes.extend(of.staged.map(|staged| cfg(layout::USER_CFG_STAGED, &[staged, of.booted])));
    nodes
}

#[cfg(test)]
mod tests {
    use super::homes;

    #[test]
    fn grub_finds_its_configuration_whatever_the_image_calls_itself() {
        let names = |loader: &[u8], id: &str| homes(loader, id).into_iter().collect::<Vec<_>>().join(" ");
        assert_eq!(names(b"MZ\0/EFI/debian\0more", "acme"), "acme debian");
        assert_eq!(names(b"MZ\0/EFI/debian\0more", "debian"), "debian");
        assert_eq!(names(b"(,gpt2)/EFI/fedora\0/EFI/BOOT\0/EFI/%s\0/EFI/", "acme"), "acme fedora");
        assert_eq!(names(b"MZ not really", "test"), "test");
    }
}
