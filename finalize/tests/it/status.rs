//! `status` of machines in many states: its JSON is what `schema/status.schema.json` says, each property of which some machine
//! has; and nothing odd on a disk makes it fail.

use std::{collections::BTreeSet, fs, path::Path};

use finalize::{boot::Loader, layout, staged::BootType};
use serde_json::Value;

use crate::{
    life::{in_b, updated},
    machine::{Machine, PATHS, id},
};

fn schema() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("schema/status.schema.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The status of a machine, which must be what the schema says.
fn status(machine: &Machine, booted: &str) -> Value {
    let run = |args: &[&str]| {
        let output = machine.command_after(&format!("composefs={}", id(booted)), args).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(run(&["status"]).contains(id(booted).short()));
    let status: Value = serde_json::from_str(&run(&["status", "--json"])).unwrap();
    let wrong: Vec<_> =
        jsonschema::validator_for(&schema()).unwrap().iter_errors(&status).map(|error| error.to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:?}: {status:#}");
    check_metrics(&run(&["status", "--prometheus"]), &status);
    status
}

/// The numbers for Prometheus are in its text format, each of a family that is declared before, and say the same as the JSON.
fn check_metrics(text: &str, status: &Value) {
    let (mut declared, mut samples) = (BTreeSet::new(), vec![]);
    for line in text.lines() {
        if let Some(family) = line.strip_prefix("# TYPE ") {
            assert!(declared.insert(family.strip_suffix(" gauge").unwrap().to_owned()), "{line}");
        } else if !line.starts_with("# HELP ") {
            let (sample, value) = line.rsplit_once(' ').unwrap();
            let name = sample.split('{').next().unwrap();
            assert!(declared.contains(name) && value.parse::<f64>().is_ok(), "{line}");
            assert!(name.starts_with("composefs_finalize_") && (sample == name || sample.ends_with("\"}")), "{line}");
            samples.push(line.to_owned());
        }
    }
    let has = |line: String| assert!(samples.contains(&line), "{line} is not in {text}");
    let id = status["booted"]["id"].as_str().unwrap();
    has(format!("composefs_finalize_deployment_role{{id=\"{id}\",role=\"booted\"}} 1"));
    has(format!("composefs_finalize_attention {}", status["attention"].as_array().unwrap().len()));
    has(format!("composefs_finalize_staged {}", u8::from(!status["staged"].is_null())));
    if let Some(outcome) = status["record"]["outcome"].as_str() {
        has(format!("composefs_finalize_last_success {}", u8::from(outcome == "finalized")));
    }
}

/// The properties that a value has, by their places in the schema.
fn properties(schema: &Value, part: &Value, value: &Value, found: &mut BTreeSet<String>, at: &str) {
    if let Some(name) = part["$ref"].as_str() {
        return properties(schema, schema.pointer(&name[1..]).unwrap(), value, found, name);
    }
    for part in part["anyOf"].as_array().into_iter().flatten() {
        properties(schema, part, value, found, at);
    }
    for (name, part) in part["properties"].as_object().into_iter().flatten() {
        let value = &value[name];
        let at = format!("{at}/{name}");
        if !value.is_null() {
            found.insert(at.clone());
        }
        properties(schema, part, value, found, &at);
    }
    if !part["items"].is_null() {
        for value in value.as_array().into_iter().flatten() {
            properties(schema, &part["items"], value, found, at);
        }
    }
}

/// The properties that the schema has.
fn all_properties(part: &Value, found: &mut BTreeSet<String>, at: &str) {
    for part in part["anyOf"].as_array().into_iter().flatten() {
        all_properties(part, found, at);
    }
    for (name, part) in part["properties"].as_object().into_iter().flatten() {
        found.insert(format!("{at}/{name}"));
        all_properties(part, found, &format!("{at}/{name}"));
    }
    for (name, part) in part["$defs"].as_object().into_iter().flatten() {
        all_properties(part, found, &format!("#/$defs/{name}"));
    }
}

/// Machines in the states that a life has.
fn lives(loader: Loader, boot_type: BootType) -> Vec<Value> {
    let mut all = vec![];
    let machine = Machine::booting(loader, boot_type);
    let origin = format!(
        "[origin]\ncontainer-image-reference = ostree-unverified-image:docker://x/y:1\n\n[boot]\nboot_type = {boot_type}\n\n\
         [image]\nmanifest_digest = sha256:{}\n",
        "1".repeat(64)
    );
    fs::write(machine.state("b").join(layout::origin(&id("b"))), origin).unwrap();
    all.push(status(&machine, "a"));
    fs::write(machine.state("b").join("etc/hosts"), "theirs").unwrap();
    machine.ok(&["prepare"]);
    all.push(status(&machine, "a"));
    machine.files("run", &[(layout::MARKER, &format!("{{\"depl_id\":\"{}\",\"finalization_locked\":true}}", id("b")))]);
    all.push(status(&machine, "a"));
    machine.stage("b");
    machine.ok(&["staged"]);
    all.push(status(&machine, "a"));
    machine.reboot();
    in_b(&machine, &["report"]);
    in_b(&machine, &["pin", "aaaa"]);
    all.push(status(&machine, "b"));
    in_b(&machine, &["rollback"]);
    all.push(status(&machine, "b"));
    machine.restage("c");
    all.push(status(&machine, "b"));
    fs::remove_file(machine.kernel("c").join("vmlinuz")).or_else(|_| fs::remove_file(machine.kernel("c"))).unwrap();
    assert_eq!(machine.command_after(&format!("composefs={}", id("b")), &["staged"]).status().unwrap().code(), Some(1));
    all.push(status(&machine, "b"));
    machine.reboot();
    all.push(status(&machine, "b"));
    all
}

#[test]
fn every_state_is_as_the_schema_says_and_the_schema_says_nothing_else() {
    let schema = schema();
    let mut wanted = BTreeSet::new();
    all_properties(&schema, &mut wanted, "#");
    assert!(wanted.len() > 50, "{wanted:?}");
    let mut found = BTreeSet::new();
    let pinned = updated(Loader::SystemdBoot, BootType::Bls);
    pinned.files("esp/loader", &[("loader.conf", "default bootc_x-1-0.conf\n")]);
    let failed = format!("{{\"deployment\": \"{}\", \"boots\": 2, \"at\": \"2026-01-02T03:04:05Z\"}}", id("b"));
    pinned.files("sysroot", &[(layout::FAILED, &format!("{{\"schema\": 1, \"failed\": [{failed}]}}"))]);
    let lives = PATHS.into_iter().flat_map(|(loader, boot_type)| lives(loader, boot_type));
    for value in lives.chain([status(&pinned, "b")]) {
        properties(&schema, &schema, &value, &mut found, "#");
    }
    let never: Vec<_> = wanted.difference(&found).collect();
    assert!(never.is_empty(), "no machine has {never:?}");
}

#[test]
fn the_screen_says_what_each_deployment_is() {
    let machine = updated(Loader::SystemdBoot, BootType::Bls);
    in_b(&machine, &["pin", "aaaa"]);
    machine.restage("c");
    let screen = in_b(&machine, &["status"]);
    let lines = [
        format!("* {}  booted, boots next", id("b").short()),
        format!("  {}  staged", id("c").short()),
        format!("  {}  fallback, pinned", id("a").short()),
        "    system    a, version 1".to_owned(),
        format!("    boots     bls, sealed, /EFI/Linux/bootc_composefs-{}…/vmlinuz", id("a").short()),
    ];
    for line in lines {
        assert!(screen.lines().any(|found| found == line), "{line}:\n{screen}");
    }
    assert!(!screen.contains("attention"), "{screen}");
}

#[test]
fn nothing_odd_on_a_disk_makes_it_fail() {
    fn break_file(path: std::path::PathBuf) {
        if path.is_dir() {
            fs::remove_dir_all(&path).unwrap()
        } else {
            _ = fs::remove_file(&path)
        }
        fs::create_dir_all(path.join("a-directory")).unwrap();
    }
    type Break = fn(&Machine);
    let breaks: &[(&str, Break)] = &[
        ("origin", |m| fs::write(m.state("b").join(layout::origin(&id("b"))), b"\xff\xfe").unwrap()),
        ("boot_type", |m| fs::write(m.state("a").join(layout::origin(&id("a"))), "no origin").unwrap()),
        ("origin", |m| break_file(m.state("a").join(layout::origin(&id("a"))))),
        ("staged-deployment", |m| m.files("run", &[(layout::MARKER, "garbage")])),
        ("staged-deployment", |m| break_file(m.path("run").join(layout::MARKER))),
        ("eeeeeeeeeeee is staged, and is not whole", |m| m.stage("e")),
        ("staged.json", |m| m.files("sysroot", &[(layout::STAGED, "{}")])),
        ("staged.json", |m| break_file(m.path("sysroot").join(layout::STAGED))),
        ("outlook.json", |m| {
            m.restage("c");
            m.files("run", &[(layout::OUTLOOK, "[]")]);
        }),
        ("record.json", |m| break_file(m.path("sysroot").join(layout::RECORD))),
        ("pins.json", |m| m.files("sysroot", &[(layout::PINS, "[]")])),
        ("a rollback was interrupted", |m| m.files("sysroot", &[(layout::ROLLBACK, "")])),
        ("state/deploy", |m| {
            break_file(m.path("sysroot/state/deploy"));
            fs::remove_dir_all(m.path("sysroot/state/deploy")).unwrap();
            fs::write(m.path("sysroot/state/deploy"), "").unwrap();
        }),
        ("aaaaaaaaaaaa is not whole", |m| fs::remove_dir_all(m.state("a")).unwrap()),
        ("would not boot", |m| {
            let kernel = m.kernel("a");
            fs::write(if kernel.is_dir() { kernel.join("initrd") } else { kernel }, "").unwrap();
        }),
        ("belong to no update", |m| {
            m.restage("c");
            m.reboot();
        }),
    ];
    for (loader, boot_type) in PATHS {
        for (word, break_it) in breaks {
            let machine = updated(loader, boot_type);
            break_it(&machine);
            let said = status(&machine, "b")["attention"].to_string();
            assert!(said.contains(word), "{loader} {boot_type}: {word}: {said}");
        }
    }
}

/// Of the boot file system: nothing there, an entry of somebody without `composefs=`, things that are no entries.
#[test]
fn no_boot_file_system_and_odd_entries_are_shown() {
    let attention = |machine: &Machine| status(machine, "b")["attention"].as_array().unwrap().len();
    for (loader, boot_type) in PATHS {
        let machine = updated(loader, boot_type);
        for dir in ["esp/loader", "sysroot/boot"] {
            _ = fs::rename(machine.path(dir), machine.path("away"));
        }
        assert!(attention(&machine) > 0, "{loader} {boot_type}");
        if (loader, boot_type) == (Loader::Grub, BootType::Uki) {
            continue;
        }
        let machine = updated(loader, boot_type);
        let entries = machine.boot("loader/entries");
        fs::write(entries.join("theirs.conf"), "title theirs\nlinux /theirs\n").unwrap();
        fs::write(entries.join("binary.conf"), b"\xff\xfe\0").unwrap();
        fs::create_dir(entries.join("dir.conf")).unwrap();
        std::os::unix::fs::symlink("nowhere", entries.join("link.conf")).unwrap();
        let kernel = if loader == Loader::SystemdBoot { "theirs" } else { "" };
        machine.files("esp", &[("theirs", kernel)]);
        assert_eq!(attention(&machine), 0, "{loader} {boot_type}");
        fs::remove_dir_all(&entries).unwrap();
        fs::write(&entries, "a file").unwrap();
        assert!(attention(&machine) > 0, "{loader} {boot_type}");
    }
    let machine = updated(Loader::SystemdBoot, BootType::Bls);
    fs::remove_dir_all(machine.path("esp")).unwrap();
    assert!(attention(&machine) > 0);
}
