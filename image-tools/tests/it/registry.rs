//! Updates from a real registry (Debian's docker-registry), fetched by the real skopeo: only what is missing, and nothing that is
//! not whole.

use std::{
    fs,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use image_tools::program;
use xshell::{Shell, cmd};

use crate::{
    layout::{Layer, archive, entries, entry, image, index},
    stage::{Machine, disk, said},
};

/// A registry, and what skopeo needs to know of it.
struct Registry {
    program: Child,
    port: u16,
    shell: Shell,
}

impl Drop for Registry {
    fn drop(&mut self) {
        _ = self.program.kill();
        _ = self.program.wait();
    }
}

/// containers-registries.conf(5) of a user, below his home.
const CONF: &str = ".config/containers/registries.conf";

const ANYTHING: &str = r#"{"default": [{"type": "insecureAcceptAnything"}]}"#;

impl Registry {
    /// An empty one below `dir`; nothing where the program is not there.
    fn start(dir: &Path) -> Option<Self> {
        let shell = program::shell().unwrap();
        let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/tools/bin");
        shell.set_var("PATH", format!("{tools}:{}", shell.var("PATH").unwrap()));
        if program::output(cmd!(shell, "docker-registry --version")).is_err() {
            #[allow(clippy::print_stdout, reason = "the runner shows it")]
            {
                println!("SKIPPED: docker-registry is not installed");
            }
            return None;
        }
        // Somebody else may take the port before the registry does; that fails, loudly.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: \"127.0.0.1:{port}\"}}\n",
            dir.join("registry").display()
        );
        fs::write(dir.join("registry.yml"), config).unwrap();
        let yml = dir.join("registry.yml");
        let mut command = Command::from(cmd!(shell, "docker-registry serve {yml}"));
        let program = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            thread::yield_now();
        }
        let this = Self { program, port, shell };
        this.policy(dir, ANYTHING);
        Some(this)
    }

    /// From now on this is what skopeo accepts.
    fn policy(&self, dir: &Path, policy: &str) {
        let home = dir.join("home");
        fs::create_dir_all(home.join(".config/containers")).unwrap();
        fs::write(home.join(".config/containers/policy.json"), policy).unwrap();
        let insecure = "[[registry]]\nlocation = \"127.0.0.1\"\ninsecure = true\n";
        fs::write(home.join(CONF), insecure.replace("127.0.0.1", &format!("127.0.0.1:{}", self.port))).unwrap();
        self.shell.set_var("HOME", &home);
    }

    fn name(&self, tag: &str) -> String {
        format!("docker://127.0.0.1:{}/os:{tag}", self.port)
    }

    fn push(&self, layout: &Path, tag: &str) {
        let (from, to) = (format!("oci:{}", layout.display()), self.name(tag));
        let shell = &self.shell;
        program::run(cmd!(shell, "skopeo copy --dest-tls-verify=false {from} {to}")).unwrap();
    }
}

/// Two versions that share two layers of three.
fn versions(dir: &Path) {
    let shared: Vec<_> = crate::boot_paths::version("1");
    let large = fastrand::Rng::with_seed(7);
    for name in ["v1", "v2"] {
        let mut large = large.clone();
        let random: Vec<u8> = std::iter::repeat_with(|| large.u8(..)).take(3 << 20).collect();
        let more = [entry("usr/share/random", tar::EntryType::Regular, &random)];
        let mut own = fastrand::Rng::with_seed(u64::from(name.as_bytes()[1]));
        let own: Vec<u8> = std::iter::repeat_with(|| own.u8(..)).take(4 << 20).collect();
        let release = format!("ID=test\nVERSION_ID={}\nPRETTY_NAME=\"A test\"\n", &name[1..]);
        let last = [
            entry("usr/lib/os-release", tar::EntryType::Regular, release.as_bytes()),
            entry("usr/share/own", tar::EntryType::Regular, &own),
        ];
        let layers = [archive(&entries(&shared)), archive(&more), archive(&last)].map(Layer::plain);
        let layout = dir.join(name);
        fs::create_dir_all(&layout).unwrap();
        index(&layout, &[image(&layout, &layers, "amd64")]);
    }
}

/// A machine that runs v1, and a registry with v2.
fn machine(dir: &Path) -> Option<(Machine, Registry)> {
    let registry = Registry::start(dir)?;
    versions(dir);
    let machine = Machine::of(&disk(dir, false, &["--bootloader", "systemd-boot"]), &dir.join("live"), "systemd-boot");
    registry.push(&dir.join("v2"), "2");
    Some((machine, registry))
}

#[test]
fn only_what_is_missing_is_fetched_and_the_machine_follows_the_registry() {
    let dir = tempfile::tempdir().unwrap();
    let Some((machine, registry)) = machine(dir.path()) else { return };
    let v2 = registry.name("2");
    let asked = machine.stage_from(&registry.shell, &[&v2, "--check", "--json"]);
    let answer: serde_json::Value =
        serde_json::from_slice(&asked.stdout).unwrap_or_else(|_| panic!("{}", said(&asked)));
    assert_eq!(answer["outcome"], "available");
    let to_fetch = answer["to_fetch"].as_u64().unwrap();
    assert!((4 << 20..5 << 20).contains(&to_fetch), "{answer}");
    // What is shared may be gone from the registry.
    let shared = fs::read_dir(dir.path().join("v1/blobs/sha256")).unwrap().map(|entry| entry.unwrap().file_name());
    for blob in shared {
        let blob = blob.into_string().unwrap();
        _ = fs::remove_file(
            dir.path().join(format!("registry/docker/registry/v2/blobs/sha256/{}/{blob}/data", &blob[..2])),
        );
    }
    let staged = machine.stage_from(&registry.shell, &[&v2]);
    assert!(staged.status.success(), "{}", said(&staged));
    assert!(said(&staged).contains("the next shutdown finalizes it"), "{}", said(&staged));
    let again = machine.stage_from(&registry.shell, &[&v2, "--lock"]);
    assert!(said(&again).contains("is staged already; it waits until it is unlocked"), "{}", said(&again));
    let origin = machine.origin(&machine.marker()["depl_id"]);
    assert!(origin.contains(&format!("= ostree-unverified-image:{v2}\n")), "{origin}");
}

/// Docker's own manifests are in no registry as OCI has them; skopeo converts them.
#[test]
fn an_image_in_dockers_format_is_staged() {
    let dir = tempfile::tempdir().unwrap();
    let Some((machine, registry)) = machine(dir.path()) else { return };
    let (from, to) = (format!("oci:{}", dir.path().join("v2").display()), registry.name("docker"));
    let shell = &registry.shell;
    program::run(cmd!(shell, "skopeo copy --format v2s2 --dest-tls-verify=false {from} {to}")).unwrap();
    let staged = machine.stage_from(shell, &[&to]);
    assert!(staged.status.success(), "{}", said(&staged));
    let again = machine.stage_from(shell, &[&to]);
    assert!(said(&again).contains("is staged already"), "{}", said(&again));
}

#[test]
fn a_blob_that_is_not_whole_stages_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Some((machine, registry)) = machine(dir.path()) else { return };
    let before = machine.boots();
    let blobs = dir.path().join("registry/docker/registry/v2/blobs");
    let large =
        walkdir::WalkDir::new(blobs).into_iter().map(Result::unwrap).filter(|entry| entry.file_type().is_file());
    let large = large.max_by_key(|entry| entry.metadata().unwrap().len()).unwrap();
    let mut bytes = fs::read(large.path()).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(large.path(), bytes).unwrap();
    let output = machine.stage_from(&registry.shell, &[&registry.name("2")]);
    assert!(!output.status.success() && said(&output).contains("sha256:"), "{}", said(&output));
    assert_eq!(machine.boots(), before);
}

#[test]
fn a_registry_that_stops_in_the_middle_stages_nothing_and_the_next_try_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let Some((machine, registry)) = machine(dir.path()) else { return };
    let before = machine.boots();
    let cut = Cut::before(registry.port, 2 << 20);
    let through = registry.name("2").replace(&registry.port.to_string(), &cut.port.to_string());
    let conf = dir.path().join("home").join(CONF);
    let text = fs::read_to_string(&conf).unwrap();
    fs::write(&conf, format!("{text}\n{}", text.replace(&registry.port.to_string(), &cut.port.to_string()))).unwrap();
    let output = machine.stage_from(&registry.shell, &[&through]);
    assert!(!output.status.success() && said(&output).contains("sha256:"), "{}", said(&output));
    assert_eq!(machine.boots(), before);
    let output = machine.stage_from(&registry.shell, &[&registry.name("2")]);
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn what_the_policy_refuses_is_not_staged() {
    let dir = tempfile::tempdir().unwrap();
    let Some((machine, registry)) = machine(dir.path()) else { return };
    let before = machine.boots();
    registry.policy(dir.path(), r#"{"default": [{"type": "reject"}]}"#);
    let output = machine.stage_from(&registry.shell, &[&registry.name("2")]);
    assert!(output.status.code() == Some(3) && said(&output).contains("policy"), "{}", said(&output));
    assert_eq!(machine.boots(), before);
}

/// Somebody between skopeo and the registry, who hangs up for good after so many bytes.
struct Cut {
    port: u16,
}

impl Cut {
    fn before(registry: u16, limit: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let passed = Arc::new(AtomicU64::new(0));
        thread::spawn(move || {
            for client in listener.incoming().map(Result::unwrap) {
                if passed.load(Ordering::SeqCst) >= limit {
                    _ = client.shutdown(Shutdown::Both);
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", registry)).unwrap();
                let (mut up, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                thread::spawn(move || std::io::copy(&mut up, &mut to));
                let passed = passed.clone();
                thread::spawn(move || pass((server, client), &passed, limit));
            }
        });
        Self { port }
    }
}

fn pass((mut from, mut to): (TcpStream, TcpStream), passed: &AtomicU64, limit: u64) {
    let mut piece = vec![0; 1 << 14];
    while let Ok(count @ 1..) = from.read(&mut piece) {
        if passed.fetch_add(count as u64, Ordering::SeqCst) >= limit || to.write_all(&piece[..count]).is_err() {
            break;
        }
    }
    _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}
