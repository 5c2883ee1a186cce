//! What is said, and to whom: every failure says what boots next, no message depends on who listens, and the record is for
//! those who may read it.

use std::{
    fs::{self, File},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    process::{Command, Output, Stdio},
};

use finalize::{boot::Loader, layout};
use rustix::fs::{FlockOperation, flock};

use crate::{
    machine::{Machine, id},
    programs::ok,
};

fn configured(machine: &Machine, args: &[&str], config: &str) -> Command {
    machine.files("vendor", &[("config.toml", config)]);
    let mut command = machine.command(args);
    command.arg("--vendor-config").arg(machine.path("vendor"));
    command
}

fn record(machine: &Machine) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(machine.path("sysroot").join(layout::RECORD)).unwrap()).unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Breaks the machine: the message says `next` and `why`, with `--json` there is an object as well, and the record, where
/// the machine can keep one, is the same.
fn check(next: &str, why: &str, break_it: impl Fn(&Machine)) {
    for json in [false, true] {
        let machine = Machine::new(Loader::SystemdBoot);
        break_it(&machine);
        let output = machine.run(if json { &["staged", "--json"] } else { &["staged"] });
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(next) && said.contains(why), "{said:?} lacks {next:?} or {why:?}");
        assert!(!said.contains('\u{1b}'), "colours are for terminals: {said:?}");
        if json {
            let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(told["outcome"], "failed");
            assert!(told["error"].to_string().contains(next), "{told}");
        } else {
            assert_eq!(text(&output.stdout), "");
        }
        if machine.path("sysroot/state").is_dir() {
            let record = record(&machine);
            assert_eq!(record["outcome"], "failed");
            assert!(record["error"].to_string().contains(next), "{record}");
        }
    }
}

#[test]
fn every_failure_says_what_boots_next_and_leaves_a_record() {
    let old = "the old deployment boots next";
    let was_not = "bbbbbbbbbbbb was not finalized, the old deployment boots next";
    check(was_not, "composefs/images/bbb", |machine| {
        fs::remove_file(machine.path("sysroot/composefs/images").join(id("b").as_str())).unwrap();
    });
    check(was_not, "state/deploy/bbb", |machine| fs::remove_dir_all(machine.state("b")).unwrap());
    check(old, "no update was finalized", |machine| machine.files("run", &[(layout::MARKER, "no json")]));
    check("what boots next is unchanged", "sysroot", |machine| {
        fs::rename(machine.path("sysroot"), machine.path("away")).unwrap();
    });
    check("what boots next is unchanged", "/esp: No such file", |machine| {
        fs::rename(machine.path("esp"), machine.path("away")).unwrap();
    });
    check("what boots next is unchanged", "loader/entries has no entry", |machine| {
        fs::remove_dir_all(machine.boot("loader/entries")).unwrap();
    });
}

#[test]
fn a_run_that_waited_in_vain_leaves_the_record_to_the_other() {
    let machine = Machine::new(Loader::SystemdBoot);
    let lock = machine.path("sysroot").join(layout::LOCK);
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let other = File::create(&lock).unwrap();
    flock(&other, FlockOperation::LockExclusive).unwrap();
    let output = configured(&machine, &["staged", "--json"], "[finalize]\ntimeout-seconds = 0\n").output().unwrap();
    let said = text(&output.stderr);
    assert!(said.contains("another finalization is running and decides what boots next"), "{said}");
    assert!(said.contains("not done after 0 seconds ([finalize] timeout-seconds in config.toml)"), "{said}");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("\"failed\""));
    assert!(!machine.path("sysroot").join(layout::RECORD).exists());
    // A boot does not wait for ever either.
    for command in ["arm", "report"] {
        let output = configured(&machine, &[command], "[finalize]\ntimeout-seconds = 0\n").output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {said}");
        assert!(said.contains("waiting for another finalization"), "{command}: {said}");
    }
}

#[test]
fn the_lock_is_roots_alone_also_one_that_was_everybodys() {
    let machine = Machine::new(Loader::SystemdBoot);
    let lock = machine.path("sysroot").join(layout::LOCK);
    let mode = || lock.metadata().unwrap().permissions().mode() & 0o7777;
    for was in [None, Some(0o644), Some(0o666)] {
        if let Some(was) = was {
            fs::set_permissions(&lock, fs::Permissions::from_mode(was)).unwrap();
        }
        machine.ok(&["staged"]);
        assert_eq!(mode(), 0o600, "{was:?}");
    }
}

fn stdout_to(mut command: Command, out: Stdio) -> Output {
    command.stdout(out).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap()
}

/// The end of a pipe that nobody reads.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn who_listens_changes_no_outcome() {
    let full = || Stdio::from(File::options().write(true).open("/dev/full").unwrap());
    for out in [full as fn() -> Stdio, closed_pipe] {
        for args in [&["staged"][..], &["staged", "--json"]] {
            let machine = Machine::new(Loader::SystemdBoot);
            let output = stdout_to(machine.command(args), out());
            assert_eq!(output.status.code(), Some(0), "{output:?}");
            machine.assert_finalized();
            assert_eq!(record(&machine)["outcome"], "finalized");
            machine.reboot();
            let b = format!("composefs={}", id("b"));
            for command in ["arm", "report"] {
                let output = stdout_to(machine.command_after(&b, &[command]), out());
                assert_eq!(output.status.code(), Some(0), "{command} {output:?}");
            }
            assert_eq!(record(&machine)["next_boot"]["booted"], id("b").as_str());
        }
        let machine = Machine::new(Loader::SystemdBoot);
        machine.files("run", &[(layout::MARKER, "no json")]);
        let status = machine.command(&["staged"]).stdout(out()).stderr(out()).status().unwrap();
        assert_eq!(status.code(), Some(1), "standard error as well");
        // Warnings go there, too.
        machine.stage("b");
        let status = configured(&machine, &["staged"], "x = 1\n").stdout(out()).stderr(out()).status().unwrap();
        assert_eq!(status.code(), Some(0), "a warning that nobody reads");
    }
}

#[test]
fn a_reader_that_has_enough_is_no_failure_and_a_full_disk_is_one() {
    let machine = Machine::new(Loader::SystemdBoot);
    for args in [&["status"][..], &["status", "--json"], &["plan"], &["plan", "--json"]] {
        let output = stdout_to(machine.command(args), closed_pipe());
        assert_eq!((output.status.code(), text(&output.stderr).as_str()), (Some(0), ""), "{args:?}");
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = stdout_to(machine.command(args), full.into());
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(text(&output.stderr).contains("No space left"), "{args:?} {output:?}");
    }
}

#[test]
fn without_the_entries_nothing_is_said_of_the_next_boot() {
    let machine = Machine::new(Loader::SystemdBoot);
    let output = configured(&machine, &["staged"], "[boot]\nupdate = false\n").output().unwrap();
    let said = text(&output.stdout);
    assert!(said.contains("merged /etc of bbbbbbbbbbbb; boot entries left alone ([boot] update = false"), "{said}");
    assert!(!said.contains("boots next"), "{said}");
    assert_eq!((&record(&machine)["outcome"], &record(&machine)["next"]), (&"merged".into(), &serde_json::Value::Null));
    machine.reboot();
    let said = text(&machine.run(&["report"]).stdout);
    assert!(said.contains("has its merged /etc") && !said.contains("menu"), "{said}");
    assert!(text(&machine.run(&["report"]).stdout).contains("no finalization"));
    let report = machine.command_after(&format!("composefs={}", id("b")), &["report"]).output().unwrap();
    assert!(text(&report.stdout).contains("has booted"));
}

#[test]
fn a_refusal_says_what_boots_next_first_and_after_another_run() {
    let fail = "[[etc.rule]]\npath = \"hosts\"\nkeep = \"fail\"\n";
    let refuse = |machine: &Machine, want: &str| {
        let output = configured(machine, &["staged"], fail).output().unwrap();
        let said = text(&output.stdout);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains(want), "{said}");
        let line = "/etc/hosts: conflict, and [[etc.rule]] keep = \"fail\": update not applied";
        assert_eq!(said.lines().filter(|said| said.contains("hosts")).map(str::trim).collect::<Vec<_>>(), [line]);
        assert!(said.contains(" 1 conflict\n"), "{said}");
        record(machine)
    };
    let machine = Machine::new(Loader::SystemdBoot);
    fs::write(machine.state("b").join("etc/hosts"), "2").unwrap();
    let refused = refuse(&machine, "update bbbbbbbbbbbb: not applied; the booted deployment boots next");
    assert_eq!((&refused["outcome"], &refused["next"]), (&"refused".into(), &id("a").as_str().into()));
    assert!(machine.ok(&["staged"]).contains("/etc/hosts: conflict"));
    let refused = refuse(&machine, "update bbbbbbbbbbbb: boots next as an earlier run left it");
    assert_eq!(refused["next"], id("b").as_str());
    assert_eq!(machine.live()[0], "b");
}

/// 3: the old deployment is chosen once, then the new one boots after all.
#[test]
fn a_finalized_deployment_that_boots_late_is_reported_and_cleaned_up() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.ok(&["staged"]);
    machine.reboot();
    assert!(machine.ok(&["report"]).contains("another deployment has booted"));
    let original = machine.state("b").join(layout::ETC_ORIG);
    assert!(original.exists());
    machine.reboot();
    let report = || ok(machine.command_after(&format!("composefs={}", id("b")), &["report"]));
    assert!(report().contains("the finalized deployment bbbbbbbbbbbb has booted"));
    assert!(!original.exists());
    assert_eq!(record(&machine)["next_boot"]["booted"], id("b").as_str());
    assert!(report().contains("no finalization to report on"));
    // What a report could not delete, a later one deletes, whatever was said.
    fs::create_dir(&original).unwrap();
    assert!(report().contains("no finalization to report on"));
    assert!(!original.exists());
}

/// 22: a newer version has written the record.
#[test]
fn a_record_of_a_newer_version_is_reported_on_and_kept() {
    for booted in ["a", "b"] {
        let machine = Machine::new(Loader::SystemdBoot);
        machine.ok(&["staged"]);
        machine.reboot();
        let mut newer = record(&machine);
        newer["outcome"] = "postponed".into();
        newer["step"] = "seal".into();
        newer["phases"]["seal"] = 3.into();
        newer["sealed_by"] = "somebody".into();
        machine.files("sysroot", &[(layout::RECORD, &newer.to_string())]);
        let cmdline = format!("composefs={}", id(booted));
        let said = ok(machine.command_after(&cmdline, &["report"]));
        assert!(said.contains(if booted == "b" { "has booted" } else { "ended at step seal" }), "{said}");
        assert_eq!(machine.state("b").join(layout::ETC_ORIG).exists(), booted == "a");
        let after = record(&machine);
        assert_eq!((&after["sealed_by"], &after["step"]), (&newer["sealed_by"], &newer["step"]));
        let status = machine.command_after(&cmdline, &["status"]).output().unwrap();
        assert!(status.status.success() && text(&status.stdout).contains("record "), "{status:?}");
    }
}

#[test]
fn a_record_that_is_none_stops_nothing() {
    for garbage in ["", "{}", "null", "[1]", "{\"schema\": 1, \"from\": \"../x\"}"] {
        let machine = Machine::new(Loader::SystemdBoot);
        machine.files("sysroot", &[(layout::RECORD, garbage)]);
        let output = machine.run(&["report"]);
        assert!(output.status.success(), "{garbage}: {output:?}");
        assert!(text(&output.stderr).contains("record.json: not a record of a finalization: remove the file"));
        machine.ok(&["staged"]);
        machine.assert_finalized();
        assert_eq!(record(&machine)["outcome"], "finalized");
    }
}

/// 28: names of files are for root; the rest is for everybody.
#[test]
fn names_in_the_record_are_roots_and_status_works_for_everybody() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.files(&format!("sysroot/{}/etc", layout::deployment(&id("b"))), &[("secret/key", "2")]);
    machine.files("pristine", &[("secret/key", "1")]);
    machine.files(&format!("sysroot/{}/etc", layout::deployment(&id("a"))), &[("secret/key", "mine")]);
    machine.ok(&["staged"]);
    let mode = |path: &str| machine.path("sysroot").join(path).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(layout::RECORD), mode(layout::SUMMARY)), (0o600, 0o644));
    assert_eq!(record(&machine)["conflicts"][0], "secret/key");
    let summary = fs::read_to_string(machine.path("sysroot").join(layout::SUMMARY)).unwrap();
    assert!(summary.contains("\"finalized\"") && !summary.contains("secret"), "{summary}");
    // As nobody.
    fs::set_permissions(machine.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    let mut status = machine.command(&["status"]);
    status.uid(65534).gid(65534);
    let Ok(output) = status.output() else {
        println!("SKIPPED, nobody may not run the program");
        return;
    };
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("finalized bbbbbbbbbbbb: it boots next"), "{output:?}");
    assert!(said.contains("1 conflict") && said.contains("readable by root") && !said.contains("secret"), "{said}");
}
