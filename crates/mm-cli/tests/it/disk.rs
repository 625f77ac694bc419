//! A disk that takes no more: a limit on the size of files stands in for it.

use crate::support::{LONG, Place, assert_same, checkpoint_step, essence, failed};
use mm_train::{Options, Outcome, RunConfig, train};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// Trains one step and stops with a checkpoint.
fn one_step(config: &str, dir: &Path) {
    let config = RunConfig::parse(config, &[]).unwrap();
    let interrupted = AtomicBool::new(true);
    let options =
        Options { resume: true, fresh: false, quiet: true, interrupted: &interrupted, commit: None };
    assert!(matches!(train(&config, dir, options).unwrap(), Outcome::Interrupted { .. }));
}

#[test]
fn a_full_disk_stops_the_run_and_the_old_checkpoint_survives() {
    let place = Place::new();
    let config = LONG.replace("= 15", "= 4").replace("dim = 6, norm", "dim = 64, norm");
    place.file("long.toml", &config);
    place.ok(&["train", "long.toml", "--out", "whole", "-q"]);
    let dir = place.path("run");
    for _ in 0..4 {
        one_step(&config, &dir);
    }
    let before = std::fs::read(dir.join("ckpt/latest")).unwrap();
    // Telemetry fits into the limit, the model does not.
    let output = place.shell("trap '' XFSZ; ulimit -f 4; exec \"$MM\" train long.toml --out run -q --resume");
    failed(&output, 1, &["cannot write run/ckpt/step-000000006", "File too large", "free space", "intact"]);
    assert_eq!(std::fs::read(dir.join("ckpt/latest")).unwrap(), before);
    assert_eq!(checkpoint_step(&dir), 4);
    assert_eq!(std::fs::read_dir(dir.join("ckpt")).unwrap().count(), 2, "the half checkpoint is gone");
    place.ok(&["train", "long.toml", "--out", "run", "-q", "--resume"]);
    assert_same(&essence(&place.path("whole")), &essence(&dir));
}

#[test]
fn a_full_disk_at_the_start_is_named_too() {
    let place = Place::new();
    place.file("long.toml", LONG);
    let output = place.shell("trap '' XFSZ; ulimit -f 0; exec \"$MM\" train long.toml --out run -q");
    failed(&output, 1, &["cannot write run/config.toml", "free space or choose another --out"]);
    assert!(!place.path("run/config.toml").exists());
    place.ok(&["train", "long.toml", "--out", "run", "-q", "--set", "train.epochs=1"]);
}

#[test]
fn standard_output_that_is_full_is_an_error() {
    let place = Place::new();
    if Path::new("/dev/full").exists() {
        let output = place.shell("\"$MM\" methods > /dev/full");
        failed(&output, 1, &["error: ", "No space left"]);
    }
}
