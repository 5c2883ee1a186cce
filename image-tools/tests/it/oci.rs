//! Which image of a layout is taken, and that what is taken is what was verified.

use std::path::Path;

use image_tools::oci::{Arch, Image, Reference};
use serde_json::{Value, json};

use crate::layout::{INDEX, Layer, MANIFEST, archive, descriptor, entries, image, index, run, system};

/// The digest that is resolved, or the words of the error.
fn resolve(dir: &Path, tag: Option<&str>, arch: Option<Arch>) -> Result<String, String> {
    let tag = tag.map_or(String::new(), |tag| format!(":{tag}"));
    let reference: Reference = format!("oci:{}{tag}", dir.display()).parse().unwrap();
    let found = Image::resolve(reference, arch.as_ref(), dir);
    found.map(|image| image.digest()).map_err(|error| format!("{error:#}"))
}

fn one(dir: &Path, arch: &str) -> Value {
    image(dir, &[Layer::plain(archive(&entries(&system())))], arch)
}

fn with(mut descriptor: Value, key: &str, value: Value) -> Value {
    descriptor[key] = value;
    descriptor
}

fn named(descriptor: Value, name: &str) -> Value {
    with(descriptor, "annotations", json!({ "org.opencontainers.image.ref.name": name }))
}

fn for_platform(descriptor: Value, os: &str, arch: &str) -> Value {
    with(descriptor, "platform", json!({ "os": os, "architecture": arch }))
}

fn digest(descriptor: &Value) -> String {
    descriptor["digest"].as_str().unwrap().to_owned()
}

#[test]
fn an_index_in_the_index_is_looked_into_and_attestations_are_no_images() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (amd64, arm64) = (one(dir, "amd64"), one(dir, "arm64"));
    let attestation = for_platform(one(dir, "unknown"), "unknown", "unknown");
    let about = json!({ "vnd.docker.reference.type": "attestation-manifest" });
    let other = with(image(dir, &[], "amd64"), "annotations", about);
    let inner = json!({ "schemaVersion": 2, "manifests": [
        for_platform(arm64.clone(), "linux", "arm64"), for_platform(amd64.clone(), "linux", "amd64"), attestation.clone(),
    ] });
    let inner = inner.to_string();
    let nested = [descriptor(dir, INDEX, inner.as_bytes())];
    let docker = [descriptor(dir, "application/vnd.docker.distribution.manifest.list.v2+json", inner.as_bytes())];
    // Without platforms: the configurations know.
    let flat = [arm64.clone(), amd64.clone(), attestation, other];
    for manifests in [&nested[..], &docker, &flat] {
        index(dir, manifests);
        assert_eq!(resolve(dir, None, Some(Arch::ARM64)).unwrap(), digest(&arm64));
        assert_eq!(resolve(dir, None, Some(Arch::Amd64)).unwrap(), digest(&amd64));
        let said = resolve(dir, None, Some(Arch::RISCV64)).unwrap_err();
        assert!(said.contains("no image for linux/riscv64, only for linux/amd64, linux/arm64"), "{said}");
    }
    // The only one is taken, whatever it is for; not when another one was asked for.
    index(dir, std::slice::from_ref(&arm64));
    assert_eq!(resolve(dir, None, None).unwrap(), digest(&arm64));
    assert!(resolve(dir, None, Some(Arch::Amd64)).unwrap_err().contains("--arch"));
}

#[test]
fn a_name_may_hold_colons_and_slashes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let (amd64, arm64) = (one(dir, "amd64"), one(dir, "arm64"));
    index(dir, &[named(amd64.clone(), "localhost/os:latest"), named(arm64.clone(), "v2")]);
    assert_eq!(resolve(dir, Some("localhost/os:latest"), None).unwrap(), digest(&amd64));
    assert_eq!(resolve(dir, Some("v2"), None).unwrap(), digest(&arm64));
    let said = resolve(dir, Some("latest"), None).unwrap_err();
    assert!(said.contains(r#"no image is tagged "latest"; there is {"localhost/os:latest", "v2"}"#), "{said}");
    let said = resolve(dir, None, None).unwrap_err();
    assert!(said.contains("add the name of one, oci:DIR:NAME"), "{said}");
}

#[test]
fn what_is_no_image_of_a_system_is_refused_by_its_type() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let chart = json!({ "schemaVersion": 2, "config": descriptor(dir, "application/vnd.cncf.helm.config.v1+json", b"{}"), "layers": [] });
    index(dir, &[descriptor(dir, MANIFEST, chart.to_string().as_bytes())]);
    assert!(resolve(dir, None, None).unwrap_err().contains("the type application/vnd.cncf.helm.config.v1+json"));
    index(dir, &[]);
    assert!(resolve(dir, None, None).unwrap_err().contains("there is no image"));
    let mut loop_back = descriptor(dir, INDEX, br#"{"schemaVersion":2,"manifests":[]}"#);
    for _ in 0..9 {
        let deeper = json!({ "schemaVersion": 2, "manifests": [loop_back] }).to_string();
        loop_back = descriptor(dir, INDEX, deeper.as_bytes());
    }
    index(dir, &[loop_back]);
    assert!(resolve(dir, None, None).unwrap_err().contains("more than 8 indexes"));
}

fn reads(dir: &Path) -> (Option<i32>, String) {
    let output = run(&["digest", &format!("oci:{}", dir.display())]);
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_layer_is_what_both_its_digests_say_in_every_compression() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let plain = archive(&entries(&system()));
    let gzip = || {
        let mut encoder = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        std::io::copy(&mut &plain[..], &mut encoder).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = || zstd::encode_all(&plain[..], 1).unwrap();
    let oci = "application/vnd.oci.image.layer.v1.tar";
    let docker = "application/vnd.docker.image.rootfs.diff.tar";
    let diff_id = Layer::plain(plain.clone()).diff_id;
    for (blob, kind) in [
        (plain.clone(), oci.to_owned()),
        (gzip(), format!("{oci}+gzip")),
        (zstd(), format!("{oci}+zstd")),
        (gzip(), format!("{docker}.gzip")),
        (plain.clone(), docker.to_owned()),
        // What it is, not what it is called.
        (zstd(), format!("{oci}+gzip")),
    ] {
        let layer = Layer { blob, kind, diff_id: diff_id.clone() };
        index(dir, &[image(dir, &[layer], "amd64")]);
        assert_eq!(reads(dir), (Some(0), String::new()));
    }
    // A configuration that claims another archive.
    let lie = Layer { diff_id: format!("sha256:{}", "0".repeat(64)), ..Layer::plain(plain.clone()) };
    index(dir, &[image(dir, &[lie], "amd64")]);
    let (code, said) = reads(dir);
    assert!(code == Some(3) && said.contains("the image's configuration wants sha256:0000"), "{said}");
    let wrong = Layer { kind: "application/vnd.in-toto+json".to_owned(), ..Layer::plain(plain) };
    index(dir, &[image(dir, &[wrong], "amd64")]);
    let (code, said) = reads(dir);
    assert!(code == Some(3) && said.contains("the type application/vnd.in-toto+json"), "{said}");
}

#[test]
fn two_images_that_claim_the_same_layer_do_not_get_each_others() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let layers = ["one", "two"].map(|name| {
        let mut files = system();
        files.push((format!("etc/{name}"), b"x".to_vec()));
        Layer::plain(archive(&entries(&files)))
    });
    let claimed = layers[0].diff_id.clone();
    for (dir, layer) in dirs.iter().zip(layers) {
        let layer = Layer { diff_id: claimed.clone(), ..layer };
        index(dir.path(), &[image(dir.path(), &[layer], "amd64")]);
    }
    let output = crate::layout::build(dirs[0].path(), Some(dirs[1].path()), &dirs[0].path().join("disk"), &[]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(3) && said.contains("configuration wants"), "{said}");
}
