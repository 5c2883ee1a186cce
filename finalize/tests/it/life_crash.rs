//! `rollback`, `unstage`, `gc` and `pin`, stopped at every changing system call: in between the machine boots, and the same
//! command, or the next boot, brings it to its end.

use std::{panic::catch_unwind, process::Output};

use finalize::{boot::Loader, layout, staged::BootType};

use crate::{
    gc::{assert_whole, littered},
    life::{ours, updated},
    machine::{Machine, PATHS, id},
};

fn in_b(machine: &Machine, args: &[&str], variables: &[(&str, String)]) -> Output {
    let mut command = machine.command_after(&format!("composefs={}", id("b")), args);
    command.envs(variables.iter().map(|(name, value)| (name, value))).output().unwrap()
}

fn ok(machine: &Machine, args: &[&str], when: &str) {
    let output = in_b(machine, args, &[]);
    assert!(output.status.success(), "{when}, then {args:?}: {output:?}");
}

/// What boots is whole: kernel, state and image of each live entry are there.
fn assert_boots(machine: &Machine, when: &str) {
    let live = ours(machine);
    assert!(live.starts_with('a') || live.starts_with('b'), "{when}: {live}");
    for letter in ["a", "b"] {
        assert!(live.contains(letter), "{when}: {live} lacks {letter}");
        assert!(
            machine.kernel(letter).exists() && machine.state(letter).join("etc/hosts").exists(),
            "{when}: {letter}"
        );
        assert!(
            machine.path("sysroot").join(layout::image(&id(letter))).symlink_metadata().is_ok(),
            "{when}: {letter}"
        );
    }
    assert!(machine.live().contains(&"rescue.conf".to_owned()), "{when}");
}

struct Stopped<'a> {
    machine: &'a Machine,
    when: String,
}

/// Stops `args` at each of its calls, and checks with `then`. How many calls there were.
fn stop_at_each(args: &[&str], how: &str, make: impl Fn(Loader, BootType) -> Machine, then: impl Fn(&Stopped<'_>)) {
    for (loader, boot_type) in PATHS {
        let mut counted = 0;
        for n in 1..500 {
            let machine = make(loader, boot_type);
            let when = format!("{loader} {boot_type} {args:?} {how}:{n}");
            let output = in_b(&machine, args, &[("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}"))]);
            assert!(matches!(output.status.code(), Some(0 | 1 | 77)), "{when}: {output:?}");
            assert_boots(&machine, &when);
            then(&Stopped { machine: &machine, when });
            counted = n;
            if output.status.code() == Some(0) && how == "exit" || n > 25 && output.status.success() {
                break;
            }
        }
        assert!((5..499).contains(&counted), "{loader} {boot_type} {args:?}: {counted} calls were counted");
        println!("{loader} {boot_type}: {args:?} stopped by {how} at each of {} calls", counted - 1);
    }
}

fn assert_clean(machine: &Machine, when: &str) {
    let left =
        ["esp/loader/entries.staged", "sysroot/boot/loader/entries.staged", "sysroot/boot/grub2/user.cfg.staged"];
    let left = left.iter().filter(|path| machine.path(path).exists()).count();
    assert_eq!(left, 0, "{when}");
    let transit =
        ["esp", "sysroot/boot"].map(|dir| machine.path(dir).join("loader/entries/zz-composefs-finalize.conf").exists());
    assert_eq!(transit, [false, false], "{when}");
    assert!(!machine.path("sysroot").join(layout::ROLLBACK).exists(), "{when}");
}

/// The odd ones are run again at once, the even ones see a reboot and their report first.
fn rolled_back(stopped: &Stopped<'_>, again: bool) {
    let Stopped { machine, when } = stopped;
    if again {
        ok(machine, &["rollback", "aaaa"], when);
    } else {
        machine.reboot();
        ok(machine, &["arm"], when);
        ok(machine, &["report"], when);
        assert_clean(machine, when);
        assert_boots(machine, when);
        ok(machine, &["staged"], when);
        ok(machine, &["rollback", "aaaa"], when);
    }
    assert_eq!(ours(machine), "ab", "{when}");
    assert_boots(machine, when);
    assert_clean(machine, when);
    ok(machine, &["staged"], when);
    assert_eq!(ours(machine), "ab", "{when}");
}

#[test]
fn a_rollback_that_exits_at_any_call_is_finished_by_the_next_or_cleaned_up_by_the_next_boot() {
    for again in [true, false] {
        stop_at_each(&["rollback", "aaaa"], "exit", updated, |stopped| rolled_back(stopped, again));
    }
}

#[test]
fn a_rollback_that_fails_or_is_asked_to_end_at_any_call_is_finished_by_the_next() {
    for how in ["eio-once", "enospc", "term"] {
        stop_at_each(&["rollback", "aaaa"], how, updated, |stopped| rolled_back(stopped, how == "term"));
    }
}

fn with_update(loader: Loader, boot_type: BootType) -> Machine {
    let machine = updated(loader, boot_type);
    machine.restage("c");
    let armed = in_b(&machine, &["arm"], &[]);
    assert!(armed.status.success(), "{armed:?}");
    machine
}

/// After a rollback over a staged update, stopped anywhere, a shutdown finalizes the update or leaves it; both boot.
#[test]
fn a_rollback_over_a_staged_update_that_exits_at_any_call_is_finished_by_the_next() {
    stop_at_each(&["rollback", "aaaa"], "exit", with_update, |stopped| rolled_back(stopped, true));
}

/// A finalization that was stopped anywhere is undone: what was booted boots next, and no shutdown begins again.
#[test]
fn a_finalization_that_exits_at_any_call_is_rolled_back() {
    for (loader, boot_type) in PATHS {
        for n in 1..200 {
            let machine = with_update(loader, boot_type);
            let when = format!("{loader} {boot_type} staged exit:{n}");
            let stopped = in_b(&machine, &["staged"], &[("COMPOSEFS_FINALIZE_FAIL", format!("exit:{n}"))]);
            ok(&machine, &["rollback", "bbbb"], &when);
            assert!(ours(&machine).starts_with('b'), "{when}: {}", ours(&machine));
            assert_clean(&machine, &when);
            ok(&machine, &["staged"], &when);
            assert!(ours(&machine).starts_with('b'), "{when}: {}", ours(&machine));
            machine.reboot();
            ok(&machine, &["arm"], &when);
            ok(&machine, &["staged"], &when);
            assert!(ours(&machine).starts_with('b'), "{when}: {}", ours(&machine));
            if stopped.status.success() {
                assert!(n > 40, "only {n} calls were counted");
                break;
            }
        }
    }
}

/// Whoever stops an `unstage` has an update that is finalized as a whole, or none.
fn unstaged(Stopped { machine, when }: &Stopped<'_>, reboots: bool) {
    if reboots {
        machine.reboot();
        ok(machine, &["arm"], when);
    }
    let output = in_b(machine, &["staged"], &[]);
    assert!(output.status.success(), "{when}: {output:?}");
    match ours(machine).as_str() {
        "ba" => {
            ok(machine, &["unstage"], when);
            assert_clean(machine, when);
            assert_eq!(String::from_utf8_lossy(&in_b(machine, &["staged"], &[]).stdout).trim(), "nothing is staged");
            assert_eq!(ours(machine), "ba", "{when}");
        }
        "cb" => assert!(machine.etc("c").contains_key("new"), "{when}: the update has no merged /etc"),
        other => panic!("{when}: {other}"),
    }
}

#[test]
fn an_unstage_that_is_stopped_at_any_call_has_cancelled_all_of_the_update_or_nothing() {
    for reboots in [false, true] {
        stop_at_each(&["unstage"], "exit", with_update, |stopped| unstaged(stopped, reboots));
    }
    stop_at_each(&["unstage"], "eio-once", with_update, |stopped| unstaged(stopped, false));
}

#[test]
fn a_collection_that_is_stopped_at_any_call_is_finished_by_the_next() {
    for how in ["exit", "eio-once"] {
        stop_at_each(&["gc"], how, littered, |Stopped { machine, when }| {
            ["a", "b"].iter().for_each(|letter| assert_whole(machine, letter));
            let state = machine.state("c");
            let is_half =
                state.exists() && !(state.join("etc/hosts").exists() && state.join(layout::origin(&id("c"))).exists());
            assert!(!is_half, "{when}: half of a deployment is left under its name");
            ok(machine, &["gc"], when);
            ["a", "b"].iter().for_each(|letter| assert_whole(machine, letter));
            let left = [machine.state("c"), machine.kernel("c"), machine.path("sysroot").join(layout::STATE_TRASH)];
            assert!(left.iter().all(|path| !path.exists()), "{when}: {left:?}");
        });
    }
}

#[test]
fn a_pin_that_is_stopped_at_any_call_is_there_or_not() {
    stop_at_each(&["pin", "aaaa"], "exit", updated, |Stopped { machine, when }| {
        ok(machine, &["gc", "--dry-run"], when);
        ok(machine, &["pin", "aaaa"], when);
    });
}

/// A proof that cannot fail proves nothing: with the wrong order, and without the rename, a run that is stopped is seen.
#[test]
fn the_wrong_order_is_seen() {
    let sabotage = |args: &[&str], what: &str, make: fn(Loader, BootType) -> Machine, then: fn(&Machine) -> bool| {
        let breaks = |n: u64| {
            let machine = make(Loader::Grub, BootType::Bls);
            let variables =
                [("COMPOSEFS_FINALIZE_FAIL", format!("exit:{n}")), ("COMPOSEFS_FINALIZE_NO_SYNC", what.to_owned())];
            in_b(&machine, args, &variables);
            catch_unwind(std::panic::AssertUnwindSafe(|| then(&machine))).unwrap_or(true)
        };
        assert!((1..60).any(breaks), "{args:?} without {what} harms nobody");
    };
    sabotage(&["unstage"], "unstage-order", with_update, |machine| !in_b(machine, &["staged"], &[]).status.success());
    sabotage(&["gc"], "rename", littered, |machine| {
        let state = machine.state("c");
        state.exists() && !(state.join("etc/hosts").exists() && state.join(layout::origin(&id("c"))).exists())
    });
}
