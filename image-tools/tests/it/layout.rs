//! A small operating system as an OCI layout, right or broken.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use sha2::{Digest, Sha256};

/// Files of the system: path and content.
pub fn system() -> Vec<(String, Vec<u8>)> {
    let file = |path: &str, content: &str| (path.to_owned(), content.as_bytes().to_vec());
    let mut files = vec![
        file("usr/lib/os-release", "ID=test\nVERSION_ID=1\nPRETTY_NAME=\"A test\"\n"),
        file("usr/lib/systemd/boot/efi/systemd-bootx64.efi", "MZ not really"),
        file("usr/lib/modules/6.1/vmlinuz", "a kernel"),
        file("usr/lib/modules/6.1/initramfs.img", "an initramfs"),
        file("etc/passwd", "root:x:0:0::/root:/bin/sh\n"),
        file("etc/with space/ünï", "x"),
        file("var/lib/x", "shared"),
    ];
    files.push(("usr/share/big".to_owned(), b"big ".repeat(100_000)));
    files
}

/// Writes the layout with one layer that holds `files`, in order.
pub fn write(dir: &Path, files: &[(String, Vec<u8>)]) {
    let mut tar = tar::Builder::new(vec![]);
    let parents = files.iter().flat_map(|(path, _)| Path::new(path).ancestors().skip(1));
    let parents: BTreeSet<_> = parents.filter(|dir| dir.iter().all(|c| c != ".." && c != "/")).collect();
    let top = ["boot", "sysroot"].map(Path::new);
    for dir in top.iter().chain(&parents).filter(|dir| !dir.as_os_str().is_empty()) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(0o755);
        header.set_size(0);
        tar.append_data(&mut header, dir, std::io::empty()).unwrap();
    }
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(7);
        // A broken path is written as it is.
        let name = &mut header.as_gnu_mut().unwrap().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        tar.append(&header, &content[..]).unwrap();
    }
    let layer = tar.into_inner().unwrap();
    let layer_digest = blob(dir, &layer);
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |kind: &str, digest: &str, size: usize| serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size });
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &blob(dir, &config), config.len()),
        "layers": [descriptor("layer.v1.tar", &layer_digest, layer.len())],
    });
    let manifest = manifest.to_string().into_bytes();
    let manifest = descriptor("manifest.v1+json", &blob(dir, &manifest), manifest.len());
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
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

pub fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_image-tools")).args(args).output().unwrap()
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
