//! The ensemble of finished runs: their test (and validation) predictions averaged row by row.

use crate::error::TrainError;
use crate::evaluate::scores;
use crate::record::{read_json, write_json};
use crate::result::{PredictionFile, Predictions, RunResult, Seconds};
use mm_balance::ensemble::{Average, average};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Averages the runs in `members` and writes the result to `out`.
pub fn ensemble(members: &[PathBuf], out: &Path, rule: Average) -> Result<RunResult, TrainError> {
    let Some(first) = members.first() else {
        return Err(TrainError::run(out, "an ensemble needs at least one finished run"));
    };
    let results: Vec<RunResult> =
        members.iter().map(|m| read_json(&m.join("result.json"))).collect::<Result<_, _>>()?;
    let files: Vec<PredictionFile> =
        members.iter().map(|m| read_json(&m.join("predictions.json"))).collect::<Result<_, _>>()?;
    for (path, result) in members.iter().zip(&results) {
        if result.dataset.hash != results[0].dataset.hash
            || result.dataset.classes != results[0].dataset.classes
        {
            let reason =
                format!("was trained on other data than {}; average runs of one data set", first.display());
            return Err(TrainError::run(path, reason));
        }
    }
    let test = merge(members, &files.iter().map(|f| &f.test).collect::<Vec<_>>(), rule)?;
    let vals: Option<Vec<&Predictions>> = files.iter().map(|f| f.val.as_ref()).collect();
    let val = vals.map(|v| merge(members, &v, rule)).transpose()?;

    let mut result = results[0].clone();
    let classes = result.dataset.classes;
    result.name = "ensemble".into();
    result.method = "ensemble".into();
    result.fusion = "none".into();
    result.test = scores(&test, classes)?;
    result.val = val.as_ref().map(|v| scores(v, classes)).transpose()?;
    result.selected_on_test = results.iter().any(|r| r.selected_on_test);
    if let Some(marked) = results.iter().find(|r| r.selected_on_test) {
        result.protocol.clone_from(&marked.protocol);
    }
    result.dataset.modalities = results.iter().flat_map(|r| r.dataset.modalities.clone()).collect();
    result.unimodal = results.iter().flat_map(|r| r.unimodal.clone()).collect();
    result.modality_gap = BTreeMap::new();
    result.shapley = None;
    result.peak_memory_mib = None;
    result.steps = results.iter().map(|r| r.steps).sum();
    result.parameters = results.iter().map(|r| r.parameters).sum();
    result.seconds = Seconds {
        train: results.iter().map(|r| r.seconds.train).sum(),
        total: results.iter().map(|r| r.seconds.total).sum(),
    };
    result.warnings = results.iter().flat_map(|r| r.warnings.clone()).collect();
    result.warnings.dedup();
    let file = PredictionFile {
        ids: test.ids.clone(),
        labels: test.labels.clone(),
        predicted: test.predicted.clone(),
        test,
        val,
    };
    write_json(&out.join("predictions.json"), &file)?;
    write_json(&out.join("result.json"), &result)?;
    Ok(result)
}

fn merge(paths: &[PathBuf], members: &[&Predictions], rule: Average) -> Result<Predictions, TrainError> {
    let first = members[0];
    for (path, member) in paths.iter().zip(members) {
        if member.ids != first.ids {
            let reason = "predicts other rows than the first member; average runs of one split";
            return Err(TrainError::run(path, reason));
        }
    }
    let mut out =
        Predictions { ids: first.ids.clone(), labels: first.labels.clone(), ..Predictions::default() };
    for row in 0..first.ids.len() {
        // A member votes where it has at least one of its modalities; where none has, all of them do.
        let able: Vec<&[f64]> = members
            .iter()
            .filter(|m| m.present[row].contains(&true))
            .map(|m| m.logits[row].as_slice())
            .collect();
        let all: Vec<&[f64]> = members.iter().map(|m| m.logits[row].as_slice()).collect();
        let logits = average(if able.is_empty() { &all } else { &able }, rule)?;
        out.present.push(members.iter().flat_map(|m| m.present[row].clone()).collect());
        out.predicted.extend(mm_metrics::argmax_rows(&logits, logits.len())?);
        out.logits.push(logits);
    }
    Ok(out)
}
