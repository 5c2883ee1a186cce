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
    secureboot::Signer,
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
    /// Who signs the UKI and systemd-boot, for Secure Boot.
    pub signer: Option<Signer>,
    /// The directory that is made with what a firmware enrols to know the signer; it must not exist.
    pub keys: Option<PathBuf>,
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
    if let Some(keys) = &request.keys {
        let why = "exists: remove it, or leave --secureboot-keys out, for one directory serves every image of a signer";
        ensure!(!keys.exists(), "{} {why}", keys.display());
    }
    request.signer.as_ref().map_or(Ok(()), Signer::check)?;
    let scratch = workshop.beside(output)?;
    let store = Store::of_format(request.format, &scratch.path().join("composefs"))?;
    let image = resolve(request.image.clone(), request.arch, means(&scratch, workshop))?;
    let mut system = System::pull(image, &store, BootType::Bls)?;
    if let Some(signer) = &request.signer {
        // The UKI names the image that has the signed loader.
        system = with_signed_loader(&system, signer, &store, scratch.path())?;
    }
    let uki = scratch.path().join("uki.efi");
    ukify(&store, &system, &request, &uki).with_context(|| format!("making a UKI of {}", request.image))?;
    if let Some(signer) = &request.signer {
        let unsigned = scratch.path().join("unsigned.efi");
        std::fs::rename(&uki, &unsigned)?;
        signer.sign("the UKI", (&unsigned, &uki))?;
    }
    let made = scratch.path().join("layout");
    let path = format!("{DIR}/{}-{}.efi", system.os.id, system.os.version);
    system.image.with_file(Added { path: &path, from: &uki }, &made, &request.tag)?;
    let sealed = Reference::Directory(Layout { path: made.clone(), tag: Some(request.tag) });
    let sealed = System::pull(Image::resolve(sealed, None, scratch.path())?, &store, BootType::Uki);
    let sealed = sealed.context("checking the sealed image")?;
    if let (Some(signer), Some(keys)) = (&request.signer, &request.keys) {
        let scratch = workshop.beside(keys)?;
        let made = scratch.path().join("keys");
        signer.enrolment(&made)?;
        std::fs::rename(&made, keys).with_context(|| format!("writing {}", keys.display()))?;
    }
    std::fs::rename(&made, output).with_context(|| format!("writing {}", output.display()))?;
    Ok(sealed.id)
}

/// The system with one more layer, in which systemd-boot has its signed file beside the other one.
fn with_signed_loader(system: &System, signer: &Signer, store: &Store, scratch: &Path) -> Result<System> {
    let (name, signed) = (system.arch.systemd_boot(), system.arch.signed_systemd_boot());
    let (path, to) = (format!("{STUBS}/{name}"), scratch.join("loader.efi"));
    let loader = store.file(&system.tree, Path::new(&path))?;
    let why = || CannotBoot(format!("the image has no {path}: install systemd-boot-efi in it"));
    signer.sign(&path, (&loader.ok_or_else(why)?.path, &to))?;
    let layout = Layout { path: scratch.join("signed"), tag: Some("signed".to_owned()) };
    let added = Added { path: &format!("{STUBS}/{signed}"), from: &to };
    system.image.with_file(added, &layout.path, "signed")?;
    let image = Image::resolve(Reference::Directory(layout), None, scratch)?;
    System::pull(image, store, BootType::Bls).context("looking into the image with the signed boot loader")
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
