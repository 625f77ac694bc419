//! The search for a setting of every method, and what `reproduce` makes of it.

use crate::{Bench, code, finish, stderr, stdout};
use std::collections::BTreeMap;
use std::process::Command;

/// Two modalities, two folds, a grid of two values and two seeds; needs no data.
const SMALL: &str = r#"
title = "Small"
note = "Made up."
protocol = "validation-select"
interval_note = "Folds share training rows."
seeds = 2
fusions = ["late-linear"]
modalities = ["fast", "slow"]
[[folds]]
name = "fold1"
set.data.split = { train = "one" }
[[folds]]
name = "fold2"
set.data.split = { train = "two" }
[base]
seed = 0
[base.data]
kind = "features"
[base.model.fusion]
kind = "late-linear"
[base.optim]
kind = "sgd"
lr = 0.7
[tune]
key = "optim.lr"
values = [0.2, 0.1]
seeds = [0, 7]
"#;

/// Validation scores: row, training rows, rate, seed, accuracy, loss. All others: 0.5 and 1.
const SCORES: &str = "\
mlb one 0.1 0 0.9 1
mlb one 0.1 7 0.5 1
mlb one 0.2 0 0.6 1
mlb one 0.2 7 0.6 1
mlb two 0.1 0 0.6 1
mlb two 0.1 7 0.6 1
mlb two 0.2 0 0.9 1
mlb two 0.2 7 0.5 1
ogm two 0.1 0 0.5 2
unimodal:slow one 0.2 7 0.51 9
";

fn bench() -> Bench {
    let bench = Bench::new();
    std::fs::create_dir(bench.path("experiments")).expect("writable");
    std::fs::write(bench.path("experiments/small.toml"), SMALL).expect("writable");
    std::fs::write(bench.path("scores"), SCORES).expect("writable");
    bench
}

fn task(bench: &Bench, task: &str, line: &str) -> Command {
    let mut command = bench.task(task, &format!("small {line}"));
    command.env("MM_EXPERIMENTS", bench.path("experiments")).env("FAKE_MM_VAL", bench.path("scores"));
    command
}

fn written(bench: &Bench) -> Option<String> {
    std::fs::read_to_string(bench.path("experiments/small.tuned.toml")).ok()
}

#[test]
fn chooses_per_fold_by_validation_accuracy() {
    let bench = bench();
    let output = finish(task(&bench, "tune", ""));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(bench.calls().len(), (2 + 11) * 2 * 2 * 2); // rows, folds, values, seeds; no ensemble
    let text = written(&bench).expect("choices were written");
    assert!(text.starts_with("# Made by `cargo xtask tune small"), "{text}");
    for part in [
        ", commit c0ffee.\n",
        "# optim.lr: of 0.2, 0.1 the value with the best mean accuracy on that fold's own validation part, seeds 0, 7,\n",
        "Test parts had no say.\n",
    ] {
        assert!(text.contains(part), "`{part}` is not in:\n{text}");
    }
    let chosen: BTreeMap<String, BTreeMap<String, f64>> = toml::from_str(&text).expect("TOML");
    assert_eq!(chosen.len(), 13);
    let folds = |name: &str| (chosen[name]["fold1"], chosen[name]["fold2"]);
    assert_eq!(folds("mlb"), (0.1, 0.2)); // 0.7 against 0.6 on the first fold, the other way round on the second
    assert_eq!(folds("ogm"), (0.1, 0.2)); // equal everywhere, but for the loss on the second fold
    assert_eq!(folds("unimodal:slow"), (0.2, 0.1));
    assert_eq!(folds("unimodal:fast"), (0.1, 0.1)); // equal: the smaller value
    assert_eq!(folds("opm+ogm"), (0.1, 0.1));

    let shown = stdout(&output);
    let row = |name: &str| -> Vec<Vec<String>> {
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect();
        shown.lines().filter(|line| line.starts_with(name)).map(words).collect()
    };
    assert_eq!(row("mlb")[0], ["mlb", "fold1", "60.00", "70.00", "0.1"]);
    assert_eq!(row("mlb")[1], ["mlb", "fold2", "70.00", "60.00", "0.2"]);
    assert_eq!(row("unimodal slow")[0][3..], ["50.50", "50.00", "0.2"]);
    for test in ["80.00", "83.00", "84.00", "87.00"] {
        assert!(!shown.contains(test), "a test accuracy, {test}, is in:\n{shown}");
    }
    assert!(bench.path("out/grid.md").is_file());

    let again = finish(task(&bench, "tune", ""));
    assert!(stderr(&again).contains("all 104 runs are done"), "{}", stderr(&again));
    assert_eq!(written(&bench), Some(text));
}

#[test]
fn reproduce_uses_what_was_chosen() {
    let bench = bench();
    let line = "--method unimodal,joint,mlb";
    let before = finish(task(&bench, "reproduce", line));
    let warning =
        "WARNING: there is no experiments/small.tuned.toml: optim.lr was not chosen as the protocol says";
    assert!(stdout(&before).replace("\n  ", " ").contains(warning), "{}", stdout(&before));
    let rates = |bench: &Bench, part: &str| -> Vec<String> {
        let runs = bench.results()["rows"].clone();
        let runs =
            runs.as_array().expect("rows").iter().flat_map(|row| row["runs"].as_array().expect("runs"));
        let ids = runs.map(|run| run.as_str().expect("a path").replace("runs/", ""));
        let mine = ids.filter(|id| id.contains(part) && id.contains("-s0-"));
        mine.map(|id| {
            let text =
                std::fs::read_to_string(bench.path(&format!("out/configs/{id}.toml"))).expect("a file");
            let config: toml::Table = toml::from_str(&text).expect("TOML");
            config["optim"]["lr"].to_string()
        })
        .collect()
    };
    assert_eq!(rates(&bench, "mlb"), ["0.7", "0.7"]);

    let text = "[mlb]\nfold1 = 0.1\nfold2 = 0.2\n[joint]\nfold1 = 0.2\nfold2 = 0.2\n\
        [\"unimodal:fast\"]\nfold1 = 0.1\nfold2 = 0.1\n[\"unimodal:slow\"]\nfold1 = 0.2\n";
    std::fs::write(bench.path("experiments/small.tuned.toml"), text).expect("writable");
    let output = finish(task(&bench, "reproduce", line));
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(rates(&bench, "mlb"), ["0.1", "0.2"]);
    assert_eq!(rates(&bench, "joint"), ["0.2", "0.2"]);
    assert_eq!(rates(&bench, "unimodal-slow"), ["0.2", "0.7"]);
    let shown = stdout(&output).replace("\n  ", " ");
    for part in [
        "optim.lr by method and fold, chosen on validation parts by `cargo xtask tune small` \
         (experiments/small.tuned.toml): unimodal fast 0.1; unimodal slow 0.2; joint 0.2; mlb 0.1 (fold1) 0.2 (fold2)",
        "WARNING: experiments/small.tuned.toml has no optim.lr for unimodal:slow (fold2).",
        "± is the sample standard deviation (n - 1) over 2 seeds × 2 folds (n = 4 runs).",
        "averaged over the seeds of a fold, with Student's 95 % interval over folds (n = 2)",
    ] {
        assert!(shown.contains(part), "`{part}` is not in:\n{shown}");
    }
    let results = bench.results();
    assert_eq!(results["tuned"]["values"]["mlb"]["fold2"], 0.2);
    let difference = &results["rows"][3]["difference_from_joint"]; // 0.030 and 0.031 on both folds
    assert_eq!((&difference["n"], &difference["unit"]), (&2.into(), &"fold".into()));
    assert!((difference["mean"].as_f64().expect("a number") - 0.0305).abs() < 1e-12);

    std::fs::write(bench.path("experiments/small.tuned.toml"), "[mlb]\nfold1 = 0.3\n").expect("writable");
    let stale = finish(task(&bench, "reproduce", line));
    assert_eq!(code(&stale), 1);
    assert!(stderr(&stale).contains("run `cargo xtask tune small` again"), "{}", stderr(&stale));
}

#[test]
fn a_part_of_the_grid_writes_no_choice() {
    let bench = bench();
    for line in ["--method mlb", "--seeds 1 --method mlb,unimodal"] {
        let output = finish(task(&bench, "tune", line));
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        assert!(
            stderr(&output).contains("no choice was written: --method or --seeds"),
            "{}",
            stderr(&output)
        );
    }
    assert_eq!(bench.calls().len(), 8 + 2 * 4);
    let mut command = task(&bench, "tune", "");
    command.env("FAKE_MM_FAIL", "kind = \"ogm-ge\"");
    let output = finish(command);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("8 of 104 runs failed"), "{}", stderr(&output));
    assert!(stderr(&output).contains("run ogm-ge, late-linear, fold1, seed 0, optim.lr = 0.2 failed"));
    assert!(stdout(&output).lines().any(|line| line.starts_with("ogm-ge") && line.contains("failed")));
    assert_eq!(written(&bench), None);
    let dry = finish(task(&bench, "tune", "--dry-run"));
    assert!(stdout(&dry).ends_with("104 runs, 96 done\n"), "{}", stdout(&dry));
}

#[test]
fn the_grids_of_the_repository() {
    let bench = Bench::new();
    for (name, runs) in
        [("synthetic", 13 * 5 * 5), ("cremad-perception", 13 * 3 * 3), ("ravdess-features", 13 * 5 * 3)]
    {
        let output = finish(bench.task("tune", &format!("{name} --dry-run")));
        assert!(stdout(&output).ends_with(&format!("{runs} runs, 0 done\n")), "{name}: {}", stderr(&output));
    }
    let output = finish(bench.task("tune", "mosi --dry-run"));
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("the experiment mosi has no [tune]"), "{}", stderr(&output));
    let output = finish(bench.task("tune", "--seeds 6 --dry-run"));
    assert!(stderr(&output).contains("--seeds 6: the grid has 5 seed(s)"), "{}", stderr(&output));
}
