//! Programs that tests run, in the words in which one would type them.

use std::{
    ffi::OsStr,
    iter,
    path::Path,
    process::{Command, Output},
};

use xshell::{Cmd, Shell, cmd};

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_composefs-finalize");

/// Where programs are run: in `dir`, those of the superuser found too. As long-lived as the test, for a command borrows it.
pub fn shell(dir: impl AsRef<Path>) -> &'static Shell {
    let shell = Shell::new().unwrap();
    shell.change_dir(dir);
    let path = shell.var("PATH").unwrap();
    shell.set_var("PATH", format!("{path}:/usr/sbin:/sbin"));
    Box::leak(Box::new(shell))
}

/// What a program has done, whatever its exit status.
pub fn output(command: impl Into<Command>) -> Output {
    command.into().output().unwrap()
}

/// The same, of a program that this machine may lack.
pub fn if_here(cmd: Cmd<'_>) -> Option<Output> {
    Command::from(cmd).output().ok()
}

/// What a program that must succeed has printed.
#[track_caller]
pub fn ok(command: impl Into<Command>) -> String {
    let command = command.into();
    let words = iter::once(command.get_program()).chain(command.get_args()).map(OsStr::to_string_lossy);
    let words = words.collect::<Vec<_>>().join(" ");
    let output = output(command);
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether this machine has the program; says so where it has not.
pub fn is_here(program: &str) -> bool {
    let found = if_here(cmd!(shell("."), "{program} --help")).is_some();
    if !found {
        println!("SKIPPED: no {program} on this machine");
    }
    found
}
