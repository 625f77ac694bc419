//! Processes killed at random moments: nothing is lost but the work since the last checkpoint, and the numbers at the end
//! are those of a process that was left alone.

use crate::support::{LONG, Place, assert_same, checkpoint_step, essence, failed, stderr};
use mm_core::StepRng;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// The step that `latest` names, 0 without one.
fn seen(dir: &Path) -> usize {
    let name = std::fs::read_to_string(dir.join("ckpt/latest")).unwrap_or_default();
    name.strip_prefix("step-").and_then(|n| n.parse().ok()).unwrap_or(0)
}

/// Waits until a checkpoint of at least this step is there, or the process has ended.
fn wait_for(child: &mut Child, dir: &Path, step: usize) {
    let start = Instant::now();
    while seen(dir) < step && child.try_wait().unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(60), "no progress beyond step {}", seen(dir));
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn start(place: &Place, args: &[&str]) -> Child {
    let mut command = place.command(args);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

/// SIGKILL after `step` and a random fraction of a step; returns the step of the checkpoint that is left, if the process
/// had not ended before.
fn kill_after(place: &Place, config: &str, dir: &str, step: usize, micros: u64) -> Option<usize> {
    let mut child = start(place, &["train", config, "--out", dir, "--quiet", "--resume"]);
    wait_for(&mut child, &place.path(dir), step);
    std::thread::sleep(Duration::from_micros(micros));
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(!stderr(&output).contains("panicked"), "{}", stderr(&output));
    if output.status.success() {
        return None;
    }
    assert_eq!(output.status.code(), None, "{}", stderr(&output));
    Some(checkpoint_step(&place.path(dir)))
}

#[test]
fn a_killed_run_resumes_to_the_same_bytes() {
    let place = Place::new();
    place.file("long.toml", LONG);
    place.ok(&["train", "long.toml", "--out", "whole", "-q"]);
    let whole = essence(&place.path("whole"));
    let (mut kills, mut inside) = (0, 0);
    for seed in 0..3u64 {
        let mut draws = StepRng::new(seed).stream("kill").draws();
        let dir = format!("killed{seed}");
        let mut step = 0;
        // 120 steps, killed some three times on the way.
        while step < 100 {
            step = step + 3 + draws.below(50);
            match kill_after(&place, "long.toml", &dir, step.min(117), draws.below(4000) as u64) {
                None => break,
                Some(left) => {
                    kills += 1;
                    inside += usize::from(left % 8 != 0);
                    step = step.max(left);
                }
            }
        }
        place.ok(&["train", "long.toml", "--out", &dir, "-q", "--resume"]);
        assert_same(&whole, &essence(&place.path(&dir)));
    }
    assert!(kills >= 3 && inside >= 1, "{kills} kills, {inside} of them inside an epoch");
}

#[test]
fn latest_names_a_whole_checkpoint_whenever_the_process_dies() {
    let place = Place::new();
    place.file("long.toml", LONG.replace("checkpoint_steps = 3", "checkpoint_steps = 1"));
    place.ok(&["train", "long.toml", "--out", "whole", "-q"]);
    let mut draws = StepRng::new(7).stream("kill").draws();
    let dir = place.path("run");
    let mut steps = Vec::new();
    while steps.len() < 14 {
        let last = steps.last().copied().unwrap_or(0);
        match kill_after(&place, "long.toml", "run", last + 1, draws.below(3000) as u64) {
            None => break,
            Some(step) => {
                assert!(step > last, "{step} after {steps:?}");
                steps.push(step);
            }
        }
    }
    assert!(steps.len() >= 5, "{steps:?}");
    place.ok(&["train", "long.toml", "--out", "run", "-q", "--resume"]);
    assert_same(&essence(&place.path("whole")), &essence(&dir));
    assert_eq!(std::fs::read_dir(dir.join("ckpt")).unwrap().count(), 2, "nothing is left behind");
    let hidden = |dir: &Path| {
        let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|n| n.to_string_lossy().starts_with(".tmp")).count()
    };
    assert_eq!((hidden(&dir), hidden(&dir.join("model"))), (0, 0));
}

#[test]
fn an_interrupt_saves_and_says_how_to_go_on() {
    let place = Place::new();
    place.file("long.toml", LONG.replace("= 15", "= 60"));
    place.ok(&["train", "long.toml", "--out", "whole", "-q"]);
    for signal in ["INT", "TERM"] {
        let dir = place.path(signal);
        let mut child = start(&place, &["train", "long.toml", "--out", signal]);
        wait_for(&mut child, &dir, 9);
        let sent = place.shell(&format!("kill -{signal} {}", child.id()));
        assert!(sent.status.success(), "{}", stderr(&sent));
        let output = child.wait_with_output().unwrap();
        failed(&output, 130, &["stopped after step ", "checkpoint saved", "--resume"]);
        let step = checkpoint_step(&dir);
        assert!(stderr(&output).contains(&format!("after step {step},")), "{}", stderr(&output));
        assert!((9..480).contains(&step));
        place.fails(&["train", "long.toml", "--out", signal], 1, &["unfinished run", "--resume"]);
        place.ok(&["train", "long.toml", "--out", signal, "-q", "--resume"]);
        assert_same(&essence(&place.path("whole")), &essence(&dir));
    }
}

#[test]
fn two_processes_do_not_train_in_one_directory() {
    let place = Place::new();
    place.file("long.toml", LONG.replace("= 15", "= 2000"));
    let mut child = start(&place, &["train", "long.toml", "--out", "run", "-q"]);
    wait_for(&mut child, &place.path("run"), 3);
    for how in ["--resume", "--fresh"] {
        let said = ["run: another process is training in this directory", "--out"];
        place.fails(&["train", "long.toml", "--out", "run", how], 1, &said);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(checkpoint_step(&place.path("run")) >= 3);
    // The lock went with the process.
    let mut child = start(&place, &["train", "long.toml", "--out", "run", "-q", "--resume"]);
    let before = seen(&place.path("run"));
    wait_for(&mut child, &place.path("run"), before + 3);
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}
