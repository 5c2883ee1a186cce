//! Machines without a system: the firmware speaks, and its shell runs what a small disk says. Whatever ends or stops such a
//! machine ends the wait, with the reason.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use image_tools::program;
use xshell::cmd;

use crate::layout::{PROGRAM, ok, run, shell};

/// A directory with a disk on it.
pub struct Bench(tempfile::TempDir);

impl Bench {
    /// The firmware finds nothing on the disk.
    fn empty() -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        fs::write(bench.path("disk"), vec![0; 1 << 20]).unwrap();
        bench
    }

    /// The firmware's shell runs these lines.
    pub fn with_shell(lines: &[&str]) -> Self {
        let bench = Self(tempfile::tempdir().unwrap());
        fs::File::create(bench.path("disk")).unwrap().set_len(16 << 20).unwrap();
        fs::write(bench.path("startup.nsh"), lines.join("\r\n") + "\r\n").unwrap();
        fs::File::create(bench.path("big")).unwrap().set_len(4 << 20).unwrap();
        let (shell, disk) = (program::shell().unwrap(), bench.path("disk"));
        program::run(cmd!(shell, "mkfs.vfat -F 16 {disk}")).unwrap();
        for file in ["startup.nsh", "big"] {
            let from = bench.path(file);
            program::run(cmd!(shell, "mcopy -i {disk} {from} ::{file}")).unwrap();
        }
        bench
    }

    pub fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let (disk, log) = (self.path("disk"), self.path("log"));
        let all = [&["boot", &disk, "--quiet", "--log", &log, "--memory", "256", "--accel", "tcg"], more].concat();
        all.into_iter().map(str::to_owned).collect()
    }

    pub fn boot(&self, more: &[&str]) -> Output {
        run(&self.arguments(more).iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Another device lies where KVM is; `started` is there when that could be done.
    fn boot_over(&self, device: &Path, accel: &str, more: &[&str]) -> Output {
        let script = "set -e; [ -e /dev/kvm ]; mount --bind \"$0\" /dev/kvm; cp -f /dev/null started; exec \"$@\"";
        let mut arguments = self.arguments(more);
        let at = arguments.iter().position(|argument| argument == "tcg").unwrap();
        arguments[at] = accel.to_owned();
        let shell = shell(self.0.path());
        let boot = cmd!(shell, "unshare --mount sh -c {script} {device} {PROGRAM} {arguments...}");
        program::output(boot.env("XDG_RUNTIME_DIR", self.0.path())).unwrap()
    }

    fn command(&self, more: &[&str]) -> Command {
        let (shell, arguments) = (program::shell().unwrap(), self.arguments(more));
        cmd!(shell, "{PROGRAM} {arguments...}").into()
    }

    /// The program under way: it has said what runs the guest, so QEMU is there.
    fn begin(&self, more: &[&str]) -> (Child, BufReader<impl Read + use<>>) {
        let mut child = self.command(more).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        assert!(line.starts_with("accelerator: TCG"), "{line}");
        (child, said)
    }
}

fn assert_failed(output: &Output, wanted: &[&str]) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    for part in wanted {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn what_is_no_saved_machine_is_refused_by_name() {
    let bench = Bench::empty();
    fs::write(bench.path("text"), "not a machine").unwrap();
    let saved = bench.boot(&["--until", "BdsDxe", "--save", &bench.path("saved")]);
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let mut torn = fs::read(bench.path("saved")).unwrap();
    torn.truncate(1 << 16);
    fs::write(bench.path("torn"), torn).unwrap();
    for (state, more, want) in [
        ("missing", ["--memory", "256"], "save a machine first"),
        ("text", ["--memory", "256"], "no saved machine"),
        ("torn", ["--memory", "256"], "going on from"),
        ("saved", ["--memory", "512"], "Size mismatch"),
        ("saved", ["--accel", "kvm"], "was saved under tcg"),
    ] {
        let (disk, log, path) = (bench.path("disk"), bench.path("log"), bench.path(state));
        let refused =
            run(&[&["boot", &disk, "--quiet", "--log", &log, "--resume", &path], &more[..], &["--", "true"]].concat());
        assert_failed(&refused, &[&bench.path(state), want]);
    }
    let mut left: Vec<_> = fs::read_dir(bench.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["disk", "log", "saved", "text", "torn"]);
}

#[test]
fn a_machine_that_somebody_stops_ends_the_wait() {
    let bench = Bench::empty();
    let (child, mut said) = bench.begin(&["--monitor", &bench.path("monitor"), "--until", "never said", "--", "true"]);
    let mut monitor = UnixStream::connect(bench.path("monitor")).unwrap();
    monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"stop\"}\n").unwrap();
    let mut message = String::new();
    said.read_to_string(&mut message).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    for part in ["never said", "the machine was stopped", "QEMU's state: paused", "the console's last words"] {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn a_machine_that_somebody_stops_ends_the_program_that_works_with_it() {
    let bench = Bench::empty();
    let arguments =
        ["--monitor", &bench.path("monitor"), "--until", "BdsDxe", "--", "sh", "-c", "echo up >&2; exec cat"];
    let mut command = bench.command(&arguments);
    // What the program reads never ends.
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line == "up"));
    let mut monitor = UnixStream::connect(bench.path("monitor")).unwrap();
    monitor.write_all(b"{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"stop\"}\n").unwrap();
    let message: String = said.collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{message}");
    assert!(message.contains("sh was ended: the machine was stopped"), "{message}");
}

#[test]
fn a_guest_that_panics_ends_the_wait() {
    // What a kernel's pvpanic driver does: one byte to the device's port.
    let bench = Bench::with_shell(&["echo the guest speaks", "mm 505 1 -w 1 -io -n", "echo and goes on"]);
    let output = bench.boot(&["--until", "never said", "--", "true"]);
    assert_failed(&output, &["never said", "the guest's kernel panicked", "the guest speaks"]);
}

/// The host's file system is full while the guest writes.
#[test]
fn a_disk_that_cannot_grow_ends_the_wait() {
    let bench = Bench::with_shell(&["fs0:", "echo copying", "cp big more", "echo copied"]);
    let script = "set -e; mkdir small; mount -t tmpfs -o size=2m none small; cp --sparse=always disk small/disk
        cp -f /dev/null started; exec \"$0\" \"$@\"";
    let mut arguments = bench.arguments(&["--until", "copied\r", "--", "true"]);
    arguments[1] = "small/disk".to_owned();
    let shell = shell(bench.0.path());
    let output = program::output(cmd!(shell, "unshare --mount sh -c {script} {PROGRAM} {arguments...}")).unwrap();
    if !Path::new(&bench.path("started")).exists() {
        println!("SKIPPED, no mount namespace: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert_failed(
        &output,
        &["its disk cannot be written to: No space left on device", "QEMU's state: io-error", "copying"],
    );
}

/// Any error of the host's disk ends the wait, also one that a guest could be told of: a file that may not grow (EFBIG).
#[test]
fn any_error_of_the_disk_ends_the_wait() {
    let bench = Bench::with_shell(&["fs0:", "echo copying", "cp big more", "echo copied"]);
    // In blocks of 512 bytes: the disk has 16 MiB, of which its first file takes four.
    let script = "trap '' XFSZ; ulimit -f 9000; exec \"$0\" \"$@\"";
    let arguments = bench.arguments(&["--until", "copied\r", "--timeout", "60", "--", "true"]);
    let shell = program::shell().unwrap();
    let output = program::output(cmd!(shell, "sh -c {script} {PROGRAM} {arguments...}")).unwrap();
    assert_failed(&output, &["its disk cannot be written to: File too large", "QEMU's state: io-error", "copying"]);
}

#[test]
fn a_machine_is_given_up_when_its_time_is_over() {
    let bench = Bench::empty();
    assert_failed(
        &bench.boot(&["--timeout", "2", "--until", "never said", "--", "true"]),
        &["not done after", "--timeout"],
    );
    // The firmware's shell waits for somebody to type.
    assert_failed(&bench.boot(&["--timeout", "2"]), &["not done after"]);
}

/// However the program ends, QEMU does not stay.
#[test]
fn a_killed_program_leaves_no_machine_behind() {
    let bench = Bench::empty();
    let (mut child, _said) = bench.begin(&["--monitor", &bench.path("monitor"), "--until", "never said", "--", "true"]);
    let mut monitor = UnixStream::connect(bench.path("monitor")).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    // The end of QEMU is the end of its monitor; a QEMU that stays says nothing more, and this waits for ever.
    if let Err(error) = monitor.read_to_end(&mut vec![]) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
}

/// A device that is none, and one that cannot be opened by name, are passed over; the reason is said once, and is in the JSON.
#[test]
fn a_device_that_is_no_kvm_is_passed_over_with_the_reason() {
    let bench = Bench::empty();
    let file: PathBuf = bench.path("file").into();
    fs::write(&file, "").unwrap();
    let saved = bench.path("saved");
    let boot =
        |device: &Path, accel: &str| bench.boot_over(device, accel, &["--json", "--until", "BdsDxe", "--save", &saved]);
    let output = boot(&file, "auto");
    if !Path::new(&bench.path("started")).exists() {
        println!("SKIPPED, no mount namespace or no /dev/kvm: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["accelerator"], "tcg");
    assert_eq!(json["why_not_kvm"], "/dev/kvm is no device");
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(message.matches("accelerator: TCG, not KVM: /dev/kvm is no device").count(), 1, "{message}");
    assert_failed(&boot(&file, "kvm"), &["KVM does not work here: /dev/kvm is no device"]);
    // A machine that was saved before goes on under what it was saved under, or not at all.
    let resume =
        |accel: &str| bench.boot_over(&file, accel, &["--json", "--resume", &saved, "--until", "BdsDxe", "--", "true"]);
    let mut state = fs::read(&saved).unwrap();
    let at = state.windows(3).position(|window| window == b"tcg").unwrap();
    assert!(at < 4096);
    state[at..at + 3].copy_from_slice(b"kvm");
    fs::write(&saved, state).unwrap();
    let lost =
        ["going on from", "saved under kvm, which does not work here: /dev/kvm is no device", "save another one"];
    assert_failed(&resume("auto"), &lost);
    assert_failed(&resume("tcg"), &["was saved under kvm, and goes on under nothing else"]);
    // A device of another kind: QEMU ends at once, which is no guest's answer and is not kept for the real one.
    let output = boot(Path::new("/dev/null"), "auto");
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(json["why_not_kvm"].as_str().unwrap().starts_with("a guest does not run under it: "), "{json}");
    let kept = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("image-tools-kvm-");
    assert!(!fs::read_dir(bench.0.path()).unwrap().map(Result::unwrap).any(|entry| kept(&entry)));
}

/// The real device of this machine, whatever it is: a guest speaks, under what was taken.
#[test]
fn the_device_of_this_machine_is_asked_by_a_guest_and_once() {
    let bench = Bench::empty();
    let shell = shell(bench.0.path());
    let boot = || {
        let boot = cmd!(
            shell,
            "{PROGRAM} boot disk --quiet --json --log log --memory 256 --accel auto --until BdsDxe --save saved"
        );
        let output = ok(program::output(boot.env("XDG_RUNTIME_DIR", bench.0.path())).unwrap());
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let first = boot();
    assert_eq!(boot(), first);
    assert!(first["accelerator"] == "kvm" || first["why_not_kvm"].is_string(), "{first}");
}

/// A second monitor of a machine under way.
struct Monitor(BufReader<UnixStream>);

impl Monitor {
    fn of(bench: &Bench) -> Self {
        let mut monitor = Self(BufReader::new(UnixStream::connect(bench.path("monitor")).unwrap()));
        monitor.execute("qmp_capabilities", "return");
        monitor
    }

    /// Asks for `command`, and reads until QEMU says `word`; whether it did.
    fn execute(&mut self, command: &str, word: &str) -> bool {
        let asked = writeln!(self.0.get_mut(), "{{\"execute\":\"{command}\"}}");
        asked.is_ok() && self.0.by_ref().lines().map_while(Result::ok).any(|line| line.contains(&format!("\"{word}\"")))
    }
}

#[test]
fn a_guest_may_start_over_but_not_for_ever_while_words_are_waited_for() {
    let bench = Bench::empty();
    let monitored = ["--monitor", &bench.path("monitor")];
    // A deadline beyond the clock is none.
    let forever = ["--timeout", "18446744073709551615"];
    let (mut child, mut said) = bench.begin(&[&monitored[..], &forever].concat());
    let mut monitor = Monitor::of(&bench);
    for _ in 0..6 {
        assert!(monitor.execute("system_reset", "RESET"));
    }
    assert!(monitor.execute("quit", "return"));
    let mut message = String::new();
    said.read_to_string(&mut message).unwrap();
    assert!(child.wait().unwrap().success(), "{message}");

    let (mut child, mut said) = bench.begin(&[&monitored[..], &["--until", "never said", "--", "true"]].concat());
    let mut monitor = Monitor::of(&bench);
    let resets = (0..6).take_while(|_| monitor.execute("system_reset", "RESET")).count();
    said.read_to_string(&mut message).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{message}");
    assert!(resets >= 3 && message.contains("the guest was reset more than 3 times"), "{resets}: {message}");
}

/// QEMU is killed, as for want of memory: the program that works with the guest would wait for it.
#[test]
fn a_qemu_that_fails_ends_the_program_that_works_with_its_guest() {
    let bench = Bench::empty();
    let mut command = bench.command(&["--until", "BdsDxe", "--", "sh", "-c", "echo up $PPID >&2; exec cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.any(|line| line.starts_with("up")));
    // QEMU is the child that was started first.
    let of = |pid: u32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let qemu = of(child.id()).split(' ').next().unwrap().to_owned();
    assert!(fs::read_to_string(format!("/proc/{qemu}/comm")).unwrap().starts_with("qemu"));
    let shell = program::shell().unwrap();
    program::run(cmd!(shell, "kill -KILL {qemu}")).unwrap();
    let message: Vec<String> = said.collect();
    assert_eq!(child.wait().unwrap().code(), Some(1), "{message:?}");
    assert!(message.join("\n").contains("sh was ended: QEMU failed (signal: 9"), "{message:?}");
}

/// What QEMU's section `globalstate` says when a machine is saved that stands.
#[test]
fn a_machine_that_was_saved_while_it_stood_is_refused() {
    let bench = Bench::empty();
    let saved = bench.boot(&["--until", "BdsDxe", "--save", &bench.path("saved")]);
    assert!(saved.status.success(), "{}", String::from_utf8_lossy(&saved.stderr));
    let mut state = fs::read(bench.path("saved")).unwrap();
    let at = state.windows(8).rposition(|window| window == b"running\0").unwrap();
    assert!(state[at - 32..at].windows(11).any(|window| window == b"globalstate"));
    state[at..at + 8].copy_from_slice(b"paused\0\0");
    fs::write(bench.path("saved"), state).unwrap();
    let output = bench.boot(&["--resume", &bench.path("saved"), "--", "true"]);
    assert_failed(&output, &["going on from", "did not run when it was saved (paused)"]);
}

#[test]
fn a_start_that_hangs_is_given_up() {
    let bench = Bench::empty();
    // A QEMU that stops before it says anything.
    let bin = bench.path("bin");
    fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\n[ \"$1\" != --version ] || exec /usr/bin/qemu-system-x86_64 --version\nkill -STOP $$\n";
    fs::write(bench.path("bin/qemu-system-x86_64"), script).unwrap();
    let shell = program::shell().unwrap();
    program::run(cmd!(shell, "chmod +x {bin}/qemu-system-x86_64")).unwrap();
    let path = format!("{bin}:{}", std::env::var("PATH").unwrap_or_default());
    let output = bench.command(&["--timeout", "1"]).env("PATH", path).output().unwrap();
    assert_failed(&output, &["QEMU was started and does not connect"]);
    // A disk without anybody at its other end.
    fs::remove_file(bench.path("disk")).unwrap();
    let disk = bench.path("disk");
    program::run(cmd!(shell, "mkfifo {disk}")).unwrap();
    assert_failed(&bench.boot(&[]), &[&bench.path("disk"), "a disk is a file or a block device"]);
}
