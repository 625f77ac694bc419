//! Which epoch is reported, and what may have a say in it: the validation part, never the test part.

use crate::support::{START, Set, done, latest, lines, on_features, small};
use mm_core::StepRng;
use mm_train::RunResult;
use mm_train::record::read_safetensors;
use std::path::Path;

/// The epoch that the record says is best; the earlier one of equals.
fn best(dir: &Path, key: &str, sign: f64) -> (usize, bool) {
    let values: Vec<f64> = lines(dir, "epoch").iter().map(|l| sign * l[key].as_f64().unwrap()).collect();
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let first = values.iter().position(|v| *v == high).unwrap();
    (first, values[first + 1..].contains(&high))
}

#[test]
fn the_best_epoch_is_reported_and_the_earlier_one_of_equals() {
    let folder = tempfile::tempdir().unwrap();
    let mut ties = 0;
    for seed in 0..6 {
        let dir = folder.path().join(seed.to_string());
        let result = done(&small(&["train.epochs=8", "optim.lr=0.2", &format!("seed={seed}")]), &dir, START);
        let (epoch, tied) = best(&dir, "val_accuracy", 1.0);
        ties += usize::from(tied);
        assert_eq!((result.selected_epoch, result.epochs, result.steps), (epoch, 8, 40));
        let line = &lines(&dir, "epoch")[epoch];
        let val = result.val.unwrap();
        assert_eq!(line["val_accuracy"], val.accuracy);
        assert!((line["val_loss"].as_f64().unwrap() - val.loss).abs() < 1e-9);
        let model = std::fs::read(dir.join("model/model.safetensors")).unwrap();
        let checkpoint = latest(&dir);
        assert!(model == std::fs::read(checkpoint.join("best.safetensors")).unwrap());
        let last = std::fs::read(checkpoint.join("model.safetensors")).unwrap();
        assert_eq!(model == last, epoch == 7);
    }
    assert!(ties > 0, "no seed puts the rule for equals to the test: change the sizes");
}

#[test]
fn the_lowest_loss_may_choose_instead() {
    let folder = tempfile::tempdir().unwrap();
    let mut different = false;
    for seed in 0..4 {
        let dir = folder.path().join(seed.to_string());
        let seed = format!("seed={seed}");
        let result =
            done(&small(&["train.epochs=8", "optim.lr=0.2", "train.select=loss", &seed]), &dir, START);
        assert_eq!(result.selected_epoch, best(&dir, "val_loss", -1.0).0);
        different |= result.selected_epoch != best(&dir, "val_accuracy", 1.0).0;
    }
    assert!(different, "no seed tells the two rules apart");
}

#[test]
fn training_stops_when_patience_is_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut early = 0;
    for seed in 0..4 {
        let dir = folder.path().join(seed.to_string());
        let seed = format!("seed={seed}");
        let result =
            done(&small(&["train.epochs=30", "optim.lr=0.2", "train.patience=2", &seed]), &dir, START);
        let accuracies: Vec<f64> =
            lines(&dir, "epoch").iter().map(|l| l["val_accuracy"].as_f64().unwrap()).collect();
        let (mut high, mut stale, mut stop) = (f64::NEG_INFINITY, 0, None);
        for (epoch, &accuracy) in accuracies.iter().enumerate() {
            stale = if accuracy > high { 0 } else { stale + 1 };
            high = high.max(accuracy);
            if stale == 2 && stop.is_none() {
                stop = Some(epoch + 1);
            }
        }
        assert_eq!(accuracies.len(), stop.unwrap_or(30));
        assert_eq!(result.epochs, accuracies.len());
        assert_eq!(result.steps, 5 * result.epochs);
        assert_eq!(lines(&dir, "step").len(), result.steps);
        early += usize::from(stop.is_some());
    }
    assert!(early > 0, "no seed stops early");
}

/// A run on a changed copy of the feature set; returns its folder's model and telemetry.
fn on(change: impl FnOnce(&mut Set), sets: &[&str]) -> (RunResult, Vec<u8>, Vec<u8>) {
    let folder = tempfile::tempdir().unwrap();
    let mut set = Set::new();
    change(&mut set);
    let (path, dir) = (folder.path().join("set.safetensors"), folder.path().join("run"));
    set.write(&path);
    let result = done(&on_features(&path, sets), &dir, START);
    let read = |name: &str| std::fs::read(dir.join(name)).unwrap();
    (result, read("model/model.safetensors"), read("metrics.jsonl"))
}

/// Other labels, other features, and one modality gone, in some rows.
fn scramble(set: &mut Set, rows: std::ops::Range<usize>) {
    for row in rows {
        set.y[row] = (set.y[row] + 1) % 3;
        for j in 0..4 {
            set.a[row * 4 + j] = 100.0 - 3.0 * set.a[row * 4 + j];
        }
        let b = if row % 2 == 0 { f32::NAN } else { -7.5 };
        set.b[row * 3..row * 3 + 3].fill(b);
    }
}

#[test]
fn nothing_of_the_test_part_reaches_training() {
    for sets in [
        &["method.kind=mlb"][..],
        &["method.kind=lfm-learned", "method.bilevel.held_out=8"],
        &["method.kind=opm+ogm-ge", "train.patience=1"],
    ] {
        let (result, model, metrics) = on(|_| {}, sets);
        let (other, same_model, same_metrics) = on(|set| scramble(set, Set::TEST), sets);
        assert!(model == same_model, "{sets:?}");
        assert!(metrics == same_metrics, "{sets:?}");
        assert_eq!((result.selected_epoch, &result.val), (other.selected_epoch, &other.val));
        assert_ne!(result.test, other.test);
        assert_ne!(result.dataset.hash, other.dataset.hash);
        // The other parts do have a say.
        let (_, model_of_train, _) = on(|set| scramble(set, 0..3), sets);
        let (_, _, metrics_of_val) = on(|set| scramble(set, 60..80), sets);
        assert!(model != model_of_train && metrics != metrics_of_val);
    }
}

#[test]
fn the_protocol_that_chooses_by_the_test_part_says_so() {
    let sets = ["train.protocol=ogm-test-select", "train.epochs=6"];
    let (result, _, metrics) = on(|_| {}, &sets);
    assert!(result.selected_on_test);
    assert_eq!(result.protocol, "ogm-test-select");
    assert!(result.warnings.iter().any(|w| w.contains("the test part chose")), "{:?}", result.warnings);
    let text = String::from_utf8(metrics.clone()).unwrap();
    assert!(text.contains("\"test_accuracy\"") && !text.contains("\"val_accuracy\""));
    let (_, _, changed) = on(|set| scramble(set, Set::TEST), &sets);
    assert!(metrics != changed);
    let (honest, ..) = on(|_| {}, &["train.epochs=6"]);
    assert!(!honest.selected_on_test);
    assert_eq!((honest.protocol.as_str(), honest.warnings.len()), ("validation-select", 0));
}

#[test]
fn rows_that_a_method_sets_aside_are_never_trained_on() {
    // With a vanishing rate the held-out rows cannot act through the learned weight either.
    let sets = [
        "method.kind=lfm-learned",
        "method.bilevel={held_out=12,rate=1e-300}",
        "data.standardize=false",
        "train.probe_rows=100",
    ];
    let mut rows: Vec<usize> = (0..60).collect();
    StepRng::new(0).stream("held-out").draws().shuffle(&mut rows);
    let (held, trained) = rows.split_at(12);
    let (_, model, _) = on(|_| {}, &sets);
    let (_, same, metrics) = on(|set| held.iter().for_each(|&row| scramble_labels(set, row)), &sets);
    assert!(model == same);
    let (_, other, _) = on(|set| scramble_labels(set, trained[0]), &sets);
    assert!(model != other);
    let per_epoch = |epoch: u64| -> u64 {
        let text = String::from_utf8(metrics.clone()).unwrap();
        let all = text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
        all.filter(|l| l["kind"] == "step" && l["epoch"] == epoch).map(|l| l["rows"].as_u64().unwrap()).sum()
    };
    assert_eq!([per_epoch(0), per_epoch(1), per_epoch(2)], [48; 3]);
}

fn scramble_labels(set: &mut Set, row: usize) {
    set.y[row] = (set.y[row] + 1) % 3;
    set.a[row * 4] += 1.0;
}

#[test]
fn the_saved_model_carries_the_statistics_of_the_training_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (path, dir) = (folder.path().join("set.safetensors"), folder.path().join("run"));
    let set = Set::new();
    set.write(&path);
    done(&on_features(&path, &[]), &dir, START);
    let text = std::fs::read_to_string(dir.join("model/preprocessor_config.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mean: f64 = (0..60).map(|row| f64::from(set.b[row * 3])).sum::<f64>() / 60.0;
    assert!((saved["standardize"]["b"]["mean"][0].as_f64().unwrap() - mean).abs() < 1e-12);
    let names: Vec<String> =
        read_safetensors(&dir.join("model/model.safetensors")).unwrap().into_keys().collect();
    let wanted = [
        "encoder.a.0.bias",
        "encoder.a.0.weight",
        "encoder.a.1.bias",
        "encoder.a.1.weight",
        "encoder.b.0.bias",
        "encoder.b.0.weight",
        "encoder.b.1.bias",
        "encoder.b.1.weight",
    ];
    assert_eq!(&names[..8], wanted);
    assert!(names[8..].iter().all(|n| n.starts_with("fusion.")));
}

#[test]
fn probes_see_all_classes_of_a_file_that_is_sorted_by_class() {
    let sorted = |set: &mut Set| {
        for row in 0..60 {
            set.y[row] = row as i64 / 20;
            for j in 0..3 {
                set.b[row * 3 + j] = if j == row / 20 { 3.0 } else { 0.0 } + (row % 7) as f32 * 0.01;
            }
        }
        for row in 60..100 {
            for j in 0..3 {
                set.b[row * 3 + j] = if j as i64 == set.y[row] { 3.0 } else { 0.0 } + (row % 5) as f32 * 0.01;
            }
        }
    };
    let (few, ..) = on(sorted, &["train.probe_rows=12", "train.epochs=10"]);
    let probe = few.unimodal["b"].probe.unwrap();
    assert!(probe > 0.9, "{probe}");
}
