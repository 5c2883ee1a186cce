//! Gives an image the UKI that boots it. The image's digest does not cover /boot, so a file there can name it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use finalize::{digest::DeploymentId, staged::BootType};

use super::DIR;
use crate::{
    cmd,
    oci::{Layout, Source},
    payload::{Boots, Payload, Store},
};

/// The stub in the image that becomes the UKI.
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// An image that is to be sealed.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image.
    pub image: Source,
    /// The OCI layout that is made; it must not exist.
    pub output: PathBuf,
    /// The name of the image in it.
    pub tag: String,
    /// The kernel's command line, but for `composefs=`.
    pub options: String,
    /// The program that makes a UKI; it is part of systemd.
    pub ukify: PathBuf,
}

/// The digest of an image: what its deployment is called.
///
/// # Errors
///
/// Those of [`Store::pull`].
pub fn digest(image: &Source) -> Result<DeploymentId> {
    let scratch = tempfile::tempdir().context("making a temporary directory")?;
    let store = Store::create(&scratch.path().join("composefs"))?;
    Ok(store.pull(image, BootType::Bls, scratch.path())?.id)
}

/// Makes the layout of `request`: the image with one more layer, which holds its UKI. Returns the image's digest.
///
/// # Errors
///
/// When the image is not bootable, ukify fails, or the result would boot another image; then there is no output.
pub fn seal(request: &Request) -> Result<DeploymentId> {
    let output = &request.output;
    ensure!(!output.exists(), "{} exists: remove it, or choose another --output", output.display());
    let beside = output.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::create_dir_all(beside).with_context(|| format!("creating {}", beside.display()))?;
    let scratch = tempfile::Builder::new().prefix(".image-tools-").tempdir_in(beside)?;
    let store = Store::create(&scratch.path().join("composefs"))?;
    let payload = store.pull(&request.image, BootType::Bls, scratch.path())?;
    let uki = scratch.path().join("uki.efi");
    ukify(&store, &payload, request, &uki).with_context(|| format!("making a UKI of {}", request.image))?;
    let made = scratch.path().join("layout");
    let unpacked = scratch.path().join("input");
    std::fs::create_dir(&unpacked)?;
    let name = format!("{DIR}/{}-{}.efi", payload.os.id, payload.os.version);
    Layout::open(&request.image, &unpacked)?.with_file(&made, &request.tag, (&name, &uki))?;
    let source = format!("oci:{}:{}", made.display(), request.tag);
    let source: Source = source.parse().map_err(anyhow::Error::msg)?;
    let sealed = store.pull(&source, BootType::Uki, scratch.path()).context("checking the sealed image")?;
    std::fs::rename(&made, output).with_context(|| format!("writing {}", output.display()))?;
    Ok(sealed.id)
}

fn ukify(store: &Store, payload: &Payload, request: &Request, output: &Path) -> Result<()> {
    let Boots::Kernel(kernel) = &payload.boots else { anyhow::bail!("the image has no kernel") };
    let stub = store.file(&payload.tree, Path::new(STUB)).context("install systemd-boot-efi in it")?;
    let os_release = store.file(&payload.tree, Path::new("usr/lib/os-release"))?;
    let os_release = format!("@{}", os_release.display());
    let mut ukify = Command::new(&request.ukify);
    ukify.arg("build").arg("--linux").arg(&kernel.vmlinuz).arg("--initrd").arg(&kernel.initrd);
    ukify.args(["--cmdline", &format!("composefs={} {}", payload.id, request.options)]);
    ukify.args(["--os-release", &os_release]).arg("--stub").arg(stub).arg("--output").arg(output);
    cmd::run(&mut ukify).map(drop)
}
