//! Gives an image the UKI that boots it. The image's digest does not cover /boot, so a file there can name it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use finalize::{
    cmdline::{Format, Target, Verity},
    digest::DeploymentId,
    staged::BootType,
};
use tempfile::TempDir;
use xshell::cmd;

use crate::{
    arch::Arch,
    oci::{self, Added, Image, Layout, Means, Reference},
    program,
    store::Store,
    system::{Boots, CannotBoot, System, os::OS_RELEASE, uki::DIR},
    workshop::Workshop,
};

/// Where an image has the stub that becomes the UKI.
const STUBS: &str = "usr/lib/systemd/boot/efi";

/// An image that is to be sealed.
#[derive(Debug, Clone)]
pub struct Request {
    /// The image.
    pub image: Reference,
    /// What architecture is taken where it is there for several.
    pub arch: Option<&'static Arch>,
    /// The OCI layout that is made; it must not exist.
    pub output: PathBuf,
    /// The name of the image in it.
    pub tag: String,
    /// The kernel's command line, but for `composefs=`, and for the console where it names none.
    pub options: String,
    /// The program that makes a UKI; it is part of systemd.
    pub ukify: PathBuf,
    /// The EROFS format of the deployment.
    pub format: Format,
}

/// The digest of an image in this EROFS format: what its deployment is called.
///
/// # Errors
///
/// When the image is not what its digests say: names the layer.
pub fn digest(
    image: &Reference,
    arch: Option<&'static Arch>,
    format: Format,
    workshop: &Workshop,
) -> Result<DeploymentId> {
    let scratch = workshop.anywhere()?;
    let store = Store::of_format(format, &scratch.path().join("composefs"))?;
    // Whether it boots, and how, changes nothing about that.
    let named = || format!("pulling {image}");
    Ok(store.pull(&resolve(image.clone(), arch, means(&scratch, workshop))?).with_context(named)?.id)
}

/// Makes the layout of `request`: the image with one more layer, which holds its UKI. Returns the image's digest.
///
/// # Errors
///
/// When the image is not bootable, ukify fails, or the result would boot another image; then there is no output.
pub fn seal(request: Request, workshop: &Workshop) -> Result<DeploymentId> {
    let output = &request.output;
    ensure!(!output.exists(), "{} exists: remove it, or choose another --output", output.display());
    let scratch = workshop.beside(output)?;
    let store = Store::of_format(request.format, &scratch.path().join("composefs"))?;
    let image = resolve(request.image.clone(), request.arch, means(&scratch, workshop))?;
    let system = System::pull(image, &store, BootType::Bls)?;
    let uki = scratch.path().join("uki.efi");
    ukify(&store, &system, &request, &uki).with_context(|| format!("making a UKI of {}", request.image))?;
    let made = scratch.path().join("layout");
    let path = format!("{DIR}/{}-{}.efi", system.os.id, system.os.version);
    system.image.with_file(Added { path: &path, from: &uki }, &made, &request.tag)?;
    let sealed = Reference::Directory(Layout { path: made.clone(), tag: Some(request.tag) });
    let sealed = System::pull(Image::resolve(sealed, None, scratch.path())?, &store, BootType::Uki);
    let sealed = sealed.context("checking the sealed image")?;
    std::fs::rename(&made, output).with_context(|| format!("writing {}", output.display()))?;
    Ok(sealed.id)
}

fn resolve(image: Reference, arch: Option<&'static Arch>, means: Means<'_>) -> Result<Image> {
    Image::resolve(image, arch.map(|arch| oci::Arch::from(arch.go)).as_ref(), means)
}

fn means<'a>(scratch: &'a TempDir, workshop: &'a Workshop) -> Means<'a> {
    Means { scratch: scratch.path(), runtime: Some(&workshop.runtime) }
}

fn ukify(store: &Store, system: &System, request: &Request, output: &Path) -> Result<()> {
    let Boots::Kernel(kernel) = &system.boots else { bail!("the image has no kernel") };
    let file = |path: &str, remedy: &str| -> Result<PathBuf> {
        let file = store.file(&system.tree, Path::new(path))?;
        Ok(file.ok_or_else(|| CannotBoot(format!("the image has no {path}: {remedy}")))?.path)
    };
    let stub = file(&format!("{STUBS}/{}", system.arch.stub()), "install systemd-boot-efi in it")?;
    let os_release = format!("@{}", file(OS_RELEASE, "every system has one")?.display());
    let (ukify, linux, initrd) = (&request.ukify, &kernel.vmlinuz.path, &kernel.initrd.path);
    let console = system.arch.console(&request.options).map_or_else(String::new, |word| format!(" {word}"));
    let target = Target { id: system.id.clone(), verity: Verity::Required, format: request.format };
    let cmdline = format!("{target} {}{console}", request.options);
    let shell = program::shell()?;
    let input = cmd!(shell, "{ukify} build --linux {linux} --initrd {initrd} --cmdline {cmdline}");
    let words = ["--os-release", &os_release, "--stub"];
    program::run(input.args(words).arg(stub).arg("--output").arg(output)).map(drop)
}
