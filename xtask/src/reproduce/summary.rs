//! Numbers over runs: means, spreads, and differences from joint training.

use super::methods::{BASELINES, ENSEMBLE, JOINT, UNIMODAL, USUAL};
use super::plan::{Run, Variant};
use super::record::Record;
use anyhow::Result;
use mm_metrics::{mean_std, paired_difference};
use serde::Serialize;
use std::collections::BTreeMap;

/// The confidence of the intervals.
pub(crate) const CONFIDENCE: f64 = 0.95;
/// What `std` means, in words.
pub(crate) const STD: &str = "sample standard deviation (n - 1)";
/// The ways to measure one modality inside a model, as `result.json` names them.
const WAYS: [&str; 4] = ["probe", "head", "split", "masked"];

/// How a run ended.
pub(crate) type Outcome = std::result::Result<Record, String>;

/// A mean over runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Stat {
    /// The mean.
    pub(crate) mean: f64,
    /// The sample standard deviation; none for a single run.
    pub(crate) std: Option<f64>,
    /// The number of runs.
    pub(crate) n: usize,
}

/// A mean difference between runs with the same seed and fold, over folds, or over seeds where there are no folds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Difference {
    /// The mean difference.
    pub(crate) mean: f64,
    /// The lower end of the interval; none if `n` is 1.
    pub(crate) low: Option<f64>,
    /// The upper end of the interval; none if `n` is 1.
    pub(crate) high: Option<f64>,
    /// The number of folds, or of seeds.
    pub(crate) n: usize,
    /// What `n` counts: `fold` or `seed`.
    pub(crate) unit: &'static str,
    /// The confidence of the interval.
    pub(crate) confidence: f64,
}

/// The accuracy of one modality inside a model, measured in four ways.
pub(crate) type Ways = BTreeMap<&'static str, Option<Stat>>;

/// One row of the table.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// The method.
    pub(crate) method: &'static str,
    /// The modality of a unimodal row.
    pub(crate) modality: Option<String>,
    /// The fusion, where something is fused.
    pub(crate) fusion: Option<String>,
    /// The encoder's kind.
    pub(crate) encoder: Option<String>,
    /// Test accuracy.
    pub(crate) accuracy: Option<Stat>,
    /// Test macro F1.
    pub(crate) macro_f1: Option<Stat>,
    /// Test expected calibration error.
    pub(crate) ece: Option<Stat>,
    /// The other test metrics.
    pub(crate) other: BTreeMap<String, Stat>,
    /// Validation accuracy, by which models are selected.
    pub(crate) val_accuracy: Option<Stat>,
    /// Each modality inside this model.
    pub(crate) unimodal: BTreeMap<String, Ways>,
    /// Each modality trained alone: its own accuracy and the same probe.
    pub(crate) unimodal_separate: BTreeMap<String, Ways>,
    /// Distance of the modalities' centroids.
    pub(crate) modality_gap: BTreeMap<String, Stat>,
    /// Contribution of each modality.
    pub(crate) shapley: BTreeMap<String, Stat>,
    /// Test accuracy minus that of joint training.
    pub(crate) difference_from_joint: Option<Difference>,
    /// Time of an epoch over that of joint training, the median over runs with the same seed and fold.
    pub(crate) epoch_over_joint: Option<f64>,
    /// Mean seconds of a run: `train`, `total`.
    pub(crate) seconds: BTreeMap<String, Stat>,
    /// Folders of the runs, relative to the output folder.
    pub(crate) runs: Vec<String>,
    /// How many of them failed.
    pub(crate) failed: usize,
}

impl Stat {
    /// Over these values; none if there are none. Values that are not finite are an error.
    pub(crate) fn of(values: &[f64]) -> Result<Option<Self>> {
        if values.is_empty() {
            return Ok(None);
        }
        let summary = mean_std(values)?;
        Ok(Some(Self { mean: summary.mean, std: summary.sample, n: summary.n }))
    }
}

impl Difference {
    /// Whether the whole interval lies above (1) or below (-1) zero, or neither (0). An interval without width is
    /// neither: a few differences that happen to be equal, as on a small test part, say nothing about their spread.
    pub(crate) fn side(&self) -> i8 {
        match (self.low, self.high) {
            (Some(low), Some(high)) if high - low < 1e-9 => 0,
            (Some(low), _) if low > 0.0 => 1,
            (_, Some(high)) if high < 0.0 => -1,
            _ => 0,
        }
    }
}

impl Row {
    /// As in the first column.
    pub(crate) fn variant(&self) -> Variant {
        Variant { method: self.method, modality: self.modality.clone(), fusion: self.fusion.clone() }
    }
}

/// The rows of the table, in the order of `variants`; where there is a method beside the usual ones, the baselines first
/// and the others by falling accuracy.
pub(crate) fn rows(
    variants: &[Variant],
    runs: &[Run],
    outcomes: &[Outcome],
    relative: impl Fn(&Run) -> String,
) -> Result<Vec<Row>> {
    let separate = separate(runs, outcomes)?;
    let first_fusion = variants.iter().find(|v| v.method == JOINT).and_then(|v| v.fusion.clone());
    let mut rows = variants
        .iter()
        .map(|variant| row(variant, runs, outcomes, &separate, first_fusion.as_ref(), &relative))
        .collect::<Result<Vec<_>>>()?;
    if variants.iter().any(|variant| !USUAL.contains(&variant.method)) {
        let rank = |row: &Row| match &row.accuracy {
            _ if BASELINES.contains(&row.method) => f64::NEG_INFINITY,
            accuracy => -accuracy.as_ref().map_or(f64::NEG_INFINITY, |accuracy| accuracy.mean),
        };
        rows.sort_by(|a, b| rank(a).total_cmp(&rank(b)));
    }
    Ok(rows)
}

fn row(
    variant: &Variant,
    runs: &[Run],
    outcomes: &[Outcome],
    separate: &BTreeMap<String, Ways>,
    first_fusion: Option<&String>,
    relative: &impl Fn(&Run) -> String,
) -> Result<Row> {
    let mine: Vec<(&Run, &Outcome)> = of(variant, runs, outcomes).collect();
    let records: Vec<&Record> = mine.iter().filter_map(|(_, outcome)| outcome.as_ref().ok()).collect();
    let joint =
        Variant { method: JOINT, modality: None, fusion: variant.fusion.as_ref().or(first_fusion).cloned() };
    let (mut difference_from_joint, mut epoch_over_joint) = (None, None);
    if *variant != joint {
        let joint: Vec<(&Run, &Outcome)> = of(&joint, runs, outcomes).collect();
        difference_from_joint = difference(&mine, &joint)?;
        // The epochs of an ensemble are those of its members.
        epoch_over_joint = if variant.method == ENSEMBLE { None } else { cost(&mine, &joint) };
    }
    let mut other = each(&records, |record| &record.test)?;
    let mut take = |name: &str| other.remove(name);
    Ok(Row {
        method: variant.method,
        modality: variant.modality.clone(),
        fusion: variant.fusion.clone(),
        encoder: records.iter().find_map(|record| record.encoder.clone()),
        accuracy: take("accuracy"),
        macro_f1: take("macro_f1"),
        ece: take("ece"),
        other,
        val_accuracy: over(&records, |record| record.val.get("accuracy").copied())?,
        unimodal: inside(&records)?,
        unimodal_separate: separate.clone(),
        modality_gap: each(&records, |record| &record.modality_gap)?,
        shapley: each(&records, |record| &record.shapley)?,
        difference_from_joint,
        epoch_over_joint,
        seconds: each(&records, |record| &record.seconds)?,
        runs: mine.iter().map(|(run, _)| relative(run)).collect(),
        failed: mine.len() - records.len(),
    })
}

/// The runs of a variant.
fn of<'a>(
    variant: &'a Variant,
    runs: &'a [Run],
    outcomes: &'a [Outcome],
) -> impl Iterator<Item = (&'a Run, &'a Outcome)> {
    runs.iter().zip(outcomes).filter(move |(run, _)| run.variant == *variant)
}

/// The mean over the records that have the value.
fn over(records: &[&Record], value: impl Fn(&Record) -> Option<f64>) -> Result<Option<Stat>> {
    Stat::of(&records.iter().filter_map(|record| value(record)).collect::<Vec<_>>())
}

/// The mean of every named number of the records.
fn each<'a>(
    records: &[&'a Record],
    numbers: impl Fn(&'a Record) -> &'a BTreeMap<String, f64>,
) -> Result<BTreeMap<String, Stat>> {
    let mut values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in records.iter().flat_map(|record| numbers(record)) {
        values.entry(name).or_default().push(*value);
    }
    let mut stats = BTreeMap::new();
    for (name, values) in values {
        stats.extend(Stat::of(&values)?.map(|stat| (name.to_owned(), stat)));
    }
    Ok(stats)
}

/// The four accuracies of every modality.
fn inside(records: &[&Record]) -> Result<BTreeMap<String, Ways>> {
    let mut found = BTreeMap::new();
    for modality in records.iter().flat_map(|record| record.unimodal.keys()) {
        if found.contains_key(modality) {
            continue;
        }
        let mut ways = Ways::new();
        for way in WAYS {
            let value = |record: &Record| record.unimodal.get(modality)?.get(way).copied().flatten();
            ways.insert(way, over(records, value)?);
        }
        found.insert(modality.clone(), ways);
    }
    Ok(found)
}

/// What the unimodal runs reach: their own accuracy, and the probe on their encoder. Both are over the rows that have
/// the modality, as are the numbers inside a model that they are compared with.
fn separate(runs: &[Run], outcomes: &[Outcome]) -> Result<BTreeMap<String, Ways>> {
    let mut found: BTreeMap<String, Ways> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.variant.method == UNIMODAL) {
        let Some(modality) = &run.variant.modality else {
            continue;
        };
        if found.contains_key(modality) {
            continue;
        }
        let records: Vec<&Record> =
            of(&run.variant, runs, outcomes).filter_map(|(_, outcome)| outcome.as_ref().ok()).collect();
        let way = |record: &Record, way: &str| record.unimodal.get(modality)?.get(way).copied().flatten();
        let accuracy = |record: &Record| way(record, "masked").or_else(|| record.test_metric("accuracy"));
        let ways = Ways::from([
            ("accuracy", over(&records, accuracy)?),
            ("probe", over(&records, |record| way(record, "probe"))?),
        ]);
        found.insert(modality.clone(), ways);
    }
    Ok(found)
}

/// The mean difference in test accuracy between runs with the same seed and fold; none without pairs. The seeds of a
/// fold share its rows and are no independent trials: their differences are averaged, and the interval is over folds.
fn difference(mine: &[(&Run, &Outcome)], joint: &[(&Run, &Outcome)]) -> Result<Option<Difference>> {
    let accuracy =
        |outcome: &Outcome| outcome.as_ref().ok().and_then(|record| record.test_metric("accuracy"));
    let mut by_fold: BTreeMap<Option<&str>, Vec<f64>> = BTreeMap::new();
    for (run, outcome) in mine {
        let twin = joint.iter().find(|(other, _)| other.seed == run.seed && other.fold == run.fold);
        if let (Some(x), Some(y)) = (accuracy(outcome), twin.and_then(|(_, outcome)| accuracy(outcome))) {
            by_fold.entry(run.fold.as_deref()).or_default().push(x - y);
        }
    }
    let (unit, differences) = match by_fold.remove(&None) {
        Some(of_seeds) => ("seed", of_seeds),
        None => (
            "fold",
            by_fold.values().map(|of_seeds| mean_std(of_seeds).map(|s| s.mean)).collect::<Result<_, _>>()?,
        ),
    };
    if differences.is_empty() {
        return Ok(None);
    }
    let found = paired_difference(&differences, &vec![0.0; differences.len()], CONFIDENCE)?;
    Ok(Some(Difference {
        mean: found.mean,
        low: found.low,
        high: found.high,
        n: found.n,
        unit,
        confidence: CONFIDENCE,
    }))
}

/// The median over runs with the same seed and fold of the time of an epoch over that of joint training.
fn cost(mine: &[(&Run, &Outcome)], joint: &[(&Run, &Outcome)]) -> Option<f64> {
    let epoch = |outcome: &Outcome| {
        let record = outcome.as_ref().ok()?;
        let epochs = record.epochs.filter(|&epochs| epochs > 0)?;
        Some(record.seconds.get("train")? / epochs as f64)
    };
    let ratio = |(run, outcome): &(&Run, &Outcome)| {
        let twin = joint.iter().find(|(other, _)| other.seed == run.seed && other.fold == run.fold)?;
        Some(epoch(outcome)? / epoch(twin.1)?).filter(|ratio| ratio.is_finite())
    };
    let mut ratios: Vec<f64> = mine.iter().filter_map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let middle = ratios.len() / 2;
    match ratios.len() {
        0 => None,
        n if n % 2 == 1 => Some(ratios[middle]),
        _ => Some(f64::midpoint(ratios[middle - 1], ratios[middle])),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::reproduce::mm::Layout;
    use crate::reproduce::plan::{tests::small, variants};
    use crate::reproduce::record::tests::record;

    /// Rows of joint, MLB and unimodal runs over two seeds and two folds; the last MLB run fails.
    pub(crate) fn fabricated() -> (Vec<Run>, Vec<Outcome>, Vec<Row>) {
        let (experiment, selection, runs) = small("--method unimodal,joint,mlb");
        let outcomes: Vec<Outcome> = runs
            .iter()
            .map(|run| {
                let step =
                    run.seed as f64 / 100.0 + if run.fold.as_deref() == Some("fold2") { 0.02 } else { 0.0 };
                match (run.variant.method, run.variant.modality.as_deref()) {
                    (UNIMODAL, Some("a")) => Ok(record(0.6 + step, 0.62, 0.5)),
                    (UNIMODAL, _) => Ok(record(0.7 + step, 0.5, 0.72)),
                    (JOINT, _) => Ok(record(0.8 + step, 0.55, 0.71)),
                    _ if step > 0.025 => Err("out of memory".to_owned()),
                    _ => Ok(record(0.83 + 2.0 * step, 0.6, 0.7)),
                }
            })
            .collect();
        let rows =
            rows(&variants(&experiment, &selection), &runs, &outcomes, Layout::relative).expect("finite");
        (runs, outcomes, rows)
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn the_time_of_an_epoch_is_compared_run_by_run() {
        let (runs, mut outcomes, _) = fabricated();
        for (run, outcome) in runs.iter().zip(&mut outcomes) {
            if let Ok(record) = outcome {
                // Two epochs of joint training take 2 s, 4 s, …; four of MLB 1.5 times, 3 times, 4.5 times as long.
                let place =
                    1.0 + run.seed as f64 + if run.fold.as_deref() == Some("fold2") { 2.0 } else { 0.0 };
                let mlb = run.variant.method == "mlb";
                record.epochs = Some(if mlb { 4 } else { 2 });
                let factor = if mlb { 2.0 * 1.5 * place } else { 1.0 };
                record.seconds.insert("train".to_owned(), 2.0 * place * factor);
            }
        }
        let (experiment, selection, _) = small("--method unimodal,joint,mlb");
        let rows =
            rows(&variants(&experiment, &selection), &runs, &outcomes, Layout::relative).expect("finite");
        assert_eq!(rows[2].epoch_over_joint, None);
        close(rows[3].epoch_over_joint.expect("three pairs"), 3.0);
        close(rows[0].epoch_over_joint.expect("four pairs"), 1.0);
    }

    #[test]
    fn many_methods_are_ranked_behind_the_baselines() {
        let (experiment, selection, runs) = small("--method all");
        let accuracy = |method: &str| 0.3 + (method.len() % 7) as f64 / 10.0;
        let outcomes: Vec<Outcome> =
            runs.iter().map(|run| Ok(record(accuracy(run.variant.method), 0.5, 0.5))).collect();
        let rows =
            rows(&variants(&experiment, &selection), &runs, &outcomes, Layout::relative).expect("finite");
        let baselines = rows.iter().take_while(|row| BASELINES.contains(&row.method)).count();
        assert_eq!(baselines, BASELINES.len() + 1, "two modalities alone");
        let rest: Vec<f64> = rows[baselines..].iter().map(|row| row.accuracy.expect("runs").mean).collect();
        assert!(rest.len() > 20 && rest.windows(2).all(|pair| pair[0] >= pair[1]), "{rest:?}");
    }

    #[test]
    fn the_usual_methods_keep_their_order_however_many_rows_they_have() {
        for (words, ranked) in [
            ("--fusion late-linear,gated,film", false),
            ("--method joint,mlb,multimodal-loss,agm --fusion late-linear", true),
        ] {
            let (experiment, selection, runs) = small(words);
            let accuracy = |method: &str| 0.3 + (method.len() % 7) as f64 / 10.0;
            let outcomes: Vec<Outcome> =
                runs.iter().map(|run| Ok(record(accuracy(run.variant.method), 0.5, 0.5))).collect();
            let variants = variants(&experiment, &selection);
            let rows = rows(&variants, &runs, &outcomes, Layout::relative).expect("finite");
            let same = rows.iter().map(Row::variant).eq(variants.iter().cloned());
            assert_eq!(same, !ranked, "{words}");
        }
    }

    #[test]
    fn means_and_sample_deviations() {
        let (_, _, rows) = fabricated();
        let joint = rows[2].accuracy.expect("four runs"); // 0.80, 0.81, 0.82, 0.83
        close(joint.mean, 0.815);
        close(joint.std.expect("four runs"), (5e-4_f64 / 3.0).sqrt());
        assert_eq!((rows[2].method, joint.n, rows[2].failed), ("joint", 4, 0));
        assert_eq!(rows[2].encoder.as_deref(), Some("mlp"));
        close(rows[2].seconds["total"].mean, 2.5);
        assert!(rows[2].other.is_empty(), "mcc is null everywhere");
        assert_eq!(rows[2].ece.expect("four runs").std, Some(0.0));
        assert!(rows[2].runs[0].starts_with("runs/joint-late-linear-fold1-s0-"));
    }

    #[test]
    fn differences_are_averaged_over_seeds_then_folds() {
        let (_, _, rows) = fabricated();
        assert!(rows[2].difference_from_joint.is_none(), "joint is not compared with itself");
        // MLB: 0.83, 0.85 | 0.87 against 0.80, 0.81 | 0.82 (its last run failed): 0.03, 0.04 | 0.05, so 0.035 | 0.05.
        let mlb = &rows[3];
        let difference = mlb.difference_from_joint.expect("two folds");
        let half = 12.706_204_736_174_7 * 0.015 / 2.0_f64.sqrt() / 2.0_f64.sqrt(); // t(0.975, 1) std / sqrt(2)
        assert_eq!((mlb.failed, difference.n, difference.unit, difference.side()), (1, 2, "fold", 0));
        close(difference.mean, 0.0425);
        close(difference.low.expect("interval"), 0.0425 - half);
        close(difference.high.expect("interval"), 0.0425 + half);
        let unimodal = rows[0].difference_from_joint.expect("two folds");
        close(unimodal.mean, -0.2);
        assert_eq!(unimodal.side(), 0, "the differences are all equal");
    }

    #[test]
    fn modalities_inside_and_alone() {
        let (_, _, rows) = fabricated();
        let mlb = &rows[3];
        close(mlb.unimodal["a"]["probe"].expect("three runs").mean, 0.6);
        assert_eq!(mlb.unimodal["a"]["head"], None);
        close(mlb.unimodal_separate["a"]["probe"].expect("four runs").mean, 0.62);
        close(mlb.unimodal_separate["b"]["accuracy"].expect("four runs").mean, 0.715);
    }

    #[test]
    fn without_folds_the_interval_is_over_seeds() {
        let (mut runs, outcomes, _) = fabricated();
        for run in &mut runs {
            run.seed += if run.fold.take().as_deref() == Some("fold2") { 2 } else { 0 };
        }
        let variants: Vec<Variant> = ["joint", "mlb"]
            .map(|method| Variant { method, modality: None, fusion: Some("late-linear".to_owned()) })
            .to_vec();
        let rows = rows(&variants, &runs, &outcomes, Layout::relative).expect("finite");
        let difference = rows[1].difference_from_joint.expect("three seeds"); // 0.03, 0.04, 0.05
        let half = 4.302_652_729_911_275 * 0.01 / 3.0_f64.sqrt(); // t(0.975, 2)
        assert_eq!((difference.n, difference.unit, difference.side()), (3, "seed", 1));
        close(difference.mean, 0.04);
        close(difference.low.expect("interval"), 0.04 - half);
    }

    #[test]
    fn a_single_fold_has_no_interval() {
        let (mut runs, mut outcomes, _) = fabricated();
        outcomes.truncate(runs.iter().take_while(|run| run.fold.as_deref() == Some("fold1")).count());
        runs.truncate(outcomes.len());
        let variants: Vec<Variant> = runs[..4].iter().map(|run| run.variant.clone()).collect();
        let rows = rows(&variants, &runs, &outcomes, Layout::relative).expect("finite");
        let difference = rows[3].difference_from_joint.expect("one fold"); // 0.03, 0.04
        assert_eq!((difference.n, difference.low, difference.high, difference.side()), (1, None, None, 0));
        close(difference.mean, 0.035);
    }

    #[test]
    fn alone_means_on_the_rows_that_have_the_modality() {
        let (runs, mut outcomes, _) = fabricated();
        let mut masked = [Some(0.9), Some(0.8), None, Some(0.7)].into_iter();
        for (run, outcome) in runs.iter().zip(&mut outcomes) {
            if let (Some("a"), Ok(record)) = (run.variant.modality.as_deref(), outcome) {
                let ways = record.unimodal.get_mut("a").expect("modality a");
                ways.insert("masked".to_owned(), masked.next().expect("four runs"));
            }
        }
        let rows = rows(&[runs[0].variant.clone()], &runs, &outcomes, Layout::relative).expect("finite");
        // The third run says nothing of masking: its test accuracy, 0.62, stands in.
        close(
            rows[0].unimodal_separate["a"]["accuracy"].expect("four runs").mean,
            (0.9 + 0.8 + 0.62 + 0.7) / 4.0,
        );
        close(rows[0].accuracy.expect("four runs").mean, 0.615);
    }

    #[test]
    fn one_run_has_no_spread_and_none_no_mean() {
        assert_eq!(Stat::of(&[0.5]).expect("finite"), Some(Stat { mean: 0.5, std: None, n: 1 }));
        assert_eq!(Stat::of(&[]).expect("empty"), None);
        assert!(Stat::of(&[f64::NAN]).is_err());
    }
}
