//! What is done ahead of a finalization: used where it is right, of no harm where it is not, wherever either is stopped.
//!
//! What this does not see: a clock that is set while the program runs, and stores through a mapping of a file of /etc.

use std::{fs, os::unix::fs::MetadataExt, process::Output};

use finalize::{boot::Loader, layout, staged::BootType};

use crate::{
    etc_ahead::next_tick,
    machine::{Machine, PATHS, id},
};

fn prepare(machine: &Machine, fail: Option<(&str, u64)>) -> Output {
    next_tick(&machine.path(""));
    let mut command = machine.command(&["prepare"]);
    if let Some((how, n)) = fail {
        command.env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}"));
    }
    let output = command.env("COMPOSEFS_FINALIZE_TICK", "0").output().unwrap();
    next_tick(&machine.path(""));
    output
}

fn prepared(machine: &Machine) -> String {
    let output = prepare(machine, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The inode number of a directory of the staged deployment's state.
fn inode(machine: &Machine, name: &str) -> u64 {
    machine.state("b").join(name).metadata().unwrap().ino()
}

/// The deployment that the first of our entries boots.
fn first(machine: &Machine) -> String {
    machine.live().into_iter().find(|name| name.len() == 1).unwrap()
}

fn late_edit(machine: &Machine) {
    let etc = machine.state("a").join("etc");
    fs::write(etc.join("hosts"), "late").unwrap();
    fs::create_dir(etc.join("late.d")).unwrap();
    fs::write(etc.join("late.d/x"), "late").unwrap();
    fs::remove_file(etc.join("new")).unwrap();
}

fn assert_late_edit(machine: &Machine, when: &str) {
    let etc = machine.etc("b");
    let all: Vec<_> = etc.iter().map(|(path, content)| format!("{path}={content}")).collect();
    assert_eq!(all, ["d/x=1", "d/y=theirs", "hosts=late", "late.d/x=late", "motd=2"], "{when}");
    let ours: Vec<_> = machine.live().into_iter().filter(|name| name.len() == 1).collect();
    assert_eq!(ours, ["b", "a"], "{when}");
}

#[test]
fn what_was_made_ahead_is_what_gets_its_place() {
    for (loader, boot_type) in PATHS {
        let machine = Machine::booting(loader, boot_type);
        let told = prepared(&machine);
        assert!(told.contains("the next shutdown finalizes it"), "{told}");
        assert_eq!(first(&machine), "a", "nothing boots otherwise than before");
        let made = inode(&machine, layout::ETC_MERGING);
        machine.ok(&["staged"]);
        machine.assert_finalized();
        assert_eq!(inode(&machine, layout::ETC), made);
        assert!(!machine.path("run").join(layout::PREPARED).exists());
    }
}

#[test]
fn edits_after_it_are_carried() {
    let machine = Machine::new(Loader::SystemdBoot);
    prepared(&machine);
    late_edit(&machine);
    let made = inode(&machine, layout::ETC_MERGING);
    machine.ok(&["staged"]);
    assert_late_edit(&machine, "");
    assert_eq!(inode(&machine, layout::ETC), made);
}

#[test]
fn what_it_was_made_of_is_no_longer_so() {
    let check = |what: &str, change: &dyn Fn(&Machine)| {
        let machine = Machine::new(Loader::Grub);
        prepared(&machine);
        change(&machine);
        machine.ok(&["staged"]);
        (what.to_owned(), machine)
    };
    // Another etc.merging, the staged /etc made anew, another configuration, an unreadable memory.
    let (what, machine) = check("another tree", &|machine| {
        let merging = machine.state("b").join(layout::ETC_MERGING);
        fs::remove_dir_all(&merging).unwrap();
        fs::create_dir(&merging).unwrap();
        fs::write(merging.join("hosts"), "nobody's").unwrap();
    });
    machine.assert_finalized();
    let (_, machine) = check(&what, &|machine| {
        let etc = machine.state("b").join("etc");
        fs::rename(&etc, machine.path("old")).unwrap();
        machine.files(
            etc.to_str().unwrap(),
            &[("hosts", "1"), ("motd", "3"), ("gone", "1"), ("d/x", "1"), ("d/y", "theirs")],
        );
    });
    assert_eq!(machine.etc("b")["motd"], "3");
    let (_, machine) = check("another configuration", &|machine| {
        let rule = "[[etc.rule]]\npath = \"hosts\"\nkeep = \"image\"\n";
        machine.files(machine.state("a").join("etc/composefs-finalize").to_str().unwrap(), &[("config.toml", rule)]);
    });
    assert_eq!(machine.etc("b")["hosts"], "1");
    let (_, machine) = check("half a memory", &|machine| {
        let path = machine.path("run").join(layout::PREPARED);
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
    });
    machine.assert_finalized();
    let (_, machine) = check("another boot", &|machine| {
        machine.reboot();
        machine.stage("b");
    });
    machine.assert_finalized();
}

#[test]
fn a_kernel_that_changes_after_it_was_checked_is_read_again() {
    let machine = Machine::new(Loader::SystemdBoot);
    let origin = machine.state("b").join(layout::origin(&id("b")));
    let digest = {
        use sha2::Digest;
        hex::encode(sha2::Sha256::digest("bb"))
    };
    fs::write(&origin, format!("[boot]\nboot_type = bls\ndigest = {digest}\n")).unwrap();
    prepared(&machine);
    fs::write(machine.kernel("b").join("initrd"), "x").unwrap();
    let message = machine.fails(&["staged"]);
    assert!(message.contains("changed after staging"), "{message}");
    fs::write(machine.kernel("b").join("initrd"), "b").unwrap();
    machine.ok(&["staged"]);
    machine.assert_finalized();
}

#[test]
fn what_is_wrong_is_said_before_the_reboot() {
    let machine = Machine::new(Loader::SystemdBoot);
    fs::write(machine.state("b").join("etc/hosts"), "theirs").unwrap();
    fs::remove_file(machine.kernel("b").join("vmlinuz")).unwrap();
    let told = prepared(&machine);
    for words in ["1 path of /etc was changed here and in the image", "vmlinuz", "the finalization would fail"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(fs::read_to_string(machine.path("run").join(layout::MOTD)).unwrap(), told.split_once('\n').unwrap().1);
    let status = machine.ok(&["status"]);
    assert!(status.contains("attention 1 path of /etc"), "{status}");
    // Everybody may read it, so it names no file of /etc.
    let outlook = fs::read_to_string(machine.path("run").join(layout::OUTLOOK)).unwrap();
    assert!(!outlook.contains("hosts"), "{outlook}");
    let mode = |name: &str| machine.path("run").join(name).metadata().unwrap().mode() & 0o777;
    assert_eq!([mode(layout::OUTLOOK), mode(layout::MOTD), mode(layout::PREPARED)], [0o644, 0o644, 0o600]);
    // Nobody reads of an update that was taken back.
    fs::remove_file(machine.path("run").join(layout::MARKER)).unwrap();
    prepared(&machine);
    let left = [layout::OUTLOOK, layout::MOTD, layout::PREPARED].map(|name| machine.path("run").join(name).exists());
    assert_eq!(left, [false; 3]);
    assert!(!machine.state("b").join(layout::ETC_MERGING).exists());
}

#[test]
fn a_conflict_that_refuses_is_said_and_nothing_is_made() {
    let machine = Machine::new(Loader::SystemdBoot);
    fs::write(machine.state("b").join("etc/hosts"), "theirs").unwrap();
    let rule = "[[etc.rule]]\npath = \"hosts\"\nkeep = \"fail\"\n";
    machine.files(machine.state("a").join("etc/composefs-finalize").to_str().unwrap(), &[("config.toml", rule)]);
    let told = prepared(&machine);
    assert!(told.contains("will be refused"), "{told}");
    assert!(!machine.state("b").join(layout::ETC_MERGING).exists());
    assert_eq!(machine.run(&["staged"]).status.code(), Some(3));
}

/// Stopped at changing calls, by `how`; then the machine is finalized.
fn stopped_ahead(how: &str, every: usize) {
    for (loader, boot_type) in [PATHS[0], PATHS[3]] {
        for n in (1..).step_by(every) {
            let machine = Machine::booting(loader, boot_type);
            let output = prepare(&machine, Some((how, n)));
            let when = format!("{loader} {boot_type} prepare {how}:{n}");
            assert_eq!(first(&machine), "a", "{when}");
            late_edit(&machine);
            if (n / every as u64).is_multiple_of(2) {
                // The power went.
                machine.reboot();
                machine.stage("b");
            }
            machine.ok(&["staged"]);
            assert_late_edit(&machine, &when);
            assert!(!machine.state("b").join(layout::ETC_MERGING).exists(), "{when}");
            if output.status.success() && how == "exit" || n > 120 {
                assert!(n > 20, "only {n} calls were counted");
                println!("{when}: every call before it");
                break;
            }
        }
    }
}

#[test]
fn stopped_at_any_call_it_does_no_harm() {
    stopped_ahead("exit", 1);
}

#[test]
fn on_a_failing_disk_it_does_no_harm() {
    stopped_ahead("eio-once", 3);
}

/// A finalization that corrects what was made ahead is stopped at changing calls; a second one comes to the end.
fn stopped_later(how: &str, every: usize) {
    for (loader, boot_type) in [(Loader::SystemdBoot, BootType::Bls), (Loader::Grub, BootType::Bls)] {
        for n in (1..).step_by(every) {
            let machine = Machine::booting(loader, boot_type);
            prepared(&machine);
            late_edit(&machine);
            let mut command = machine.command(&["staged"]);
            let output = command.env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}")).output().unwrap();
            let when = format!("{loader} {boot_type} {how}:{n}");
            if first(&machine) == "b" {
                assert_eq!(machine.etc("b")["hosts"], "late", "{when}: what boots is not whole");
                assert_eq!(machine.etc("b").len(), 5, "{when}: what boots is not whole");
            }
            machine.ok(&["staged"]);
            assert_late_edit(&machine, &when);
            if output.status.success() && how == "exit" || n > 90 {
                assert!(n > 30, "only {n} calls were counted");
                println!("{when}: every call before it");
                break;
            }
        }
    }
}

#[test]
fn a_correction_that_exits_at_any_call_is_finished_by_the_next_run() {
    stopped_later("exit", 1);
}

#[test]
fn a_correction_on_a_failing_disk_is_finished_by_the_next_run() {
    stopped_later("eio-once", 4);
}
