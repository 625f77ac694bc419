//! A report as a document: the table, how to read it, and where it comes from.

use super::agreement::{self, Table};
use super::experiment::Reference;
use super::methods::{ENSEMBLE, JOINT, UNIMODAL};
use super::progress::clock;
use super::report::Report;
use super::summary::{Difference, Row, Stat};
use crate::document::{Block, Grid};
use std::time::Duration;

impl Report {
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
                "Agreement of {} with the models trained alone, percent of {} test rows (all seeds and folds)",
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
                    .filter(|r| !self.rows.iter().any(|row| stands_beside(r, row)))
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
        head.push("accuracy".to_owned());
        let published = self.reference.iter().any(|reference| reference.method.is_some());
        head.extend(published.then(|| "published".to_owned()));
        head.extend(["macro F1", "ECE", "vs joint [95 %]"].map(str::to_owned));
        head.extend(self.modalities.iter().map(|name| format!("{name} probe")));
        let timed = self.rows.iter().any(|row| row.epoch_over_joint.is_some());
        head.extend(timed.then(|| "epoch / joint".to_owned()));
        head.push("s/run".to_owned());
        let rows = self.rows.iter().map(|row| {
            let failed = row.failed == row.runs.len();
            let shown =
                |cell: Option<String>| cell.unwrap_or_else(|| if failed { "failed" } else { "-" }.to_owned());
            let mut label = row.variant().label();
            if row.failed > 0 && !failed {
                label = format!("{label} ({} of {} failed)", row.failed, row.runs.len());
            }
            let mut cells = vec![label];
            cells.extend(fusions.then(|| row.fusion.clone().unwrap_or_else(|| "-".to_owned())));
            cells.push(shown(row.accuracy.map(percent)));
            cells.extend(published.then(|| self.published(row).unwrap_or_else(|| "-".to_owned())));
            cells.extend([row.macro_f1, row.ece].map(|stat| shown(stat.map(percent))));
            cells.push(row.difference_from_joint.map_or_else(|| "-  ".to_owned(), points));
            cells.extend(self.modalities.iter().map(|name| probe(row, name)));
            let ratio = row.epoch_over_joint.map(|ratio| format!("{ratio:.2}"));
            cells.extend(timed.then(|| ratio.unwrap_or_else(|| "-".to_owned())));
            let seconds = row.seconds.get("total").map(|stat| format!("{:.1}", stat.mean));
            cells.push(seconds.unwrap_or_else(|| "-".to_owned()));
            cells
        });
        let rows = rows.collect();
        Grid { head, rows, left: if fusions { vec![1] } else { vec![] } }
    }

    /// What another's table says of this row.
    fn published(&self, row: &Row) -> Option<String> {
        let found = self.reference.iter().find(|reference| stands_beside(reference, row))?;
        Some(found.value.clone())
    }

    fn several_fusions(&self) -> bool {
        let fusions: Vec<&String> = self.rows.iter().filter_map(|row| row.fusion.as_ref()).collect();
        fusions.windows(2).any(|pair| pair[0] != pair[1])
    }

    /// How to read the table.
    fn notes(&self) -> Vec<String> {
        let single = self.seeds.len() * self.folds.len().max(1) == 1;
        let spread = if single {
            "one run each".to_owned()
        } else {
            let runs = self.seeds.len() * self.folds.len().max(1);
            format!("± is the {} over {} (n = {runs} runs)", self.std, self.repetitions())
        };
        let mut notes = vec![format!("Percent of the test part; {spread}.")];
        if self.rows.iter().any(|row| row.difference_from_joint.is_some()) {
            let over = if self.folds.is_empty() {
                format!("paired by seed, with Student's 95 % interval over seeds (n = {})", self.seeds.len())
            } else {
                format!(
                    "paired by seed and fold, averaged over the seeds of a fold, with Student's 95 % interval over \
                     folds (n = {})",
                    self.folds.len()
                )
            };
            notes.push(format!(
                "vs joint: difference in accuracy from joint training in points, {over}: ▲ lies above zero, ▼ below \
                 (no mark where all differences are equal: their spread is unknown). Not corrected for comparing \
                 several methods."
            ));
            let planned = self.folds.len().max(usize::from(self.folds.is_empty()) * self.seeds.len());
            let fewer = |row: &&Row| row.difference_from_joint.is_some_and(|d| d.n < planned);
            notes.extend(self.rows.iter().filter(fewer).filter_map(|row| {
                let n = row.difference_from_joint?.n;
                Some(format!("vs joint of {}: n = {n}, for runs failed.", row.variant().label()))
            }));
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
            let first = self.rows.iter().find_map(|row| row.fusion.clone()).unwrap_or_default();
            notes.push(format!("Rows without a fusion are compared with joint training under {first}."));
        }
        notes.extend(without_joint(&self.rows));
        notes.extend(
            self.not_alone.iter().map(|(name, reason)| format!("{name} is not trained alone: {reason}")),
        );
        if self.rows.iter().any(|row| row.method == ENSEMBLE) {
            notes.push("The time of `ensemble` is that of its members, the rows `unimodal`.".to_owned());
        }
        if self.rows.iter().any(|row| row.epoch_over_joint.is_some()) {
            notes.push(
                "epoch / joint: time of an epoch, validation included, over that of joint training; the median over \
                 seeds and folds, measured with other runs beside it: rough."
                    .to_owned(),
            );
        }
        let mut sources: Vec<&str> = Vec::new();
        for reference in self.reference.iter().filter(|reference| reference.method.is_some()) {
            if !sources.contains(&reference.source.trim()) {
                sources.push(reference.source.trim());
            }
        }
        notes.extend(sources.iter().map(|source| format!("published: {source}")));
        if let Some(best) = agreement::best(&self.rows) {
            notes.push(format!("Best method by validation accuracy: {}.", best.variant().label()));
        }
        notes.extend(self.warnings.iter().map(|warning| format!("WARNING: {warning}.")));
        notes.extend(self.failures.iter().map(|failure| {
            format!("FAILED: {}: {}", failure.label, failure.reason.lines().last().unwrap_or_default())
        }));
        notes
    }

    fn repetitions(&self) -> String {
        let seeds = format!("{} seed{}", self.seeds.len(), if self.seeds.len() == 1 { "" } else { "s" });
        match self.folds.len() {
            0 => seeds,
            1 => format!("{seeds} on one fold"),
            folds => format!("{seeds} × {folds} folds"),
        }
    }

    /// Where the numbers come from.
    fn provenance(&self) -> Vec<String> {
        let list = |values: Vec<String>| {
            if values.is_empty() { "unknown".to_owned() } else { values.join(", ") }
        };
        let mut lines =
            vec![format!("protocol: {} ({})", self.protocol, list(self.protocol_of_runs.clone()))];
        let seeds: Vec<String> = self.seeds.iter().map(u64::to_string).collect();
        let folds = if self.folds.is_empty() { "none".to_owned() } else { self.folds.join(", ") };
        lines.push(format!("seeds: {}; folds: {folds}", seeds.join(", ")));
        if let Some(data) = &self.dataset {
            let count = |n: Option<u64>| n.map_or("?".to_owned(), |n| n.to_string());
            let hash = match self.dataset_hash.values().as_slice() {
                [] => "unknown".to_owned(),
                [one] => short(one),
                [first, others @ ..] => format!("{} and {} others", short(first), others.len()),
            };
            lines.push(format!(
                "data: {}, {} rows to train on, {} to select by, {} to test on (first run); hash {}",
                data.name.as_deref().unwrap_or("unnamed"),
                count(data.train),
                count(data.val),
                count(data.test),
                hash
            ));
        }
        lines.push(format!("every run: {}", self.settings.join(", ")));
        let of_methods = self.method_settings.iter().filter(|(_, lines)| !lines.is_empty());
        lines.extend(of_methods.map(|(name, lines)| format!("{name}: {}", lines.join(", "))));
        if let Some(tuned) = &self.tuned {
            let mut names: Vec<String> = Vec::new();
            for row in &self.rows {
                let name = row.variant().tuned_name();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            lines.push(format!(
                "{} by method{}, chosen on validation parts by `cargo xtask tune {}` ({}): {}",
                tuned.key,
                if self.folds.is_empty() { "" } else { " and fold" },
                self.experiment,
                tuned.source,
                tuned.shown(&names).join("; ")
            ));
        }
        if !self.tuned_at_edge.is_empty() {
            lines.push(format!(
                "at an edge of what was tried, so that a better value may lie beyond it: {}",
                self.tuned_at_edge.join(", ")
            ));
        }
        lines.push("all other settings of methods: the defaults that `mm methods` lists".to_owned());
        lines.push(format!(
            "commit {}, candle {}, device {}",
            list(self.commit.values()),
            list(self.candle.values()),
            list(self.device.values())
        ));
        let all: f64 = self
            .rows
            .iter()
            .filter(|row| row.method != ENSEMBLE) // its time is that of its members
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

/// Rows that joint training does not stand beside, since it was not run under their fusion.
fn without_joint(rows: &[Row]) -> Vec<String> {
    let joint =
        |fusion: &String| rows.iter().any(|row| row.method == JOINT && row.fusion.as_ref() == Some(fusion));
    let mut fusions: Vec<&String> = rows.iter().filter_map(|row| row.fusion.as_ref()).collect();
    let all: Vec<String> = fusions.iter().copied().filter(|f| joint(f)).cloned().collect();
    fusions.sort_unstable();
    fusions.dedup();
    fusions.retain(|fusion| !joint(fusion));
    let named = |fusion: &String| {
        let rows = rows.iter().filter(|row| row.fusion.as_ref() == Some(fusion));
        let methods = rows.map(|row| row.method).collect::<Vec<_>>().join(", ");
        let first = all.first().map(|first| format!("{first},")).unwrap_or_default();
        format!(
            "No difference for {methods}: joint training under {fusion} is not in the table; `--fusion {first}{fusion}` adds it."
        )
    };
    if all.is_empty() { Vec::new() } else { fusions.into_iter().map(named).collect() }
}

/// Whether a number from elsewhere is of the method and fusion of this row; a row without a fusion takes that of any.
fn stands_beside(reference: &Reference, row: &Row) -> bool {
    reference.method.as_ref().is_some_and(|method| *method == row.variant().tuned_name())
        && (row.fusion.is_none() || reference.fusion == row.fusion)
}

fn agreement_grid(table: &Table) -> Grid {
    let number = |share: f64| format!("{:.2}", 100.0 * share);
    let cells = table.rows.iter().map(|row| {
        let accuracy = row.accuracy.map_or("-".to_owned(), number);
        vec![row.unimodal.clone(), number(row.right), number(row.wrong), accuracy]
    });
    Grid {
        head: ["trained alone", "fused right", "fused wrong", "accuracy inside"].map(str::to_owned).to_vec(),
        rows: cells.collect(),
        left: vec![],
    }
}

/// A rate in percent with its deviation.
fn percent(stat: Stat) -> String {
    let std = stat.std.map_or(String::new(), |std| format!("±{:.2}", 100.0 * std));
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
        _ => "[n = 1]".to_owned(),
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
    let elsewhere = row.method == UNIMODAL && row.modality.as_deref() != Some(modality);
    if elsewhere || row.method == ENSEMBLE {
        return "-".to_owned();
    }
    let Some(inside) = row.unimodal.get(modality).and_then(|ways| ways["probe"]) else {
        return "-".to_owned();
    };
    let alone = row.unimodal_separate.get(modality).and_then(|ways| ways["probe"]);
    match alone {
        Some(alone) if row.method != UNIMODAL => {
            format!("{:.2} ({})", 100.0 * inside.mean, signed(inside.mean - alone.mean))
        }
        _ => format!("{:.2}", 100.0 * inside.mean),
    }
}

/// Enough of a hash to tell two apart.
fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::summary::tests::fabricated;

    #[test]
    fn numbers_from_elsewhere_stand_beside_their_method_and_fusion() {
        let (_, _, rows) = fabricated();
        let reference = |method: Option<&str>, fusion: Option<&str>| Reference {
            label: String::new(),
            value: String::new(),
            source: String::new(),
            method: method.map(str::to_owned),
            fusion: fusion.map(str::to_owned),
        };
        let beside = |reference: Reference| -> Vec<usize> {
            (0..rows.len()).filter(|&row| stands_beside(&reference, &rows[row])).collect()
        };
        // Rows: a alone, b alone, joint and MLB under late-linear.
        assert_eq!(beside(reference(Some("joint"), Some("late-linear"))), [2]);
        assert_eq!(beside(reference(Some("joint"), Some("gated"))), [0; 0]);
        assert_eq!(
            beside(reference(Some("unimodal:b"), Some("late-linear"))),
            [1],
            "a fusion says nothing here"
        );
        assert_eq!(beside(reference(Some("unimodal"), None)), [0; 0]);
        assert_eq!(beside(reference(None, None)), [0; 0]);
    }

    #[test]
    fn rows_without_joint_training_under_their_fusion_are_named() {
        let (_, _, mut rows) = fabricated();
        assert_eq!(without_joint(&rows), [""; 0]);
        rows[3].method = "greedy";
        rows[3].fusion = Some("mmtm".to_owned());
        let told = "No difference for greedy: joint training under mmtm is not in the table; `--fusion late-linear,mmtm` adds it.";
        assert_eq!(without_joint(&rows), [told]);
        // Without any joint training another sentence says so.
        rows.remove(2);
        assert_eq!(without_joint(&rows), [""; 0]);
    }
}
