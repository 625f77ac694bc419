//! Everything that a reproduction found: `results.json` is this structure, the tables are made from it.

use super::agreement::{self, Table};
use super::document::{Block, Grid};
use super::experiment::{Experiment, Reference};
use super::methods::{ENSEMBLE, UNIMODAL};
use super::mm::Layout;
use super::plan::{Run, Selection, variants};
use super::progress::clock;
use super::record::Record;
use super::settings;
use super::summary::{self, CONFIDENCE, Difference, Outcome, Row, STD, Stat};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;

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
        let Sources {
            experiment,
            selection,
            runs,
            outcomes,
            layout,
        } = sources;
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
        for (what, values) in [
            ("commits", &commit),
            ("candle versions", &candle),
            ("devices", &device),
        ] {
            if let OneOrMany::Many(values) = values {
                let values = values.join(", ");
                warnings.push(format!(
                    "the runs are of different {what} ({values}): --fresh makes them alike"
                ));
            }
        }
        warnings.extend(different_data(runs, outcomes));
        let failures = runs.iter().zip(outcomes).filter_map(|(run, outcome)| {
            let reason = outcome.as_ref().err()?.clone();
            Some(Failure {
                run: Layout::relative(run),
                label: run.label(),
                reason,
            })
        });
        let method_settings = experiment
            .methods
            .iter()
            .filter(|(name, _)| selection.methods.contains(&name.as_str()));
        Ok(Self {
            format: 1,
            experiment: experiment.name.clone(),
            title: experiment.title.clone(),
            note: experiment.note.trim().to_owned(),
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
            settings: settings::dotted(&selection.base(experiment)?),
            method_settings: method_settings
                .map(|(name, method)| {
                    let mut lines = settings::dotted(&method.set);
                    lines.extend(method.note.clone());
                    (name.clone(), lines)
                })
                .collect(),
            rows,
            agreement,
            reference: experiment.reference.clone(),
            failures: failures.collect(),
        })
    }

    /// The report as a document: the table first, then what one needs to judge it.
    pub(crate) fn document(&self) -> Vec<Block> {
        let mut blocks = vec![
            Block::Title(self.title.clone()),
            Block::Text(format!("Data: {}", self.note)),
            Block::Grid(self.table()),
            Block::List(self.notes()),
        ];
        for table in &self.agreement {
            blocks.push(Block::Heading(format!(
                "Agreement of {} with the models trained alone, percent of {} test rows",
                table.method, table.samples
            )));
            blocks.push(Block::Grid(agreement_grid(table)));
        }
        if !self.reference.is_empty() {
            blocks.push(Block::Heading("Numbers from elsewhere".to_owned()));
            blocks.push(Block::Grid(Grid {
                head: ["what", "value", "source"].map(str::to_owned).to_vec(),
                rows: self
                    .reference
                    .iter()
                    .map(|r| vec![r.label.clone(), r.value.clone(), r.source.trim().to_owned()])
                    .collect(),
                left: vec![2],
            }));
        }
        blocks.push(Block::Heading("How it was made".to_owned()));
        blocks.push(Block::List(self.provenance()));
        blocks
    }

    /// The main table.
    fn table(&self) -> Grid {
        let fusions = self.several_fusions();
        let mut head = vec!["method".to_owned()];
        head.extend(fusions.then(|| "fusion".to_owned()));
        head.extend(["accuracy", "macro F1", "ECE", "vs joint [95 %]"].map(str::to_owned));
        head.extend(self.modalities.iter().map(|name| format!("{name} probe")));
        head.push("s/run".to_owned());
        let rows = self.rows.iter().map(|row| {
            let failed = row.failed == row.runs.len();
            let shown =
                |cell: Option<String>| cell.unwrap_or_else(|| if failed { "failed" } else { "-" }.to_owned());
            let mut label = row.variant().label();
            if row.failed > 0 && !failed {
                label += &format!(" ({} of {} failed)", row.failed, row.runs.len());
            }
            let mut cells = vec![label];
            cells.extend(fusions.then(|| row.fusion.clone().unwrap_or_else(|| "-".to_owned())));
            cells.extend([row.accuracy, row.macro_f1, row.ece].map(|stat| shown(stat.map(percent))));
            cells.push(row.difference_from_joint.map_or_else(|| "-  ".to_owned(), points));
            cells.extend(self.modalities.iter().map(|name| probe(row, name)));
            let seconds = row.seconds.get("total").map(|stat| format!("{:.1}", stat.mean));
            cells.push(seconds.unwrap_or_else(|| "-".to_owned()));
            cells
        });
        let rows = rows.collect();
        Grid {
            head,
            rows,
            left: if fusions { vec![1] } else { vec![] },
        }
    }

    fn several_fusions(&self) -> bool {
        let fusions: Vec<&String> = self.rows.iter().filter_map(|row| row.fusion.as_ref()).collect();
        fusions.windows(2).any(|pair| pair[0] != pair[1])
    }

    /// How to read the table.
    fn notes(&self) -> Vec<String> {
        let mut notes = vec![format!(
            "Percent of the test part; ± is the {} over {}.",
            self.std,
            self.repetitions()
        )];
        if self.rows.iter().any(|row| row.difference_from_joint.is_some()) {
            notes.push(format!(
                "vs joint: difference in accuracy from joint training in points, paired by seed{}, with Student's 95 % \
                 interval: ▲ lies above zero, ▼ below. Not corrected for comparing several methods.",
                if self.folds.is_empty() { "" } else { " and fold" }
            ));
            notes.push(self.interval_note.clone());
        } else {
            notes.push(
                "No difference from joint training: `--method` leaves it out, or it failed.".to_owned(),
            );
        }
        notes.push(
            "Probe: accuracy of a linear classifier on that modality's encoder, inside the model; in brackets its \
             distance from the same probe on the encoder trained alone (rows `unimodal`)."
                .to_owned(),
        );
        if self.several_fusions() && self.rows.iter().any(|row| row.fusion.is_none()) {
            let first = self
                .rows
                .iter()
                .find_map(|row| row.fusion.clone())
                .unwrap_or_default();
            notes.push(format!(
                "Rows without a fusion are compared with joint training under {first}."
            ));
        }
        notes.extend(
            self.not_alone
                .iter()
                .map(|(name, reason)| format!("{name} is not trained alone: {reason}")),
        );
        if self.rows.iter().any(|row| row.method == ENSEMBLE) {
            notes.push(
                "The time of `ensemble` is that of averaging; its members are the rows `unimodal`."
                    .to_owned(),
            );
        }
        if let Some(best) = agreement::best(&self.rows) {
            notes.push(format!(
                "Best method by validation accuracy: {}.",
                best.variant().label()
            ));
        }
        notes.extend(self.warnings.iter().map(|warning| format!("WARNING: {warning}.")));
        notes.extend(self.failures.iter().map(|failure| {
            format!(
                "FAILED: {}: {}",
                failure.label,
                failure.reason.lines().last().unwrap_or_default()
            )
        }));
        notes
    }

    fn repetitions(&self) -> String {
        let seeds = format!(
            "{} seed{}",
            self.seeds.len(),
            if self.seeds.len() == 1 { "" } else { "s" }
        );
        match self.folds.len() {
            0 => seeds,
            1 => format!("{seeds} on one fold"),
            folds => format!("{seeds} × {folds} folds"),
        }
    }

    /// Where the numbers come from.
    fn provenance(&self) -> Vec<String> {
        let list = |values: Vec<String>| {
            if values.is_empty() {
                "unknown".to_owned()
            } else {
                values.join(", ")
            }
        };
        let mut lines = vec![format!(
            "protocol: {} ({})",
            self.protocol,
            list(self.protocol_of_runs.clone())
        )];
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let folds = if self.folds.is_empty() {
            "none".to_owned()
        } else {
            self.folds.join(", ")
        };
        lines.push(format!("seeds: {}; folds: {folds}", seeds.join(", ")));
        if let Some(data) = &self.dataset {
            let count = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
            let hashes: Vec<String> = self
                .dataset_hash
                .values()
                .iter()
                .map(|hash| short(hash))
                .collect();
            lines.push(format!(
                "data: {}, {} rows to train on, {} to select by, {} to test on (first run); hash {}",
                data.name.as_deref().unwrap_or("unnamed"),
                count(data.train),
                count(data.val),
                count(data.test),
                list(hashes)
            ));
        }
        lines.push(format!("every run: {}", self.settings.join(", ")));
        let of_methods = self.method_settings.iter().filter(|(_, lines)| !lines.is_empty());
        lines.extend(of_methods.map(|(name, lines)| format!("{name}: {}", lines.join(", "))));
        lines.push(format!(
            "commit {}, candle {}, device {}",
            list(self.commit.values()),
            list(self.candle.values()),
            list(self.device.values())
        ));
        let all: f64 = self
            .rows
            .iter()
            .filter_map(|row| row.seconds.get("total"))
            .map(|s| s.mean * s.n as f64)
            .sum();
        lines.push(format!(
            "time: this call {}, all runs one after another {}",
            clock(Duration::from_secs_f64(self.wall_seconds)),
            clock(Duration::from_secs_f64(all.max(0.0)))
        ));
        lines.push(format!("command: `{}`", self.command));
        lines
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
        if distinct.len() > 1 {
            Self::Many(distinct)
        } else {
            Self::One(distinct.pop())
        }
    }

    /// The values there are.
    pub(crate) fn values(&self) -> Vec<String> {
        match self {
            Self::One(value) => value.iter().cloned().collect(),
            Self::Many(values) => values.clone(),
        }
    }
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
        tables.extend(agreement::table(
            &variant,
            &modalities,
            sources.runs,
            sources.outcomes,
            &folder,
        )?);
    }
    Ok(tables)
}

fn agreement_grid(table: &Table) -> Grid {
    let number = |share: f64| format!("{:.2}", 100.0 * share);
    let cells = table.rows.iter().map(|row| {
        let accuracy = row.accuracy.map_or("-".to_owned(), number);
        vec![
            row.unimodal.clone(),
            number(row.right),
            number(row.wrong),
            accuracy,
        ]
    });
    Grid {
        head: ["trained alone", "fused right", "fused wrong", "accuracy inside"]
            .map(str::to_owned)
            .to_vec(),
        rows: cells.collect(),
        left: vec![],
    }
}

/// A rate in percent with its deviation.
fn percent(stat: Stat) -> String {
    let std = stat
        .std
        .map_or(String::new(), |std| format!("±{:.2}", 100.0 * std));
    format!("{:.2}{std}", 100.0 * stat.mean)
}

/// A difference in percentage points with its interval and mark.
fn points(difference: Difference) -> String {
    let mark = match difference.side() {
        1 => "▲",
        -1 => "▼",
        _ => " ",
    };
    let interval = match (difference.low, difference.high) {
        (Some(low), Some(high)) => format!("[{}, {}]", signed(low), signed(high)),
        _ => "[one pair]".to_owned(),
    };
    format!("{} {interval} {mark}", signed(difference.mean))
}

/// Percentage points with a sign; what rounds to zero has no minus.
fn signed(rate: f64) -> String {
    let text = format!("{:+.2}", 100.0 * rate);
    if text == "-0.00" { "+0.00".to_owned() } else { text }
}

/// The probe of a modality inside a row, and its distance from the encoder trained alone.
fn probe(row: &Row, modality: &str) -> String {
    if row.method == UNIMODAL && row.modality.as_deref() != Some(modality) {
        return "-".to_owned();
    }
    let Some(inside) = row.unimodal.get(modality).and_then(|ways| ways["probe"]) else {
        return "-".to_owned();
    };
    let alone = row.unimodal_separate.get(modality).and_then(|ways| ways["probe"]);
    match alone {
        Some(alone) if row.method != UNIMODAL => {
            format!(
                "{:.2} ({})",
                100.0 * inside.mean,
                signed(inside.mean - alone.mean)
            )
        }
        _ => format!("{:.2}", 100.0 * inside.mean),
    }
}

/// Enough of a hash to tell two apart.
fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}
