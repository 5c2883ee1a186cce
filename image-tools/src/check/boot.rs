//! What boots: the kernel, its initramfs, the boot loader, the directories that something is mounted on, and an init.

use anyhow::Result;
use finalize::{boot::Loader, staged::BootType};

use super::{About::Boot, Looker, PACKAGE, initramfs};
use crate::{
    store::At,
    system::{os::OS_RELEASE, uki},
};

const MODULES: &str = "usr/lib/modules";

/// What is mounted on when the root file system is read-only already.
const DIRS: [&str; 8] = ["usr", "boot", "sysroot", "etc", "dev", "proc", "run", "sys"];

/// Looks for all of it.
pub fn look(looker: &mut Looker<'_>) -> Result<()> {
    for dir in DIRS {
        if looker.at(dir)? != At::Directory {
            let why = "the root is read-only, and something is mounted there";
            looker.missing(Boot, format!("the directory /{dir}"), (why, &format!("RUN mkdir -p /{dir}")));
        }
    }
    match looker.way.boot_type {
        BootType::Bls => kernel(looker)?,
        BootType::Uki => sealed(looker)?,
    }
    loader(looker)?;
    if !looker.has_file(OS_RELEASE)? {
        let why = "boot entries are made from it";
        looker.missing(Boot, OS_RELEASE, (why, "RUN apt-get install -y base-files"));
    }
    if !looker.has_file("usr/lib/systemd/systemd")? || looker.at("usr/sbin/init")? == At::Nothing {
        let why = "the kernel starts it";
        looker.missing(
            Boot,
            "usr/lib/systemd/systemd with usr/sbin/init",
            (why, "RUN apt-get install -y systemd-sysv"),
        );
    }
    Ok(())
}

fn kernel(looker: &mut Looker<'_>) -> Result<()> {
    let mut versions = vec![];
    for version in looker.names(MODULES)? {
        if looker.at(format!("{MODULES}/{version}/vmlinuz"))? != At::Nothing {
            versions.push(version);
        }
    }
    let kernel = format!("RUN apt-get install -y linux-image-{}\n{PACKAGE}", looker.arch.go);
    let Some((version, others)) = versions.split_last() else {
        let what = format!("one kernel, {MODULES}/<version>/vmlinuz: the image has none");
        looker.missing(Boot, what, ("it is what boots; /boot is not looked into", &kernel));
        return Ok(());
    };
    if !others.is_empty() {
        let what = format!("one kernel, {MODULES}/<version>/vmlinuz: the image has {}", versions.join(", "));
        let remedy =
            format!("RUN apt-get purge -y linux-image-{} && rm -rf /{MODULES}/{0}", others.join(" linux-image-"));
        looker.missing(Boot, what, ("nobody says which of them boots", &remedy));
    }
    let path = format!("{MODULES}/{version}/vmlinuz");
    if !looker.has_file(&path)? {
        looker.missing(Boot, path, ("it is no regular file, and leads to none in the image", &kernel));
    }
    initramfs::look(looker, &format!("{MODULES}/{version}"))
}

fn sealed(looker: &mut Looker<'_>) -> Result<()> {
    let names = looker.names(uki::DIR)?;
    let ukis: Vec<_> = names.into_iter().filter(|name| name.ends_with(".efi")).collect();
    if ukis.len() != 1 {
        let what = format!("one UKI, {}/<name>.efi: the image has {}", uki::DIR, ukis.len());
        let remedy = "# not a line of the Containerfile: image-tools seal IMAGE --output DIR";
        looker.missing(Boot, what, ("it is what boots, and it names the image that it is in", remedy));
    }
    Ok(())
}

fn loader(looker: &mut Looker<'_>) -> Result<()> {
    let (path, package) = match looker.way.loader {
        Loader::SystemdBoot => {
            (format!("usr/lib/systemd/boot/efi/{}", looker.arch.systemd_boot()), "systemd-boot-efi".to_owned())
        }
        Loader::Grub | Loader::GrubCc => (looker.arch.grub_loader(), looker.arch.grub_package()),
    };
    if !looker.has_file(&path)? {
        looker.missing(
            Boot,
            path,
            ("the boot loader comes from the image", &format!("RUN apt-get install -y {package}")),
        );
    }
    Ok(())
}
