//! `cargo xtask bench peer`, with a stand-in for both sides (`fake-side.sh`).

use super::{code, finish, stderr, stdout};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
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

    /// `cargo xtask bench peer` with these words.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
        command.args(["bench", "peer"]).args(line.split_whitespace());
        let fake = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fake-side.sh");
        command.env("PEER_STEP_BIN", &fake).env("PEER_DATA_BIN", &fake).env("PEER_PYTHON", &fake);
        command.env("FAKE_SIDE_LOG", self.path("log"));
        command
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

#[test]
fn both_sides_take_turns_under_one_environment() {
    let bench = Bench::new();
    let line = "--row conformer-layer --rounds 2 --steps 3 --warmup 1 --threads 2 --batch 4 --small --out";
    let mut command = bench.command(line);
    command.arg(bench.path("new/peer.json"));
    let output = finish(command);
    assert_eq!(code(&output), 0, "{}", stderr(&output));

    let log = bench.log();
    let calls: Vec<&str> = log.lines().collect();
    let call = "--row conformer-layer-f32 --batch 4 --small threads 2 2 glibc.malloc.hugetlb=1:";
    assert!(calls[0].starts_with(&format!("ours {call}")), "{log}");
    assert_eq!(calls[0].replace("ours", "torch"), calls[1]);
    let turns = ["ours step 1", "torch step 1"];
    let first = ["ours step 3", "torch step 3"];
    let second = ["torch step 3", "ours step 3"];
    assert_eq!(calls[2..8], [turns, first, second].concat());
    assert_eq!(calls[8..].iter().map(|line| line.trim()).collect::<Vec<_>>(), ["ours quit", "torch quit"]);

    // The times of turn t are t, 2t and 3t and a half, on either side.
    let text = std::fs::read_to_string(bench.path("new/peer.json")).expect("the file was written");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let row = &value["rows"][0];
    assert_eq!(row["name"], "conformer-layer-f32");
    assert_eq!(row["ours_rounds_ms"][0], serde_json::json!([2.5, 4.5, 6.5]));
    assert_eq!((&row["ours_ms"], &row["peer_ms"]), (&Value::from(5.5), &Value::from(5.5)));
    assert_eq!((&row["ratio"], &row["ratio_mib"]), (&Value::from(1.0), &Value::from(1.0)));
    assert_eq!(row["batch"], 4);
    assert_eq!((&row["ours_mib"], &row["peer_start_mib"]), (&Value::from(100.0), &Value::from(50.0)));
    let environment = &value["environment"];
    assert_eq!((&environment["peer"], &environment["threads"]), (&"torch 9.9".into(), &2.into()));
    assert_eq!((&environment["batch"], &environment["small"]), (&4.into(), &true.into()));
    let shown = stdout(&output);
    assert!(shown.contains("conformer-layer-f32      5.5      5.5   1.00  1.00-1.00"), "{shown}");
    assert!(shown.contains("Small inputs"), "{shown}");
}

#[test]
fn without_torch_ours_runs_alone() {
    let bench = Bench::new();
    let mut command = bench.command("--row resnet18-audio-f32 --rounds 1 --steps 1 --warmup 0 --out");
    command.arg(bench.path("peer.json")).arg("--default-allocator").env("PEER_PYTHON", "no-such-python");
    let output = finish(command);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains("no PyTorch under no-such-python: ours runs alone"));
    let calls: Vec<String> = bench.log().lines().map(|line| line.trim().to_owned()).collect();
    assert!(calls[0].ends_with(" none"), "{calls:?}");
    assert_eq!(calls[1..], ["ours step 1", "ours quit"]);
    let text = std::fs::read_to_string(bench.path("peer.json")).expect("the file was written");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(value["rows"][0]["ours_ms"], 1.5);
    assert!(value["rows"][0]["peer_ms"].is_null() && value["environment"]["peer"].is_null());
    assert!(value["environment"]["allocator"].is_null());
}

#[test]
fn a_row_without_its_library_runs_alone_and_others_do_not() {
    let bench = Bench::new();
    let rows = "conformer,wav2vec2-base-forward,efficientnet-b2";
    let mut command =
        bench.command(&format!("--row {rows} --rounds 1 --steps 1 --warmup 0 --batch 16 --out"));
    command.arg(bench.path("peer.json")).env("FAKE_SIDE_LACKS", "transformers");
    let output = finish(command);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let told = stderr(&output);
    assert!(told.contains("there is no transformers under "), "{told}");
    assert!(told.contains(": ours runs alone in wav2vec2-base-forward-f32"), "{told}");
    assert!(!told.contains("there is no torchvision"), "{told}");

    // Rows with a batch of their own ignore --batch, on both sides.
    let log = bench.log();
    let started: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("--row"))
        .map(|line| line.split(" threads").next().unwrap_or(line))
        .collect();
    assert_eq!(
        started,
        [
            "ours --row conformer-layer-f32 --batch 16",
            "torch --row conformer-layer-f32 --batch 16",
            "ours --row conformer-f32 --batch 8",
            "torch --row conformer-f32 --batch 8",
            "ours --row wav2vec2-base-forward-f32 --batch 4",
            "ours --row efficientnet-b2-forward-f32 --batch 8",
            "torch --row efficientnet-b2-forward-f32 --batch 8",
        ]
    );
    let text = std::fs::read_to_string(bench.path("peer.json")).expect("the file was written");
    let value: Value = serde_json::from_str(&text).expect("JSON");
    let batches: Vec<_> = (0..4).map(|row| &value["rows"][row]["batch"]).collect();
    assert_eq!(batches, [16, 8, 4, 8]);
    assert!(value["rows"][2]["peer_ms"].is_null() && value["rows"][3]["peer_ms"].is_number());
    let shown = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        shown.contains("of a batch of 16 (8 in conformer-f32, 4 in wav2vec2-base-forward-f32, 8 in"),
        "{shown}"
    );
}

#[test]
fn rows_of_data_have_files_one_thread_and_libraries_of_their_own() {
    let bench = Bench::new();
    let mut command = bench.command("--row data --threads 2 --rounds 1 --steps 1 --warmup 0 --batch 3");
    command.env("FAKE_SIDE_LACKS", "soundfile");
    let output = finish(command);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains(": ours runs alone in data-wav"), "{}", stderr(&output));
    let log = bench.log();
    let started: Vec<&str> = log.lines().filter(|line| line.contains("--row")).collect();
    let whose: Vec<&str> =
        started.iter().filter_map(|line| line.split(" --batch 16 --files ").next()).collect();
    let rows = ["data-stft", "data-jpeg", "data-wav"];
    let expected: Vec<String> =
        rows.iter().flat_map(|row| ["ours", "torch"].map(|who| format!("{who} --row {row}"))).collect();
    assert_eq!(whose, expected[..5]);
    for line in &started {
        let (_, rest) = line.split_once(" --files ").expect("a folder");
        let (folder, rest) = rest.split_once(" threads ").expect("threads");
        assert!(rest.starts_with("1 1 "), "{line}");
        assert!(!Path::new(folder).exists(), "{folder} was left behind");
    }
    assert!(
        stdout(&output).contains("- A step of a row `data-` is so many files or clips, on one thread.\n")
    );
}

#[test]
fn help_names_the_rows_with_a_batch_of_their_own() {
    let output = finish(Bench::new().command("--help"));
    let shown = stdout(&output).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        shown.contains("conformer-f32 and efficientnet-b2 always have 8, wav2vec2-base 4, data 16"),
        "{shown}"
    );
}

#[test]
fn a_side_that_fails_is_named_and_nothing_is_written() {
    let bench = Bench::new();
    let mut command = bench.command("--row resnet18-audio-f32 --out");
    command.arg(bench.path("peer.json")).env("FAKE_SIDE_FAIL", "torch");
    let output = finish(command);
    assert_eq!(code(&output), 1);
    assert!(
        stderr(&output).contains("row resnet18-audio-f32: PyTorch ended before it answered"),
        "{}",
        stderr(&output)
    );
    assert!(!bench.path("peer.json").exists());
}

#[test]
fn an_unknown_row_is_refused() {
    let output = finish(Bench::new().command("--row resnet19"));
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("there is no row `resnet19`"), "{}", stderr(&output));
    assert_eq!(code(&finish(Bench::new().command("--rounds 0"))), 2);
}

#[test]
fn an_interrupt_ends_both_sides() {
    let bench = Bench::new();
    let began = Instant::now();
    let mut command = bench.command("--row resnet18-audio-f32,conformer");
    let child = command.env("FAKE_SIDE_SLEEP", "2").stderr(std::process::Stdio::piped()).spawn();
    let mut child = child.expect("the program starts");
    while !bench.log().contains("step 3") && began.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(10));
    }
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.expect("kill").success());
    assert_eq!(child.wait().expect("it ends").code(), Some(130));
    assert!(began.elapsed() < Duration::from_secs(40), "the side at work slept on");
}
