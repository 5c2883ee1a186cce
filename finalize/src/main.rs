//! `composefs-finalize`: see the library.

use std::{
    io::{stderr, stdout},
    process::ExitCode,
};

use clap::Parser;
use finalize::{cli::Cli, journal};

fn main() -> ExitCode {
    journal::begin();
    finalize::sys::limit::open_files();
    finalize::sys::limit::threads();
    match Cli::parse().run(&mut journal::Pipe(stdout().lock())) {
        Ok(code) => code,
        Err(error) => {
            // Only main speaks.
            journal::say(&mut stderr(), &format!("composefs-finalize: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
