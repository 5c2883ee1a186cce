//! Programs that tests run, in the words in which one would type them.

use std::{
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
pub fn output(cmd: Cmd<'_>) -> Output {
    Command::from(cmd).output().unwrap()
}

/// What a program that must succeed has printed.
pub fn ok(cmd: Cmd<'_>) -> String {
    let words = cmd.to_string();
    let output = output(cmd);
    assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Whether this machine has the program; says so where it has not.
pub fn is_here(program: &str) -> bool {
    let found = Command::from(cmd!(shell("."), "{program} --help")).output().is_ok();
    if !found {
        println!("SKIPPED: no {program} on this machine");
    }
    found
}
