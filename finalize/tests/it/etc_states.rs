//! The states of a deployment's /etc: what has been booted is never lost, what is half deleted is never taken for whole.

use std::{fs, process::Command};

use finalize::{boot::Loader, layout};
use xshell::cmd;

use crate::{
    machine::{Machine, id},
    programs::{ok, output, shell},
};

/// The command on the machine after another boot, into the deployment `letter`.
fn in_boot(machine: &Machine, boot: &str, letter: &str, args: &[&str]) -> Command {
    let mut command = machine.command_after(&format!("composefs={} rw", id(letter)), args);
    command.args(["--boot-id", boot]);
    command
}

/// The entries as they were before, staged once more.
fn stage_again(machine: &Machine) {
    let other = Machine::new(machine.loader);
    for dir in ["entries", "entries.staged"] {
        _ = fs::remove_dir_all(machine.boot("loader").join(dir));
        let from = other.boot("loader").join(dir);
        fs::create_dir(machine.boot("loader").join(dir)).unwrap();
        for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), machine.boot("loader").join(dir).join(entry.file_name())).unwrap();
        }
    }
    machine.stage("b");
}

/// Stopped in the middle of removing `etc.orig`, what is left of it is not taken for the image's /etc.
#[test]
fn an_original_that_is_half_removed_is_not_merged_from() {
    assert_eq!(fewest_files_after_a_stopped_report(""), 20);
}

/// The control: removed under its own name, it is.
#[test]
fn an_original_that_is_removed_under_its_name_loses_files() {
    assert!(fewest_files_after_a_stopped_report("rename") < 20, "the test of half removed originals can not fail");
}

/// A report is stopped at each of its calls while it removes an `etc.orig` with twenty files in a directory, then the old
/// deployment is booted and the update finalized again. The fewest files that are left.
fn fewest_files_after_a_stopped_report(sabotage: &str) -> usize {
    let mut fewest = usize::MAX;
    for n in 1.. {
        let machine = Machine::new(Loader::SystemdBoot);
        let many = machine.state("b").join("etc/many");
        fs::create_dir(&many).unwrap();
        (0..20).for_each(|number| fs::write(many.join(number.to_string()), "theirs").unwrap());
        ok(in_boot(&machine, "one", "a", &["staged"]));
        let mut report = in_boot(&machine, "two", "b", &["report"]);
        report.env("COMPOSEFS_FINALIZE_NO_SYNC", sabotage);
        let stopped = report.env("COMPOSEFS_FINALIZE_FAIL", format!("exit:{n}")).output().unwrap();
        // The old deployment is chosen in the menu, and the same update is staged again.
        stage_again(&machine);
        ok(in_boot(&machine, "three", "a", &["staged"]));
        let files = fs::read_dir(machine.state("b").join("etc/many")).map_or(0, Iterator::count);
        fewest = fewest.min(files);
        assert_eq!(machine.etc("b").get("hosts").map_or("mine", String::as_str), "mine", "exit:{n}");
        if stopped.status.success() {
            assert!(n > 20, "only {n} calls: a deletion is one call a file");
            break;
        }
    }
    fewest
}

/// The report of the first boot failed, so `etc.orig` is still there when the deployment is finalized again.
#[test]
fn an_etc_that_was_booted_with_is_kept_when_its_deployment_is_finalized_again() {
    let machine = Machine::new(Loader::SystemdBoot);
    ok(in_boot(&machine, "one", "a", &["staged"]));
    // A second run in the same boot keeps nothing: nobody has booted.
    ok(in_boot(&machine, "one", "a", &["staged"]));
    let state = machine.state("b");
    let previous = || fs::read_dir(&state).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(previous().filter(|name| name.starts_with(layout::ETC_PREVIOUS)).count(), 0);
    // `b` boots, and is edited; nobody reports. Then `a` is chosen, and `b` is staged again.
    fs::write(state.join("etc/only-in-b"), "edited").unwrap();
    stage_again(&machine);
    ok(in_boot(&machine, "three", "a", &["staged"]));
    assert_eq!(fs::read_to_string(state.join(layout::ETC_PREVIOUS).join("only-in-b")).unwrap(), "edited");
    machine.assert_finalized();
    // Once more in another boot: both are kept.
    fs::write(state.join("etc/only-later"), "edited").unwrap();
    stage_again(&machine);
    ok(in_boot(&machine, "four", "a", &["staged"]));
    assert_eq!(fs::read_to_string(state.join(layout::ETC_PREVIOUS).join("only-in-b")).unwrap(), "edited");
    assert_eq!(fs::read_to_string(state.join("etc.previous.1/only-later")).unwrap(), "edited");
    // The next report of `b` removes them.
    ok(in_boot(&machine, "five", "b", &["report"]));
    let left: Vec<_> = previous().filter(|name| name.starts_with("etc.")).collect();
    assert!(left.is_empty(), "{left:?}");
    machine.assert_finalized();
}

/// Every state that a stop can leave between the merge and its place is one from which both runs and reports go on, with
/// the image's /etc intact.
#[test]
fn the_images_etc_is_never_lost_between_two_names() {
    for n in 1.. {
        let machine = Machine::new(Loader::SystemdBoot);
        let mut staged = in_boot(&machine, "one", "a", &["staged"]);
        let output = staged.env("COMPOSEFS_FINALIZE_FAIL", format!("exit:{n}")).output().unwrap();
        // An edit is taken back, which only a merge from the image's own /etc shows.
        fs::write(machine.state("a").join("etc/hosts"), "1").unwrap();
        ok(in_boot(&machine, "two", "a", &["staged"]));
        assert_eq!(machine.etc("b")["hosts"], "1", "exit:{n}: merged from a merge");
        assert_eq!(machine.etc("b")["motd"], "2", "exit:{n}");
        if output.status.success() {
            break;
        }
    }
}

/// `chattr +i` on a file of the merged /etc, whose inode `etc.orig` shares.
#[test]
fn an_immutable_file_does_not_stop_the_report_and_stays_immutable() {
    let machine = Machine::new(Loader::SystemdBoot);
    ok(in_boot(&machine, "one", "a", &["staged"]));
    let motd = machine.state("b").join("etc/motd");
    if !output(cmd!(shell("."), "chattr +i {motd}")).status.success() {
        println!("SKIPPED: chattr does nothing here");
        return;
    }
    let report = in_boot(&machine, "two", "b", &["report"]).output().unwrap();
    let flags = ok(cmd!(shell("."), "lsattr {motd}"));
    ok(cmd!(shell("."), "chattr -i {motd}"));
    assert!(report.status.success(), "{}", String::from_utf8_lossy(&report.stderr));
    assert!(!machine.state("b").join(layout::ETC_ORIG).exists());
    assert!(flags.starts_with("----i"), "{flags}");
}

/// Local files that had no place in the merge are somebody's only copies once the deployment has booted.
#[test]
fn conflicts_of_an_earlier_merge_are_kept() {
    let machine = Machine::new(Loader::SystemdBoot);
    let (a, b) = (machine.state("a").join("etc"), machine.state("b").join("etc"));
    fs::write(a.join("clash"), "mine").unwrap();
    fs::create_dir(b.join("clash")).unwrap();
    fs::write(b.join("clash/x"), "theirs").unwrap();
    ok(in_boot(&machine, "one", "a", &["staged"]));
    let conflicts = machine.state("b").join(layout::ETC_CONFLICTS);
    assert_eq!(fs::read_to_string(conflicts.join("clash")).unwrap(), "mine");
    ok(in_boot(&machine, "two", "b", &["report"]));
    fs::write(a.join("clash"), "mine, later").unwrap();
    stage_again(&machine);
    ok(in_boot(&machine, "three", "a", &["staged"]));
    assert_eq!(fs::read_to_string(conflicts.join("clash")).unwrap(), "mine, later");
    let previous = machine.state("b").join("etc.conflicts.previous/clash");
    assert_eq!(fs::read_to_string(previous).unwrap(), "mine");
}
