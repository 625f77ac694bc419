//! Comparison with the numbers of scikit-learn, SciPy and torchmetrics in `tests/golden/metrics.json`, which
//! `tests/golden/generate/metrics.py` makes.

use std::sync::LazyLock;

use mm_metrics::{
    Agreement, ConfusionMatrix, DEFAULT_BINS, LinearProbe, OneVsRest, ProbeConfig, Scores, accuracy,
    argmax_rows, auroc, average_precision, brier, class_scores, cohen_kappa, correctness,
    expected_calibration_error, macro_f1, macro_scores, matthews_correlation, mean_std, micro_f1,
    modality_gap, paired_difference, shapley, shapley_shares, softmax_rows, student_t_quantile,
    top_k_accuracy,
};
use serde_json::Value;

static GOLDEN: LazyLock<Value> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/metrics.json");
    let text = std::fs::read_to_string(path).expect("tests/golden/metrics.json is part of the repository");
    serde_json::from_str(&text).expect("valid JSON")
});

const RELATIVE: f64 = 1e-9;
/// The public function of torchmetrics works in single precision: an absolute tolerance.
const SINGLE: f64 = 1e-6;
/// scikit-learn stops at its own rounding floor.
const FITTED: f64 = 1e-4;

fn cases(name: &str) -> &'static [Value] {
    GOLDEN[name].as_array().expect("a list of cases")
}

fn float(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

fn size(value: &Value) -> usize {
    value.as_u64().expect("a count") as usize
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(float).collect()
}

fn classes(value: &Value) -> Vec<u32> {
    value.as_array().expect("a list").iter().map(|v| size(v) as u32).collect()
}

fn bools(value: &Value) -> Vec<bool> {
    value.as_array().expect("a list").iter().map(|v| v.as_bool().expect("a truth value")).collect()
}

#[track_caller]
fn assert_close(what: &str, actual: f64, expected: f64, tolerance: f64) {
    let allowed = tolerance * expected.abs().max(1e-3);
    assert!((actual - expected).abs() <= allowed, "{what}: {actual} is not {expected}");
}

#[track_caller]
fn assert_all_close(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}");
    for (actual, expected) in actual.iter().zip(expected) {
        assert_close(what, *actual, *expected, tolerance);
    }
}

#[track_caller]
fn assert_one_vs_rest(what: &str, actual: &OneVsRest, expected: &Value) {
    let per_class = expected["per_class"].as_array().expect("a list");
    assert_eq!(actual.per_class.len(), per_class.len(), "{what}");
    for (actual, expected) in actual.per_class.iter().zip(per_class) {
        assert_eq!(actual.is_none(), expected.is_null(), "{what}");
        if let Some(actual) = actual {
            assert_close(what, *actual, float(expected), RELATIVE);
        }
    }
    assert_eq!(actual.counted, size(&expected["counted"]), "{what}");
    assert_close(what, actual.mean.expect("some class has a value"), float(&expected["mean"]), RELATIVE);
}

#[test]
fn softmax_and_argmax() {
    for case in cases("classification") {
        let name = case["name"].as_str().expect("a name");
        let c = size(&case["classes"]);
        let probabilities = softmax_rows(&floats(&case["logits"]), c).expect("valid");
        for (actual, expected) in probabilities.iter().zip(floats(&case["probabilities"])) {
            assert!((actual - expected).abs() <= 1e-14, "{name}: {actual} is not {expected}");
        }
        assert_eq!(argmax_rows(&probabilities, c).expect("valid"), classes(&case["predicted"]), "{name}");
        let tied = argmax_rows(&floats(&case["ranking"]), c).expect("valid");
        assert_eq!(tied, classes(&case["ranking_argmax"]), "{name}");
    }
}

#[test]
fn metrics_of_predictions() {
    for case in cases("classification") {
        let name = case["name"].as_str().expect("a name");
        let (labels, predicted) = (classes(&case["labels"]), classes(&case["predicted"]));
        let confusion = ConfusionMatrix::new(&labels, &predicted, size(&case["classes"])).expect("valid");
        let counts: Vec<f64> = confusion.counts().iter().map(|&count| count as f64).collect();
        assert_eq!(counts, floats(&case["confusion"]), "{name}");
        let hits = accuracy(&labels, &predicted).expect("valid");
        assert_close(name, hits, float(&case["accuracy"]), RELATIVE);
        assert_close(name, confusion.accuracy(), hits, RELATIVE);
        let share = correctness(&labels, &predicted).expect("valid").iter().filter(|&&hit| hit).count();
        assert_close(name, share as f64 / labels.len() as f64, hits, RELATIVE);

        let means = macro_scores(&confusion);
        assert_close(name, means.precision, float(&case["macro_precision"]), RELATIVE);
        assert_close(name, means.recall, float(&case["macro_recall"]), RELATIVE);
        assert_close(name, macro_f1(&confusion), float(&case["macro_f1"]), RELATIVE);
        assert_close(name, micro_f1(&confusion), float(&case["micro_f1"]), RELATIVE);
        let appearing = classes(&case["appearing"]);
        let scores = class_scores(&confusion);
        let f1: Vec<f64> = scores.iter().flatten().map(|scores| scores.f1).collect();
        assert_all_close(name, &f1, &floats(&case["class_f1"]), RELATIVE);
        assert!(appearing.iter().all(|&class| scores[class as usize].is_some()), "{name}");

        assert_close(name, matthews_correlation(&confusion), float(&case["mcc"]), RELATIVE);
        assert_close(name, cohen_kappa(&confusion).expect("defined"), float(&case["kappa"]), RELATIVE);
    }
}

#[test]
fn metrics_of_degenerate_predictions() {
    for case in cases("degenerate") {
        let name = case.to_string();
        let (labels, predicted) = (classes(&case["labels"]), classes(&case["predicted"]));
        let confusion = ConfusionMatrix::new(&labels, &predicted, 3).expect("valid");
        assert_close(&name, macro_f1(&confusion), float(&case["macro_f1"]), RELATIVE);
        assert_close(&name, matthews_correlation(&confusion), float(&case["mcc"]), RELATIVE);
        assert_close(&name, cohen_kappa(&confusion).expect("defined"), float(&case["kappa"]), RELATIVE);
    }
}

#[test]
fn metrics_of_scores() {
    for case in cases("classification") {
        let name = case["name"].as_str().expect("a name");
        let (labels, c) = (classes(&case["labels"]), size(&case["classes"]));
        let ranking = floats(&case["ranking"]);
        let ranking = Scores::new(&ranking, &labels, c).expect("valid");
        assert_one_vs_rest(name, &auroc(&ranking), &case["auroc"]);
        assert_one_vs_rest(name, &average_precision(&ranking), &case["average_precision"]);

        let probabilities = floats(&case["probabilities"]);
        let scores = Scores::new(&probabilities, &labels, c).expect("valid");
        assert_close(name, brier(&scores).expect("valid"), float(&case["brier"]), RELATIVE);
        for (bins, expected) in case["ece"].as_object().expect("a table") {
            let actual = expected_calibration_error(&scores, bins.parse().expect("a number")).expect("valid");
            let public = float(&expected["public"]);
            assert!((actual - public).abs() <= SINGLE, "{name}, {bins} bins: {actual} is not {public}");
            assert_close(name, actual, float(&expected["double"]), RELATIVE);
        }
        assert!(case["ece"].get(DEFAULT_BINS.to_string()).is_some());
        for (k, expected) in case["top_k"].as_object().into_iter().flatten() {
            let k = k.parse().expect("a rank");
            assert_close(name, top_k_accuracy(&scores, k).expect("valid"), float(expected), RELATIVE);
        }
    }
}

#[test]
fn linear_probe() {
    for case in cases("probe") {
        let name = case["name"].as_str().expect("a name");
        let (d, c) = (size(&case["d"]), size(&case["classes"]));
        let (features, labels) = (floats(&case["features"]), classes(&case["labels"]));
        let config = ProbeConfig {
            inverse_strength: float(&case["inverse_strength"]),
            tolerance: 1e-10,
            ..ProbeConfig::default()
        };
        let probe = LinearProbe::fit(&features, labels.len(), d, &labels, c, &config).expect("valid");
        assert!(probe.converged(), "{name}");
        assert_all_close(name, probe.means(), &floats(&case["means"]), RELATIVE);
        assert_all_close(name, probe.scales(), &floats(&case["scales"]), RELATIVE);

        let rows: Vec<&[f64]> = probe.weights().chunks_exact(d).collect();
        let fitted: Vec<usize> =
            classes(&case["fitted_classes"]).iter().map(|&class| class as usize).collect();
        let expected = case["coefficients"].as_array().expect("rows");
        let expected_intercepts = floats(&case["intercepts"]);
        let test = floats(&case["test_features"]);
        let logits = probe.logits(&test).expect("valid");
        let decision = floats(&case["decision"]);
        if let [first, second] = fitted[..] {
            let difference: Vec<f64> = rows[second].iter().zip(rows[first]).map(|(b, a)| b - a).collect();
            assert_all_close(name, &difference, &floats(&expected[0]), FITTED);
            let intercept = probe.intercepts()[second] - probe.intercepts()[first];
            assert_close(name, intercept, expected_intercepts[0], FITTED);
            let margins: Vec<f64> = logits.chunks_exact(c).map(|z| z[second] - z[first]).collect();
            assert_all_close(name, &margins, &decision, FITTED);
        } else {
            for ((&class, expected), intercept) in fitted.iter().zip(expected).zip(&expected_intercepts) {
                assert_all_close(name, rows[class], &floats(expected), FITTED);
                assert_close(name, probe.intercepts()[class], *intercept, FITTED);
            }
            let kept: Vec<f64> =
                logits.chunks_exact(c).flat_map(|z| fitted.iter().map(|&class| z[class])).collect();
            assert_all_close(name, &kept, &decision, FITTED);
        }
        let test_accuracy = probe.accuracy(&test, &classes(&case["test_labels"])).expect("valid");
        assert_close(name, test_accuracy, float(&case["test_accuracy"]), RELATIVE);
        let train_accuracy = probe.accuracy(&features, &labels).expect("valid");
        assert_close(name, train_accuracy, float(&case["train_accuracy"]), RELATIVE);
    }
}

#[test]
fn paired_differences() {
    for case in cases("paired") {
        let (a, b) = (floats(&case["a"]), floats(&case["b"]));
        let result = paired_difference(&a, &b, float(&case["confidence"])).expect("valid");
        assert_eq!(result.n, a.len());
        assert_close("mean", result.mean, float(&case["mean"]), RELATIVE);
        assert_close("std", result.std.expect("pairs"), float(&case["std"]), RELATIVE);
        assert_close("low", result.low.expect("pairs"), float(&case["low"]), RELATIVE);
        assert_close("high", result.high.expect("pairs"), float(&case["high"]), RELATIVE);

        let summary = mean_std(&a).expect("valid");
        assert_close("mean of a", summary.mean, float(&case["mean_of_a"]), RELATIVE);
        assert_close("population std", summary.population, float(&case["population_std_of_a"]), RELATIVE);
        assert_close("sample std", summary.sample.expect("pairs"), float(&case["sample_std_of_a"]), RELATIVE);
    }
}

#[test]
fn student_t_quantiles() {
    let rows = cases("quantiles");
    assert_eq!(rows.len(), 13 * 14);
    for row in rows {
        let [p, nu, expected] = floats(row)[..] else { panic!("a row of three numbers") };
        let actual = student_t_quantile(p, nu).expect("valid");
        let error = (actual - expected).abs() / expected.abs();
        assert!(error <= RELATIVE, "p = {p}, nu = {nu}: {actual} is not {expected}");
    }
}

#[test]
fn shapley_values() {
    for case in cases("shapley") {
        let values = floats(&case["values"]);
        let expected = floats(&case["shapley"]);
        assert_all_close("shapley", &shapley(&values).expect("valid"), &expected, RELATIVE);
        let total = values[values.len() - 1] - values[0];
        let shares: Vec<f64> = expected.iter().map(|value| value / total).collect();
        let actual = shapley_shares(&values).expect("valid").expect("total is not zero");
        assert_all_close("shares", &actual, &shares, RELATIVE);
    }
}

#[test]
fn modality_gaps() {
    let case = &GOLDEN["modality_gap"];
    let (a, b) = (floats(&case["a"]), floats(&case["b"]));
    let gap = modality_gap(&a, &b, size(&case["dim"])).expect("valid");
    assert_close("gap", gap.distance, float(&case["distance"]), RELATIVE);
    assert_eq!(gap.skipped.map(|count| count as f64).to_vec(), floats(&case["skipped"]));
}

#[test]
fn agreement_tables() {
    let case = &GOLDEN["agreement"];
    let unimodal: Vec<Vec<bool>> = case["unimodal"].as_array().expect("a list").iter().map(bools).collect();
    let unimodal: Vec<&[bool]> = unimodal.iter().map(Vec::as_slice).collect();
    let multimodal = bools(&case["multimodal"]);
    let two = Agreement::of_two(unimodal[0], unimodal[1], &multimodal).expect("valid");
    let three = Agreement::new(&unimodal, &multimodal).expect("valid");
    for (table, name) in [(two, "two"), (three, "three")] {
        let counts: Vec<f64> =
            table.rows().iter().flat_map(|row| [row.right as f64, row.wrong as f64]).collect();
        let expected: Vec<f64> = case[name].as_array().expect("rows").iter().flat_map(floats).collect();
        assert_eq!(counts, expected, "{name}");
    }
}
