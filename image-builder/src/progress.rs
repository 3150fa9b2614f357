//! Progress on a terminal: bytes, rate and time left; silent when standard error is not a terminal.
//!
//! Knows nothing of what is being done; callers count.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::time::Duration;

/// Where progress is shown.
#[derive(Clone)]
pub struct Progress(MultiProgress);

impl Progress {
    /// Progress on standard error if that is a terminal, else nowhere.
    pub fn stderr() -> Self {
        Self(MultiProgress::new())
    }
    /// No progress.
    pub fn quiet() -> Self {
        Self(MultiProgress::with_draw_target(ProgressDrawTarget::hidden()))
    }
    /// A bar that counts bytes up to `total`.
    pub fn bytes(&self, what: &str, total: u64) -> Bar {
        self.bar(what, total, "{msg:28} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}")
    }
    /// A bar that counts things up to `total`.
    pub fn items(&self, what: &str, total: u64) -> Bar {
        self.bar(what, total, "{msg:28} {wide_bar} {pos}/{len} {eta}")
    }
    /// A line that shows that something of unknown length goes on.
    pub fn busy(&self, what: &str) -> Bar {
        let bar = self.bar(what, 0, "{msg:28} {spinner} {elapsed}");
        bar.0.enable_steady_tick(Duration::from_millis(120));
        bar
    }
    fn bar(&self, what: &str, total: u64, template: &str) -> Bar {
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.0.add(ProgressBar::new(total).with_style(style));
        bar.set_message(what.to_owned());
        Bar(bar)
    }
}

/// One line of progress; vanishes when dropped.
pub struct Bar(ProgressBar);

impl Bar {
    /// Counts `n` more bytes or things.
    pub fn add(&self, n: u64) {
        self.0.inc(n);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
