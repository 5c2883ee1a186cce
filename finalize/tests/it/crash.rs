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

fn check(how: &str) {
    for (loader, boot_type) in PATHS {
        let mut n = 1;
        loop {
            let machine = Machine::booting(loader, boot_type);
            let when = format!("{loader} {boot_type} {how}:{n}");
            let output = stopped(&machine, how, n);
            assert_boots(&machine, &when);
            let reached_end = output.status.success();
            if !reached_end && how != "exit" {
                let message = String::from_utf8_lossy(&output.stderr);
                assert!(message.contains("os error"), "{when}: {message}");
            }
            machine.ok(&["staged"]);
            machine.assert_finalized();
            assert!(!machine.path("sysroot").join(layout::STAGED).exists(), "{when}");
            assert!(fs::metadata(machine.state("b").join(layout::ETC_ORIG)).is_ok(), "{when}: {}", id("b"));
            if reached_end {
                break;
            }
            n += 1;
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
