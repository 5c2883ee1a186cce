//! Stops the real program at every changing system call, by exit and by error; a next run must reach the new state,
//! and in between the machine must boot.

use std::{fs, process::Output};

use finalize::layout;

use crate::{
    calls,
    machine::{Machine, PATHS, id},
};

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
        // With GRUB somebody's own entry stands first.
        let next = ["the old deployment boots next", "rescue.conf boots next"];
        assert!(next.iter().any(|next| message.contains(next)), "{when}: {message}");
    }
    let left = [layout::ETC_MERGING, layout::ETC_ORIG].map(|name| machine.state("b").join(name).exists());
    assert_eq!(left, [false, false], "{when}: {message}");
    assert_eq!(machine.etc("b")["hosts"], "1", "{when}: the image's /etc is not in place again");
}

/// One run, stopped at its n-th call, and one after it; whether the first one came to its end.
fn stop_once(machine: &Machine, how: &str, n: u64) -> bool {
    let when = format!("{} {} {how}:{n}", machine.loader, machine.boot_type);
    let output = stopped(machine, how, n);
    assert_boots(machine, &when);
    if how == "exit" {
        assert!(matches!(output.status.code(), Some(0 | 77)), "{when}: {output:?}");
    } else if !output.status.success() {
        assert_failed(machine, &output, &when);
        if how.ends_with("-once") || how == "term" {
            assert_taken_back(machine, &output, &when);
        }
    }
    machine.ok(&["staged"]);
    machine.assert_finalized();
    assert!(!machine.path("sysroot").join(layout::STAGED).exists(), "{when}");
    assert!(fs::metadata(machine.state("b").join(layout::ETC_ORIG)).is_ok(), "{when}: {}", id("b"));
    output.status.success() && !String::from_utf8_lossy(&output.stdout).contains("clean-up did not complete")
}

fn check(how: &str) {
    for (loader, boot_type) in PATHS {
        let mut n = 1;
        loop {
            let whole = stop_once(&Machine::booting(loader, boot_type), how, n);
            // A signal is not noticed by a run that is past the exchange.
            if whole && how != "term" || n > 1000 {
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

/// What ext4 is asked for beside what every file system knows; the loops above run in memory.
#[test]
fn a_run_that_is_stopped_at_the_calls_of_a_disks_file_system_is_finished_by_the_next() {
    let mut seen = 0;
    for (loader, boot_type) in PATHS {
        let machine = Machine::on_disk(loader, boot_type);
        let Some(names) = calls::announced(&machine.command(&["staged"]), &machine) else {
            println!("SKIPPED, no strace here");
            return;
        };
        let numbered = names.iter().zip(1..).filter(|(name, _)| *name == "ioctl");
        for (_, n) in numbered {
            for how in ["exit", "eio", "eio-once", "enospc-once", "term"] {
                stop_once(&Machine::on_disk(loader, boot_type), how, n);
                seen += 1;
            }
        }
    }
    if seen == 0 {
        println!("SKIPPED, the target directory is on no ext4");
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

/// The first boot of the new deployment is stopped in its report, at each call; then its next boot reports, or the old
/// deployment boots, arms and finalizes once more. Both find an /etc that is whole.
fn check_report(how: &str) {
    for (loader, boot_type) in PATHS {
        for n in 1.. {
            let machine = Machine::booting(loader, boot_type);
            machine.ok(&["staged"]);
            let when = format!("{loader} {boot_type} report {how}:{n}");
            let booted =
                |letter: &str, verb: &str| machine.command_after(&format!("composefs={}", id(letter)), &[verb]);
            let stopped = booted("b", "report").env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}")).output().unwrap();
            assert_boots(&machine, &when);
            let (next, verbs) = if n % 2 == 0 { ("b", ["arm", "report"]) } else { ("a", ["arm", "staged"]) };
            for verb in verbs {
                let output = booted(next, verb).output().unwrap();
                assert!(output.status.success(), "{when}, then {verb} of {next}: {output:?}");
            }
            assert_boots(&machine, &when);
            machine.assert_finalized();
            // Whatever came between: another boot of the new deployment leaves nothing behind.
            let last = booted("b", "report").output().unwrap();
            assert!(last.status.success(), "{when}: {last:?}");
            let left = [layout::ETC_ORIG, layout::ETC_TRASH, layout::ETC_MERGING, layout::ETC_PLACED];
            let left: Vec<_> = left.iter().filter(|name| machine.state("b").join(name).exists()).collect();
            assert!(left.is_empty(), "{when}: {left:?} is left");
            if stopped.status.success() && how == "exit" || n > 60 {
                assert!(n > 10, "only {n} calls were counted");
                break;
            }
        }
    }
}

#[test]
fn a_report_that_exits_at_any_call_is_finished_by_the_next_boot() {
    check_report("exit");
}

#[test]
fn a_report_on_a_failing_disk_is_finished_by_the_next_boot() {
    check_report("eio-once");
}

/// A finalization of a large /etc, stopped at calls that are drawn: a thousand local files, a thousand of the image's.
#[test]
fn a_large_etc_is_finished_wherever_it_is_stopped() {
    let seed = std::env::var("CRASH_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_126);
    println!("CRASH_SEED={seed}");
    let machine = |letter: &str| -> Machine {
        let machine = Machine::booting(PATHS[0].0, PATHS[0].1);
        for (letter, dir) in [("a", "mine.d"), (letter, "theirs.d")] {
            let dir = machine.state(letter).join("etc").join(dir);
            fs::create_dir(&dir).unwrap();
            (0..1000).for_each(|number| fs::write(dir.join(number.to_string()), number.to_string()).unwrap());
        }
        machine
    };
    let mut state: u64 = seed;
    for _ in 0..8 {
        // A linear congruential generator: the same numbers for the same seed.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let n = (state >> 33) % 7000 + 1;
        let machine = machine("b");
        stopped(&machine, "exit", n);
        let first = machine.live().into_iter().find(|name| name.len() == 1).unwrap();
        let whole = |when: &str| {
            for dir in ["mine.d", "theirs.d"] {
                let files = fs::read_dir(machine.state("b").join("etc").join(dir)).unwrap().count();
                assert_eq!(files, 1000, "exit:{n}, {when}: {dir}");
            }
        };
        if first == "b" {
            whole("what boots");
        }
        machine.ok(&["staged"]);
        whole("the next run");
    }
}
