//! What is being done, on standard error: a line for every step and program that has ended, with its time (`-v`,
//! `RUST_LOG`), beside the steps that are going on, which a terminal shows.

use std::io::{IsTerminal, stderr};

use tracing_indicatif::IndicatifLayer;
use tracing_subscriber::{
    EnvFilter, Layer, filter::filter_fn, fmt, fmt::format::FmtSpan, layer::SubscriberExt, util::SubscriberInitExt,
};

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
        .with_filter(filter);
    let steps = steps.with_filter(filter_fn(|span| span.is_span() && span.target() == STEP));
    tracing_subscriber::registry().with(lines).with(steps).init();
}
