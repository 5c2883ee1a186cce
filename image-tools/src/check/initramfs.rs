//! The initramfs: archives of cpio one behind the other, the last of them mostly compressed (Linux's
//! `Documentation/driver-api/early-userspace/buffer-format.rst`). It has to mount the deployment.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read},
};

use anyhow::{Context, Result, bail};
use flate2::bufread::MultiGzDecoder;
use lzma_rust2::XzReader;

use super::{About::Boot, Looker, PACKAGE};

/// The program that mounts it: the released one, or bootc's own.
const SETUP: [&str; 2] = ["composefs-setup-root", "initramfs-setup"];

/// What it is told; of no other file is the content wanted.
const CONFIG: &str = "usr/lib/composefs/setup-root-conf.toml";

/// How much of a file is kept, and how much of an initramfs is looked at.
const FILE: u64 = 1 << 20;
const ALL: u64 = 4 << 30;

/// File systems that the root is made of.
const DRIVERS: [&str; 3] = ["erofs", "overlay", "ext4"];

/// Looks into the one of the kernel in `dir`.
pub fn look(looker: &mut Looker<'_>, dir: &str) -> Result<()> {
    let path = format!("{dir}/initramfs.img");
    if !looker.has_file(&path)? {
        looker.missing(Boot, path, ("it mounts the root file system", PACKAGE));
        return Ok(());
    }
    let bytes = looker.read(&path)?;
    let files = match files(&bytes) {
        Ok(files) => files,
        Err(why) => {
            looker.missing(Boot, path, (&format!("it cannot be read ({why:#})"), PACKAGE));
            return Ok(());
        }
    };
    let has = |name: &str| files.keys().any(|path| path.rsplit('/').next() == Some(name));
    if !SETUP.into_iter().any(has) {
        let what = format!("{} in {path}", SETUP[0]);
        looker.missing(Boot, what, ("it mounts the deployment that the command line names", PACKAGE));
    } else if has(SETUP[0]) && !binds_etc(files.get(CONFIG)) {
        let what = format!("{CONFIG} in {path}, with [etc] mount = \"bind\"");
        looker.missing(Boot, what, ("/etc must be a directory that an update can merge", PACKAGE));
    }
    let builtin = looker.read(format!("{dir}/modules.builtin"))?;
    let builtin = String::from_utf8_lossy(&builtin).into_owned();
    let modules = files.keys().map(String::as_str).chain(builtin.lines());
    let modules: Vec<_> = modules.filter_map(|path| path.rsplit('/').next()?.split_once(".ko")).collect();
    for driver in DRIVERS {
        if !modules.iter().any(|(name, _)| *name == driver) {
            let what = format!("the driver {driver}, in {path} or in the kernel");
            looker.missing(Boot, what, ("the root file system needs it", PACKAGE));
        }
    }
    Ok(())
}

/// Whether /etc becomes the deployment's own directory.
fn binds_etc(config: Option<&Vec<u8>>) -> bool {
    let text = config.and_then(|bytes| str::from_utf8(bytes).ok());
    let table = text.and_then(|text| text.parse::<toml::Table>().ok());
    table.is_some_and(|table| table.get("etc").and_then(|etc| etc.get("mount")?.as_str()) == Some("bind"))
}

/// The names in an initramfs, and the content of the one file that is wanted.
///
/// # Errors
///
/// When it is no initramfs, or compressed by something that is not known here.
fn files(bytes: &[u8]) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut rest = bytes;
    while archive(&mut rest, &mut found)? {}
    match rest {
        [] if !found.is_empty() => {}
        [0x1f, 0x8b, ..] => all(MultiGzDecoder::new(rest), &mut found).context("it is compressed by gzip")?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            all(zstd::Decoder::with_buffer(rest)?, &mut found).context("it is compressed by zstd")?;
        }
        [0xfd, b'7', b'z', ..] => all(XzReader::new(rest, true), &mut found).context("it is compressed by xz")?,
        _ => bail!("it is neither an archive of cpio nor one that is compressed by zstd, gzip or xz"),
    }
    Ok(found)
}

/// Reads archives to the end of what a decompressor gives.
fn all(from: impl Read, found: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let mut from = BufReader::with_capacity(1 << 16, from.take(ALL));
    while archive(&mut from, found)? {}
    Ok(())
}

/// Reads one archive, zeros before it passed over; none where none begins.
fn archive(from: &mut impl BufRead, found: &mut BTreeMap<String, Vec<u8>>) -> Result<bool> {
    loop {
        let buffer = from.fill_buf()?;
        let zeros = buffer.iter().take_while(|byte| **byte == 0).count();
        if zeros == 0 {
            break;
        }
        from.consume(zeros);
    }
    if !from.fill_buf()?.starts_with(b"0707") {
        return Ok(false);
    }
    loop {
        let mut reader = cpio::NewcReader::new(&mut *from).context("reading an archive of cpio")?;
        if reader.entry().is_trailer() {
            reader.finish()?;
            return Ok(true);
        }
        let name = reader.entry().name().trim_start_matches("./").trim_start_matches('/').to_owned();
        let mut content = vec![];
        if name == CONFIG {
            reader.by_ref().take(FILE).read_to_end(&mut content)?;
        }
        // Not by seeking, and padding included.
        io::copy(&mut reader, &mut io::sink())?;
        reader.finish()?;
        found.insert(name, content);
    }
}
