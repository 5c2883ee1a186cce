//! How a finalization ends that is not left alone: stopped, too late, not first, on a machine that is not ready.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
};

use finalize::{boot::Loader, layout};
use rustix::fs::{FlockOperation, flock};
use sha2::{Digest, Sha256};

use crate::machine::{Machine, PATHS, id};

/// The command with this as the vendor's configuration.
fn configured(machine: &Machine, config: &str) -> Command {
    machine.files("vendor", &[("config.toml", config)]);
    let mut command = machine.command(&["staged"]);
    command.arg("--vendor-config").arg(machine.path("vendor"));
    command
}

fn fails(command: &mut Command, want: &str) {
    let output = command.output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(want), "{message:?} lacks {want:?}");
    // With GRUB somebody's own entry stands first.
    let next = ["the old deployment boots next", "rescue.conf boots next"];
    assert!(next.iter().any(|next| message.contains(next)), "{message}");
}

/// Starts the command, and waits until it has said `want` on standard error.
fn says(command: &mut Command, want: &str) -> Child {
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.contains(want)), "it never said {want:?}");
    // It goes on writing.
    child.stderr = None;
    std::thread::spawn(move || said.for_each(drop));
    child
}

#[test]
fn a_deadline_that_is_over_leaves_everything_as_it_was() {
    let machine = Machine::new(Loader::SystemdBoot);
    let before = machine.etc("b");
    fails(&mut configured(&machine, "[finalize]\ntimeout-seconds = 0\n"), "not done after 0 seconds");
    assert_eq!((machine.etc("b"), machine.live()[0].as_str()), (before, "a"));
    assert!(!machine.state("b").join(layout::ETC_ORIG).exists());
    machine.ok(&["staged"]);
    machine.assert_finalized();
}

/// The lock of a first run, and a second run that has said that it waits.
fn two_runs(machine: &Machine) -> (fs::File, Child) {
    let lock = machine.path("sysroot").join(layout::LOCK);
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let first = fs::File::create(&lock).unwrap();
    flock(&first, FlockOperation::LockExclusive).unwrap();
    (first, says(&mut machine.command(&["staged"]), "another finalization is running"))
}

#[test]
fn a_second_run_waits_for_the_first_and_says_so() {
    let machine = Machine::new(Loader::SystemdBoot);
    let (first, mut second) = two_runs(&machine);
    assert_eq!(machine.live()[0], "a");
    assert!(second.try_wait().unwrap().is_none());
    drop(first);
    assert!(second.wait().unwrap().success());
    machine.assert_finalized();
}

#[test]
fn a_run_that_waits_for_another_ends_at_sigterm() {
    let machine = Machine::new(Loader::SystemdBoot);
    let (_first, mut second) = two_runs(&machine);
    let pid = rustix::process::Pid::from_child(&second);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(second.wait().unwrap().code(), Some(1));
    assert_eq!(machine.live()[0], "a");
}

#[test]
fn an_esp_that_is_slow_to_appear_is_waited_for() {
    let machine = Machine::new(Loader::SystemdBoot);
    let (esp, away) = (machine.path("esp"), machine.path("away"));
    fs::rename(&esp, &away).unwrap();
    let mut child = says(&mut configured(&machine, "[finalize]\nretry-attempts = 9\n"), "trying again");
    fs::rename(&away, &esp).unwrap();
    assert!(child.wait().unwrap().success());
    machine.assert_finalized();
    fs::rename(&esp, &away).unwrap();
    let output = configured(&machine, "[finalize]\nretry-attempts = 0\n").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn an_esp_that_is_busy_once_is_tried_again() {
    for how in ["ebusy-once", "eagain-once"] {
        let mut tried_again = 0;
        for n in 1.. {
            let machine = Machine::new(Loader::SystemdBoot);
            let run = |attempts: u32| {
                let config = format!("[finalize]\nretry-attempts = {attempts}\n");
                configured(&machine, &config).env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}")).output().unwrap()
            };
            let first = run(0);
            if first.status.success() {
                break;
            }
            let second = run(1);
            let said = String::from_utf8_lossy(&second.stderr);
            if said.contains("trying again") {
                assert!(second.status.success(), "{how}:{n}: {said}");
                machine.assert_finalized();
                tried_again += 1;
            }
            machine.ok(&["staged"]);
        }
        assert!(tried_again > 0, "{how}");
    }
}

#[test]
fn without_rollback_a_failure_leaves_what_the_next_run_goes_on_with() {
    let machine = Machine::new(Loader::SystemdBoot);
    let mut n = 1;
    // Until it fails with the merged /etc in place.
    while !machine.state("b").join(layout::ETC_ORIG).exists() {
        let mut command = configured(&machine, "[finalize]\nrollback-on-failure = false\n");
        let output = command.env("COMPOSEFS_FINALIZE_FAIL", format!("eio-once:{n}")).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        n += 1;
    }
    assert_eq!(machine.live()[0], "a");
    machine.ok(&["staged"]);
    machine.assert_finalized();
}

#[test]
fn merge_and_entries_can_be_switched_off() {
    let machine = Machine::new(Loader::SystemdBoot);
    let image = machine.etc("b");
    let run = |config: &str| assert!(configured(&machine, config).output().unwrap().status.success());
    run("[boot]\nupdate = false\n");
    assert_eq!((machine.live()[0].as_str(), machine.etc("b")["hosts"].as_str()), ("a", "mine"));
    let machine = Machine::new(Loader::SystemdBoot);
    assert!(configured(&machine, "[etc]\nmerge = false\n").output().unwrap().status.success());
    assert_eq!((machine.live()[0].as_str(), machine.etc("b")), ("b", image));
}

#[test]
fn a_backup_of_the_original_etc_outlives_the_next_boot() {
    for (config, kept) in [("[finalize]\nbackup-original = true\n", true), ("", false)] {
        let machine = Machine::new(Loader::SystemdBoot);
        assert!(configured(&machine, config).output().unwrap().status.success());
        let report = machine.command_after(&format!("composefs={}", id("b")), &["report"]).output().unwrap();
        assert!(report.status.success(), "{report:?}");
        assert!(!machine.state("b").join(layout::ETC_ORIG).exists(), "{config}");
        let backup = machine.state("b").join(layout::ETC_BACKUP);
        assert_eq!(backup.exists(), kept, "{config}");
        if kept {
            // A copy: what becomes of the live file becomes of no other.
            fs::write(machine.state("b").join("etc/motd"), "edited after the update").unwrap();
            assert_eq!(fs::read_to_string(backup.join("motd")).unwrap(), "2");
            let mode = fs::Permissions::from_mode(0o600);
            fs::set_permissions(machine.state("b").join("etc/d/y"), mode).unwrap();
            assert_ne!(fs::metadata(backup.join("d/y")).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}

#[test]
fn kernels_that_are_not_what_was_staged_are_refused() {
    for loader in [Loader::SystemdBoot, Loader::Grub] {
        let machine = Machine::new(loader);
        let digest = hex::encode(Sha256::digest("bb"));
        let origin = format!("[boot]\nboot_type = bls\ndigest = {digest}\n");
        fs::write(machine.state("b").join(layout::origin(&id("b"))), origin).unwrap();
        fs::write(machine.kernel("b").join("initrd"), "c").unwrap();
        fails(&mut machine.command(&["staged"]), "changed after staging");
        fs::write(machine.kernel("b").join("initrd"), "b").unwrap();
        machine.ok(&["staged"]);
        machine.assert_finalized();
    }
}

/// What a power cut left undone after the new deployment became what boots, its first boot does.
#[test]
fn the_next_boot_finishes_what_was_cut_off() {
    for (loader, boot_type) in PATHS {
        let (mut n, mut finished) = (1, 0);
        loop {
            let machine = Machine::booting(loader, boot_type);
            let mut command = machine.command(&["staged"]);
            let output = command.env("COMPOSEFS_FINALIZE_FAIL", format!("exit:{n}")).output().unwrap();
            let first = machine.live().into_iter().find(|name| name.len() == 1);
            if first.as_deref() == Some("b") {
                let next = machine.command_after(&format!("composefs={}", id("b")), &["report"]).output().unwrap();
                let said = String::from_utf8_lossy(&next.stdout);
                assert!(next.status.success(), "{loader} {boot_type} {n}: {next:?}");
                assert!(said.contains("has booted"), "{loader} {boot_type} {n}: {said}");
                machine.assert_finalized();
                assert!(!machine.state("b").join(layout::ETC_ORIG).exists(), "{loader} {boot_type} {n}");
                finished += 1;
            }
            if output.status.success() {
                break;
            }
            n += 1;
        }
        assert!(finished > 3, "{loader} {boot_type}: only {finished}");
    }
}
