//! Calls of the program itself, with a stand-in for `mm` (`fake-mm.sh`).
#![cfg(unix)]

mod architecture;
mod experiments;
mod golden;
mod peer;
mod reproduce;
mod tune;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

/// A folder to write to, and how to call the program there.
struct Bench {
    folder: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("temporary folder") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `cargo xtask reproduce` with these words, into the folder `out`.
    fn reproduce(&self, line: &str) -> Command {
        self.task("reproduce", line)
    }

    /// A task that calls the stand-in, with these words, into the folder `out`.
    fn task(&self, task: &str, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg(task).args(line.split_whitespace()).arg("--out").arg(self.path("out"));
        command.env("MM_BIN", Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fake-mm.sh"));
        command.env("MM_COMMIT", "c0ffee").env("FAKE_MM_LOG", self.path("calls"));
        command
    }

    /// The calls of the stand-in so far, one line each, without this folder's path.
    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("calls")).unwrap_or_default();
        let here = format!("{}/out/", self.folder.path().display());
        text.replace(&here, "").lines().map(str::to_owned).collect()
    }

    fn results(&self) -> Value {
        let text = std::fs::read_to_string(self.path("out/results.json")).expect("results.json was written");
        serde_json::from_str(&text).expect("results.json is JSON")
    }
}

fn finish(mut command: Command) -> Output {
    command.output().expect("the program starts")
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("the program exits")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}
