//! `image-tools`: see the library.

use std::{io, process::ExitCode};

use clap::Parser;
use image_tools::{
    cli::{Cli, code},
    workshop::Workshop,
};
use tokio::{
    runtime::Runtime,
    signal::unix::{SignalKind, signal},
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    cli.start_logging();
    let run = || {
        let runtime = Runtime::new()?;
        let workshop = Workshop::open(runtime.handle().clone())?;
        end_with_signals(&runtime, &workshop)?;
        let done = cli.run(&workshop, &mut io::stdout());
        workshop.clear();
        done
    };
    run().unwrap_or_else(|error| {
        #[allow(clippy::print_stderr, reason = "only main speaks")]
        match error.downcast_ref::<clap::Error>() {
            Some(usage) => eprint!("{}", usage.render()),
            None => eprintln!("image-tools: {error:#}"),
        }
        code(&error)
    })
}

/// SIGINT and SIGTERM end this program, and nothing half-made is left behind.
fn end_with_signals(runtime: &Runtime, workshop: &Workshop) -> io::Result<()> {
    let _entered = runtime.enter();
    for kind in [SignalKind::interrupt(), SignalKind::terminate()] {
        let (mut ends, workshop) = (signal(kind)?, workshop.clone());
        runtime.spawn(async move {
            ends.recv().await;
            workshop.clear();
            std::process::exit(128 + kind.as_raw_value());
        });
    }
    Ok(())
}
