//! A second finalizer on the same machine: bootc's own unit merges into `etc`, exchanges the entry directories and leaves
//! the marker. It runs before ours, after ours, and, where nothing orders the two, at the same time. And the updates that
//! somebody else ends: cancelled, replaced, rolled back, locked.

use std::{fs, process::Command};

use finalize::{boot::Loader, layout, staged::BootType};
use xshell::cmd;

use crate::{
    machine::{Machine, id},
    programs::{ok, shell},
};

/// What bootc does on its own: without a marker nothing, else three ways into `etc` in place, then the exchange.
/// (The merge is as much of it as these trees need.)
const STAND_IN: &str = r#"set -eu
[ -e "$RUN/composefs/staged-deployment" ] || exit 0
[ -z "${GO:-}" ] || { echo ready; read -r _ <"$GO"; }
cd "$STATE/etc"
for file in hosts new; do cp "$CURRENT/$file" "$file"; done
rm -f gone
cd "$LOADER"
mv --exchange --no-copy entries entries.staged 2>/dev/null || python3 -c '
import ctypes, os
if ctypes.CDLL(None, use_errno=True).renameat2(-100, b"entries", -100, b"entries.staged", 2): raise OSError(ctypes.get_errno(), "renameat2")'
rm -r entries.staged
"#;

fn bootc(machine: &Machine) -> Command {
    let sh = cmd!(shell("."), "sh -c {STAND_IN}").env("RUN", machine.path("run")).env("STATE", machine.state("b"));
    sh.env("CURRENT", machine.state("a").join("etc")).env("LOADER", machine.boot("loader")).into()
}

fn first(machine: &Machine) -> Option<String> {
    machine.live().into_iter().find(|name| name.len() == 1)
}

fn marker(machine: &Machine) -> std::path::PathBuf {
    machine.path("run").join(layout::MARKER)
}

fn staged_json(machine: &Machine) -> std::path::PathBuf {
    machine.path("sysroot").join(layout::STAGED)
}

fn report_after(machine: &Machine, letter: &str) -> String {
    ok(machine.command_after(&format!("composefs={}", id(letter)), &["report"]))
}

#[test]
fn after_ours_bootc_finds_nothing_to_do() {
    for loader in [Loader::SystemdBoot, Loader::Grub] {
        let machine = Machine::new(loader);
        machine.ok(&["staged"]);
        assert!(!marker(&machine).exists() && !staged_json(&machine).exists());
        let before = machine.tree(&machine.path(""));
        assert!(bootc(&machine).status().unwrap().success());
        assert_eq!(machine.tree(&machine.path("")), before);
        machine.assert_finalized();
    }
}

#[test]
fn the_stand_in_does_what_it_stands_for() {
    let machine = Machine::new(Loader::Grub);
    assert!(bootc(&machine).status().unwrap().success());
    assert_eq!(first(&machine).as_deref(), Some("b"));
    assert_eq!((machine.etc("b")["hosts"].as_str(), machine.etc("b")["motd"].as_str()), ("mine", "2"));
    assert!(!machine.boot("loader/entries.staged").exists() && marker(&machine).exists());
    // Run again it fails, as bootc does.
    assert!(!bootc(&machine).stderr(std::process::Stdio::null()).status().unwrap().success());
}

#[test]
fn before_ours_bootc_has_finished_and_ours_puts_nothing_back() {
    for loader in [Loader::SystemdBoot, Loader::Grub] {
        let machine = Machine::new(loader);
        assert!(bootc(&machine).status().unwrap().success());
        machine.ok(&["staged"]);
        assert_eq!(first(&machine).as_deref(), Some("b"));
        assert_eq!(machine.etc("b")["hosts"], "mine");
        assert!(!machine.boot("loader/entries.staged").exists() && !marker(&machine).exists());
        assert!(report_after(&machine, "b").contains("has booted"));
        assert_eq!(machine.etc("b")["hosts"], "mine");
    }
}

/// bootc has looked at the marker, and goes on when ours has come to its n-th change; nothing orders the two here, as the
/// units do. Where nothing can be exchanged at once (FAT), bootc may still exchange the live entries for what is left of the
/// staged ones while ours deletes those: there the order of the units is all that helps, and the test ends with the marker.
#[test]
fn at_the_same_time_what_boots_is_whole() {
    for loader in [Loader::SystemdBoot, Loader::Grub] {
        for n in (3..).step_by(7) {
            let machine = Machine::new(loader);
            let go = machine.path("go");
            ok(cmd!(shell("."), "mkfifo {go}"));
            let mut other = bootc(&machine).env("GO", &go).stdout(std::process::Stdio::piped()).spawn().unwrap();
            let mut ready = [0; 6];
            std::io::Read::read_exact(other.stdout.as_mut().unwrap(), &mut ready).unwrap();
            let how = format!("stop:{n}");
            let mut ours = machine.command(&["staged"]);
            ours.env("COMPOSEFS_FINALIZE_FAIL", how);
            let mut ours =
                ours.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
            let pid = rustix::process::Pid::from_child(&ours);
            let stopped = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::UNTRACED).unwrap();
            let over = stopped.is_none_or(|(_, status)| !status.stopped());
            let over = over || loader == Loader::SystemdBoot && !marker(&machine).exists();
            fs::write(&go, "\n").unwrap();
            // Either may fail; the machine boots all the same.
            _ = other.wait().unwrap();
            // The program may have ended.
            _ = rustix::process::kill_process(pid, rustix::process::Signal::CONT);
            if over {
                _ = ours.wait();
                assert!(n > 30, "{n}");
                break;
            }
            let done = ours.wait().unwrap();
            let when = format!("{loader} {n}: {done}");
            // Entries of others do not survive bootc's exchange: that is bootc's to mend.
            match first(&machine).as_deref() {
                Some("b") => assert_eq!(machine.etc("b")["hosts"], "mine", "{when}"),
                other => assert_eq!(other, Some("a"), "{when}"),
            }
            assert_eq!(machine.etc("a")["hosts"], "mine", "{when}");
        }
    }
}

fn remembered(machine: &Machine, locked: bool) {
    let text = format!("{{\"depl_id\":\"{}\",\"finalization_locked\":{locked}}}", id("b"));
    machine.files("sysroot", &[(layout::STAGED, &text)]);
}

#[test]
fn an_update_of_before_a_crash_is_resumed_where_its_entries_are_staged() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.reboot();
    assert_eq!(machine.ok(&["arm"]), "nothing is staged\n");
    remembered(&machine, false);
    assert!(machine.ok(&["arm"]).contains("resumed update bbbbbbbbbbbb, staged before the last restart"));
    assert!(machine.ok(&["report"]).contains("update bbbbbbbbbbbb is staged; the next shutdown finalizes it"));
    machine.ok(&["staged"]);
    machine.assert_finalized();
    assert!(!staged_json(&machine).exists());
    machine.reboot();
    assert!(machine.ok(&["report"]).contains("another deployment has booted"));
    assert!(machine.ok(&["report"]).contains("no finalization"));
}

#[test]
fn a_reminder_alone_resumes_nothing_and_is_forgotten_once() {
    type Break = fn(&Machine);
    let broken: [(Break, &str); 3] = [
        (
            |machine| fs::remove_dir_all(machine.boot("loader/entries.staged")).unwrap(),
            "no entry in loader/entries.staged",
        ),
        (|machine| fs::remove_dir_all(machine.state("b")).unwrap(), "state/deploy/bbb"),
        (|machine| fs::remove_file(machine.path("sysroot/composefs/images").join(id("b").as_str())).unwrap(), "image"),
    ];
    for (break_it, want) in broken {
        for loader in [Loader::SystemdBoot, Loader::Grub] {
            let machine = Machine::new(loader);
            machine.reboot();
            remembered(&machine, false);
            break_it(&machine);
            let said = machine.ok(&["arm"]);
            assert!(said.contains("forgot update bbbbbbbbbbbb") && said.contains(want), "{said}");
            assert!(!marker(&machine).exists() && !staged_json(&machine).exists());
            assert_eq!(machine.ok(&["arm"]), "nothing is staged\n");
            // P: `report` must not promise what nobody will do.
            assert_eq!(machine.ok(&["report"]), "no finalization to report on\n");
        }
    }
}

#[test]
fn a_reminder_whose_boot_file_system_is_away_is_kept_for_the_next_boot() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.reboot();
    remembered(&machine, false);
    let (esp, away) = (machine.path("esp"), machine.path("away"));
    fs::rename(&esp, &away).unwrap();
    let said = machine.ok(&["arm"]);
    assert!(
        said.contains("did not resume update bbbbbbbbbbbb") && said.contains("the next boot tries again"),
        "{said}"
    );
    assert!(!marker(&machine).exists() && staged_json(&machine).exists());
    // Not being armed is no cancelling.
    assert_eq!(machine.ok(&["staged"]), "nothing is staged\n");
    fs::rename(&away, &esp).unwrap();
    assert!(machine.ok(&["arm"]).contains("resumed"));
}

/// 16: a failed finalization leaves the reminder; then somebody removes the marker.
#[test]
fn a_cancelled_update_does_not_come_back() {
    for by in ["staged", "arm"] {
        let machine = Machine::new(Loader::SystemdBoot);
        let output = machine.command(&["staged"]).env("COMPOSEFS_FINALIZE_FAIL", "eio-once:20").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(staged_json(&machine).exists());
        fs::remove_file(marker(&machine)).unwrap();
        let said = machine.ok(&[by]);
        assert!(said.contains("forgot update bbbbbbbbbbbb") && said.contains("marker was removed"), "{said}");
        machine.reboot();
        assert_eq!(machine.ok(&["arm"]), "nothing is staged\n");
        assert_eq!(machine.ok(&["staged"]), "nothing is staged\n");
        assert_eq!(first(&machine).as_deref(), Some("a"));
        assert!(machine.ok(&["report"]).contains("no longer staged"), "{by}");
    }
}

/// 16: staged again as locked, seen by the path unit, and the power goes.
#[test]
fn a_lock_outlives_a_power_cut() {
    let machine = Machine::new(Loader::SystemdBoot);
    let output = machine.command(&["staged"]).env("COMPOSEFS_FINALIZE_FAIL", "eio-once:20").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let locked = format!("{{\"depl_id\":\"{}\",\"finalization_locked\":true}}", id("b"));
    machine.files("run", &[(layout::MARKER, &locked)]);
    assert!(machine.ok(&["arm"]).contains("staged but locked"));
    machine.reboot();
    assert!(machine.ok(&["arm"]).contains("staged but locked"));
    assert_eq!(fs::read_to_string(marker(&machine)).unwrap(), locked);
    assert!(machine.ok(&["report"]).contains("the update is locked, and waits until it is unlocked"));
    assert!(machine.ok(&["report"]).contains("staged but locked"));
    assert!(machine.ok(&["staged"]).contains("locked: not finalized"));
    assert_eq!(first(&machine).as_deref(), Some("a"));
    // Unlocked, and once more without the path unit: `staged` itself writes the lock down.
    remembered(&machine, false);
    assert!(machine.ok(&["staged"]).contains("locked: not finalized"));
    machine.reboot();
    assert!(machine.ok(&["arm"]).contains("staged but locked"));
    machine.stage("b");
    machine.ok(&["arm"]);
    machine.reboot();
    assert!(machine.ok(&["arm"]).contains("resumed"));
}

/// P (B): bootc has staged another deployment instead, finalized that with its own unit, and deleted ours.
#[test]
fn an_update_that_bootc_replaced_is_forgotten_once() {
    let machine = Machine::new(Loader::Grub);
    remembered(&machine, false);
    fs::remove_dir_all(machine.state("b")).unwrap();
    fs::remove_dir_all(machine.boot("loader/entries.staged")).unwrap();
    machine.reboot();
    assert!(machine.ok(&["arm"]).contains("forgot update"));
    assert_eq!(machine.ok(&["report"]), "no finalization to report on\n");
}

/// B11: the entries were exchanged for a third deployment's while an update is staged.
#[test]
fn an_update_that_overrides_a_rollback_says_so() {
    let machine = Machine::new(Loader::SystemdBoot);
    let live = machine.boot("loader/entries/bootc_x-1-1.conf");
    let entry = fs::read_to_string(&live).unwrap().replace(id("a").as_str(), id("c").as_str());
    fs::write(machine.boot("loader/entries/bootc_x-2-1.conf"), entry.replace("sort-key bootc-x-0", "sort-key bootc-w"))
        .unwrap();
    assert_eq!(first(&machine).as_deref(), Some("c"));
    let said = machine.ok(&["staged"]);
    assert!(said.contains("named cccccccccccc as the next one: the update replaces this choice"), "{said}");
    assert_eq!(first(&machine).as_deref(), Some("b"));
    // The entries of the update are gone, its marker is not.
    let machine = Machine::new(Loader::SystemdBoot);
    fs::remove_dir_all(machine.boot("loader/entries.staged")).unwrap();
    assert!(machine.fails(&["staged"]).contains("the old deployment boots next"));
}

#[test]
fn after_a_soft_reboot_into_the_update_all_is_done() {
    for boot_type in [BootType::Bls, BootType::Uki] {
        let machine = Machine::booting(Loader::SystemdBoot, boot_type);
        machine.ok(&["staged"]);
        // bootc leaves its marker, and /run survives.
        machine.stage("b");
        let b = format!("composefs={}", id("b"));
        let run = |args: &[&str]| ok(machine.command_after(&b, args));
        assert_eq!(run(&["staged"]), "nothing is staged\n");
        assert_eq!(run(&["arm"]), "nothing is staged\n");
        assert!(!marker(&machine).exists());
        assert!(run(&["report"]).contains("the finalized deployment bbbbbbbbbbbb has booted"));
        assert_eq!(run(&["staged"]), "nothing is staged\n");
        assert!(!machine.state("b").join(layout::ETC_ORIG).exists());
    }
}

#[test]
fn after_a_soft_reboot_into_the_old_deployment_nobody_chose_it_in_a_menu() {
    let machine = Machine::new(Loader::SystemdBoot);
    machine.ok(&["staged"]);
    let said = machine.ok(&["report"]);
    assert!(said.contains("boots at the next full reboot") && said.contains("soft reboot"), "{said}");
    // It is judged when the boot loader was asked.
    machine.reboot();
    assert!(report_after(&machine, "b").contains("has booted"));
}
