//! Progress bars, on a terminal only.

use super::context::Context;
use super::output::bytes;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::io::IsTerminal as _;
use std::sync::LazyLock;
use std::time::Duration;

/// Several bars share the terminal.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// What has been done so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Done {
    pub count: u64,
    /// What is counted.
    pub unit: &'static str,
    pub bytes: u64,
    /// The bytes there are to do; 0 if that is not known yet.
    pub expected: u64,
}

/// Shows `read`'s answers until dropped.
pub struct Shown {
    bar: ProgressBar,
    task: Option<tokio::task::JoinHandle<()>>,
}

/// Of `expected` bytes in all, if that is known or will be.
pub fn show(context: &Context, label: &str, expected: Option<u64>, read: impl Fn() -> Done + Send + 'static) -> Shown {
    let quiet = context.globals.quiet || context.globals.json || !std::io::stderr().is_terminal();
    if quiet {
        return Shown { bar: ProgressBar::hidden(), task: None };
    }
    let bar = BARS.add(ProgressBar::new(expected.unwrap_or(0)));
    let template = match expected {
        Some(_) => "{prefix} {bar:30} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} ETA {eta} · {msg}",
        None => "{prefix} {spinner} {decimal_bytes} {decimal_bytes_per_sec} · {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(label.to_owned());
    let shown = bar.clone();
    let task = tokio::spawn(async move {
        loop {
            let done = read();
            if let Some(expected) = expected {
                // A source may have grown since it was last seen.
                shown.set_length(expected.max(done.expected).max(done.bytes).max(1));
            }
            shown.set_position(done.bytes);
            shown.set_message(format!("{} {}", done.count, done.unit));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    });
    Shown { bar, task: Some(task) }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.bar.finish_and_clear();
    }
}

/// "1.2 GB in 3.4 s, 353 MB/s".
pub fn pace(count: u64, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    let rate = u128::from(count) * 1000 / took.as_millis().max(1);
    let rate = bytes(u64::try_from(rate).unwrap_or(u64::MAX));
    format!("{} in {seconds:.1} s, {rate}/s", bytes(count))
}
