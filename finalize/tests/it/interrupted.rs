//! A signal while a finalization only reads: it ends there, not when everything is read, and has written nothing.
//!
//! strace(1) sends the signal with a certain system call, so that it always arrives in the middle.

use std::{fs, process::Output};

use finalize::{boot::Loader, layout};
use xshell::cmd;

use crate::{
    machine::Machine,
    programs::{if_here, shell},
};

/// A finalization that gets SIGTERM with the `n`-th `call` of a thread, and how many of these calls there were. None where
/// there is no strace.
fn stopped(machine: &Machine, call: &str, n: u32) -> Option<(Output, usize)> {
    let (trace, staged) = (machine.path("trace"), machine.command(&["staged"]));
    let (program, args, n) = (staged.get_program(), staged.get_args(), n.to_string());
    let output = if_here(cmd!(
        shell("."),
        "strace -f -qq -e signal=none -e trace={call} -o {trace} -e inject={call}:signal=SIGTERM:when={n} --
         {program} {args...}"
    ));
    let output = output.filter(|output| !String::from_utf8_lossy(&output.stderr).to_lowercase().contains("ptrace"));
    let Some(output) = output else {
        println!("SKIPPED, no strace here");
        return None;
    };
    let calls = fs::read_to_string(trace).unwrap().lines().filter(|line| line.contains(&format!("{call}("))).count();
    Some((output, calls))
}

/// The run says that it was stopped, and what boots; nothing but its record and its lock is new.
fn assert_untouched(machine: &Machine, output: &Output) {
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("stopped by a signal"), "{message}");
    assert!(message.contains("the old deployment boots next"), "{message}");
    let untouched = Machine::new(Loader::SystemdBoot);
    assert_eq!(machine.live(), untouched.live());
    let names = |machine: &Machine| -> Vec<_> {
        let mut names: Vec<_> = fs::read_dir(machine.state("b")).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(machine), names(&untouched));
    assert!(!machine.path("sysroot").join(layout::STAGED).exists(), "the update was begun");
    machine.ok(&["staged"]);
    assert_eq!(machine.live(), ["b", "a", "rescue.conf"]);
}

#[test]
fn a_plan_of_a_large_tree_ends_at_a_signal() {
    const DIRS: usize = 300;
    let machine = Machine::new(Loader::SystemdBoot);
    for letter in ["a", "b"] {
        for dir in 0..DIRS {
            let dir = machine.state(letter).join("etc/many.d").join(dir.to_string());
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("file"), letter).unwrap();
        }
    }
    let Some((output, calls)) = stopped(&machine, "getdents64", 40) else { return };
    assert_untouched(&machine, &output);
    // A directory takes two of them, in each tree that has it.
    assert!(calls < DIRS, "{calls} calls: the trees were read to their end");
}

#[test]
fn a_directory_with_many_files_is_not_read_to_its_end_after_a_signal() {
    const FILES: usize = 2000;
    let machine = Machine::new(Loader::SystemdBoot);
    let dir = machine.state("a").join("etc/many.d");
    fs::create_dir(&dir).unwrap();
    (0..FILES).for_each(|number| fs::write(dir.join(number.to_string()), "").unwrap());
    let Some((output, calls)) = stopped(&machine, "llistxattr", 100) else { return };
    assert_untouched(&machine, &output);
    assert!(calls < FILES / 2, "{calls} calls: the directory was read to its end");
}

#[test]
fn a_large_file_is_not_compared_to_its_end_after_a_signal() {
    const BLOCKS: usize = 2000;
    let machine = Machine::new(Loader::SystemdBoot);
    // Changed here and in the image, perhaps in the same way: only the bytes can tell.
    for letter in ["a", "b"] {
        let file = fs::File::create(machine.state(letter).join("etc/large")).unwrap();
        file.set_len((BLOCKS << 16) as u64).unwrap();
    }
    let Some((output, calls)) = stopped(&machine, "read", 1500) else { return };
    assert_untouched(&machine, &output);
    assert!(calls > 1500, "the signal came too early");
    assert!(calls < BLOCKS * 3 / 2, "{calls} calls: both files were read to their ends");
}

#[test]
fn a_digest_of_a_large_kernel_ends_at_a_signal() {
    const SIZE: usize = 64 << 20;
    let machine = Machine::new(Loader::SystemdBoot);
    fs::File::options().write(true).open(machine.kernel("b").join("vmlinuz")).unwrap().set_len(SIZE as u64).unwrap();
    let Some((output, calls)) = stopped(&machine, "read", 400) else { return };
    assert!(calls < SIZE >> 14, "{calls} calls: the kernel was read to its end");
    fs::File::options().write(true).open(machine.kernel("b").join("vmlinuz")).unwrap().set_len(1).unwrap();
    assert_untouched(&machine, &output);
}
