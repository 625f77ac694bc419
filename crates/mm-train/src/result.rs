//! What a finished run says of itself: `result.json` and `predictions.json`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The data of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetInfo {
    /// Name.
    pub name: String,
    /// SHA-256 of its file, or of the settings that generate it.
    pub hash: String,
    /// Number of classes.
    pub classes: usize,
    /// Names of the modalities used.
    pub modalities: Vec<String>,
    /// Training rows.
    pub train: usize,
    /// Validation rows.
    pub val: usize,
    /// Test rows.
    pub test: usize,
}

/// Metrics of one part; a metric that does not exist there is `null`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Share of right decisions.
    pub accuracy: f64,
    /// Cross-entropy.
    pub loss: f64,
    /// F1, mean over classes.
    pub macro_f1: f64,
    /// F1 over all decisions.
    pub micro_f1: f64,
    /// Matthews correlation.
    pub mcc: f64,
    /// Cohen's kappa.
    pub kappa: Option<f64>,
    /// Share of rows whose class is among the five most probable; `null` with five classes or fewer.
    pub top5: Option<f64>,
    /// Area under the ROC curve, one against the rest, mean over classes.
    pub auroc: Option<f64>,
    /// Average precision, one against the rest, mean over classes.
    pub average_precision: Option<f64>,
    /// Expected calibration error, 15 bins.
    pub ece: f64,
    /// Brier score.
    pub brier: f64,
    /// Rows: true class; columns: decision.
    pub confusion: Vec<Vec<u64>>,
}

/// The accuracy of one modality alone, on the test rows that have it, by each of four ways.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Unimodal {
    /// By the modality's own linear head, where the method trains one.
    pub head: Option<f64>,
    /// By its share of the fused logits, where the fusion is a sum.
    pub split: Option<f64>,
    /// By logistic regression on its frozen features, fitted on the training rows.
    pub probe: Option<f64>,
    /// By the whole model with every other modality masked.
    pub masked: Option<f64>,
}

/// Seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// In training steps and validation.
    pub train: f64,
    /// Altogether.
    pub total: f64,
}

/// A finished run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Version of this layout.
    pub format: u32,
    /// The run's name.
    pub name: String,
    /// The method, parts of a composition joined with `+`.
    pub method: String,
    /// The fusion; `none` where the method decides from heads.
    pub fusion: String,
    /// The encoders.
    pub encoder: String,
    /// Where encoders began that did not begin with drawn values, by modality.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub weights: BTreeMap<String, mm_encoders::weights::Source>,
    /// The seed.
    pub seed: u64,
    /// How the epoch was chosen.
    pub protocol: String,
    /// Whether the test part chose the epoch, which makes its numbers too high.
    pub selected_on_test: bool,
    /// The data.
    pub dataset: DatasetInfo,
    /// The epoch reported, from 0.
    pub selected_epoch: usize,
    /// Epochs trained.
    pub epochs: usize,
    /// Optimiser steps.
    pub steps: usize,
    /// Trainable scalars.
    pub parameters: usize,
    /// Metrics of the validation part.
    pub val: Option<Scores>,
    /// Metrics of the test part.
    pub test: Scores,
    /// Each modality alone.
    pub unimodal: BTreeMap<String, Unimodal>,
    /// Distance between the centroids of unit-length features, by pair `a|b`.
    pub modality_gap: BTreeMap<String, f64>,
    /// Each modality's share of the test accuracy above that of the empty coalition, by exact Shapley value.
    pub shapley: Option<BTreeMap<String, f64>>,
    /// What to know before trusting the numbers.
    pub warnings: Vec<String>,
    /// Time.
    pub seconds: Seconds,
    /// Largest resident memory of the process so far, in MiB.
    pub peak_memory_mib: Option<f64>,
    /// Device.
    pub device: String,
    /// Version of candle.
    pub candle: String,
    /// Version of this library.
    pub version: String,
    /// Commit of the sources, where known.
    pub commit: Option<String>,
    /// Worker threads.
    pub threads: usize,
}

/// Decisions of a part, row by row.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Predictions {
    /// Positions in the data set.
    pub ids: Vec<usize>,
    /// True classes.
    pub labels: Vec<u32>,
    /// Decisions.
    pub predicted: Vec<u32>,
    /// Whether the row has each of the run's modalities.
    pub present: Vec<Vec<bool>>,
    /// Logits of the decision.
    pub logits: Vec<Vec<f64>>,
}

/// `predictions.json`: the test part, and the validation part where there is one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct PredictionFile {
    /// Positions in the data set (test part).
    pub ids: Vec<usize>,
    /// True classes (test part).
    pub labels: Vec<u32>,
    /// Decisions (test part).
    pub predicted: Vec<u32>,
    /// Everything of the test part.
    pub test: Predictions,
    /// Everything of the validation part.
    pub val: Option<Predictions>,
}

/// Largest resident memory of this process, in MiB; Linux only.
pub fn peak_memory_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib / 1024.0)
}
