//! What is being done, on standard error: a line for every step and program that has ended, with its time (`-v`,
//! `RUST_LOG`), beside the steps that are going on, which a terminal shows, and without one lines of JSON.

use std::io::{IsTerminal, stderr};

use tracing_indicatif::IndicatifLayer;
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt::{self, MakeWriter, format::FmtSpan},
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use crate::progress;

/// Spans with this target are steps.
const STEP: &str = "image_tools::step";

/// Shows what is asked for from here on.
pub fn start(verbose: u8) {
    let asked = match verbose {
        0 => "warn",
        1 => "warn,image_tools=info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(asked));
    let steps = IndicatifLayer::new();
    let lines = fmt::layer()
        .with_writer(steps.get_stderr_writer())
        .with_ansi(stderr().is_terminal())
        .with_target(false)
        .with_timer(fmt::time::uptime())
        .with_span_events(FmtSpan::CLOSE)
        .with_filter(filter.and(filter_fn(|what| what.target() != progress::TARGET)));
    let far = (!stderr().is_terminal()).then(|| how_far(stderr));
    let steps = steps.with_filter(filter_fn(|span| span.is_span() && span.target() == STEP));
    tracing_subscriber::registry().with(far).with(lines).with(steps).init();
}

/// How far steps are, a line of JSON each time.
fn how_far<W: for<'w> MakeWriter<'w> + 'static>(writer: W) -> impl Layer<Registry> {
    let line = fmt::layer().json().flatten_event(true).with_span_list(false).without_time();
    let only = filter_fn(|what| what.target() == progress::TARGET || what.is_span() && what.target() == STEP);
    line.with_writer(writer).with_level(false).with_target(false).with_filter(only)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Seek},
        sync::Arc,
        time::Duration,
    };

    use super::*;
    use crate::progress::Progress;

    #[test]
    fn without_a_terminal_a_line_says_how_far_a_step_is() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let log = tracing_subscriber::registry().with(how_far(file.clone()));
        tracing::subscriber::with_default(log, || {
            let _step = tracing::info_span!(target: "image_tools::step", "pull", image = "x").entered();
            let progress = Progress::of_step(7).every(Duration::ZERO);
            progress.add(3);
            progress.count(&b"four"[..]).read_to_end(&mut vec![]).unwrap();
            tracing::warn!("something else");
        });
        let (mut file, mut said) = (&*file, String::new());
        file.rewind().unwrap();
        file.read_to_string(&mut said).unwrap();
        let lines: Vec<_> = said.lines().collect();
        assert_eq!(lines[0], r#"{"bytes":3,"total":7,"span":{"image":"x","name":"pull"}}"#);
        assert_eq!(lines[1], r#"{"bytes":7,"total":7,"span":{"image":"x","name":"pull"}}"#);
        assert!(lines[2..].iter().all(|line| *line == lines[1]), "{said}");
    }
}
