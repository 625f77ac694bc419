//! What is printed, and how.

use mm_train::RunResult;
use mm_train::result::Scores;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::Path;

/// Writes to standard output; a closed pipe is an error that `main` knows.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Writes an error to standard error.
pub(crate) fn error(error: &anyhow::Error) {
    let mut text = String::new();
    for cause in error.chain().map(|e| without_backtrace(&e.to_string())) {
        // Most of our errors quote their cause themselves.
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    let _ = writeln!(io::stderr(), "error: {text}");
}

/// candle appends the frames of its own calls where `RUST_BACKTRACE` is set; they help nobody who runs `mm`.
fn without_backtrace(text: &str) -> String {
    let frames = text.find("\n   0: ").unwrap_or(text.len());
    text[..frames].trim_end().to_owned()
}

/// Writes a note to standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Whether the reader of our output went away, as in `mm methods | head`.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe))
}

/// The summary of a finished run.
pub(crate) fn result(result: &RunResult, dir: &Path) -> anyhow::Result<()> {
    let mut text = String::new();
    let r = result;
    writeln!(text, "{} ({}, {}) on {}", r.name, r.method, r.fusion, r.dataset.name)?;
    if r.selected_on_test {
        writeln!(text, "NOTE: protocol {}: the test part chose the epoch; numbers are too high", r.protocol)?;
    }
    for warning in &r.warnings {
        writeln!(text, "warning: {warning}")?;
    }
    writeln!(
        text,
        "epoch {} of {}, {} steps, {:.1} s",
        r.selected_epoch + 1,
        r.epochs,
        r.steps,
        r.seconds.total
    )?;
    scores(&mut text, "test", &r.test)?;
    for (name, u) in &r.unimodal {
        let ways = [("head", u.head), ("split", u.split), ("probe", u.probe), ("masked", u.masked)];
        let known = ways.iter().filter_map(|(way, a)| a.map(|a| format!("{way} {:.2} %", 100.0 * a)));
        writeln!(text, "  {name} alone: {}", known.collect::<Vec<_>>().join(", "))?;
    }
    writeln!(text, "written to {}", dir.display())?;
    print(&text)
}

/// One part's metrics.
pub(crate) fn scores(text: &mut String, part: &str, s: &Scores) -> std::fmt::Result {
    writeln!(
        text,
        "{part}: accuracy {:.2} %, macro F1 {:.2} %, ECE {:.2} %, cross-entropy {:.4}",
        100.0 * s.accuracy,
        100.0 * s.macro_f1,
        100.0 * s.ece,
        s.loss
    )
}
