//! Shows what a kernel build is doing: a bar on a terminal, otherwise a plain
//! line for each stage and every ten seconds. Everything goes to stderr.

use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use nix::sys::signal::{SigSet, SigmaskHow};

use super::{Environment, Messages};
use crate::kernel::{Event, Unit};

/// Time between two plain lines.
const INTERVAL: Duration = Duration::from_secs(10);

/// Renders [`Event`]s.
#[derive(Debug)]
pub struct Progress {
    messages: Messages,
    bar: Option<ProgressBar>,
    stage: String,
    stage_began: Instant,
    line_shown: Instant,
}

impl Progress {
    /// With a bar if standard error is a terminal.
    #[must_use]
    pub fn new(env: &Environment) -> Self {
        Self {
            messages: Messages::new(env),
            bar: env.stderr_is_terminal.then(hidden_bar),
            stage: String::new(),
            stage_began: Instant::now(),
            line_shown: Instant::now(),
        }
    }

    /// Shows one event.
    pub fn show(&mut self, event: Event) {
        match event {
            Event::Note(text) => self.line(&text),
            Event::Stage(text) => self.begin(text),
            Event::Progress { done, total, unit } => self.advance(done, total, unit),
        }
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.messages.note(text)),
            None => self.messages.note(text),
        }
    }

    fn begin(&mut self, stage: String) {
        self.stage_began = Instant::now();
        self.line_shown = Instant::now();
        match &self.bar {
            Some(bar) => {
                bar.set_style(style("{spinner} {msg}"));
                bar.set_message(stage.clone());
                bar.unset_length();
                bar.reset();
                // Last, or a bar without a stage would flash up.
                bar.set_draw_target(ProgressDrawTarget::stderr());
                // Its thread must not be the one that gets a signal which a build holds back.
                let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
                bar.enable_steady_tick(Duration::from_millis(200));
                let _ = before.and_then(|before| before.thread_set_mask());
            }
            None => self.line(&stage),
        }
        self.stage = stage;
    }

    fn advance(&mut self, done: u64, total: Option<u64>, unit: Unit) {
        let Some(bar) = &self.bar else {
            if self.line_shown.elapsed() >= INTERVAL {
                self.line_shown = Instant::now();
                let progress = describe(done, total, unit, self.stage_began.elapsed());
                self.line(&format!("{}: {progress}", self.stage));
            }
            return;
        };
        if bar.length() != total {
            match (total, unit) {
                (Some(total), Unit::Steps) => {
                    bar.set_style(style("{msg} [{bar:30}] {percent:>3} %, {eta} left"));
                    bar.set_length(total);
                }
                (Some(total), Unit::Bytes) => {
                    bar.set_style(style("{msg} [{bar:30}] {bytes} of {total_bytes}, {eta} left"));
                    bar.set_length(total);
                }
                (None, _) => {}
            }
        }
        if total.is_none() && unit == Unit::Bytes {
            bar.set_message(format!("{}: {}", self.stage, HumanBytes(done)));
        }
        bar.set_position(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}

fn hidden_bar() -> ProgressBar {
    ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `43 %, about 2 min left`, `12.5 MiB`.
fn describe(done: u64, total: Option<u64>, unit: Unit, elapsed: Duration) -> String {
    let Some(total) = total.filter(|total| *total > 0) else {
        return match unit {
            Unit::Bytes => HumanBytes(done).to_string(),
            Unit::Steps => format!("{done} files"),
        };
    };
    let percent = done.min(total) * 100 / total;
    if done == 0 {
        return format!("{percent} %");
    }
    let left = elapsed.as_secs_f64() * (total.saturating_sub(done)) as f64 / done as f64;
    let left = if left >= 90.0 { format!("{:.0} min", left / 60.0) } else { format!("{left:.0} s") };
    format!("{percent} %, about {left} left")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_the_share_and_the_time_left() {
        let after = Duration::from_secs;
        for (done, total, unit, elapsed, expected) in [
            (0, Some(100), Unit::Steps, 0, "0 %"),
            (50, Some(100), Unit::Steps, 120, "50 %, about 2 min left"),
            (75, Some(100), Unit::Steps, 60, "75 %, about 20 s left"),
            (150, Some(100), Unit::Steps, 60, "100 %, about 0 s left"),
            (7, None, Unit::Steps, 1, "7 files"),
            (1 << 20, None, Unit::Bytes, 1, "1.00 MiB"),
        ] {
            assert_eq!(describe(done, total, unit, after(elapsed)), expected);
        }
    }
}
