//! Stops the real program at every changing system call, by exit and by error; a next run must reach the new state,
//! and in between the machine must boot.

use std::{fs, process::Output};

use finalize::layout;

use crate::machine::{Machine, PATHS, id};

fn stopped(machine: &Machine, how: &str, n: u64) -> Output {
    machine.command(&["staged"]).env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}")).output().unwrap()
}

/// What boots is whole: kernels of every live entry are there, and a new first entry has a merged /etc.
fn assert_boots(machine: &Machine, when: &str) {
    let live = machine.live();
    let first = live.iter().find(|name| name.len() == 1).unwrap_or_else(|| panic!("{when}: no entry is left"));
    assert!(live.contains(&"rescue.conf".to_owned()), "{when}: a foreign entry is gone");
    if first == "b" {
        let etc = machine.etc("b");
        assert_eq!(etc.get("hosts").map(String::as_str), Some("mine"), "{when}: b boots without the local changes");
        assert_eq!(etc.len(), 5, "{when}: b boots with half an /etc");
    }
    assert_eq!(machine.etc("a")["hosts"], "mine", "{when}: the old /etc has changed");
}

/// The run has failed, and said so: what boots next is what it said.
fn assert_failed(machine: &Machine, output: &Output, when: &str) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{when}: {message}");
    assert!(message.contains("os error") || message.contains("stopped by a signal"), "{when}: {message}");
    assert!(!message.contains("was not finalized") || message.contains("boots next"), "{when}: {message}");
    if message.contains("the old deployment boots next") {
        let first = machine.live().into_iter().find(|name| name.len() == 1);
        assert_eq!(first.as_deref(), Some("a"), "{when}: {message}");
    }
}

/// What failed once could be taken back: nothing is left of the run.
fn assert_taken_back(machine: &Machine, output: &Output, when: &str) {
    let message = String::from_utf8_lossy(&output.stderr);
    // Before anything is written, nothing is taken back, and nothing is said of what boots.
    if message.contains("was not finalized") {
        assert!(message.contains("the old deployment boots next"), "{when}: {message}");
    }
    let left = [layout::ETC_MERGING, layout::ETC_ORIG].map(|name| machine.state("b").join(name).exists());
    assert_eq!(left, [false, false], "{when}: {message}");
    assert_eq!(machine.etc("b")["hosts"], "1", "{when}: the image's /etc is not in place again");
}

fn check(how: &str) {
    for (loader, boot_type) in PATHS {
        let mut n = 1;
        loop {
            let machine = Machine::booting(loader, boot_type);
            let when = format!("{loader} {boot_type} {how}:{n}");
            let output = stopped(&machine, how, n);
            assert_boots(&machine, &when);
            if how == "exit" {
                assert!(matches!(output.status.code(), Some(0 | 77)), "{when}: {output:?}");
            } else if !output.status.success() {
                assert_failed(&machine, &output, &when);
                if how.ends_with("-once") || how == "term" {
                    assert_taken_back(&machine, &output, &when);
                }
            }
            let whole = output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("cleaned up");
            machine.ok(&["staged"]);
            machine.assert_finalized();
            assert!(!machine.path("sysroot").join(layout::STAGED).exists(), "{when}");
            assert!(fs::metadata(machine.state("b").join(layout::ETC_ORIG)).is_ok(), "{when}: {}", id("b"));
            // A signal is not noticed by a run that is past the exchange.
            if whole && how != "term" || n > 300 {
                break;
            }
            n += 1;
            if how == "term" && whole && n > 60 {
                break;
            }
        }
        assert!(n > 40, "only {n} calls were counted");
        println!("{loader} {boot_type}: stopped by {how} at each of {} calls, all converge", n - 1);
    }
}

#[test]
fn a_run_that_exits_at_any_call_is_finished_by_the_next() {
    check("exit");
}

#[test]
fn a_run_on_a_full_disk_is_finished_by_the_next() {
    check("enospc");
}

#[test]
fn a_run_on_a_failing_disk_is_finished_by_the_next() {
    check("eio");
}

#[test]
fn a_run_for_which_there_is_no_room_once_leaves_nothing_behind() {
    check("enospc-once");
}

#[test]
fn a_run_that_fails_once_leaves_nothing_behind() {
    check("eio-once");
}

#[test]
fn a_run_that_is_asked_to_end_at_any_call_is_finished_by_the_next() {
    check("term");
}
