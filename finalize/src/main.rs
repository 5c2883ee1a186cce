//! `composefs-finalize`: see the library.

use std::process::ExitCode;

use clap::Parser;
use finalize::cli::Cli;

fn main() -> ExitCode {
    finalize::journal::begin();
    finalize::sys::limit::open_files();
    let result = Cli::parse().run(&mut std::io::stdout().lock());
    match result {
        Ok(code) => code,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "only main speaks")]
            {
                eprintln!("composefs-finalize: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
