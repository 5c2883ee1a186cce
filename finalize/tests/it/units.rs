//! The units: systemd finds nothing wrong with them, they are ordered as shutdown needs, and restricted as the README says.

use std::{
    fs,
    path::{Path, PathBuf},
};

use xshell::cmd;

use crate::programs::{PROGRAM, if_here, shell};

const SERVICES: [&str; 4] = [
    "composefs-finalize.service",
    "composefs-finalize-report.service",
    "composefs-finalize-prepare.service",
    "composefs-finalize-bless.service",
];

/// What bootc ships, as far as ordering goes; its program is another.
const BOOTC: &str = "[Unit]\nDescription=x\nDefaultDependencies=no\nRequiresMountsFor=/sysroot\nAfter=local-fs.target\n\
    Before=basic.target final.target\nAfter=systemd-journal-flush.service\nConflicts=final.target\n\
    [Service]\nType=oneshot\nRemainAfterExit=yes\nExecStop=/bin/true\n[Install]\nWantedBy=multi-user.target\n";

fn units() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd")
}

fn lines(unit: &str, key: &str) -> Vec<String> {
    let text = fs::read_to_string(units().join(unit)).unwrap();
    let values = text.lines().filter_map(|line| line.strip_prefix(&format!("{key}=")));
    values.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// A directory with our units and bootc's, whose programs exist.
fn copied() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for unit in fs::read_dir(units()).unwrap().map(Result::unwrap).filter(|unit| unit.path().is_file()) {
        let text = fs::read_to_string(unit.path()).unwrap();
        let text = text.replace("/usr/bin/composefs-finalize", PROGRAM);
        fs::write(dir.path().join(unit.file_name()), text).unwrap();
    }
    fs::write(dir.path().join("bootc-finalize-staged.service"), BOOTC).unwrap();
    dir
}

fn verify(dir: &Path) -> Option<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|unit| unit.unwrap().path()).collect();
    names.retain(|path| path.is_file());
    let verify =
        cmd!(shell("."), "systemd-analyze verify --man=no --recursive-errors=yes multi-user.target {names...}");
    let output = if_here(verify.env("SYSTEMD_UNIT_PATH", format!("{}:", dir.display())))?;
    let said = String::from_utf8(output.stderr).unwrap();
    // Units of the machine that runs the tests are its own affair.
    let ours = |line: &&str| line.contains("composefs") || line.contains("cycle") || line.contains("bootc");
    Some(said.lines().filter(ours).collect::<Vec<_>>().join("\n"))
}

#[test]
fn systemd_finds_nothing_wrong_with_the_units_beside_bootcs() {
    let dir = copied();
    let wants = |target: &str, unit: &str| {
        let wants = dir.path().join(format!("{target}.wants"));
        fs::create_dir_all(&wants).unwrap();
        std::os::unix::fs::symlink(dir.path().join(unit), wants.join(unit)).unwrap();
    };
    wants("sysinit.target", "composefs-finalize.service");
    wants("multi-user.target", "bootc-finalize-staged.service");
    wants("multi-user.target", "composefs-finalize-report.service");
    let Some(said) = verify(dir.path()) else {
        println!("SKIPPED, no systemd-analyze");
        return;
    };
    assert_eq!(said, "");
    // The check sees a cycle, and a typing error.
    let path = dir.path().join("composefs-finalize.service");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("After=local-fs.target", "After=basic.target local-fs.target")).unwrap();
    assert!(verify(dir.path()).unwrap().contains("cycle"));
    fs::write(&path, text.replace("IgnoreOnIsolate", "IgnoreOnIsolation")).unwrap();
    assert!(verify(dir.path()).unwrap().contains("IgnoreOnIsolation"));
}

#[test]
fn the_finalization_is_ordered_and_kept_as_a_shutdown_needs() {
    let unit = "composefs-finalize.service";
    // Stops run in reverse: ours before bootc's, and after everything that sysinit.target is for.
    assert!(lines(unit, "After").contains(&"bootc-finalize-staged.service".to_owned()));
    for target in ["sysinit.target", "basic.target", "final.target"] {
        assert!(lines(unit, "Before").contains(&target.to_owned()), "{target}");
    }
    assert_eq!(lines(unit, "Conflicts"), ["final.target"]);
    assert_eq!(lines(unit, "IgnoreOnIsolate"), ["yes"]);
    assert_eq!(lines(unit, "WantedBy"), ["sysinit.target"]);
    for unit in SERVICES {
        assert_eq!(lines(unit, "TimeoutStartSec").len(), 1, "{unit} may hang a boot");
        // A setting that would hide, lock or mask something that a finalization needs.
        for key in ["RestrictSUIDSGID", "PrivateDevices", "PrivateTmp", "ProtectSystem", "ProcSubset", "UMask"] {
            assert_eq!(lines(unit, key), [""; 0], "{unit}: {key}");
        }
    }
}

/// systemd.exec(5): each of these gives a service a mount namespace of its own, which would keep the next root to itself.
const OWN_MOUNTS: [&str; 18] = [
    "PrivateMounts",
    "PrivateTmp",
    "PrivateDevices",
    "PrivateNetwork",
    "PrivateUsers",
    "ProtectSystem",
    "ProtectHome",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectHostname",
    "ProtectProc",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "InaccessiblePaths",
    "BindPaths",
    "DynamicUser",
];

#[test]
fn the_next_root_is_mounted_after_the_finalization_and_for_everybody() {
    let unit = "composefs-finalize-next-root.service";
    for other in ["composefs-finalize.service", "final.target"] {
        assert!(lines(unit, "Before").contains(&other.to_owned()), "{other}");
    }
    assert_eq!(lines(unit, "Conflicts"), ["final.target"]);
    assert_eq!(lines(unit, "RequiresMountsFor"), ["/sysroot"]);
    assert_eq!(lines(unit, "TimeoutStopSec").len(), 1);
    for key in OWN_MOUNTS {
        assert_eq!(lines(unit, key), [""; 0], "{key}");
    }
}

#[test]
fn the_units_are_restricted_as_the_readme_says() {
    let readme = fs::read_to_string(units().join("../../README.md")).unwrap();
    for unit in SERVICES {
        let path = units().join(unit);
        let Some(output) = if_here(cmd!(shell("."), "systemd-analyze security --offline=true {path}")) else {
            println!("SKIPPED, no systemd-analyze");
            return;
        };
        let said = String::from_utf8(output.stdout).unwrap();
        let exposure = said.split("service: ").last().unwrap().split(' ').next().unwrap();
        // Versions of systemd weigh differently.
        let exposure: f64 = exposure.trim().parse().unwrap_or_else(|_| panic!("{said}"));
        assert!(exposure < 3.5, "{unit}: {exposure}");
        assert!(readme.contains(&format!("`{unit}`")), "{unit}");
        for line in said.lines().filter(|line| line.starts_with('✗')) {
            let setting = line.split_whitespace().nth(1).unwrap();
            let setting = setting.split_once("=~").map_or(setting, |(_, value)| value);
            let setting = setting.split(['=', '/', '|']).next().unwrap();
            assert!(readme.contains(setting), "the README gives no reason for {line}");
        }
    }
}

#[test]
fn a_deployment_that_cannot_be_mounted_does_not_boot_in_a_loop() {
    let dracut = Path::new(env!("CARGO_MANIFEST_DIR")).join("dracut/90composefs");
    let read = |name: &str| fs::read_to_string(dracut.join(name)).unwrap();
    let mount = read("composefs-setup-root.service");
    assert!(!mount.lines().any(|line| line.starts_with("FailureAction=")), "{mount}");
    assert!(mount.contains("\nOnFailure=emergency.target composefs-setup-root-retry.service\n"), "{mount}");
    let retry = read("composefs-setup-root-retry.service");
    assert!(retry.contains("\nConditionPathExists=|/sys/firmware/efi/efivars/LoaderBootCountPath-"), "{retry}");
    assert!(retry.contains("\nConditionKernelCommandLine=|composefs-finalize.try\n"), "{retry}");
    let panic = read("composefs-setup-root-panic.service");
    assert!(panic.contains("\nConditionPathExists=/sys/firmware/efi/efivars/LoaderBootCountPath-"), "{panic}");
    for unit in ["composefs-setup-root-retry.service", "composefs-setup-root-panic.service"] {
        assert!(read("module-setup.sh").contains(unit), "{unit}");
    }
}

/// What ends a boot, and what makes other units a condition of it: only where that boot is counted.
#[test]
fn nothing_ends_a_boot_that_is_not_counted() {
    for unit in fs::read_dir(units()).unwrap().map(|unit| unit.unwrap().file_name().into_string().unwrap()) {
        let Ok(text) = fs::read_to_string(units().join(&unit)) else { continue };
        let ends = ["reboot", "boot-complete.target\n", "-retry"].iter().any(|word| {
            text.lines().any(|line| format!("{line}\n").contains(word) && !line.starts_with(['#', 'B', 'W', 'D']))
        });
        let is_conditional = text.contains("\nConditionPathExists=/run/composefs/trial\n");
        let is_asked_for = text.contains("\nConditionPathExists=/run/composefs/soft-reboot\n");
        assert!(!ends || is_conditional || is_asked_for, "{unit}");
        assert_eq!(is_conditional, ["bless", "retry"].iter().any(|word| unit.contains(word)), "{unit}");
        assert_eq!(is_asked_for, unit.contains("next-root"), "{unit}");
    }
}
