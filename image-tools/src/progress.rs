//! How far a step is, in bytes: on a terminal a bar with rate and remaining time, else now and then a line of JSON.

use std::{
    io::{self, Read},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{Span, info};
use tracing_indicatif::{span_ext::IndicatifSpanExt, style::ProgressStyle};

/// Events with this target say how far the step is in which they are.
pub const TARGET: &str = "image_tools::progress";

/// How often that is said where there is no bar.
const EVERY: Duration = Duration::from_secs(2);

const BAR: &str =
    "{span_child_prefix}{span_name}{{{span_fields}}} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";

/// How far the step is that was going on when this was made.
#[derive(Debug)]
pub struct Progress {
    span: Span,
    total: u64,
    every: Duration,
    done: Mutex<(u64, Instant)>,
}

impl Progress {
    /// Of the step that is going on, which will take `total` bytes.
    pub fn of_step(total: u64) -> Self {
        let span = Span::current();
        if let Ok(style) = ProgressStyle::with_template(BAR) {
            span.pb_set_style(&style);
        }
        span.pb_set_length(total);
        Self { span, total, every: EVERY, done: Mutex::new((0, Instant::now())) }
    }

    /// The same, said as often as this where there is no bar.
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    /// So many bytes more are done; from any thread.
    pub fn add(&self, bytes: u64) {
        let mut done = self.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.0 += bytes;
        self.span.pb_set_position(done.0);
        if done.1.elapsed() >= self.every {
            done.1 = Instant::now();
            self.span.in_scope(|| info!(target: TARGET, bytes = done.0, total = self.total));
        }
    }

    /// The same reader, whose bytes are what is done.
    pub fn count<R: Read>(&self, inner: R) -> Counted<'_, R> {
        Counted { inner, progress: self }
    }
}

/// A reader that is counted.
#[derive(Debug)]
pub struct Counted<'a, R> {
    inner: R,
    progress: &'a Progress,
}

impl<R> Counted<'_, R> {
    /// The reader itself.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.progress.add(count as u64);
        Ok(count)
    }
}
