//! Everything that a reproduction found: `results.json` is this structure, and what is printed is made from it.

use super::agreement::{self, Table};
use super::experiment::{Experiment, Reference};
use super::mm::Layout;
use super::plan::{Run, Selection, variants};
use super::record::Record;
use super::settings;
use super::summary::{self, CONFIDENCE, Outcome, Row, STD};
use super::tuned::{self, Tuned};
use anyhow::Result;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The version of the layout of `results.json`.
const FORMAT: u32 = 2;

/// The content of `results.json` (documented in `docs/results-schema.md`).
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// Version of this layout.
    pub(crate) format: u32,
    /// The experiment's name.
    pub(crate) experiment: String,
    /// Its title.
    pub(crate) title: String,
    /// What the data are and are not.
    pub(crate) note: String,
    /// How models are selected, in words.
    pub(crate) protocol: String,
    /// The protocols that the runs name.
    pub(crate) protocol_of_runs: Vec<String>,
    /// What the intervals do not cover.
    pub(crate) interval_note: String,
    /// Seeds.
    pub(crate) seeds: Vec<u64>,
    /// Names of the folds.
    pub(crate) folds: Vec<String>,
    /// What `std` means.
    pub(crate) std: &'static str,
    /// The confidence of the intervals.
    pub(crate) confidence: f64,
    /// The modalities, in order.
    pub(crate) modalities: Vec<String>,
    /// Modalities that were not trained alone, and why.
    pub(crate) not_alone: BTreeMap<String, String>,
    /// The data set of the first run.
    pub(crate) dataset: Option<DatasetReport>,
    /// Hash of the data; several where the runs had different data.
    pub(crate) dataset_hash: OneOrMany,
    /// Commit of `mm`.
    pub(crate) commit: OneOrMany,
    /// Version of candle.
    pub(crate) candle: OneOrMany,
    /// Device.
    pub(crate) device: OneOrMany,
    /// What makes these numbers doubtful, found by the tool.
    pub(crate) warnings: Vec<String>,
    /// The command that made this.
    pub(crate) command: String,
    /// Seconds of this call.
    pub(crate) wall_seconds: f64,
    /// The settings that all runs share.
    pub(crate) settings: Vec<String>,
    /// What a search chose by method and fold, where it did.
    pub(crate) tuned: Option<Tuned>,
    /// Rows whose value there is the smallest or largest that was tried.
    pub(crate) tuned_at_edge: Vec<String>,
    /// The settings of single methods.
    pub(crate) method_settings: BTreeMap<String, Vec<String>>,
    /// One entry per method and fusion.
    pub(crate) rows: Vec<Row>,
    /// Agreement of joint training and the best method with the unimodal models; two modalities only.
    pub(crate) agreement: Vec<Table>,
    /// Numbers from elsewhere.
    pub(crate) reference: Vec<Reference>,
    /// Runs that failed.
    pub(crate) failures: Vec<Failure>,
}

/// The data set of the first run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DatasetReport {
    /// Its name.
    pub(crate) name: Option<String>,
    /// Rows to train on.
    pub(crate) train: Option<u64>,
    /// Rows to select by.
    pub(crate) val: Option<u64>,
    /// Rows to test on.
    pub(crate) test: Option<u64>,
}

/// A run that failed.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Failure {
    /// Its folder, relative to the output folder.
    pub(crate) run: String,
    /// What it is.
    pub(crate) label: String,
    /// The end of what it said.
    pub(crate) reason: String,
}

/// A value that should be the same for all runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    /// It is, or no run says.
    One(Option<String>),
    /// It is not.
    Many(Vec<String>),
}

/// What a report is made from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// The experiment.
    pub(crate) experiment: &'a Experiment,
    /// What was chosen of it.
    pub(crate) selection: &'a Selection,
    /// The runs.
    pub(crate) runs: &'a [Run],
    /// How each ended.
    pub(crate) outcomes: &'a [Outcome],
    /// Where they lie.
    pub(crate) layout: &'a Layout,
}

impl Report {
    /// Draws up the report.
    pub(crate) fn new(sources: Sources<'_>, command: String, wall: Duration) -> Result<Self> {
        let Sources { experiment, selection, runs, outcomes, layout } = sources;
        let rows = summary::rows(&variants(experiment, selection), runs, outcomes, Layout::relative)?;
        let records: Vec<&Record> = outcomes.iter().flatten().collect();
        let distinct = |value: fn(&Record) -> Option<&String>| {
            OneOrMany::of(records.iter().filter_map(|record| value(record)))
        };
        let mut warnings = Vec::new();
        let agreement = agreements(&rows, sources, |run| layout.folder(run)).unwrap_or_else(|error| {
            warnings.push(format!("no agreement table: {error:#}"));
            Vec::new()
        });
        let commit = distinct(|record| record.commit.as_ref());
        let candle = distinct(|record| record.candle.as_ref());
        let device = distinct(|record| record.device.as_ref());
        for (what, values) in [("commits", &commit), ("candle versions", &candle), ("devices", &device)] {
            if let OneOrMany::Many(values) = values {
                let values = values.join(", ");
                warnings
                    .push(format!("the runs are of different {what} ({values}): --fresh makes them alike"));
            }
        }
        warnings.extend(different_data(runs, outcomes));
        warnings.extend(of_runs(&records));
        let used = experiment.tuned.as_ref().and_then(|tuned| tuned.used(experiment, selection));
        warnings.extend(untuned(experiment, selection, used.as_ref().map(|(_, missing)| missing.as_slice())));
        let tuned = used.map(|(tuned, _)| tuned);
        let at_edge = tuned.as_ref().map(|tuned| at_edge(experiment, tuned)).unwrap_or_default();
        // What the search replaces would be read as the value of the runs.
        let replaced = |line: &String| {
            tuned.as_ref().is_some_and(|tuned| line.starts_with(&format!("{} = ", tuned.key)))
        };
        let failures = runs.iter().zip(outcomes).filter_map(|(run, outcome)| {
            let reason = outcome.as_ref().err()?.clone();
            Some(Failure { run: Layout::relative(run), label: run.label(), reason })
        });
        let method_settings =
            experiment.methods.iter().filter(|(name, _)| selection.methods.contains(&name.as_str()));
        Ok(Self {
            format: FORMAT,
            experiment: experiment.name.clone(),
            title: experiment.title.clone(),
            note: format!("{} {}", experiment.note.trim(), experiment.schedule.trim()).trim().to_owned(),
            protocol: experiment.protocol.trim().to_owned(),
            protocol_of_runs: OneOrMany::of(records.iter().filter_map(|record| record.protocol.as_ref()))
                .values(),
            interval_note: experiment.interval_note.trim().to_owned(),
            seeds: selection.seeds.clone(),
            folds: selection.folds.iter().map(|fold| fold.name.clone()).collect(),
            std: STD,
            confidence: CONFIDENCE,
            modalities: experiment.modalities.clone(),
            not_alone: experiment.not_alone.clone(),
            dataset: records.first().map(|record| DatasetReport {
                name: record.dataset.name.clone(),
                train: record.dataset.train,
                val: record.dataset.val,
                test: record.dataset.test,
            }),
            dataset_hash: distinct(|record| record.dataset.hash.as_ref()),
            commit,
            candle,
            device,
            warnings,
            command,
            wall_seconds: wall.as_secs_f64(),
            settings: settings::dotted(&selection.base(experiment)?)
                .into_iter()
                .filter(|line| !replaced(line))
                .collect(),
            method_settings: method_settings
                .map(|(name, method)| {
                    let mut lines = settings::dotted(&method.set);
                    lines.retain(|line| !replaced(line));
                    lines.extend(method.note.clone());
                    (name.clone(), lines)
                })
                .collect(),
            tuned,
            tuned_at_edge: at_edge,
            rows,
            agreement,
            reference: references(experiment),
            failures: failures.collect(),
        })
    }
}

impl OneOrMany {
    fn of<'a>(values: impl Iterator<Item = &'a String>) -> Self {
        let mut distinct: Vec<String> = Vec::new();
        for value in values {
            if !distinct.contains(value) {
                distinct.push(value.clone());
            }
        }
        if distinct.len() > 1 { Self::Many(distinct) } else { Self::One(distinct.pop()) }
    }

    /// The values there are.
    pub(crate) fn values(&self) -> Vec<String> {
        match self {
            Self::One(value) => value.iter().cloned().collect(),
            Self::Many(values) => values.clone(),
        }
    }
}

/// The numbers from elsewhere; those of a row that name no fusion are of the experiment's first.
fn references(experiment: &Experiment) -> Vec<Reference> {
    let mut references = experiment.reference.clone();
    for reference in references.iter_mut().filter(|reference| reference.method.is_some()) {
        reference.fusion = reference.fusion.take().or_else(|| experiment.fusions.first().cloned());
    }
    references
}

/// A warning where runs of one seed had different data. Between seeds, synthetic data may differ on purpose.
fn different_data(runs: &[Run], outcomes: &[Outcome]) -> Option<String> {
    let mut first: BTreeMap<u64, &String> = BTreeMap::new();
    let mut hashes = runs
        .iter()
        .zip(outcomes)
        .filter_map(|(run, outcome)| Some((run.seed, outcome.as_ref().ok()?.dataset.hash.as_ref()?)));
    let differs = hashes.any(|(seed, hash)| *first.entry(seed).or_insert(hash) != hash);
    differs.then(|| "runs of one seed had different data: --fresh makes them alike".to_owned())
}

/// A warning where the experiment asks for a search and its choices are not there for all rows.
fn untuned(experiment: &Experiment, selection: &Selection, missing: Option<&[String]>) -> Option<String> {
    let key = &experiment.tune.as_ref()?.key;
    if selection.sets(key) {
        return None;
    }
    let (source, name) = (tuned::source(&experiment.name), &experiment.name);
    match missing {
        None => Some(format!(
            "there is no {source}: {key} was not chosen as the protocol says; run `cargo xtask tune {name}` first"
        )),
        Some([]) => None,
        Some(missing) => Some(format!("{source} has no {key} for {}", missing.join(", "))),
    }
}

/// The rows for which the search chose the smallest or largest of its values.
fn at_edge(experiment: &Experiment, tuned: &Tuned) -> Vec<String> {
    let values = experiment.tune.as_ref().map(|tune| tune.values.as_slice()).unwrap_or_default();
    let (smallest, largest) =
        (values.iter().copied().reduce(f64::min), values.iter().copied().reduce(f64::max));
    let edge = |value: &f64| values.len() > 1 && [smallest, largest].contains(&Some(*value));
    let rows = tuned.values.iter().filter(|(_, by_fold)| by_fold.values().any(edge));
    rows.map(|(row, _)| row.clone()).collect()
}

/// What the runs warn of, each text once with the number of runs that say it.
fn of_runs(records: &[&Record]) -> Vec<String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for record in records {
        let test =
            record.selected_on_test.then_some("the TEST part selected the model: the figures are too high");
        // An ensemble has the warnings of all its members.
        let texts: BTreeSet<&str> =
            record.warnings.iter().map(|text| text.trim_end_matches('.')).chain(test).collect();
        for text in texts {
            *counts.entry(text).or_default() += 1;
        }
    }
    counts.into_iter().map(|(text, count)| format!("{text} ({count} of {} runs)", records.len())).collect()
}

fn agreements(
    rows: &[Row],
    sources: Sources<'_>,
    folder: impl Fn(&Run) -> std::path::PathBuf,
) -> Result<Vec<Table>> {
    let Ok(modalities) = <[String; 2]>::try_from(sources.experiment.modalities.clone()) else {
        return Ok(Vec::new());
    };
    let mut tables = Vec::new();
    for variant in agreement::shown(rows) {
        tables.extend(agreement::table(&variant, &modalities, sources.runs, sources.outcomes, &folder)?);
    }
    Ok(tables)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::experiment::tests::SMALL;

    #[test]
    fn choices_at_the_edge_of_the_grid_are_found() {
        let tune = "[tune]\nkey = \"optim.lr\"\nvalues = [0.2, 0.1, 0.4]\nseeds = [0]\n";
        let experiment = Experiment::parse("small", &format!("{SMALL}\n{tune}")).expect("valid");
        let found = |text: &str| at_edge(&experiment, &Tuned::parse(&experiment, text).expect("valid"));
        assert_eq!(found("[mlb]\nfold1 = 0.2\nfold2 = 0.2\n"), [""; 0]);
        let three = "[mlb]\nfold1 = 0.2\nfold2 = 0.4\n[ogm]\nfold1 = 0.1\nfold2 = 0.1\n[opm]\nfold1 = 0.2\n";
        assert_eq!(found(three), ["mlb", "ogm"]);
    }

    #[test]
    fn a_number_of_a_row_is_of_the_first_fusion_unless_it_names_one() {
        let more = "[[reference]]\nlabel = \"joint\"\nvalue = \"1\"\nsource = \"x\"\nmethod = \"joint\"\n\
                    [[reference]]\nlabel = \"joint\"\nvalue = \"2\"\nsource = \"x\"\nmethod = \"joint\"\nfusion = \"gated\"\n";
        let experiment = Experiment::parse("small", &format!("{SMALL}\n{more}")).expect("valid");
        let fusions: Vec<_> = references(&experiment).into_iter().map(|reference| reference.fusion).collect();
        assert_eq!(fusions, [None, Some("late-linear".to_owned()), Some("gated".to_owned())]);
    }
}
