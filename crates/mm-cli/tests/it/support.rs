//! The program as a child process, small configurations and small files.

use mm_core::StepRng;
use safetensors::tensor::{Dtype, TensorView, serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A folder with configurations, data and runs; children work in it.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Writes a file.
    pub(crate) fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.path(name), bytes).unwrap();
        self.path(name)
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn json(&self, name: &str) -> serde_json::Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }

    /// `mm` with arguments, to be started here.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mm"));
        self.inside(&mut command).args(args);
        command
    }

    /// A shell that knows the program as `$MM`.
    pub(crate) fn shell(&self, script: &str) -> Output {
        let mut command = Command::new("bash");
        self.inside(&mut command).env("MM", env!("CARGO_BIN_EXE_mm")).args(["-c", script]).output().unwrap()
    }

    fn inside<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.current_dir(self.0.path()).env("RAYON_NUM_THREADS", "1").env_remove("RUST_BACKTRACE")
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs to success and returns standard output.
    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        assert!(output.status.success(), "{args:?}: {}", stderr(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs to failure with this exit code, without a panic, and asserts what standard error says.
    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], code: i32, pieces: &[&str]) {
        failed(&self.run(args), code, pieces);
    }
}

#[track_caller]
pub(crate) fn failed(output: &Output, code: i32, pieces: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    for piece in pieces {
        assert!(text.contains(piece), "{text:?} does not say {piece:?}");
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A synthetic run that takes a while: 8 steps an epoch.
pub(crate) const LONG: &str = r#"
name = "long"
[data]
kind = "synthetic"
classes = 3
n_train = 120
n_val = 20
n_test = 20
sources = [
  { name = "a", dim = 6, latent = 4, hidden = 8 },
  { name = "b", dim = 5, latent = 4, hidden = 8, conflict = 0.2, missing = 0.2 },
]
[model]
encoder = { hidden = [8], dim = 6, norm = "batch", dropout = 0.2 }
[method]
kind = "opm+ogm-ge"
[optim]
kind = "adam"
[train]
epochs = 15
batch_size = 16
checkpoint_steps = 3
"#;

/// What must not depend on when a run was stopped.
pub(crate) fn essence(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let names =
        ["config.toml", "metrics.jsonl", "predictions.json", "model/model.safetensors", "model/config.json"];
    let mut files: BTreeMap<String, Vec<u8>> =
        names.iter().map(|&name| (name.to_owned(), std::fs::read(dir.join(name)).unwrap())).collect();
    let result = std::fs::read(dir.join("result.json")).unwrap();
    let mut result: serde_json::Value = serde_json::from_slice(&result).unwrap();
    for key in ["seconds", "peak_memory_mib"] {
        result.as_object_mut().unwrap().remove(key).unwrap();
    }
    files.insert("result.json".into(), result.to_string().into_bytes());
    files
}

#[track_caller]
pub(crate) fn assert_same(a: &BTreeMap<String, Vec<u8>>, b: &BTreeMap<String, Vec<u8>>) {
    for (name, bytes) in a {
        assert!(*bytes == b[name], "{name} differs");
    }
}

/// Loads what `ckpt/latest` names and returns its step.
#[track_caller]
pub(crate) fn checkpoint_step(dir: &Path) -> usize {
    let saved = mm_train::checkpoint::load(&dir.join("ckpt")).unwrap().expect("a checkpoint");
    assert!(!saved.model.is_empty());
    saved.progress.step
}

/// Ninety rows of three classes: modalities `a` (4 features) and `b` (2), `b` missing in every fifth row.
pub(crate) struct Rows {
    pub(crate) a: Vec<[f32; 4]>,
    pub(crate) b: Vec<Option<[f32; 2]>>,
    pub(crate) y: Vec<usize>,
}

pub(crate) const NAMES: [&str; 3] = ["cat", "dog, big", "emu"];

impl Rows {
    pub(crate) const TRAIN: std::ops::Range<usize> = 0..50;
    pub(crate) const TEST: std::ops::Range<usize> = 70..90;

    pub(crate) fn new() -> Self {
        let mut draws = StepRng::new(1).stream("rows").draws();
        let y: Vec<usize> = (0..90).map(|i| i % 3).collect();
        let mut number = |y: usize, j: usize| {
            let mean = if y == j % 3 { 1.5 } else { 0.0 };
            // Few digits, so that text and binary files hold the same numbers.
            ((mean + draws.normal()) * 1024.0).round() as f32 / 1024.0
        };
        let a = y.iter().map(|&y| std::array::from_fn(|j| number(y, j))).collect();
        let b: Vec<[f32; 2]> = y.iter().map(|&y| std::array::from_fn(|j| number(y, j))).collect();
        let b = b.into_iter().enumerate().map(|(i, b)| (i % 5 != 0).then_some(b)).collect();
        Self { a, b, y }
    }

    fn part(row: usize) -> &'static str {
        if Self::TRAIN.contains(&row) {
            "train"
        } else if Self::TEST.contains(&row) {
            "test"
        } else {
            "val"
        }
    }

    /// The lines of a CSV file for training.
    pub(crate) fn csv(&self) -> Vec<String> {
        let mut lines = vec!["id,y,split,a:0,a:1,a:2,a:3,b_0,b_1".to_owned()];
        for row in 0..self.y.len() {
            lines.push(format!("r{row},\"{}\",{},{}", NAMES[self.y[row]], Self::part(row), self.cells(row)));
        }
        lines
    }

    fn cells(&self, row: usize) -> String {
        let a: Vec<String> = self.a[row].iter().map(ToString::to_string).collect();
        let b = self.b[row].map_or_else(|| ",".to_owned(), |b| format!("{},{}", b[0], b[1]));
        format!("{},{b}", a.join(","))
    }

    /// Some rows as a CSV file to predict.
    pub(crate) fn inputs_csv(&self, rows: impl IntoIterator<Item = usize>) -> String {
        let mut text = "id,a:0,a:1,a:2,a:3,b_0,b_1\n".to_owned();
        for row in rows {
            text += &["r", &row.to_string(), ",", &self.cells(row), "\n"].concat();
        }
        text
    }

    /// Some rows as a safetensors file; without labels where it is to be predicted.
    pub(crate) fn tensors(&self, rows: std::ops::Range<usize>, labels: bool) -> Tensors {
        let a: Vec<f32> = rows.clone().flat_map(|row| self.a[row]).collect();
        let b: Vec<f32> = rows.clone().flat_map(|row| self.b[row].unwrap_or([f32::NAN; 2])).collect();
        let mut tensors = Tensors::default();
        tensors.floats("x_a", 4, &a);
        tensors.floats("x_b", 2, &b);
        tensors.integers("id", &rows.clone().map(|row| row as i64).collect::<Vec<_>>());
        if labels {
            tensors.integers("y", &rows.clone().map(|row| self.y[row] as i64).collect::<Vec<_>>());
            for part in ["train", "val", "test"] {
                let rows: Vec<i64> =
                    rows.clone().filter(|&row| Self::part(row) == part).map(|row| row as i64).collect();
                tensors.integers(&format!("{part}_index"), &rows);
            }
        }
        tensors
    }
}

/// A safetensors file in the making; a tensor given again replaces the first.
#[derive(Default)]
pub(crate) struct Tensors(BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>);

impl Tensors {
    pub(crate) fn floats(&mut self, name: &str, dim: usize, values: &[f32]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.0.insert(name.into(), (Dtype::F32, vec![values.len() / dim, dim], bytes));
    }

    pub(crate) fn integers(&mut self, name: &str, values: &[i64]) {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.0.insert(name.into(), (Dtype::I64, vec![values.len()], bytes));
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        assert!(self.0.remove(name).is_some());
        self
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let views = self
            .0
            .iter()
            .map(|(n, (dtype, shape, b))| (n, TensorView::new(*dtype, shape.clone(), b).unwrap()));
        serialize(views, None).unwrap()
    }
}

/// The configuration of a short run on a file.
pub(crate) fn on_file(kind: &str, path: &str) -> String {
    format!(
        "[data]\nkind = \"{kind}\"\npath = \"{path}\"\n[model]\nencoder = {{ hidden = [8], dim = 6 }}\n[optim]\n\
         kind = \"adam\"\nlr = 0.02\n[train]\nepochs = 6\nbatch_size = 16\n"
    )
}
