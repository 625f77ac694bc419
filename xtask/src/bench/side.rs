//! A process that trains one row when it is told to, and the lines it is spoken to in.
//!
//! ```text
//! it says   {"ready": "what it runs on", "mib": m}   once, when its model is built; the memory that it holds, or null
//! we say    step N
//! it says   {"ms": [t_1, …, t_N], "loss": l}         wall-clock time of each step; the loss of the last one
//! we say    quit
//! it says   {"mib": m}                               the most memory that it held, or null; then it ends
//! ```
//!
//! The end of its input ends it too, so it does not outlive this program whatever happens here.

use crate::interrupt::Interrupt;
use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// How often an interrupt is looked for while a process computes; it costs the measurement nothing.
const PERIOD: Duration = Duration::from_millis(100);
/// How long a process may take to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// The first line of a process.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct Ready {
    /// What it runs on, such as `torch 2.9.0`.
    pub(super) ready: String,
    /// The memory that it holds before its first step.
    pub(super) mib: Option<f64>,
}

/// The answer to `step N`.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub(super) struct Steps {
    /// Milliseconds of each step.
    pub(super) ms: Vec<f64>,
    /// The loss of the last step; none where it is not finite.
    pub(super) loss: Option<f64>,
}

/// The answer to `quit`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Peak {
    mib: Option<f64>,
}

/// Ctrl-C came while a process was at work.
#[derive(Debug)]
pub(super) struct Interrupted;

impl fmt::Display for Interrupted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// One of the two processes of a row. Dropping it ends the process.
#[derive(Debug)]
pub(super) struct Side {
    name: &'static str,
    child: Child,
    input: ChildStdin,
    lines: Receiver<std::io::Result<String>>,
    interrupt: Interrupt,
}

impl Side {
    /// Starts the process and waits until it is ready; returns what it says then as well.
    pub(super) fn start(
        name: &'static str,
        mut command: Command,
        interrupt: &Interrupt,
    ) -> Result<(Self, Ready)> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("{name} has no pipes");
        };
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if send.send(line).is_err() {
                    break;
                }
            }
        });
        let mut side = Self { name, child, input, lines, interrupt: interrupt.clone() };
        let ready = side.answer()?;
        Ok((side, ready))
    }

    /// Trains so many steps and returns the milliseconds of each.
    pub(super) fn steps(&mut self, count: usize) -> Result<Vec<f64>> {
        self.say(&format!("step {count}"))?;
        let steps: Steps = self.answer()?;
        check(&steps, count).with_context(|| self.name.to_owned())?;
        Ok(steps.ms)
    }

    /// Ends the process and returns the most memory that it held, in MiB, where the system knows.
    pub(super) fn quit(mut self) -> Result<Option<f64>> {
        self.say("quit")?;
        let Peak { mib } = self.answer()?;
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(mib)
    }

    fn say(&mut self, line: &str) -> Result<()> {
        let written = writeln!(self.input, "{line}").and_then(|()| self.input.flush());
        if written.is_err() && self.interrupt.came() {
            bail!(Interrupted);
        }
        written.with_context(|| format!("{} does not listen any more", self.name))
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        loop {
            let line = self.lines.recv_timeout(PERIOD);
            if self.interrupt.came() {
                bail!(Interrupted); // typed, it reaches the process too: what that says or does then is no failure
            }
            match line {
                Ok(line) => return parse(&line?).with_context(|| self.name.to_owned()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let status = self.child.wait()?;
                    bail!("{} ended before it answered ({status})", self.name);
                }
            }
        }
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Both fail only when the process has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T> {
    serde_json::from_str(line).map_err(|error| anyhow!("cannot read the line `{line}`: {error}"))
}

fn check(steps: &Steps, count: usize) -> Result<()> {
    if steps.ms.len() != count {
        bail!("{} times for {count} steps", steps.ms.len());
    }
    if let Some(ms) = steps.ms.iter().find(|ms| !ms.is_finite() || **ms <= 0.0) {
        bail!("{ms} ms is no time");
    }
    if !steps.loss.is_some_and(f64::is_finite) {
        bail!("the loss is not finite: what it computes is not a training step");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_strictly() {
        let steps: Steps = parse(r#"{"ms": [12.5, 11.0], "loss": 1.5}"#).expect("an answer");
        assert_eq!(steps, Steps { ms: vec![12.5, 11.0], loss: Some(1.5) });
        assert!(check(&steps, 2).is_ok());
        assert_eq!(check(&steps, 3).expect_err("too few").to_string(), "2 times for 3 steps");
        let refused = |line: &str| parse::<Steps>(line).expect_err("refused").to_string();
        assert!(refused("UserWarning: slow").starts_with("cannot read the line `UserWarning: slow`"));
        assert!(refused(r#"{"ms": [1], "loss": 1, "l": 2}"#).contains("unknown field"));
        let bad = |line: &str| check(&parse(line).expect("an answer"), 1).expect_err("refused").to_string();
        assert!(bad(r#"{"ms": [1.0], "loss": null}"#).contains("not finite"));
        assert!(bad(r#"{"ms": [0], "loss": 1}"#).contains("0 ms is no time"));
    }

    #[cfg(unix)]
    mod processes {
        use super::*;

        const SERVER: &str = r#"
            echo '{"ready": "sh", "mib": 3}'
            while read -r word count; do
                case $word in
                    step) echo '{"ms": [2.0, 1.0], "loss": 0.5}' ;;
                    quit) echo '{"mib": 7.5}'; exit ;;
                esac
            done"#;

        fn shell(script: &str) -> Command {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        }

        #[test]
        fn a_conversation() {
            let (mut side, ready) = Side::start("it", shell(SERVER), &Interrupt::quiet()).expect("ready");
            assert_eq!(ready, Ready { ready: "sh".to_owned(), mib: Some(3.0) });
            assert_eq!(side.steps(2).expect("two steps"), [2.0, 1.0]);
            assert!(format!("{:#}", side.steps(3).expect_err("two again")).contains("it: 2 times for 3"));
            assert_eq!(side.quit().expect("an answer"), Some(7.5));
        }

        #[test]
        fn a_process_that_ends_is_named() {
            let error = Side::start("PyTorch", shell("exit 3"), &Interrupt::quiet()).expect_err("no answer");
            let error = error.to_string();
            assert!(error.starts_with("PyTorch ended before it answered") && error.contains('3'), "{error}");
        }

        #[test]
        fn an_interrupt_ends_a_process_at_work() {
            let began = Instant::now();
            let interrupt = Interrupt::quiet();
            let script = format!("{}; exec sleep 60", "echo '{\"ready\": \"\", \"mib\": null}'");
            let (mut side, _) = Side::start("it", shell(&script), &interrupt).expect("ready");
            interrupt.pretend();
            assert!(side.steps(1).expect_err("interrupted").is::<Interrupted>());
            drop(side); // waits for the end of the process
            assert!(began.elapsed() < Duration::from_secs(30));
        }
    }
}
