//! Boot counting, stopped at every changing system call: what boots is counted or is the old deployment, and a next run
//! reaches the same end.

use std::fs;

use finalize::{
    boot::{Loader, count::script, order::Counter},
    layout,
    staged::BootType,
};

use crate::{
    counting::{boot, command, counter, entry, has_failed, machine, menu, restage, run},
    machine::{Machine, PATHS, id},
};

/// What boots next is the old deployment, or the new one with tries.
fn assert_counted(machine: &Machine, when: &str) {
    let first =
        machine.live().into_iter().find(|name| name.len() == 1).unwrap_or_else(|| panic!("{when}: nothing boots"));
    if first == "a" {
        return;
    }
    match machine.loader {
        Loader::Grub => assert!(script::trial(&menu(machine)).is_some(), "{when}: b boots and is not counted"),
        _ => {
            let name = entry(machine, "b").unwrap();
            assert!(Counter::split(&name).1.is_some_and(|counter| counter.left > 0), "{when}: {name} is not counted");
        }
    }
    assert!(machine.path("sysroot").join(layout::COUNTED).exists(), "{when}: nobody will find b good");
}

fn check_exchange(how: &str) {
    for path in PATHS {
        for n in 1.. {
            let machine = machine(path, 2);
            let when = format!("{path:?} {how}:{n}");
            let output = command(&machine, "a", &["staged"])
                .env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}"))
                .output()
                .unwrap();
            assert_counted(&machine, &when);
            // The machine goes on, or boots what there is; b fails at once, and a takes over.
            if n % 2 == 0 {
                run(&machine, "a", &["staged"]);
                assert_eq!(counter(&machine, "b"), Some((2, 0)), "{when}");
            }
            let mut boots = vec![boot(&machine)];
            while boots.len() < 6 && boots.last().is_some_and(|last| last == "b") {
                boots.push(boot(&machine));
            }
            assert_eq!(boots.last().map(String::as_str), Some("a"), "{when}: {boots:?}");
            run(&machine, "a", &["arm"]);
            run(&machine, "a", &["report"]);
            assert_eq!(has_failed(&machine, "b"), boots[0] == "b", "{when}: {boots:?}");
            if output.status.success() && (how == "exit" || n > 60) {
                assert!(n > 30, "only {n} calls were counted");
                println!("{path:?}: {how} at each of {} calls", n - 1);
                break;
            }
        }
    }
}

#[test]
fn an_exchange_that_exits_at_any_call_leaves_a_new_deployment_that_is_counted() {
    check_exchange("exit");
}

#[test]
fn an_exchange_on_a_failing_disk_leaves_a_new_deployment_that_is_counted() {
    check_exchange("eio-once");
}

/// The first boot of the new deployment is stopped at any call of its report; it is found good by this boot or the next one.
#[test]
fn a_count_that_is_ended_is_ended_wherever_it_is_stopped() {
    for path in PATHS {
        for verb in ["report", "bless"] {
            let mut calls = u64::MAX;
            for how in ["exit", "eio-once"] {
                for n in 1..=calls {
                    let machine = machine(path, 3);
                    run(&machine, "a", &["staged"]);
                    assert_eq!(boot(&machine), "b");
                    run(&machine, "b", &["arm"]);
                    let when = format!("{path:?} {verb} {how}:{n}");
                    let stopped = command(&machine, "b", &[verb])
                        .env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}"))
                        .output()
                        .unwrap();
                    assert!(machine.live().contains(&"a".to_owned()), "{when}");
                    assert_eq!(boot(&machine), "b", "{when}");
                    for verb in ["arm", "report", "bless"] {
                        run(&machine, "b", &[verb]);
                    }
                    assert_eq!(counter(&machine, "b"), None, "{when}");
                    assert!(!has_failed(&machine, "b"), "{when}");
                    assert_eq!(boot(&machine), "b", "{when}");
                    if stopped.status.success() && how == "exit" {
                        calls = n;
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn a_machine_that_fell_back_remembers_it_wherever_it_is_stopped() {
    for path in PATHS {
        for verb in ["arm", "report"] {
            let mut calls = u64::MAX;
            for how in ["exit", "eio-once"] {
                for n in 1..=calls {
                    let machine = machine(path, 1);
                    run(&machine, "a", &["staged"]);
                    assert_eq!([boot(&machine), boot(&machine)], ["b", "a"]);
                    let when = format!("{path:?} {verb} {how}:{n}");
                    let stopped = command(&machine, "a", &[verb])
                        .env("COMPOSEFS_FINALIZE_FAIL", format!("{how}:{n}"))
                        .output()
                        .unwrap();
                    assert_eq!(boot(&machine), "a", "{when}");
                    run(&machine, "a", &["arm"]);
                    run(&machine, "a", &["report"]);
                    assert!(has_failed(&machine, "b"), "{when}");
                    let record = fs::read_to_string(machine.path("sysroot").join(layout::RECORD)).unwrap();
                    assert!(record.contains("\"fell-back\""), "{when}: {record}");
                    assert!(!machine.path("sysroot").join(layout::COUNTED).exists(), "{when}");
                    if stopped.status.success() && how == "exit" {
                        calls = n;
                        break;
                    }
                }
            }
        }
    }
}

/// A power cut between the steps of an exchange on FAT: the entry in transit is counted too, and put in order by the first
/// boot that gets so far.
#[test]
fn an_entry_in_transit_is_counted_and_put_in_order() {
    let mut seen = 0;
    for n in 1..80 {
        let machine = machine((Loader::SystemdBoot, BootType::Bls), 3);
        _ = command(&machine, "a", &["staged"]).env("COMPOSEFS_FINALIZE_FAIL", format!("exit:{n}")).status().unwrap();
        if !entry(&machine, "b").is_some_and(|name| name.starts_with("zz-")) {
            continue;
        }
        seen += 1;
        assert_eq!([boot(&machine), boot(&machine)], ["b", "b"]);
        for verb in ["arm", "report", "bless"] {
            run(&machine, "b", &[verb]);
        }
        assert_eq!(machine.live(), ["b", "a", "rescue.conf"], "exit:{n}");
        assert_eq!(entry(&machine, "b").as_deref(), Some("bootc_x-1-1.conf"), "exit:{n}");
    }
    assert!(seen > 3, "{seen}");
}

/// A person has a deployment tried again, and is cut off: the old one boots, and the next time it is done.
#[test]
fn another_try_is_finished_wherever_it_was_stopped() {
    for path in PATHS {
        for n in 1.. {
            let machine = machine(path, 1);
            run(&machine, "a", &["staged"]);
            assert_eq!([boot(&machine), boot(&machine)], ["b", "a"]);
            run(&machine, "a", &["report"]);
            let when = format!("{path:?} exit:{n}");
            let fail = format!("exit:{n}");
            let again = ["try-again", "bbbb"];
            let stopped = command(&machine, "a", &again).env("COMPOSEFS_FINALIZE_FAIL", fail).output().unwrap();
            assert_eq!(boot(&machine), "a", "{when}");
            run(&machine, "a", &["try-again", id("b").as_str()]);
            assert!(!has_failed(&machine, "b"), "{when}");
            restage(&machine);
            run(&machine, "a", &["staged", "--boot-id", "another"]);
            assert_eq!(counter(&machine, "b"), Some((1, 0)), "{when}");
            assert_eq!(boot(&machine), "b", "{when}");
            if stopped.status.success() {
                assert!(n > 2, "only {n} calls were counted");
                break;
            }
        }
    }
}
