//! A small operating system as an OCI layout, right or broken.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Output,
};

use image_tools::program;
use sha2::{Digest, Sha256};
use xshell::{Shell, cmd};

/// Files of the system: path and content.
pub fn system() -> Vec<(String, Vec<u8>)> {
    let file = |path: &str, content: &str| (path.to_owned(), content.as_bytes().to_vec());
    let mut files = vec![
        file("usr/lib/os-release", "ID=test\nVERSION_ID=1\nPRETTY_NAME=\"A test\"\n"),
        file("usr/lib/systemd/boot/efi/systemd-bootx64.efi", "MZ not really"),
        file("usr/lib/modules/6.1/vmlinuz", "a kernel"),
        ("usr/lib/modules/6.1/initramfs.img".to_owned(), initramfs(&INITRAMFS)),
        file("usr/lib/modules/6.1/modules.builtin", "kernel/fs/erofs/erofs.ko\nkernel/fs/overlayfs/overlay.ko\n"),
        file("usr/lib/systemd/systemd", "not really"),
        file("usr/sbin/init", "not really"),
        file("usr/bin/composefs-finalize", "not really"),
        file("usr/lib/systemd/system/composefs-finalize.service", "[Service]\n"),
        file("usr/lib/systemd/system/composefs-finalize-report.service", "[Service]\n"),
        file("etc/systemd/system/multi-user.target.wants/composefs-finalize.service", "[Service]\n"),
        file("etc/systemd/system/multi-user.target.wants/composefs-finalize-report.service", "[Service]\n"),
        file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        file("etc/with space/ünï", "x"),
        file("var/lib/x", "shared"),
    ];
    files.push(("usr/share/big".to_owned(), b"big ".repeat(100_000)));
    files
}

/// What an initramfs holds that mounts a deployment.
pub const INITRAMFS: [(&str, &str); 3] = [
    ("usr/lib/composefs/composefs-setup-root", "not really"),
    ("usr/lib/composefs/setup-root-conf.toml", "[etc]\nmount = \"bind\"\n"),
    ("usr/lib/modules/6.1/kernel/fs/ext4/ext4.ko.xz", "not really"),
];

/// An archive of these files, as initramfs are.
pub fn initramfs(files: &[(&str, &str)]) -> Vec<u8> {
    let files = files.iter().map(|(name, text)| (cpio::NewcBuilder::new(name).mode(0o100_644), text.as_bytes()));
    cpio::write_cpio(files.map(|(header, text)| (header, std::io::Cursor::new(text))), vec![]).unwrap()
}

/// An entry of a layer, with its name as it is.
pub fn entry(path: &str, kind: tar::EntryType, content: &[u8]) -> (tar::Header, Vec<u8>) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o640 });
    header.set_uid(if kind == tar::EntryType::Directory { 0 } else { 7 });
    header.set_size(content.len() as u64);
    let name = &mut header.as_gnu_mut().unwrap().name;
    name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_cksum();
    (header, content.to_vec())
}

/// A link, symbolic or hard, with its target as it is.
pub fn link(path: &str, kind: tar::EntryType, target: &str) -> (tar::Header, Vec<u8>) {
    let (mut header, none) = entry(path, kind, b"");
    header.as_gnu_mut().unwrap().linkname[..target.len()].copy_from_slice(target.as_bytes());
    header.set_cksum();
    (header, none)
}

/// The archive of these entries, in order.
pub fn archive(entries: &[(tar::Header, Vec<u8>)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(vec![]);
    for (header, content) in entries {
        tar.append(header, &content[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

/// The entries of a layer with `files`, and the directories above them.
pub fn entries(files: &[(String, Vec<u8>)]) -> Vec<(tar::Header, Vec<u8>)> {
    let parents = files.iter().flat_map(|(path, _)| Path::new(path).ancestors().skip(1));
    let parents = parents.filter(|dir| dir.iter().all(|c| c != ".." && c != "/") && !dir.as_os_str().is_empty());
    let dirs: BTreeSet<_> = parents.chain(["boot", "sysroot", "dev", "proc", "run", "sys"].map(Path::new)).collect();
    let dirs = dirs.into_iter().map(|dir| entry(dir.to_str().unwrap(), tar::EntryType::Directory, b""));
    dirs.chain(files.iter().map(|(path, content)| entry(path, tar::EntryType::Regular, content))).collect()
}

/// Writes the layout with one layer that holds `files`, in order.
pub fn write(dir: &Path, files: &[(String, Vec<u8>)]) {
    write_for("amd64", dir, files);
}

/// The same for an architecture.
pub fn write_for(arch: &str, dir: &Path, files: &[(String, Vec<u8>)]) {
    let manifest = image(dir, &[Layer::plain(archive(&entries(files)))], arch);
    index(dir, &[manifest]);
}

/// A layer as an image describes it.
pub struct Layer {
    /// Its blob.
    pub blob: Vec<u8>,
    /// Its media type.
    pub kind: String,
    /// The digest of its archive.
    pub diff_id: String,
}

impl Layer {
    /// A layer without compression.
    pub fn plain(archive: Vec<u8>) -> Self {
        let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(&archive)));
        Self { blob: archive, kind: "application/vnd.oci.image.layer.v1.tar".to_owned(), diff_id }
    }
}

/// When all images here were created; in seconds, 1700000000.
pub const CREATED: &str = "2023-11-14T23:13:20.5+01:00";

/// Writes an image's blobs; the descriptor of its manifest.
pub fn image(dir: &Path, layers: &[Layer], arch: &str) -> serde_json::Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
    let config = serde_json::json!({
        "architecture": arch, "os": "linux", "config": {}, "created": CREATED,
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(dir, &layer.kind, &layer.blob)).collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor(dir, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
        "layers": layers,
    });
    descriptor(dir, MANIFEST, manifest.to_string().as_bytes())
}

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Writes a blob; its descriptor.
pub fn descriptor(dir: &Path, kind: &str, bytes: &[u8]) -> serde_json::Value {
    serde_json::json!({ "mediaType": kind, "digest": blob(dir, bytes), "size": bytes.len() })
}

/// Writes what says which images there are.
pub fn index(dir: &Path, manifests: &[serde_json::Value]) {
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

fn blob(dir: &Path, bytes: &[u8]) -> String {
    let digest = hex::encode(Sha256::digest(bytes));
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    fs::write(dir.join("blobs/sha256").join(&digest), bytes).unwrap();
    format!("sha256:{digest}")
}

/// The largest blob: the layer.
pub fn layer(dir: &Path) -> PathBuf {
    let blobs = fs::read_dir(dir.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path());
    blobs.max_by_key(|path| path.metadata().unwrap().len()).unwrap()
}

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_image-tools");

/// Where programs are run in a directory.
pub fn shell(dir: &Path) -> Shell {
    let shell = program::shell().unwrap();
    shell.change_dir(dir);
    shell
}

/// What a program that must succeed has done.
#[track_caller]
pub fn ok(output: Output) -> Output {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

pub fn run(args: &[&str]) -> Output {
    let shell = program::shell().unwrap();
    program::output(cmd!(shell, "{PROGRAM} {args...}")).unwrap()
}

/// Builds a disk from the layout `dir`, staging `stage`.
pub fn build(dir: &Path, stage: Option<&Path>, output: &Path, more: &[&str]) -> Output {
    let oci = |dir: &Path| format!("oci:{}", dir.display());
    let (image, stage) = (oci(dir), stage.map(oci));
    let mut args = vec!["build", "--image", &image, "--output", output.to_str().unwrap()];
    args.extend(stage.as_deref().into_iter().flat_map(|stage| ["--stage", stage]));
    args.extend(more);
    if !more.contains(&"--size") {
        args.extend(["--size", "1024"]);
    }
    run(&args)
}
