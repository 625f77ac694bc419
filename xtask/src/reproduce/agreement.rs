//! When the unimodal models are right or wrong, is the multimodal model right?

use super::methods::{BASELINES, JOINT, UNIMODAL};
use super::plan::{Run, Variant};
use super::record::Predictions;
use super::summary::{Outcome, Row};
use anyhow::{Result, bail};
use mm_metrics::{Agreement, correctness};
use serde::Serialize;
use std::path::PathBuf;

/// The agreement table of one method, summed over seeds and folds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Table {
    /// The method.
    pub(crate) method: &'static str,
    /// Its fusion.
    pub(crate) fusion: Option<String>,
    /// The two modalities.
    pub(crate) modalities: [String; 2],
    /// Both wrong, only the first right, only the second right, both right.
    pub(crate) rows: Vec<Cell>,
    /// Test rows, counted once for every seed and fold.
    pub(crate) samples: u64,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Cell {
    /// Which unimodal models are right.
    pub(crate) unimodal: String,
    /// Share of all samples on which the multimodal model is right too.
    pub(crate) right: f64,
    /// Share of all samples on which it is wrong.
    pub(crate) wrong: f64,
    /// Its accuracy within the row; none if the row is empty.
    pub(crate) accuracy: Option<f64>,
}

/// The balancing row with the highest mean validation accuracy; the test part has no say.
pub(crate) fn best(rows: &[Row]) -> Option<&Row> {
    let score = |row: &Row| row.val_accuracy.map_or(f64::NEG_INFINITY, |stat| stat.mean);
    rows.iter()
        .filter(|row| !BASELINES.contains(&row.method) && row.val_accuracy.is_some())
        .reduce(|best, row| if score(row) > score(best) { row } else { best })
}

/// The rows that get a table: joint training and the best method.
pub(crate) fn shown(rows: &[Row]) -> Vec<Variant> {
    let joint = rows.iter().find(|row| row.method == JOINT && row.accuracy.is_some());
    joint.into_iter().chain(best(rows)).map(Row::variant).collect()
}

/// The table of a variant against the unimodal runs of the same seed and fold. None if no seed and fold has all three.
pub(crate) fn table(
    variant: &Variant,
    modalities: &[String; 2],
    runs: &[Run],
    outcomes: &[Outcome],
    folder: impl Fn(&Run) -> PathBuf,
) -> Result<Option<Table>> {
    let done =
        |run: &Run| runs.iter().zip(outcomes).any(|(other, outcome)| other.id == run.id && outcome.is_ok());
    let mut counts = [[0_u64; 2]; 4];
    for run in runs.iter().filter(|run| run.variant == *variant && done(run)) {
        let twin = |modality: &String| {
            runs.iter().find(|other| {
                other.variant.method == UNIMODAL
                    && other.variant.modality.as_ref() == Some(modality)
                    && other.seed == run.seed
                    && other.fold == run.fold
                    && done(other)
            })
        };
        let (Some(a), Some(b)) = (twin(&modalities[0]), twin(&modalities[1])) else {
            continue;
        };
        let [a, b, fused] = [a, b, run].map(|run| Predictions::read(&folder(run)));
        for (sum, row) in counts.iter_mut().zip(agreement(&a?, &b?, &fused?)?.rows()) {
            sum[0] += row.right;
            sum[1] += row.wrong;
        }
    }
    let samples: u64 = counts.iter().flatten().sum();
    if samples == 0 {
        return Ok(None);
    }
    let [a, b] = modalities;
    let names = [
        "both wrong".to_owned(),
        format!("only {a} right"),
        format!("only {b} right"),
        "both right".to_owned(),
    ];
    let share = |count: u64| count as f64 / samples as f64;
    let rows = names.into_iter().zip(counts).map(|(unimodal, [right, wrong])| Cell {
        unimodal,
        right: share(right),
        wrong: share(wrong),
        accuracy: (right + wrong > 0).then(|| right as f64 / (right + wrong) as f64),
    });
    Ok(Some(Table {
        method: variant.method,
        fusion: variant.fusion.clone(),
        modalities: modalities.clone(),
        rows: rows.collect(),
        samples,
    }))
}

fn agreement(a: &Predictions, b: &Predictions, fused: &Predictions) -> Result<Agreement> {
    if a.ids != fused.ids || b.ids != fused.ids {
        bail!("the runs were tested on different rows");
    }
    let right = |p: &Predictions| correctness(&fused.labels, &p.predicted);
    Ok(Agreement::of_two(&right(a)?, &right(b)?, &right(fused)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::summary::tests::fabricated;

    #[test]
    fn counts_over_seeds_and_folds() {
        let (runs, outcomes, rows) = fabricated();
        let out = tempfile::tempdir().expect("temporary folder");
        let folder = |run: &Run| out.path().join(&run.id);
        for run in &runs {
            let predicted = match (run.variant.modality.as_deref(), run.variant.method) {
                (Some("a"), _) => "[0,0,1,1]",
                (Some(_), _) => "[0,1,0,1]",
                (None, "joint") => "[0,1,1,1]",
                _ => "[1,0,0,0]",
            };
            std::fs::create_dir(folder(run)).expect("writable");
            let text = format!(r#"{{"ids":[0,1,2,3],"labels":[0,0,0,0],"predicted":{predicted}}}"#);
            std::fs::write(folder(run).join("predictions.json"), text).expect("writable");
        }
        let shown = shown(&rows);
        assert_eq!(shown.iter().map(|v| v.method).collect::<Vec<_>>(), ["joint", "mlb"]);
        let names = ["a".to_owned(), "b".to_owned()];
        let made =
            |variant| table(variant, &names, &runs, &outcomes, folder).expect("valid").expect("not empty");
        let joint = made(&shown[0]);
        assert_eq!(joint.samples, 16);
        let accuracies: Vec<_> = joint.rows.iter().map(|row| (row.right + row.wrong, row.accuracy)).collect();
        assert_eq!(accuracies, [(0.25, Some(0.0)), (0.25, Some(0.0)), (0.25, Some(0.0)), (0.25, Some(1.0))]);
        assert_eq!(joint.rows[1].unimodal, "only a right");
        let mlb = made(&shown[1]);
        assert_eq!((mlb.samples, mlb.rows[0].accuracy, mlb.rows[3].accuracy), (12, Some(1.0), Some(0.0)));
    }

    #[test]
    fn baselines_are_never_the_best_method() {
        let (_, _, mut rows) = fabricated();
        let mut baseline = rows[3].clone();
        baseline.method = "sum-ce";
        baseline.val_accuracy.as_mut().expect("three runs").mean = 0.99;
        rows.push(baseline);
        assert_eq!(best(&rows).map(|row| row.method), Some("mlb"));
        rows.remove(3);
        assert!(best(&rows).is_none());
    }

    #[test]
    fn other_rows_are_refused() {
        let read = |ids: &str| -> Predictions {
            serde_json::from_str(&format!(r#"{{"ids":{ids},"labels":[0],"predicted":[0]}}"#)).expect("valid")
        };
        let (a, b) = (read("[1]"), read("[2]"));
        assert!(agreement(&a, &a, &a).is_ok());
        assert!(agreement(&a, &b, &a).is_err());
    }
}
