//! `cargo xtask golden`, with a stand-in for both sides (`fake-golden.sh`).

use super::{code, finish, stderr, stdout};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

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

    /// `cargo xtask golden` with these words; temporary files and the page go to a folder that is looked into.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.arg("golden").args(line.split_whitespace()).arg("--out").arg(self.path("page.md"));
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fake-golden.sh");
        command.env("MM_GOLDEN_BIN", &fake).env("PEER_PYTHON", &fake);
        command.env("FAKE_GOLDEN_LOG", self.path("log")).env("TMPDIR", self.folder.path());
        command
    }

    /// The same, with one variable of the stand-in.
    fn with(&self, line: &str, name: &str, value: &str) -> Output {
        let mut command = self.command(line);
        command.env(name, value);
        finish(command)
    }

    fn log(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.path("log")).unwrap_or_default();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }

    fn page(&self) -> Option<String> {
        std::fs::read_to_string(self.path("page.md")).ok()
    }
}

#[test]
fn every_case_in_every_type_and_the_exports_are_on_the_page() {
    let bench = Bench::new();
    let output = finish(bench.command("--full --export"));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let mut calls = Vec::new();
    for dtype in ["f32", "f64"] {
        for case in ["resnet18-image", "resnet50-image", "bert-base"] {
            calls.extend([format!("python {case} {dtype}"), format!("ours {case} {dtype}")]);
        }
    }
    calls.extend(["ours export", "python export_check"].map(str::to_owned));
    assert_eq!(bench.log(), calls);

    let page = bench.page().expect("the page was written");
    assert!(page.contains("`cargo xtask golden --full --export`, with numpy 9.9, python 3.99.0, safetensors 9.9, timm 9.9, torch 9.9"), "{page}");
    let rows: Vec<String> = page
        .lines()
        .filter(|line| line.starts_with("| bert-base") || line.starts_with("| resnet18 "))
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(
        rows,
        [
            "| bert-base | 2.5 M | 5 | 8 | 1.0e-12 | - | 1.0e-11 | 1.0e-7 | 1.0e-6 | 2 |",
            "| bert-base | 2.5 M | 5 | 8 | 1.0e-12 | - | 1.0e-11 | - | - | 2 |",
            "| resnet18 | 100 | 1.0e-6 |",
        ]
    );
    assert!(stdout(&output).contains("bert-base"), "{}", stdout(&output));
    // Nothing is left of the folders in between.
    let left: Vec<_> =
        bench.folder.path().read_dir().expect("folder").map(|e| e.expect("entry").file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn cases_and_numbers_are_chosen() {
    let bench = Bench::new();
    assert_eq!(code(&finish(bench.command("--full --case resnet50,bert --numbers f64"))), 0);
    let calls = [
        "python resnet50-image f64",
        "ours resnet50-image f64",
        "python bert-base f64",
        "ours bert-base f64",
    ];
    assert_eq!(bench.log(), calls);
    let output = finish(bench.command("--full --case bort-base"));
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).contains("there is no case `bort-base`; did you mean `bert-base`?"),
        "{}",
        stderr(&output)
    );
    // Neither of the two, and a choice of cases where there are none.
    assert_eq!(code(&finish(bench.command(""))), 2);
    assert_eq!(code(&finish(bench.command("--export --case bert-base"))), 2);
    assert_eq!(code(&finish(bench.command("--full --numbers f16"))), 2);
}

#[test]
fn an_error_over_its_bar_is_named() {
    let bench = Bench::new();
    let output = bench.with("--full --case bert-base", "FAKE_GOLDEN_ERROR", "2e-5");
    assert_eq!(code(&output), 1);
    let told = stderr(&output);
    assert!(told.contains("bert-base in f64, gradient `train w`: 2.0e-5, the bar is 1.0e-8"), "{told}");
    assert!(!told.contains("bert-base in f32,"), "{told}");
    assert!(bench.page().expect("written all the same").contains("2.0e-5"));
}

#[test]
fn a_case_that_fails_does_not_keep_the_others_from_running() {
    let bench = Bench::new();
    let output = bench.with("--full --numbers f32", "FAKE_GOLDEN_FAIL", "resnet50-image");
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("resnet50-image in f32 failed: `fake-golden "), "{}", stderr(&output));
    assert!(bench.log().contains(&"ours bert-base f32".to_owned()));
    assert_eq!(bench.page(), None);
}

#[test]
fn without_its_libraries_it_says_what_to_install() {
    let bench = Bench::new();
    let output = bench.with("--full", "FAKE_GOLDEN_LACKS", "timm");
    let told = stderr(&output);
    assert_eq!(code(&output), 1);
    assert!(told.contains("lacks timm: install with `") && told.contains(" -m pip install timm`"), "{told}");
    assert!(told.contains("PEER_PYTHON"), "{told}");

    let output = bench.with("--full --if-available", "FAKE_GOLDEN_LACKS", "timm");
    assert_eq!(code(&output), 0);
    assert!(
        stderr(&output).contains("skipped: ") && stderr(&output).contains("lacks timm"),
        "{}",
        stderr(&output)
    );

    let output = finish(bench.command("--full --python no-such-python"));
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("`no-such-python` is no Python"), "{}", stderr(&output));
    assert_eq!(code(&finish(bench.command("--full --if-available --python no-such-python"))), 0);
    assert!(bench.log().is_empty() && bench.page().is_none());
}

#[test]
fn an_interrupt_ends_it_after_the_case_and_shows_what_there_is() {
    let bench = Bench::new();
    let began = Instant::now();
    let mut command = bench.command("--full --export");
    command.env("FAKE_GOLDEN_SLEEP", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program starts");
    while !bench.log().contains(&"ours resnet18-image f32".to_owned())
        && began.elapsed() < Duration::from_secs(30)
    {
        std::thread::sleep(Duration::from_millis(10));
    }
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.expect("kill").success());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!(code(&output), 130, "{}", stderr(&output));
    assert_eq!(bench.log(), ["python resnet18-image f32", "ours resnet18-image f32"]);
    assert!(
        stdout(&output).contains("resnet18-image") && !stdout(&output).contains("Exports"),
        "{}",
        stdout(&output)
    );
    assert_eq!(bench.page(), None);
}
