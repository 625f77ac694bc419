//! Runs processes side by side, and stops them all when asked to.

use crate::interrupt::Interrupt;
use anyhow::Result;
use std::collections::VecDeque;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// How often processes are looked at; short against any run.
const PERIOD: Duration = Duration::from_millis(5);
/// How long processes may take to end by themselves after an interrupt, which reaches them as well when it is typed.
const GRACE: Duration = Duration::from_secs(2);

/// What the pool tells while it works.
pub(crate) enum Event<'a> {
    /// A job has ended: its number, how, and the time it took. An error means that it could not start.
    Ended(usize, Result<ExitStatus>, Duration),
    /// Time has passed; these jobs run.
    Working(&'a [usize]),
}

/// Runs the jobs in order, at most `width` at a time. Returns false when it was interrupted; then all processes have
/// ended and the rest was not started.
pub(crate) fn run(
    jobs: &[usize],
    width: usize,
    interrupt: &Interrupt,
    start: impl Fn(usize) -> Result<Command>,
    mut tell: impl FnMut(Event<'_>),
) -> bool {
    let mut waiting: VecDeque<usize> = jobs.iter().copied().collect();
    let mut running: Vec<Running> = Vec::new();
    loop {
        if interrupt.came() {
            stop(running);
            return false;
        }
        while running.len() < width
            && let Some(job) = waiting.pop_front()
        {
            let since = Instant::now();
            match start(job).and_then(|mut command| Ok(command.spawn()?)) {
                Ok(child) => running.push(Running { job, child, since }),
                Err(error) => tell(Event::Ended(job, Err(error), since.elapsed())),
            }
        }
        if running.is_empty() {
            return true;
        }
        std::thread::sleep(PERIOD);
        running.retain_mut(|entry| {
            let status = match entry.child.try_wait() {
                Ok(None) => return true,
                Ok(Some(status)) => Ok(status),
                Err(error) => Err(error.into()),
            };
            // An interrupt that is typed reaches the processes too: what they say then is no failure.
            if !interrupt.came() {
                tell(Event::Ended(entry.job, status, entry.since.elapsed()));
            }
            false
        });
        let numbers: Vec<usize> = running.iter().map(|entry| entry.job).collect();
        tell(Event::Working(&numbers));
    }
}

struct Running {
    job: usize,
    child: Child,
    since: Instant,
}

fn stop(mut running: Vec<Running>) {
    let deadline = Instant::now() + GRACE;
    while Instant::now() < deadline && !running.is_empty() {
        std::thread::sleep(PERIOD);
        running.retain_mut(|entry| matches!(entry.child.try_wait(), Ok(None)));
    }
    for mut entry in running {
        // Both fail only when the process has just ended by itself.
        let _ = entry.child.kill();
        let _ = entry.child.wait();
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn runs_all_jobs_and_reports_each_end() {
        let mut ends = Vec::new();
        let mut most = 0;
        let done = run(
            &[3, 0, 7],
            2,
            &Interrupt::quiet(),
            |job| {
                anyhow::ensure!(job != 7, "no such job");
                Ok(shell(&format!("exit {job}")))
            },
            |event| match event {
                Event::Ended(job, status, _) => {
                    ends.push((job, status.ok().and_then(|status| status.code())));
                }
                Event::Working(jobs) => most = most.max(jobs.len()),
            },
        );
        ends.sort_unstable();
        assert!(done && most <= 2);
        assert_eq!(ends, [(0, Some(0)), (3, Some(3)), (7, None)]);
    }

    #[test]
    fn an_interrupt_ends_everything() {
        let interrupt = Interrupt::quiet();
        let began = Instant::now();
        let done = run(
            &[0, 1, 2],
            2,
            &interrupt,
            |_| Ok(shell("exec sleep 60")),
            |event| {
                assert!(
                    matches!(event, Event::Working([0, 1])),
                    "nothing ends by itself and the third never starts"
                );
                interrupt.pretend();
            },
        );
        assert!(!done && began.elapsed() < Duration::from_secs(30));
    }
}
