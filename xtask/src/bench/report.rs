//! What `cargo xtask bench peer` makes of its measurements: medians, ratios in pairs, a table, a file.

use super::row::is_data;
use crate::document::{Block, Grid, text};
use serde::Serialize;

/// The times of one side of a row, and the most memory that it held.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Measured {
    /// Milliseconds of each step, one list per round.
    pub(super) rounds: Vec<Vec<f64>>,
    /// MiB before the first step, where the system knows.
    pub(super) start_mib: Option<f64>,
    /// The most MiB.
    pub(super) peak_mib: Option<f64>,
}

/// One row of the table and of the file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    /// What was trained.
    pub(super) name: String,
    /// Rows of its batch.
    batch: usize,
    /// Median over all steps.
    ours_ms: f64,
    /// The same of the other side, where it ran.
    peer_ms: Option<f64>,
    /// Median over the rounds of the ratio of the two medians of the round; below 1 where ours is faster.
    ratio: Option<f64>,
    /// The smallest ratio of a round.
    ratio_min: Option<f64>,
    /// The largest ratio of a round.
    ratio_max: Option<f64>,
    ours_mib: Option<f64>,
    peer_mib: Option<f64>,
    ratio_mib: Option<f64>,
    /// Memory before the first step: the program, the libraries and the model.
    ours_start_mib: Option<f64>,
    peer_start_mib: Option<f64>,
    /// Every time that was taken, one list per round.
    ours_rounds_ms: Vec<Vec<f64>>,
    peer_rounds_ms: Option<Vec<Vec<f64>>>,
}

/// Where and how it was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Environment {
    /// The processor.
    pub(super) cpu: Option<String>,
    /// Threads of either side.
    pub(super) threads: usize,
    /// The other side and its version; none where it did not run.
    pub(super) peer: Option<String>,
    /// The commit of this workspace.
    pub(super) commit: Option<String>,
    /// The operating system and the architecture.
    pub(super) system: String,
    /// `GLIBC_TUNABLES` of either side; none for the allocator's defaults.
    pub(super) allocator: Option<String>,
    /// Rows of a batch, but for rows with a batch of their own.
    pub(super) batch: usize,
    /// Rounds, in each of which either side works once.
    pub(super) rounds: usize,
    /// Steps of a side in a round.
    pub(super) steps: usize,
    /// Steps of a side before the first round.
    pub(super) warmup: usize,
    /// Whether the inputs were small ones, whose times say nothing.
    pub(super) small: bool,
}

/// Everything that was measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    /// The version of this format.
    pub(super) schema: u32,
    /// One entry per row.
    pub(super) rows: Vec<Row>,
    /// Where and how.
    pub(super) environment: Environment,
}

impl Row {
    /// From the times of both sides, which took part in the same rounds.
    pub(super) fn new(name: &str, batch: usize, ours: Measured, peer: Option<Measured>) -> Self {
        let all = |side: &Measured| median(&side.rounds.concat());
        let ratios: Vec<f64> = peer.iter().flat_map(|peer| paired(&ours.rounds, &peer.rounds)).collect();
        let some = |value: f64| (!ratios.is_empty()).then_some(value);
        let peer_mib = peer.as_ref().and_then(|peer| peer.peak_mib);
        Self {
            name: name.to_owned(),
            batch,
            ours_ms: all(&ours),
            peer_ms: peer.as_ref().map(all),
            ratio: some(median(&ratios)),
            ratio_min: some(ratios.iter().copied().fold(f64::INFINITY, f64::min)),
            ratio_max: some(ratios.iter().copied().fold(f64::NEG_INFINITY, f64::max)),
            ours_mib: ours.peak_mib,
            peer_mib,
            ratio_mib: ours.peak_mib.zip(peer_mib).map(|(ours, peer)| ours / peer),
            ours_start_mib: ours.start_mib,
            peer_start_mib: peer.as_ref().and_then(|peer| peer.start_mib),
            ours_rounds_ms: ours.rounds,
            peer_rounds_ms: peer.map(|peer| peer.rounds),
        }
    }

    fn cells(&self) -> Vec<String> {
        let shown = |value: Option<f64>, digits: usize| {
            value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
        };
        let range = match (self.ratio_min, self.ratio_max) {
            (Some(min), Some(max)) => format!("{min:.2}-{max:.2}"),
            _ => "-".to_owned(),
        };
        vec![
            self.name.clone(),
            format!("{:.1}", self.ours_ms),
            shown(self.peer_ms, 1),
            shown(self.ratio, 2),
            range,
            shown(self.ours_mib, 0),
            shown(self.peer_mib, 0),
            shown(self.ratio_mib, 2),
        ]
    }
}

impl Report {
    /// The table and how to read it.
    pub(super) fn text(&self) -> String {
        let head = ["row", "ours ms", "peer ms", "ratio", "min-max", "ours MiB", "peer MiB", "ratio"];
        let grid = Grid {
            head: head.map(str::to_owned).to_vec(),
            rows: self.rows.iter().map(Row::cells).collect(),
            left: vec![],
        };
        text(&[Block::Grid(grid), Block::List(self.notes())])
    }

    fn notes(&self) -> Vec<String> {
        let e = &self.environment;
        let mut notes = Vec::new();
        let cpu = e.cpu.as_deref().unwrap_or("unknown processor");
        let peer = e.peer.as_deref().unwrap_or("no PyTorch");
        notes.push(format!("{cpu}, {} threads, {}; {peer}.", e.threads, e.system));
        let own: Vec<String> = (self.rows.iter().filter(|row| row.batch != e.batch))
            .map(|row| format!("{} in {}", row.batch, row.name))
            .collect();
        let own = if own.is_empty() { String::new() } else { format!(" ({})", own.join(", ")) };
        notes.push(format!(
            "One training step of a batch of {}{own}: median of {} rounds of {} steps, after {} to warm up.",
            e.batch, e.rounds, e.steps, e.warmup
        ));
        if self.rows.iter().any(|row| row.name.contains("-forward-")) {
            notes.push("A step of a row with `-forward` is one evaluation.".to_owned());
        }
        if self.rows.iter().any(|row| is_data(&row.name)) {
            notes.push("A step of a row `data-` is so many files or clips, on one thread.".to_owned());
        }
        if self.rows.iter().any(|row| row.ratio.is_some()) {
            notes.push(
                "Ratio: ours / peer, below 1 where ours is faster; of the times, the median over the rounds \
                 of each round's ratio. Beside bf16 PyTorch runs under autocast, beside bf16x3 in f32."
                    .to_owned(),
            );
        }
        notes.push(match &e.allocator {
            Some(tunables) => format!("Allocator of both sides: {tunables}"),
            None => "Allocator of both sides: its defaults.".to_owned(),
        });
        if e.small {
            notes.push("Small inputs: a look at whether it works, not at its speed.".to_owned());
        }
        notes
    }
}

/// The middle value, or the mean of the two in the middle; NaN of nothing.
pub(super) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    match n {
        0 => f64::NAN,
        _ if n % 2 == 1 => sorted[n / 2],
        _ => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
    }
}

/// The ratio of the medians of each round.
fn paired(ours: &[Vec<f64>], peer: &[Vec<f64>]) -> Vec<f64> {
    ours.iter().zip(peer).map(|(ours, peer)| median(ours) / median(peer)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(peer: bool) -> Report {
        let side = |rounds: [[f64; 3]; 2], mib: f64| Measured {
            rounds: rounds.map(|times| times.to_vec()).to_vec(),
            start_mib: Some(mib / 10.0),
            peak_mib: Some(mib),
        };
        let ours = side([[3.0, 1.0, 2.0], [4.0, 4.0, 9.0]], 700.0);
        let other = side([[4.0, 4.0, 4.0], [5.0, 6.0, 5.0]], 1400.0);
        let environment = Environment {
            cpu: Some("Z80".to_owned()),
            threads: 2,
            peer: peer.then(|| "torch 9.9".to_owned()),
            commit: None,
            system: "linux x86_64".to_owned(),
            allocator: None,
            batch: 16,
            rounds: 2,
            steps: 3,
            warmup: 1,
            small: false,
        };
        let row = Row::new("conformer-layer-f32", 16, ours, peer.then_some(other));
        Report { schema: 1, rows: vec![row], environment }
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(median(&[7.0]), 7.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn ratios_are_taken_in_pairs() {
        let row = &report(true).rows[0];
        // Rounds: 2 / 4 and 4 / 5. The ratio of the two medians over everything, 3.5 / 4.5, is another number.
        assert_eq!((row.ours_ms, row.peer_ms), (3.5, Some(4.5)));
        assert_eq!(row.ratio, Some(0.65));
        assert_eq!((row.ratio_min, row.ratio_max), (Some(0.5), Some(0.8)));
        assert_eq!(row.ratio_mib, Some(0.5));
    }

    #[test]
    fn the_table_has_one_line_per_row() {
        let text = report(true).text();
        let mut lines = text.lines();
        assert_eq!(
            lines.next(),
            Some("row                  ours ms  peer ms  ratio    min-max  ours MiB  peer MiB  ratio")
        );
        assert_eq!(
            lines.nth(1),
            Some("conformer-layer-f32      3.5      4.5   0.65  0.50-0.80       700      1400   0.50")
        );
        assert!(text.contains("- Z80, 2 threads, linux x86_64; torch 9.9.\n"), "{text}");
        assert!(
            text.contains("of a batch of 16: median of 2 rounds of 3 steps, after 1 to warm up"),
            "{text}"
        );
    }

    #[test]
    fn a_batch_of_its_own_is_told() {
        let mut report = report(true);
        assert!(!report.text().contains("one evaluation"));
        report.rows[0].batch = 4;
        report.rows[0].name = "bert-forward-f32".to_owned();
        let text = report.text();
        assert!(text.contains("of a batch of 16 (4 in bert-forward-f32): median of 2"), "{text}");
        assert!(text.contains("- A step of a row with `-forward` is one evaluation.\n"), "{text}");
    }

    #[test]
    fn alone_the_other_side_is_null() {
        let report = report(false);
        let line = report.text().lines().nth(2).expect("a row").to_owned();
        assert_eq!(line.split_whitespace().collect::<Vec<_>>()[1..], ["3.5", "-", "-", "-", "700", "-", "-"]);
        let value = serde_json::to_value(&report).expect("JSON");
        let row = &value["rows"][0];
        assert_eq!(row["name"], "conformer-layer-f32");
        assert_eq!((&row["ours_ms"], &row["batch"]), (&3.5.into(), &16.into()));
        assert_eq!((&row["ours_start_mib"], &row["ours_mib"]), (&70.0.into(), &700.0.into()));
        for key in ["ms", "mib", "start_mib", "rounds_ms"].map(|key| format!("peer_{key}")) {
            assert!(row[&key].is_null() && row.get(&key).is_some(), "{key}");
        }
        for key in ["ratio", "ratio_min", "ratio_max", "ratio_mib"] {
            assert!(row[key].is_null() && row.get(key).is_some(), "{key}");
        }
        assert_eq!(value["environment"]["threads"], 2);
        assert!(value["environment"]["peer"].is_null());
    }
}
