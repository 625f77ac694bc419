//! Progress on stderr: one updating line on a terminal, a plain line per finished run elsewhere.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Counts finished runs and says so.
#[derive(Debug)]
pub(crate) struct Progress {
    total: usize,
    done: usize,
    failed: usize,
    since: Instant,
    shown: Option<Instant>,
    terminal: bool,
}

impl Progress {
    /// For so many runs.
    pub(crate) fn new(total: usize) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self { total, done: 0, failed: 0, since: Instant::now(), shown: None, terminal }
    }

    /// A run has ended.
    pub(crate) fn ended(&mut self, label: &str, failed: bool, took: Duration) {
        self.done += 1;
        self.failed += usize::from(failed);
        if !self.terminal {
            let outcome = if failed { "FAILED" } else { "done" };
            let width = self.total.to_string().len();
            eprintln!(
                "[{:>width$}/{}] {label}: {outcome} in {:.1} s",
                self.done,
                self.total,
                took.as_secs_f64()
            );
        }
    }

    /// Redraws the line, at most ten times a second.
    pub(crate) fn working(&mut self, running: usize, label: &str) {
        let soon = self.shown.is_some_and(|shown| shown.elapsed() < Duration::from_millis(100));
        if self.terminal && !soon {
            self.shown = Some(Instant::now());
            let line = self.line(running, label, self.since.elapsed());
            eprint!("\r\x1b[2K{line}");
            let _ = std::io::stderr().flush(); // a terminal that is gone needs no progress
        }
    }

    /// Clears the line, so that other text can follow.
    pub(crate) fn clear(&mut self) {
        if self.shown.take().is_some() {
            eprint!("\r\x1b[2K");
        }
    }

    fn line(&self, running: usize, label: &str, elapsed: Duration) -> String {
        let mut parts = vec![format!("[{}/{}] {running} running", self.done, self.total), clock(elapsed)];
        if self.done >= 3 {
            let left = elapsed.mul_f64((self.total - self.done) as f64 / self.done as f64);
            parts.push(format!("about {} left", clock(left)));
        }
        if self.failed > 0 {
            parts.push(format!("{} FAILED", self.failed));
        }
        let line = parts.join(", ");
        let line = format!("{line} | {label}");
        line.chars().take(100).collect()
    }
}

/// Minutes and seconds, with hours where there are any.
pub(crate) fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_how_far_it_is() {
        let mut progress = Progress::new(70);
        (progress.done, progress.failed) = (10, 1);
        assert_eq!(
            progress.line(2, "mlb, seed 0", Duration::from_secs(65)),
            "[10/70] 2 running, 1:05, about 6:30 left, 1 FAILED | mlb, seed 0"
        );
        assert_eq!(clock(Duration::from_secs(3661)), "1:01:01");
    }
}
