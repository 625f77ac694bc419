//! The other commands, run directories, and what is printed.

use crate::support::{LONG, Place, Rows, on_file, stderr};
use mm_balance::{MethodConfig, catalogue};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Stdio;

#[test]
fn every_command_explains_itself() {
    let place = Place::new();
    let all = place.ok(&["--help"]);
    for command in ["train", "eval", "predict", "ensemble", "methods"] {
        assert!(all.contains(&format!("  {command} ")), "{all}");
        let text = place.ok(&[command, "--help"]);
        assert!(text.contains(&format!("Usage: mm {command}")), "{text}");
        assert_eq!(text.contains("Example"), matches!(command, "train" | "eval" | "predict"), "{text}");
    }
    assert_eq!(place.ok(&["--version"]), format!("mm {}\n", env!("CARGO_PKG_VERSION")));
    assert!(!place.run(&[]).status.success());
}

#[test]
fn methods_lists_what_the_configuration_accepts_and_nothing_else() {
    let place = Place::new();
    let listed: Value = serde_json::from_str(&place.ok(&["methods", "--json"])).unwrap();
    let names = |kind: &str| -> BTreeSet<String> {
        listed[kind].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap().to_owned()).collect()
    };
    // serde lists all variants when it meets an unknown one.
    let refusal = toml::from_str::<MethodConfig>("kind = \"?\"").unwrap_err().to_string();
    let accepted: BTreeSet<String> =
        refusal.split('`').skip(3).step_by(2).map(str::to_owned).chain(["ensemble".to_owned()]).collect();
    assert!(accepted.len() > 10, "{refusal}");
    assert_eq!(names("methods"), accepted);
    let refusal = toml::from_str::<mm_fusion::FusionConfig>("kind = \"?\"").unwrap_err().to_string();
    assert_eq!(names("fusions"), refusal.split('`').skip(3).step_by(2).map(str::to_owned).collect());
    let text = place.ok(&["methods"]);
    for entry in catalogue() {
        assert!(text.contains(&format!("\n  {:<16} {}", entry.name, entry.summary)), "{}", entry.name);
        assert_eq!(entry.paper.is_empty(), matches!(entry.name, "joint" | "unimodal"), "{}", entry.name);
        assert!(text.contains(entry.paper));
    }
    for name in names("fusions") {
        assert!(text.contains(&format!("\n  {name} ")), "{name}");
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let output = place.shell("set -o pipefail; \"$MM\" methods | head -1");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = place.command(&["methods"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
}

#[test]
fn a_run_from_standard_input_into_the_default_folder() {
    let place = Place::new();
    place.file("c.toml", LONG);
    let output = place.shell("\"$MM\" train - --set train.epochs=1 < c.toml");
    assert!(output.status.success(), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let dir = text.lines().last().unwrap().strip_prefix("written to ").unwrap();
    let (name, hash) = dir.rsplit_once('-').unwrap();
    assert_eq!((name, hash.len()), ("runs/long", 8));
    assert!(place.path(dir).join("result.json").exists());
    assert!(
        text.starts_with("long (opm+ogm-ge, late-linear) on synthetic\nepoch 1 of 1, 8 steps, "),
        "{text}"
    );
    let accuracy = 100.0 * place.json(&format!("{dir}/result.json"))["test"]["accuracy"].as_f64().unwrap();
    assert!(text.contains(&format!("\ntest: accuracy {accuracy:.2} %, macro F1 ")), "{text}");
}

#[test]
fn what_is_done_is_done_and_what_is_another_is_refused() {
    let place = Place::new();
    place.file("c.toml", LONG.replace("= 15", "= 1"));
    let args = ["train", "c.toml", "--out", "run"];
    let first = place.ok(&args);
    place.file("run/mine.txt", "mine");
    let stamp = || {
        ["", "result.json", "run.log", "ckpt"]
            .map(|n| std::fs::metadata(place.path("run").join(n)).unwrap().modified().unwrap())
    };
    let before = stamp();
    let again = place.run(&args);
    assert_eq!(String::from_utf8(again.stdout.clone()).unwrap(), first);
    assert_eq!(stderr(&again), "this configuration is done already (--fresh redoes it)\n");
    assert_eq!(place.ok(&[&args[..], &["--quiet"]].concat()), "");
    assert_eq!(stamp(), before);
    let other = [&args[..], &["--set", "seed=1"]].concat();
    place.fails(&other, 1, &["run: holds a run of another configuration", "--out", "--fresh"]);
    place.fails(&[&other[..], &["--resume"]].concat(), 1, &["another configuration"]);
    place.fails(&[&other[..], &["--resume", "--fresh"]].concat(), 2, &["cannot be used with"]);
    place.ok(&[&other[..], &["--fresh"]].concat());
    assert_eq!(place.json("run/result.json")["seed"], 1);
    assert_eq!(place.read("run/mine.txt"), "mine");
}

#[test]
fn selection_on_the_test_part_is_said_wherever_numbers_are() {
    let place = Place::new();
    place.file("c.toml", LONG.replace("= 15", "= 2"));
    let sets = ["--set", "data.n_val=0", "--set", "train.protocol=ogm-test-select"];
    let text = place.ok(&[&["train", "c.toml", "--out", "run"], &sets[..]].concat());
    assert!(text.contains("NOTE: protocol ogm-test-select: the test part chose the epoch"), "{text}");
    let result = place.json("run/result.json");
    assert_eq!((&result["selected_on_test"], &result["protocol"]), (&true.into(), &"ogm-test-select".into()));
    assert!(result["warnings"][0].as_str().unwrap().contains("too high by construction"));
    place.fails(&["eval", "run", "--part", "val"], 2, &["--part = \"val\"", "no such part"]);
    // An ensemble with such a member says it too, wherever the member stands.
    let honest = ["train", "c.toml", "--out", "honest", "-q", "--set", "data.n_val=0"];
    place.fails(&honest, 2, &["no validation rows"]);
    place.ok(&["train", "c.toml", "--out", "honest", "-q"]);
    place.fails(
        &["ensemble", "honest", "run", "--out", "both"],
        1,
        &["run: was trained on other data than honest"],
    );
    place.ok(&["train", "c.toml", "--out", "marked", "-q", "--set", "train.protocol=ogm-test-select"]);
    let text = place.ok(&["ensemble", "honest", "marked", "--out", "both"]);
    assert!(text.contains("NOTE: protocol ogm-test-select"), "{text}");
    assert_eq!(place.json("both/result.json")["selected_on_test"], true);
}

#[test]
fn an_ensemble_is_the_mean_of_its_members() {
    let (place, rows) = (Place::new(), Rows::new());
    place.file("set.csv", rows.csv().join("\n"));
    place.file("c.toml", on_file("csv", "set.csv"));
    for modality in ["a", "b"] {
        let set = format!("method={{kind=\"unimodal\",modality=\"{modality}\"}}");
        place.ok(&["train", "c.toml", "--out", modality, "-q", "--set", &set]);
    }
    let softmax = |z: &Value| -> Vec<f64> {
        let z: Vec<f64> = z.as_array().unwrap().iter().map(|z| z.as_f64().unwrap()).collect();
        let total: f64 = z.iter().map(|z| z.exp()).sum();
        z.iter().map(|z| z.exp() / total).collect()
    };
    let members = ["a", "b"].map(|m| place.json(&format!("{m}/predictions.json")));
    for (flag, log_mean) in [(None, false), (Some("--log-mean"), true)] {
        let mut args = vec!["ensemble", "a", "b", "--out", "both"];
        args.extend(flag);
        let text = place.ok(&args);
        let (file, result) = (place.json("both/predictions.json"), place.json("both/result.json"));
        let mut right = 0;
        for i in 0..20 {
            let row = Rows::TEST.start + i;
            let [a, b] = [0, 1].map(|m| softmax(&members[m]["test"]["logits"][i]));
            let wanted: Vec<f64> = (0..3)
                .map(|c| match (row % 5, log_mean) {
                    (0, _) => a[c].ln(),
                    (_, false) => f64::midpoint(a[c], b[c]).ln(),
                    (_, true) => f64::midpoint(a[c].ln(), b[c].ln()),
                })
                .collect();
            let found = file["test"]["logits"][i].as_array().unwrap();
            for (f, w) in found.iter().zip(&wanted) {
                assert!((f.as_f64().unwrap() - w).abs() < 1e-9, "row {row}: {found:?} is not {wanted:?}");
            }
            let best = (0..3).max_by(|&i, &j| wanted[i].total_cmp(&wanted[j])).unwrap();
            assert_eq!(file["predicted"][i], best);
            assert_eq!(file["test"]["present"][i], serde_json::json!([true, !row.is_multiple_of(5)]));
            right += usize::from(best == rows.y[row]);
        }
        assert_eq!(result["test"]["accuracy"], right as f64 / 20.0);
        assert_eq!(result["method"], "ensemble");
        assert_eq!(result["dataset"]["modalities"], serde_json::json!(["a", "b"]));
        let alone = |m: &str| place.json(&format!("{m}/result.json"));
        for m in ["a", "b"] {
            assert_eq!(result["unimodal"][m], alone(m)["unimodal"][m]);
        }
        for key in ["steps", "parameters"] {
            let sum = alone("a")[key].as_u64().unwrap() + alone("b")[key].as_u64().unwrap();
            assert_eq!(result[key], sum);
        }
        assert!(text.starts_with("ensemble (ensemble, none) on set\n"), "{text}");
    }
    place.fails(&["ensemble", "a", "none", "--out", "x"], 1, &["none/result.json", "check that it exists"]);
    let split = "data.split={test_fraction=0.2,val_fraction=0.2}";
    place.ok(&["train", "c.toml", "--out", "other", "-q", "--set", split]);
    place.fails(&["ensemble", "a", "other", "--out", "x"], 1, &["other: predicts other rows", "one split"]);
    assert!(!place.path("x").exists());
}
