//! What qemu-img draws at random in a disk image of another format, made from the disk's own identifier instead: the same disk is
//! the same file. qemu-img (10.0) has no option for it. qcow2 has nothing of that kind.

use std::{fs::File, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use crc::{CRC_32_ISCSI, Crc};
use uuid::Uuid;

use crate::plan::Format;

/// Gives the image at `path` the identity that follows from `disk`.
///
/// # Errors
///
/// Those of reading and writing, and when the image is not as its format has it.
pub fn settle(path: &Path, format: Format, disk: Uuid) -> Result<()> {
    let open = || File::options().read(true).write(true).open(path);
    let settled = match format {
        Format::Raw | Format::Qcow2 => Ok(()),
        Format::Vmdk => open().map_err(Into::into).and_then(|file| vmdk(&file, disk)),
        Format::Vhdx => open().map_err(Into::into).and_then(|file| vhdx(&file, disk)),
    };
    settled.with_context(|| format!("giving {} its identity", path.display()))
}

fn bytes<const N: usize>(file: &File, at: u64) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, at).with_context(|| format!("reading at {at}"))?;
    Ok(bytes)
}

/// The content identifier, which changes with the content, is text in the descriptor (VMware's "Virtual Disk Format 5.0", "The
/// Header" and "Hosted Sparse Extent Header"; the latter counts in sectors).
fn vmdk(file: &File, disk: Uuid) -> Result<()> {
    let header: [u8; 44] = bytes(file, 0)?;
    ensure!(header.starts_with(b"KDMV"), "it does not begin as a sparse VMDK does");
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| header[at + n]));
    let (at, size) = (number(28) * 512, number(36) * 512);
    ensure!(size <= 1 << 20, "its descriptor has {size} bytes");
    let mut descriptor = vec![0; usize::try_from(size)?];
    file.read_exact_at(&mut descriptor, at).context("reading the descriptor")?;
    let text = String::from_utf8_lossy(&descriptor);
    let text = text.trim_end_matches('\0');
    let Some(old) = text.lines().find(|line| line.starts_with("CID=")) else { bail!("its descriptor has no CID") };
    // The last two values say that nobody has written it, and that there is no parent.
    let id = disk.as_fields().0.min(u32::MAX - 2);
    let mut new = text.replacen(old, &format!("CID={id:08x}"), 1).into_bytes();
    ensure!(new.len() <= descriptor.len(), "its descriptor is full");
    new.resize(descriptor.len(), 0);
    file.write_all_at(&new, at).context("writing the descriptor")
}

/// Places and sizes in a VHDX, in bytes ([MS-VHDX], 2.2).
const HEADERS: [u64; 2] = [64 << 10, 128 << 10];
const HEADER: usize = 4096;
const REGIONS: u64 = 192 << 10;
const METADATA_REGION: Uuid = Uuid::from_u128(0x8b7c_a206_4790_4b9a_b8fe_575f_050f_886e);
const PAGE_83_DATA: Uuid = Uuid::from_u128(0xbeca_12ab_b2e6_4523_93ef_c309_e000_c746);

/// Both headers have a sequence number that begins anywhere, two GUIDs that change with what is written, and a checksum; the log is
/// empty, but what was in it is still there; and the disk has a GUID of its own, which its guest sees.
fn vhdx(file: &File, disk: Uuid) -> Result<()> {
    let id = |what: &str| Uuid::new_v5(&disk, what.as_bytes()).to_bytes_le();
    let mut headers = HEADERS.map(|at| (at, [0; HEADER]));
    for (at, header) in &mut headers {
        *header = bytes(file, *at)?;
        ensure!(header.starts_with(b"head") && header[48..64] == [0; 16], "it has no header at {at}, or a log in use");
    }
    // The one with the greater sequence number is the current one.
    headers.sort_by_key(|(_, header)| u64::from_le_bytes(std::array::from_fn(|n| header[8 + n])));
    for ((at, header), number) in headers.iter_mut().zip(1_u64..) {
        header[8..16].copy_from_slice(&number.to_le_bytes());
        header[16..32].copy_from_slice(&id("vhdx file write"));
        header[32..48].copy_from_slice(&id("vhdx data write"));
        header[4..8].fill(0);
        let sum = Crc::<u32>::new(&CRC_32_ISCSI).checksum(header.as_slice());
        header[4..8].copy_from_slice(&sum.to_le_bytes());
        file.write_all_at(header.as_slice(), *at).context("writing a header")?;
        let length = u32::from_le_bytes(std::array::from_fn(|n| header[68 + n]));
        let log = u64::from_le_bytes(std::array::from_fn(|n| header[72 + n]));
        ensure!(length <= 64 << 20, "its log has {length} bytes");
        file.write_all_at(&vec![0; usize::try_from(length)?], log).context("emptying the log")?;
    }
    let at = page_83(file)?;
    file.write_all_at(&id("vhdx disk"), at).context("writing the disk's GUID")
}

/// Where the GUID of the disk is: the region table leads to the metadata, and the table there to it.
fn page_83(file: &File) -> Result<u64> {
    let table: [u8; 4096] = bytes(file, REGIONS)?;
    let of = |table: &[u8], first: usize, guid: Uuid| {
        let mut entries = table[first..].chunks_exact(32);
        entries.find(|entry| entry[..16] == guid.to_bytes_le()).map(<[u8]>::to_vec)
    };
    let region = of(&table, 16, METADATA_REGION).context("it has no metadata region")?;
    let region = u64::from_le_bytes(std::array::from_fn(|n| region[16 + n]));
    let table: [u8; 4096] = bytes(file, region)?;
    let item = of(&table, 32, PAGE_83_DATA).context("its metadata have no GUID of the disk")?;
    Ok(region + u64::from(u32::from_le_bytes(std::array::from_fn(|n| item[16 + n]))))
}
