//! Boot counting on directories, on all four boot paths: armed with the exchange, ended when the deployment is found good, or
//! by the boot loader. What the boot loaders do is done here by hand; `hack/counting` has the real ones.

use std::{fs, path::PathBuf, process::Command};

use finalize::{
    boot::{
        Loader,
        count::{self, counted, script},
        order::{Counter, Environment},
    },
    failed, layout,
    staged::BootType,
};

use crate::machine::{Machine, PATHS, id};

const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
const MAIN: &str = "set default=0\nload_env\nsource ($root)/boot/loader/entries/grub.cfg\n";

/// A machine whose boot loader can count, and whose vendor has it try this often.
pub fn machine((loader, boot_type): (Loader, BootType), tries: u32) -> Machine {
    equipped(Machine::booting(loader, boot_type), tries)
}

pub fn equipped(machine: Machine, tries: u32) -> Machine {
    machine.files("vendor", &[("config.toml", &format!("[boot]\ntries = {tries}\n"))]);
    if machine.loader == Loader::Grub {
        let block = format!("{:#<1024}", "# GRUB Environment Block\n");
        machine.files("sysroot/boot/grub2", &[("grub.cfg", MAIN), ("grubenv", &block)]);
        // It would stand before all others.
        _ = fs::remove_file(machine.boot("loader/entries/rescue.conf"));
    }
    machine
}

/// The command in deployment `letter`, as the kernel was started last.
pub fn command(machine: &Machine, letter: &str, args: &[&str]) -> Command {
    let word = if machine.path("tried").exists() { " composefs-finalize.try=1" } else { "" };
    let mut command = machine.command_after(&format!("composefs={} rw{word}", id(letter)), args);
    command.arg("--vendor-config").arg(machine.path("vendor"));
    command
}

pub fn run(machine: &Machine, letter: &str, args: &[&str]) -> String {
    let output = command(machine, letter, args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn json(machine: &Machine, letter: &str) -> serde_json::Value {
    serde_json::from_str(&run(machine, letter, &["status", "--json"])).unwrap()
}

pub fn variable(machine: &Machine, name: &str, value: &str) {
    let units = value.encode_utf16().chain([0]).flat_map(u16::to_le_bytes);
    let bytes: Vec<u8> = [6, 0, 0, 0].into_iter().chain(units).collect();
    let dir = machine.path("sys/firmware/efi/efivars");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join(format!("{name}-{VENDOR}")), bytes).unwrap();
}

pub fn menu(machine: &Machine) -> String {
    let path = match machine.boot_type {
        BootType::Bls => "sysroot/boot/loader/entries/grub.cfg",
        BootType::Uki => "sysroot/boot/grub2/user.cfg",
    };
    fs::read_to_string(machine.path(path)).unwrap()
}

fn environment(machine: &Machine) -> Environment {
    Environment::parse(&fs::read(machine.path("sysroot/boot/grub2/grubenv")).unwrap())
}

fn set(machine: &Machine, name: &str, value: &str) {
    let path = machine.path("sysroot/boot/grub2/grubenv");
    let edited = Environment::edited(&fs::read(&path).unwrap(), name, Some(value)).unwrap();
    fs::write(path, edited).unwrap();
}

/// The names of the live entries.
fn names(machine: &Machine) -> Vec<String> {
    let dir = fs::read_dir(machine.boot("loader/entries")).unwrap();
    let mut names: Vec<_> = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// The counter of the first entry of `letter`, wherever the boot loader has it.
pub fn counter(machine: &Machine, letter: &str) -> Option<(u32, u32)> {
    let pair = |counter: Counter| (counter.left, counter.done);
    if machine.loader == Loader::Grub {
        let trial = script::trial(&menu(machine)).filter(|trial| trial.deployment == id(letter))?;
        return trial.counter(&environment(machine)).map(pair);
    }
    Counter::split(&entry(machine, letter)?).1.map(pair)
}

/// The name of the first entry of `letter`.
pub fn entry(machine: &Machine, letter: &str) -> Option<String> {
    let dir = cap_std::fs::Dir::open_ambient_dir(machine.boot("loader"), cap_std::ambient_authority()).unwrap();
    let entries = finalize::boot::entries::Entries::read(&dir, layout::ENTRIES).unwrap().unwrap();
    entries.of_deployment(machine.loader, &id(letter)).map(|(name, _)| name.to_owned())
}

/// What the boot loader does: starts what `status` has said, counts, and forgets /run. Who was started.
pub fn boot(machine: &Machine) -> String {
    let next = json(machine, "a")["next"].as_str().unwrap()[..1].to_owned();
    boot_of(machine, &next);
    next
}

pub fn boot_of(machine: &Machine, letter: &str) {
    machine.reboot();
    _ = fs::remove_file(machine.path("tried"));
    let tried = counter(machine, letter).filter(|(left, _)| *left > 0);
    if machine.loader == Loader::Grub {
        if let Some((left, _)) = tried {
            set(machine, script::TRIAL, &script::trial(&menu(machine)).unwrap().token);
            set(machine, script::LEFT, &(left - 1).to_string());
            fs::write(machine.path("tried"), "").unwrap();
        }
        return;
    }
    let name = entry(machine, letter).unwrap();
    let bare = count::bare(&name);
    if let Some((left, done)) = tried {
        let (stem, suffix) = bare.split_at(bare.len() - ".conf".len());
        let next = format!("{stem}+{}-{}{suffix}", left - 1, done + 1);
        fs::rename(machine.boot("loader/entries").join(&name), machine.boot("loader/entries").join(&next)).unwrap();
        variable(machine, "LoaderBootCountPath", &format!("\\loader\\entries\\{next}"));
    }
    variable(machine, "LoaderEntrySelected", &bare);
}

/// The boot loader has given `b` up, though it was found good: nobody has told the boot loader.
pub fn spend(machine: &Machine) {
    machine.files("sysroot/state/finalize", &[("counted.json", &counted_json())]);
    match machine.loader {
        Loader::Grub => set(machine, script::LEFT, "0"),
        _ => {
            let (dir, name) = (machine.boot("loader/entries"), entry(machine, "b").unwrap());
            fs::rename(dir.join(&name), dir.join(counted(&name, 1).replace("+1", "+0-2"))).unwrap();
        }
    }
}

fn file(machine: &Machine, path: &str) -> PathBuf {
    machine.path("sysroot").join(path)
}

pub fn has_failed(machine: &Machine, letter: &str) -> bool {
    let sysroot = cap_std::fs::Dir::open_ambient_dir(machine.path("sysroot"), cap_std::ambient_authority()).unwrap();
    failed::of(&sysroot, &id(letter)).unwrap().is_some()
}

#[test]
fn tries_are_armed_with_the_exchange_and_are_not_where_there_are_none() {
    for path in PATHS {
        for tries in [0, 3] {
            let machine = machine(path, tries);
            let said = run(&machine, "a", &["staged"]);
            assert!(said.contains("it boots next"), "{said}");
            assert_eq!(machine.live()[..2], ["b", "a"]);
            assert_eq!(counter(&machine, "b"), (tries > 0).then_some((3, 0)), "{path:?}");
            assert_eq!(counter(&machine, "a"), None);
            assert_eq!(file(&machine, layout::COUNTED).exists(), tries > 0);
            let all = machine.tree(&machine.path("."));
            let traces = all.values().filter(|(_, text)| text.contains(script::CALL)).count();
            assert_eq!(traces, usize::from(tries > 0 && path.0 == Loader::Grub));
            if tries == 0 {
                boot(&machine);
                run(&machine, "b", &["arm"]);
                assert!(!machine.path("run").join(layout::TRIAL).exists());
                assert_eq!(run(&machine, "b", &["bless"]), "no boot is counted\n");
            }
        }
    }
}

#[test]
fn a_boot_that_is_found_good_is_counted_no_more() {
    for path in PATHS {
        let machine = machine(path, 3);
        run(&machine, "a", &["staged"]);
        assert_eq!(boot(&machine), "b");
        assert_eq!(counter(&machine, "b"), Some((2, 1)), "{path:?}");
        run(&machine, "b", &["arm"]);
        assert!(machine.path("run").join(layout::TRIAL).exists(), "{path:?}");
        assert!(run(&machine, "b", &["report"]).contains("has booted"));
        assert!(run(&machine, "b", &["bless"]).contains("reached boot-complete.target"), "{path:?}");
        assert!(!machine.path("run").join(layout::TRIAL).exists());
        assert!(!file(&machine, layout::COUNTED).exists());
        assert_eq!((counter(&machine, "b"), has_failed(&machine, "b")), (None, false));
        for _ in 0..5 {
            assert_eq!(boot(&machine), "b", "{path:?}");
            run(&machine, "b", &["arm"]);
            assert_eq!(run(&machine, "b", &["bless"]), "no boot is counted\n");
        }
        if path.0 == Loader::SystemdBoot {
            assert!(!names(&machine).iter().any(|name| name.contains('+') || name.starts_with('.')), "{path:?}");
        }
    }
}

#[test]
fn after_the_tries_the_old_deployment_boots_and_says_why_and_the_new_one_is_not_taken_again_unasked() {
    for path in PATHS {
        let machine = machine(path, 2);
        run(&machine, "a", &["staged"]);
        for _ in 0..2 {
            assert_eq!(boot(&machine), "b", "{path:?}");
        }
        assert_eq!((boot(&machine).as_str(), counter(&machine, "b")), ("a", Some((0, 2))), "{path:?}");
        // What a power cut in the clean-up would have left, or an image brings along.
        machine.files("sysroot/state/finalize", &[("staged.json", &format!("{{\"depl_id\":\"{}\"}}", id("b")))]);
        let said = run(&machine, "a", &["arm"]);
        assert!(said.contains("forgot update bbbbbbbbbbbb") && has_failed(&machine, "b"), "{said}");
        assert!(!machine.path("run").join(layout::TRIAL).exists());
        let said = run(&machine, "a", &["report"]);
        for word in ["gone back", "bbbbbbbbbbbb was started 2 times", "try-again bbbbbbbbbbbb"] {
            assert!(said.contains(word), "{said} lacks {word}");
        }
        let status = json(&machine, "a");
        assert_eq!((&status["failed"]["boots"], &status["record"]["outcome"]), (&2.into(), &"fell-back".into()));
        assert_eq!(status["next"], id("a").as_str());
        assert!(run(&machine, "a", &["status"]).contains("\nattention bbbbbbbbbbbb was started 2 times"));
        assert_eq!(run(&machine, "a", &["report"]), "no finalization to report on\n", "it is said once");
        // Somebody stages it again, and again.
        restage(&machine);
        let output = command(&machine, "a", &["staged"]).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("not applied") && said.contains("was started 2 times"), "{said}");
        assert_eq!(machine.live().iter().filter(|name| *name == "b").count(), 1);
        assert_eq!(json(&machine, "a")["next"], id("a").as_str());
        // A person forces it.
        run(&machine, "a", &["try-again", "bbbb"]);
        assert_eq!(json(&machine, "a")["next"], id("a").as_str());
        edit_staged(&machine);
        run(&machine, "a", &["staged", "--boot-id", "another"]);
        assert_eq!((boot(&machine).as_str(), counter(&machine, "b")), ("b", Some((1, 1))), "{path:?}");
        run(&machine, "b", &["arm"]);
        run(&machine, "b", &["bless"]);
        assert_eq!((boot(&machine).as_str(), counter(&machine, "b")), ("b", None), "{path:?}");
        if path.0 == Loader::SystemdBoot {
            assert!(!names(&machine).iter().any(|name| name.contains('+')), "{:?}", names(&machine));
        }
        let all = machine.tree(&machine.path("."));
        let edited = all.iter().filter(|(path, (_, text))| !path.contains("trash") && text.contains("version 1.1\n"));
        assert_eq!(edited.count(), usize::from(path != (Loader::Grub, BootType::Uki)), "the entry is the new one");
    }
}

/// What is staged now is not what was staged before.
fn edit_staged(machine: &Machine) {
    let staged = machine.boot("loader/entries.staged/bootc_x-1-1.conf");
    if let Ok(text) = fs::read_to_string(&staged) {
        fs::write(staged, text.replace("version 1\n", "version 1.1\n")).unwrap();
    }
}

/// Stages `b` again, as it was staged the first time.
pub fn restage(machine: &Machine) {
    let fresh = Machine::booting(machine.loader, machine.boot_type);
    for path in ["esp/loader/entries.staged", "sysroot/boot/loader/entries.staged"] {
        for (name, (_, text)) in fresh.tree(&fresh.path(path)) {
            machine.files(path, &[(&name, &text)]);
        }
    }
    let menu = "sysroot/boot/grub2/user.cfg.staged";
    if let Ok(text) = fs::read_to_string(fresh.path(menu)) {
        fs::write(machine.path(menu), text).unwrap();
    }
    machine.stage("b");
}

#[test]
fn only_what_was_counted_is_found_good() {
    for path in PATHS {
        let machine = machine(path, 3);
        run(&machine, "a", &["staged"]);
        boot(&machine);
        // The firmware has refused it and started the boot loader again; or somebody chose the other one in the menu.
        match path.0 {
            Loader::Grub => _ = fs::remove_file(machine.path("tried")),
            _ => variable(&machine, "LoaderEntrySelected", "bootc_x-1-0.conf"),
        }
        let before = (counter(&machine, "b"), machine.tree(&machine.path("esp")));
        run(&machine, "a", &["arm"]);
        run(&machine, "a", &["bless"]);
        assert!(!has_failed(&machine, "b"), "it has tries left");
        if path != (Loader::Grub, BootType::Uki) {
            run(&machine, "b", &["arm"]);
            assert!(!machine.path("run").join(layout::TRIAL).exists(), "{path:?}");
            assert!(run(&machine, "b", &["bless"]).contains("was not counted"), "{path:?}");
        }
        assert_eq!(before, (counter(&machine, "b"), machine.tree(&machine.path("esp"))), "{path:?}");
        let check = command(&machine, "a", &["bless", "--check"]).output().unwrap();
        assert_eq!(check.status.code(), Some(1));
    }
    let machine = machine(PATHS[0], 3);
    run(&machine, "a", &["staged"]);
    boot(&machine);
    assert!(command(&machine, "b", &["bless", "--check"]).status().unwrap().success());
}

#[test]
fn whoever_renames_meanwhile_is_no_obstacle() {
    for boot_type in [BootType::Bls, BootType::Uki] {
        let machine = machine((Loader::SystemdBoot, boot_type), 3);
        run(&machine, "a", &["staged"]);
        boot(&machine);
        run(&machine, "b", &["arm"]);
        // systemd-bless-boot has been there first.
        let dir = machine.boot("loader/entries");
        fs::rename(dir.join("bootc_x-1-1+2-1.conf"), dir.join("bootc_x-1-1.conf")).unwrap();
        assert!(run(&machine, "b", &["bless"]).contains("reached boot-complete.target"));
        // Or it was cut off between the copy and the removal.
        fs::copy(dir.join("bootc_x-1-1.conf"), dir.join("bootc_x-1-1+2-1.conf")).unwrap();
        machine.files("sysroot/state/finalize", &[("counted.json", &counted_json())]);
        assert!(run(&machine, "b", &["bless"]).contains("reached boot-complete.target"));
        assert_eq!(names(&machine), ["bootc_x-1-0.conf", "bootc_x-1-1.conf", "rescue.conf"]);
        // The bare name is another entry's.
        fs::rename(dir.join("bootc_x-1-1.conf"), dir.join("bootc_x-1-1+2-1.conf")).unwrap();
        fs::write(dir.join("bootc_x-1-1.conf"), "title mine\nlinux /mine\n").unwrap();
        machine.files("sysroot/state/finalize", &[("counted.json", &counted_json())]);
        let output = command(&machine, "b", &["bless"]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && said.contains("is another entry"), "{said}");
        assert!(names(&machine).contains(&counted("bootc_x-1-1.conf", 2).replace("+2", "+2-1")));
    }
}

pub fn counted_json() -> String {
    format!("{{\"deployment\":\"{}\",\"tries\":3,\"token\":\"x\"}}", id("b"))
}

#[test]
fn a_grub_that_cannot_count_is_not_half_armed() {
    for boot_type in [BootType::Bls, BootType::Uki] {
        let check = |change: &dyn Fn(&Machine), word: &str| {
            let machine = machine((Loader::Grub, boot_type), 3);
            change(&machine);
            let said = run(&machine, "a", &["staged"]);
            assert!(said.contains("it boots next") && said.contains("not counted") && said.contains(word), "{said}");
            assert!(!file(&machine, layout::COUNTED).exists(), "{word}");
            assert_eq!(machine.live()[0], "b");
            let all = machine.tree(&machine.path("sysroot/boot"));
            assert!(
                !all.values().any(|(_, text)| text.contains(script::CALL) || text.contains(script::TRIAL)),
                "{word}"
            );
        };
        let grubenv = |machine: &Machine| machine.path("sysroot/boot/grub2/grubenv");
        check(&|machine| fs::remove_file(grubenv(machine)).unwrap(), "there is no grubenv");
        check(&|machine| fs::write(grubenv(machine), "").unwrap(), "no environment block with room");
        check(
            &|machine| {
                fs::write(grubenv(machine), format!("# GRUB Environment Block\nx={}\n", "y".repeat(990))).unwrap()
            },
            "room",
        );
    }
    // Fedora's and openSUSE's GRUB read the entries by themselves.
    let machine = machine((Loader::Grub, BootType::Bls), 3);
    machine.files("sysroot/boot/grub2", &[("grub.cfg", "load_env\ninsmod blscfg\nblscfg\n")]);
    fs::remove_file(machine.boot("loader/entries/grub.cfg")).unwrap();
    let said = run(&machine, "a", &["staged"]);
    assert!(said.contains("it boots next") && said.contains("GRUB reads the entries by itself"), "{said}");
    assert!(!file(&machine, layout::COUNTED).exists());
    assert!(names(&machine).iter().all(|name| !name.contains('+') && name != "grub.cfg"));
}
