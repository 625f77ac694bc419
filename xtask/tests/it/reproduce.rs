//! From the command line to the table.

use crate::{Bench, code, finish, stderr, stdout};
use std::process::Stdio;
use std::time::{Duration, Instant};

const SMALL: &str = "--method ensemble,joint,mlb,sum-ce --seeds 3 --jobs 2";

#[test]
fn prints_and_writes_the_table() {
    let bench = Bench::new();
    let output = finish(bench.reproduce(SMALL));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    let table: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("method")).take(8).collect();
    assert_eq!(
        table.join("\n"),
        "\
method           accuracy    macro F1        ECE            vs joint [95 %]     fast probe      slow probe  epoch / joint  s/run
-------------  ----------  ----------  ---------  -------------------------  -------------  --------------  -------------  -----
unimodal fast  61.00±1.00  61.00±1.00  5.00±0.00  -20.00 [-20.00, -20.00]            62.00               -           1.00    1.5
unimodal slow  71.00±1.00  71.00±1.00  5.00±0.00  -10.00 [-10.00, -10.00]                -           72.00           1.00    1.5
ensemble       79.00±1.00  79.00±1.00  5.00±0.00     -2.00 [-2.00, -2.00]                -               -              -    1.5
joint          81.00±1.00  81.00±1.00  5.00±0.00                        -    61.00 (-1.00)  55.00 (-17.00)              -    1.5
sum-ce         79.83±0.80  79.83±0.80  5.00±0.00     -1.17 [-1.68, -0.65] ▼  59.00 (-3.00)  56.00 (-16.00)           1.00    1.5
mlb            84.10±1.10  84.10±1.10  5.00±0.00     +3.10 [+2.85, +3.35] ▲  60.00 (-2.00)   70.00 (-2.00)           1.00    1.5"
    );
    let unbroken = text.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "Percent of the test part; ± is the sample standard deviation (n - 1) over 3 seeds (n = 3 runs).",
        "paired by seed, with Student's 95 % interval over seeds (n = 3): ▲",
        "Best method by validation accuracy: mlb.",
        "Agreement of joint with the models trained alone, percent of 12 test rows (all seeds and folds)",
        "commit c0ffee, candle 0.11.1, device cpu",
        "optim.lr by method, chosen on validation parts by `cargo xtask tune synthetic` \
         (experiments/synthetic.tuned.toml): unimodal fast 0.",
        "command: `cargo xtask reproduce --method",
    ] {
        assert!(unbroken.contains(part), "`{part}` is not in:\n{text}");
    }
    let markdown = std::fs::read_to_string(bench.path("out/table.md")).expect("table.md was written");
    assert!(markdown.contains("| unimodal fast | 61.00±1.00 |"), "{markdown}");
}

#[test]
fn writes_the_numbers_as_documented() {
    let bench = Bench::new();
    assert_eq!(code(&finish(bench.reproduce(SMALL))), 0);
    let results = bench.results();
    assert_eq!((&results["format"], &results["experiment"]), (&2.into(), &"synthetic".into()));
    assert_eq!(results["commit"], "c0ffee");
    assert_eq!(results["dataset_hash"].as_array().expect("one per seed").len(), 3);
    assert_eq!(results["warnings"].as_array().expect("a list").len(), 0);
    let rows = results["rows"].as_array().expect("rows");
    let methods: Vec<&str> = rows.iter().filter_map(|row| row["method"].as_str()).collect();
    assert_eq!(methods, ["unimodal", "unimodal", "ensemble", "joint", "sum-ce", "mlb"]);
    let mlb = &rows[5];
    let close = |value: &serde_json::Value, expected: f64| {
        let value = value.as_f64().expect("a number");
        assert!((value - expected).abs() < 1e-9, "{value} is not {expected}");
    };
    close(&mlb["accuracy"]["mean"], 0.841); // 0.830, 0.841, 0.852
    close(&mlb["accuracy"]["std"], 0.011);
    close(&mlb["difference_from_joint"]["mean"], 0.031); // 0.030, 0.031, 0.032
    let half = 4.302_652_729_911_275 * 0.001 / 3.0_f64.sqrt();
    close(&mlb["difference_from_joint"]["low"], 0.031 - half);
    close(&mlb["unimodal"]["slow"]["probe"]["mean"], 0.7);
    close(&mlb["unimodal_separate"]["slow"]["accuracy"]["mean"], 0.71);
    assert_eq!(mlb["fusion"], "late-linear");
    assert_eq!(rows[4]["fusion"], serde_json::Value::Null);
    assert!(results["tuned"]["values"]["unimodal:slow"]["all"].is_f64());
    for run in mlb["runs"].as_array().expect("runs") {
        let folder = bench.path("out").join(run.as_str().expect("a path"));
        assert!(folder.join("result.json").is_file(), "{}", folder.display());
    }
    let agreement = &results["agreement"][1];
    assert_eq!((&agreement["method"], &agreement["samples"]), (&"mlb".into(), &12.into()));
    close(&agreement["rows"][1]["accuracy"], 1.0); // only `fast` right
    assert_eq!(agreement["rows"][1]["unimodal"], "only fast right");
}

#[test]
fn what_is_done_is_not_done_again() {
    let bench = Bench::new();
    assert_eq!(code(&finish(bench.reproduce(SMALL))), 0);
    let calls = bench.calls();
    assert_eq!(calls.len(), 3 * 6);
    // Two runs side by side may write their lines in either order.
    let called = |part: &str| calls.iter().position(|call| call.contains(part)).expect("called");
    let first = called(" train configs/unimodal-fast-s0-");
    assert!(calls[first].contains(" --resume --quiet --out runs/"));
    assert!(called(" ensemble runs/unimodal-fast-s2-") >= 15, "ensembles come last: {calls:?}");
    let before = bench.results()["rows"].clone();

    let again = finish(bench.reproduce(SMALL));
    assert_eq!(code(&again), 0);
    assert!(stderr(&again).contains("all 18 runs are done"));
    assert_eq!(bench.calls().len(), 18, "nothing was called");
    assert_eq!(bench.results()["rows"], before);

    let more = finish(bench.reproduce("--method joint,mlb --seeds 4"));
    assert!(stderr(&more).contains("2 of 8 runs to do"), "{}", stderr(&more));
    let other = finish(bench.reproduce("--method joint --seeds 1 --set optim.lr=0.5"));
    assert!(stderr(&other).contains("1 of 1 runs to do"), "{}", stderr(&other));
    let config = bench.calls()[20].split_whitespace().nth(2).expect("a configuration").to_owned();
    let text = std::fs::read_to_string(bench.path("out").join(config)).expect("readable");
    assert!(text.contains("lr = 0.5"), "{text}");

    let fresh = finish(bench.reproduce("--method joint --seeds 3 --fresh"));
    assert_eq!(code(&fresh), 0);
    assert_eq!(bench.calls().len(), 21 + 3);
}

#[test]
fn damaged_and_changed_runs_are_done_again() {
    let bench = Bench::new();
    let line = "--method joint --seeds 2";
    assert_eq!(code(&finish(bench.reproduce(line))), 0);
    let runs = bench.results()["rows"][0]["runs"].clone();
    let first = runs[0].as_str().expect("a path");
    std::fs::write(bench.path("out").join(first).join("result.json"), "{\"format\":1,").expect("writable");
    let config =
        bench.path("out").join(runs[1].as_str().expect("a path").replace("runs/", "configs/") + ".toml");
    std::fs::write(&config, "seed = 9\n").expect("writable");
    assert_eq!(code(&finish(bench.reproduce(line))), 0);
    assert_eq!(bench.calls().len(), 4);
    assert_ne!(std::fs::read_to_string(&config).expect("readable"), "seed = 9\n");
}

#[test]
fn a_failed_run_is_reported_and_the_others_go_on() {
    let bench = Bench::new();
    let mut command = bench.reproduce(SMALL);
    command.env("FAKE_MM_FAIL", "kind = \"sum-ce\"");
    let output = finish(command);
    assert_eq!(code(&output), 1);
    let said = stderr(&output);
    assert!(
        said.contains("run sum-ce, seed 1 failed:\n  exit status: 2\n  first line\n  error: train.epochs"),
        "{said}"
    );
    assert!(said.contains("3 of 18 runs failed"), "{said}");
    let text = stdout(&output);
    let row = text.lines().find(|line| line.starts_with("sum-ce ")).expect("a row");
    assert_eq!(row.split_whitespace().take(4).collect::<Vec<_>>(), ["sum-ce", "failed", "failed", "failed"]);
    assert!(text.contains("FAILED: sum-ce, seed 0: error: train.epochs = 0: must be at least 1"), "{text}");
    let results = bench.results();
    assert_eq!(results["failures"].as_array().expect("failures").len(), 3);
    assert_eq!((&results["rows"][4]["failed"], &results["rows"][5]["failed"]), (&3.into(), &0.into()));

    let mended = finish(bench.reproduce(SMALL));
    assert_eq!(code(&mended), 0);
    assert!(stderr(&mended).contains("3 of 18 runs to do"));
}

#[test]
fn an_ensemble_needs_all_its_members() {
    let bench = Bench::new();
    let mut command = bench.reproduce("--method ensemble --seeds 1");
    command.env("FAKE_MM_FAIL", "modality = \"slow\"");
    let output = finish(command);
    assert_eq!(code(&output), 1);
    assert_eq!(bench.calls().len(), 2, "the ensemble was not tried");
    assert_eq!(bench.results()["failures"][1]["reason"], "unimodal slow, seed 0 failed");
}

#[test]
fn the_cores_are_shared_out() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for (jobs, threads) in [(1, cores), (cores, 1), (2 * cores, 1)] {
        let bench = Bench::new();
        finish(bench.reproduce(&format!("--method joint --seeds 1 --jobs {jobs}")));
        assert!(bench.calls()[0].starts_with(&format!("{threads} train ")), "{:?}", bench.calls());
    }
}

#[test]
fn an_interrupt_keeps_what_is_done() {
    let bench = Bench::new();
    assert_eq!(code(&finish(bench.reproduce("--method joint --seeds 1"))), 0);
    let mut command = bench.reproduce("--method joint,mlb --seeds 3 --jobs 2");
    command.env("FAKE_MM_SLEEP", "600").stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().expect("the program starts");
    let began = Instant::now();
    while bench.calls().len() < 3 {
        assert!(began.elapsed() < Duration::from_secs(60), "two runs start");
        std::thread::sleep(Duration::from_millis(10));
    }
    let locked = finish(bench.reproduce("--method joint"));
    assert!(stderr(&locked).contains("another `reproduce` or `tune` writes to"), "{}", stderr(&locked));
    let killed = std::process::Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status();
    assert!(killed.expect("kill starts").success());
    let output = child.wait_with_output().expect("the program ends");
    assert!(began.elapsed() < Duration::from_secs(60), "it does not wait for its runs");
    assert_eq!(code(&output), 130);
    assert!(stderr(&output).contains("interrupted: 1 of 6 runs are done and kept"), "{}", stderr(&output));
    assert!(stderr(&output).contains("to go on: the same command\n"), "{}", stderr(&output));

    let resumed = finish(bench.reproduce("--method joint,mlb --seeds 3 --jobs 2"));
    assert_eq!(code(&resumed), 0);
    assert!(stderr(&resumed).contains("5 of 6 runs to do"), "{}", stderr(&resumed));
}

#[test]
fn progress_is_one_line_per_run_off_a_terminal() {
    let bench = Bench::new();
    let output = finish(bench.reproduce("--method joint --seeds 2 --jobs 1"));
    let said = stderr(&output);
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with('[')).collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].starts_with("[1/2] joint, late-linear, seed 0: done in "), "{said}");
    assert!(!said.contains('\r'));
}

#[test]
fn several_fusions_are_rows_of_their_own() {
    let bench = Bench::new();
    let output = finish(bench.reproduce("--method unimodal,joint,mlb --fusion film,sum --seeds 2"));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.lines().any(|line| line.starts_with("mlb            film ")), "{text}");
    assert!(text.contains("Rows without a fusion are compared with joint training under film."), "{text}");
    let results = bench.results();
    let fusions: Vec<_> =
        results["rows"].as_array().expect("rows").iter().map(|row| row["fusion"].clone()).collect();
    assert_eq!(fusions[2..], ["film", "sum", "film", "sum"]);
}
