//! `image-tools`: see the library.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match image_tools::cli::Cli::parse().run(&mut std::io::stdout()) {
        Ok(code) => code,
        Err(error) => {
            #[allow(clippy::print_stderr, reason = "only main speaks")]
            {
                eprintln!("image-tools: {error:#}");
            }
            ExitCode::FAILURE
        }
    }
}
