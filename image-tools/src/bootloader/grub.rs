//! GRUB: its own files and the entries are in the boot directory, or on a partition of their own; the ESP holds GRUB
//! itself, and UKIs.
//!
//! The image brings GRUB as its distribution builds it, in one file. Whether it reads Type #1 entries is decided from its
//! modules, not from its version; where it cannot, the entries are generated in its own language beside them.

use std::path::Path;

use anyhow::{Context, Result};
use finalize::{
    boot::{bls::Role, entries::Entries, grub},
    layout,
    staged::BootType,
};
use uuid::Uuid;

use super::{Options, entries, entry, kernel};
use crate::{
    payload::{Payload, Store},
    tree::{Content, Meta, Node},
};

/// Where Debian and its kin have GRUB in one file, and its modules.
const LOADER: &str = "usr/lib/grub/x86_64-efi/monolithic/grubx64.efi";
const MODULES: &str = "usr/lib/grub/x86_64-efi";

/// What is chosen: the first entry, or for one boot what grub-reboot(8) noted in grubenv.
const CHOICE: &str = "set default=0\nset timeout=1\nload_env\nif [ \"${next_entry}\" ]; then\n  \
                      set default=\"${next_entry}\"\n  set next_entry=\n  save_env next_entry\nfi\n";

/// The generated menu, or the entries where there is none.
const FALLBACK: &str = include_str!("grub-fallback.cfg");

/// The file system with GRUB's files.
#[derive(Debug, Clone, Copy)]
pub struct BootFs {
    /// Its UUID.
    pub uuid: Uuid,
    /// Where the boot directory is in it: `/boot`, or nothing on a partition of its own.
    pub prefix: &'static str,
    /// The serial number of the ESP's file system.
    pub esp: u32,
}

/// What goes where.
#[derive(Debug)]
pub struct Files {
    /// The nodes of the ESP.
    pub esp: Vec<Node>,
    /// The nodes of the boot directory.
    pub boot: Vec<Node>,
}

/// The deployments and what is common to their entries.
#[derive(Debug, Clone, Copy)]
pub struct Menu<'a> {
    /// The booted one.
    pub booted: &'a Payload,
    /// The staged one.
    pub staged: Option<&'a Payload>,
    /// The machine's part of every kernel command line.
    pub options: &'a Options<'a>,
    /// Type #1 entries, or UKIs.
    pub boot_type: BootType,
}

/// All files of GRUB, and what it boots.
///
/// # Errors
///
/// When the image ships no GRUB.
pub fn files(store: &Store, menu: Menu<'_>, fs: BootFs) -> Result<Files> {
    let booted = menu.booted;
    let loader = store.read(booted, LOADER)?;
    let loader = loader.with_context(|| format!("{} has no {LOADER}: install GRUB for EFI in it", booted.source))?;
    let own = format!("EFI/{}", booted.os.id);
    let mut esp: Vec<_> = ["EFI", "EFI/BOOT", layout::EFI_LINUX, layout::EFI_LINUX_BOOTC, &own].map(dir).into();
    esp.push(file("EFI/BOOT/BOOTX64.EFI", loader));
    esp.push(file(&format!("{own}/grub.cfg"), early(fs)));
    let mut boot = vec![dir(layout::GRUB)];
    let main = match menu.boot_type {
        BootType::Uki => {
            boot.extend(user_cfgs(menu, fs));
            format!("source ($root){}/{}/{}\n", fs.prefix, layout::GRUB, layout::USER_CFG)
        }
        BootType::Bls => {
            let modules = modules(store, booted)?;
            let entries = format!("{}/{}/{}", fs.prefix, layout::LOADER, layout::ENTRIES);
            boot.extend(type1(menu, fs, &modules));
            match modules.is_empty() {
                true => FALLBACK.replace("@BOOT@", fs.prefix),
                false => format!("insmod blsuki\nblscfg --path {entries} --enable-fallback\n"),
            }
        }
    };
    for payload in [Some(booted), menu.staged].into_iter().flatten() {
        match menu.boot_type {
            BootType::Uki => esp.extend(kernel(payload, layout::EFI_LINUX)),
            BootType::Bls => boot.extend(kernel(payload, "")),
        }
    }
    boot.push(file(&format!("{}/grub.cfg", layout::GRUB), format!("{CHOICE}{main}")));
    boot.push(file(&format!("{}/grubenv", layout::GRUB), format!("{:#<1024}", "# GRUB Environment Block\n")));
    Ok(Files { esp, boot })
}

fn dir(path: &str) -> Node {
    Node::new(path, Meta::root(0o755, 0), Content::Dir)
}

fn file(path: &str, bytes: impl Into<Vec<u8>>) -> Node {
    Node::new(path, Meta::root(0o644, 0), Content::Bytes(bytes.into()))
}

/// The configuration on the ESP, which leads to the one in the boot directory.
fn early(fs: BootFs) -> String {
    let at = format!("($root){}/{}", fs.prefix, layout::GRUB);
    format!("search --no-floppy --fs-uuid --set=root {}\nset prefix={at}\nconfigfile {at}/grub.cfg\n", fs.uuid)
}

/// GRUB's modules, when one of them reads Type #1 entries; else none, since the one file has all that is needed.
fn modules(store: &Store, payload: &Payload) -> Result<Vec<Node>> {
    let tree = &payload.tree;
    let Some(found) = tree.as_dir().get_directory_ref_opt(MODULES.as_ref())? else { return Ok(vec![]) };
    let names: Vec<_> = found.sorted_entries().filter_map(|(name, _)| name.to_str()).collect();
    if !names.contains(&"blsuki.mod") {
        return Ok(vec![]);
    }
    let at = format!("{}/x86_64-efi", layout::GRUB);
    let mut nodes = vec![dir(&at)];
    for name in names.into_iter().filter(|name| name.ends_with(".mod") || name.ends_with(".lst")) {
        let from = store.file(tree, &Path::new(MODULES).join(name))?;
        nodes.push(Node::new(format!("{at}/{name}"), Meta::root(0o644, 0), Content::File(from)));
    }
    Ok(nodes)
}

/// The entry directories, with the entries in GRUB's own language where it has no module for them.
fn type1(menu: Menu<'_>, fs: BootFs, modules: &[Node]) -> Vec<Node> {
    // GRUB sorts by file name, in which the version stands before the priority: both roles are named alike.
    let of = |payload: &Payload, role: Role| {
        let named = menu.staged.filter(|staged| role == Role::Secondary && staged.id != payload.id).unwrap_or(payload);
        let (_, entry) = entry(payload, role, fs.prefix, menu.options);
        (role.file_name(&named.os.id, &named.os.version), entry)
    };
    let mut nodes = vec![dir(layout::LOADER)];
    nodes.extend(entries(layout::LOADER, menu.booted, menu.staged, &of));
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
fn user_cfgs(menu: Menu<'_>, fs: BootFs) -> Vec<Node> {
    let item = |payload: &'_ Payload| (payload.os.title.clone(), payload.id.clone());
    let cfg = |name: &str, payloads: &[&Payload]| {
        let items: Vec<_> = payloads.iter().map(|payload| item(payload)).collect();
        let items: Vec<_> = items.iter().map(|(label, id)| (label.as_str(), id)).collect();
        file(&format!("{}/{name}", layout::GRUB), grub::user_cfg(&items))
    };
    let esp = format!("set EFI_PART_UUID=\"{:04X}-{:04X}\"\n", fs.esp >> 16, fs.esp & 0xffff);
    let mut nodes = vec![file(&format!("{}/{}", layout::GRUB, grub::EFI_UUID), esp)];
    nodes.push(cfg(layout::USER_CFG, &[menu.booted]));
    nodes.extend(menu.staged.map(|staged| cfg(layout::USER_CFG_STAGED, &[staged, menu.booted])));
    nodes
}
