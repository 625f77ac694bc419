//! Small configurations, small files, and runs.

use mm_core::StepRng;
use mm_train::{Options, Outcome, RunConfig, RunResult, TrainError, train};
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

/// Two modalities, one of them missing in a fifth of the rows; dropout and batch normalisation on; 5 steps an epoch.
pub(crate) const SMALL: &str = r#"
name = "small"
[data]
kind = "synthetic"
classes = 3
n_train = 70
n_val = 24
n_test = 30
sources = [
  { name = "a", dim = 6, latent = 4, hidden = 8 },
  { name = "b", dim = 5, latent = 4, hidden = 8, conflict = 0.2, missing = 0.2 },
]
[model]
encoder = { hidden = [8], dim = 6, norm = "batch", dropout = 0.2 }
[train]
epochs = 3
batch_size = 16
"#;

pub(crate) fn parse(text: &str, sets: &[&str]) -> RunConfig {
    let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
    RunConfig::parse(text, &sets).unwrap()
}

/// [`SMALL`] with some settings changed.
pub(crate) fn small(sets: &[&str]) -> RunConfig {
    parse(SMALL, sets)
}

/// Trains with `resume` or `fresh`, stopping after one step if `stop`.
pub(crate) fn go(
    config: &RunConfig,
    dir: &Path,
    (resume, fresh, stop): (bool, bool, bool),
) -> Result<Outcome, TrainError> {
    let interrupted = AtomicBool::new(stop);
    train(config, dir, Options { resume, fresh, quiet: true, interrupted: &interrupted, commit: None })
}

pub(crate) const START: (bool, bool, bool) = (false, false, false);
pub(crate) const RESUME: (bool, bool, bool) = (true, false, false);
pub(crate) const FRESH: (bool, bool, bool) = (false, true, false);
pub(crate) const ONE_STEP: (bool, bool, bool) = (true, false, true);

/// Trains to the end and returns the result.
#[track_caller]
pub(crate) fn done(config: &RunConfig, dir: &Path, how: (bool, bool, bool)) -> RunResult {
    match go(config, dir, how).unwrap() {
        Outcome::Done(result) => *result,
        other => panic!("{other:?}"),
    }
}

/// What a run leaves that must not depend on when it was stopped: file by file, without times.
pub(crate) fn essence(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for name in [
        "config.toml",
        "metrics.jsonl",
        "predictions.json",
        "model/config.json",
        "model/model.safetensors",
        "model/preprocessor_config.json",
    ] {
        files.insert(name.to_owned(), std::fs::read(dir.join(name)).unwrap());
    }
    files.insert("result.json".into(), timeless(&dir.join("result.json"), &["seconds", "peak_memory_mib"]));
    let latest = latest(dir);
    for name in ["model.safetensors", "best.safetensors", "state/optimizer.safetensors"] {
        files.insert(format!("ckpt/{name}"), std::fs::read(latest.join(name)).unwrap());
    }
    files.insert("ckpt/trainer.json".into(), timeless(&latest.join("state/trainer.json"), &["seconds"]));
    files
}

/// A JSON file without some keys.
pub(crate) fn timeless(path: &Path, keys: &[&str]) -> Vec<u8> {
    let mut value: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    for key in keys {
        assert!(value.as_object_mut().unwrap().remove(*key).is_some(), "{key}");
    }
    serde_json::to_vec(&value).unwrap()
}

/// The folder that `ckpt/latest` names.
pub(crate) fn latest(dir: &Path) -> PathBuf {
    dir.join("ckpt").join(std::fs::read_to_string(dir.join("ckpt/latest")).unwrap())
}

/// Asserts file by file, so that a failure names the file.
#[track_caller]
pub(crate) fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    for (name, bytes) in a {
        assert!(*bytes == b[name], "{name} differs");
    }
}

/// The lines of `metrics.jsonl` of one kind.
pub(crate) fn lines(dir: &Path, kind: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    all.filter(|line| line["kind"] == kind).collect()
}

/// A feature set in memory: 60 training, 20 validation and 20 test rows of 3 classes, modalities `a` (4) and `b` (3).
#[derive(Debug, Clone)]
pub(crate) struct Set {
    pub(crate) a: Vec<f32>,
    pub(crate) b: Vec<f32>,
    pub(crate) y: Vec<i64>,
}

impl Set {
    pub(crate) const ROWS: usize = 100;
    pub(crate) const TEST: std::ops::Range<usize> = 80..100;

    pub(crate) fn new() -> Self {
        let mut draws = StepRng::new(5).stream("set").draws();
        let y: Vec<i64> = (0..Self::ROWS as i64).map(|i| i % 3).collect();
        let mut features = |dim: usize, noise: f64| -> Vec<f32> {
            let mean = |row: usize, j: usize| if y[row] as usize == j % 3 { 1.0 } else { 0.0 };
            (0..Self::ROWS * dim).map(|i| (mean(i / dim, i % dim) + noise * draws.normal()) as f32).collect()
        };
        Self { a: features(4, 0.8), b: features(3, 0.5), y }
    }

    pub(crate) fn write(&self, path: &Path) {
        fn raw<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
            values.iter().flat_map(|&v| bytes(v)).collect()
        }
        let index = |rows: std::ops::Range<i64>| raw(&rows.collect::<Vec<_>>(), i64::to_le_bytes);
        let parts =
            [("train_index", index(0..60)), ("val_index", index(60..80)), ("test_index", index(80..100))];
        let (a, b) = (raw(&self.a, f32::to_le_bytes), raw(&self.b, f32::to_le_bytes));
        let y = raw(&self.y, i64::to_le_bytes);
        let mut views = vec![
            ("x_a", TensorView::new(Dtype::F32, vec![Self::ROWS, 4], &a).unwrap()),
            ("x_b", TensorView::new(Dtype::F32, vec![Self::ROWS, 3], &b).unwrap()),
            ("y", TensorView::new(Dtype::I64, vec![Self::ROWS], &y).unwrap()),
        ];
        for (name, bytes) in &parts {
            views.push((name, TensorView::new(Dtype::I64, vec![bytes.len() / 8], bytes).unwrap()));
        }
        std::fs::write(path, serialize(views, None).unwrap()).unwrap();
    }
}

/// A run on the feature set at `path`.
pub(crate) fn on_features(path: &Path, sets: &[&str]) -> RunConfig {
    let text = format!(
        "[data]\nkind = \"features\"\npath = {:?}\n[model]\nencoder = {{ hidden = [8], dim = 6 }}\n[train]\nepochs = 3\n\
         batch_size = 16\n",
        path.display().to_string()
    );
    parse(&text, sets)
}

/// Asserts that a message has all these pieces.
#[track_caller]
pub(crate) fn says(error: &impl std::fmt::Display, pieces: &[&str]) {
    let text = error.to_string();
    for piece in pieces {
        assert!(text.contains(piece), "{text:?} does not say {piece:?}");
    }
}
