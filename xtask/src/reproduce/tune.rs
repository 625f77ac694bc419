//! `cargo xtask tune`: chooses a setting of every method, fold by fold, by validation accuracy.

use super::experiment::{DEFAULT, Experiment};
use super::methods::ENSEMBLE;
use super::mm::Layout;
use super::plan::{Folders, Run, Selection, plan};
use super::record::Record;
use super::summary::Outcome;
use super::tuned::{self, Choices, Tune, WHOLE};
use super::{
    Jobs, data_folder, execute, experiments, failed, interrupted, list, lock, pack, prepare, typed_command,
};
use crate::document::{Block, Grid, markdown, text};
use crate::error::usage;
use crate::files::write_atomic;
use crate::interrupt::Interrupt;
use crate::workspace::root;
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::ExitCode;
use toml::Value;

/// Chooses the learning rate of every method, fold by fold, by validation accuracy.
///
/// The grid is the part `[tune]` of the experiment's file. Every value is tried with every method, and with every
/// modality alone; a fold's choice looks at its own validation part only, never at a test part. The choices go to
/// `experiments/EXPERIMENT.tuned.toml`, where `reproduce` finds them. Runs that are done are kept.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// An experiment whose file has a `tune` table: synthetic, cremad-perception or ravdess-features
    #[arg(default_value = DEFAULT)]
    experiment: String,
    /// The folder with the data sets [default: ../shared/data beside the workspace, if it exists]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Methods to try, or all; with less than the experiment's usual ones, the grid is printed and no choice is written
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    method: Vec<String>,
    /// Only the first so many seeds of the grid; the grid is printed and no choice is written
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    seeds: Option<u64>,
    /// Where to write the runs and the grid [default: reproduce/tune-EXPERIMENT in the workspace]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Runs side by side; the cores are shared out among them [default: number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    jobs: Option<u64>,
    /// cpu, cuda, cuda:N or metal [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    device: Option<String>,
    /// Do again what is done
    #[arg(long)]
    fresh: bool,
    /// List the runs and stop
    #[arg(long)]
    dry_run: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask tune                                       the synthetic data, on other data sets than the reported ones
  cargo xtask tune cremad-perception --data ~/data       writes experiments/cremad-perception.tuned.toml
  cargo xtask tune --method all                          all methods, not only those of the four papers
  cargo xtask tune ravdess-features --method mlb,joint   a look at two methods, writes no choice

Exit codes: 0 all runs are done; 1 a run failed, no choice is written; 2 the command line or the data are not right;
130 interrupted.";

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let folder = experiments();
    let experiment = Experiment::load(&folder, &args.experiment)?; // without the choices of an earlier search
    let name = experiment.name.clone();
    let tune = experiment.tune.clone().ok_or_else(|| {
        usage(format!("the experiment {name} has no [tune]: its methods share one value, there is no choice"))
    })?;
    let (selection, whole) = selected(&experiment, &tune, args)?;
    let data = match data_folder(&experiment, args.data.as_deref()) {
        Err(_) if args.dry_run => "{data}".to_owned(),
        found => found?,
    };
    let out = args.out.clone().unwrap_or_else(|| root().join("reproduce").join(format!("tune-{name}")));
    let layout = Layout::new(std::path::absolute(out)?);
    let (folders, pack) = pack::planned(&experiment, &layout, data)?;
    let (runs, values) = trials(&experiment, &selection, &tune, &folders)?;
    if args.dry_run {
        list(&layout, &runs);
        return Ok(ExitCode::SUCCESS);
    }

    let _lock = lock(layout.out())?;
    let interrupt = Interrupt::listen()?;
    prepare(&layout, &runs, args.fresh)?;
    let jobs = Jobs::new(args.jobs);
    if let Some(pack) = pack
        && !pack::make(&pack, args.device.as_deref())?
    {
        return Ok(interrupted(&layout, &runs, args.fresh));
    }
    let Some(outcomes) = execute(&layout, &runs, &jobs, args.device.as_deref(), &interrupt)? else {
        return Ok(interrupted(&layout, &runs, args.fresh));
    };

    let cells = cells(&experiment, &selection, &tune, &runs, &values, &outcomes);
    let header = header(&tune, &selection, &outcomes);
    let document = document(&experiment, &tune, &header, &cells);
    write_atomic(&layout.out().join("grid.md"), &markdown(&document))?;
    print!("{}", text(&document));
    let failures = outcomes.iter().filter(|outcome| outcome.is_err()).count();
    // A rate at which training diverges is a result of the search: it is not chosen. Any other failure is a fault.
    if outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).any(|reason| !reason.contains(DIVERGED)) {
        eprintln!("no choice was written: every run of the grid must succeed, or diverge");
        return Ok(failed(&layout, failures, runs.len()));
    }
    if !whole {
        eprintln!("no choice was written: --method or --seeds leaves out a part of the grid");
        return Ok(ExitCode::SUCCESS);
    }
    let choices = choices(&cells)?;
    let path = tuned::path(&folder, &name);
    write_atomic(&path, &tuned::text(&header, &tuned::names(&experiment), &choices))?;
    eprintln!("choices written to {}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// What to run, and whether that is the whole grid. One fusion only, the experiment's first.
fn selected(experiment: &Experiment, tune: &Tune, args: &Args) -> Result<(Selection, bool)> {
    let wanted = super::Args {
        experiment: args.experiment.clone(),
        data: args.data.clone(),
        method: args.method.clone(),
        fusion: experiment.fusions[..1].to_vec(),
        seeds: None,
        folds: None,
        out: None,
        jobs: None,
        device: args.device.clone(),
        fresh: args.fresh,
        preset: None,
        set: Vec::new(),
        dry_run: args.dry_run,
    };
    let mut selection = Selection::new(experiment, &wanted)?;
    selection.methods.retain(|&method| method != ENSEMBLE); // it has nothing to choose
    selection.seeds.clone_from(&tune.seeds);
    if let Some(seeds) = args.seeds {
        if seeds > tune.seeds.len() as u64 {
            return Err(usage(format!("--seeds {seeds}: the grid has {} seed(s)", tune.seeds.len())));
        }
        selection.seeds.truncate(seeds as usize);
    }
    let all = Selection::new(experiment, &super::Args { method: Vec::new(), ..wanted })?;
    let every = all.methods.iter().all(|method| *method == ENSEMBLE || selection.methods.contains(method));
    let whole = every && selection.seeds.len() == tune.seeds.len();
    Ok((selection, whole))
}

/// The runs, and of each the position of its value in the grid.
fn trials(
    experiment: &Experiment,
    selection: &Selection,
    tune: &Tune,
    data: &Folders,
) -> Result<(Vec<Run>, Vec<usize>)> {
    let (mut runs, mut values) = (Vec::new(), Vec::new());
    for (position, &value) in tune.values.iter().enumerate() {
        let mut selection = selection.clone();
        selection.set.push((tune.key.clone(), Value::Float(value)));
        for run in plan(experiment, &selection, data)? {
            runs.push(Run { tried: Some(format!("{} = {value}", tune.key)), ..run });
            values.push(position);
        }
    }
    Ok((runs, values))
}

/// What one value reached on the validation part of one fold, over the seeds.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Score {
    value: f64,
    accuracy: f64,
    loss: f64,
}

/// One method on one fold.
#[derive(Debug)]
struct Cell {
    name: String,
    fold: String,
    /// One entry per value of the grid; none where a run failed.
    scores: Vec<Option<Score>>,
}

/// What `mm` says of a loss that is not a number any more.
const DIVERGED: &str = "training has diverged";

/// Means closer than this are equal: sums of the same numbers may differ in the last bits.
const EQUAL: f64 = 1e-12;

impl Cell {
    /// The value with the best accuracy; among equals the one with the lower loss, then the smaller one. A value at
    /// which a run failed is out; none if there was one at every value.
    fn chosen(&self) -> Option<f64> {
        let scores = self.scores.iter().flatten().copied();
        let better = |a: &Score, b: &Score| {
            if (a.accuracy - b.accuracy).abs() > EQUAL {
                return a.accuracy > b.accuracy;
            }
            if (a.loss - b.loss).abs() > EQUAL {
                return a.loss < b.loss;
            }
            a.value < b.value
        };
        scores.reduce(|best, score| if better(&score, &best) { score } else { best }).map(|s| s.value)
    }
}

/// The validation scores, method by method and fold by fold.
fn cells(
    experiment: &Experiment,
    selection: &Selection,
    tune: &Tune,
    runs: &[Run],
    values: &[usize],
    outcomes: &[Outcome],
) -> Vec<Cell> {
    let folds: Vec<Option<&str>> = match selection.folds.as_slice() {
        [] => vec![None],
        folds => folds.iter().map(|fold| Some(fold.name.as_str())).collect(),
    };
    let mut cells = Vec::new();
    for name in tuned::names(experiment) {
        if !runs.iter().any(|run| run.variant.tuned_name() == name) {
            continue;
        }
        for &fold in &folds {
            let score = |(position, &value): (usize, &f64)| {
                let mine = runs.iter().zip(values).zip(outcomes).filter(|((run, at), _)| {
                    **at == position && run.fold.as_deref() == fold && run.variant.tuned_name() == name
                });
                let records: Option<Vec<&Record>> = mine.map(|(_, outcome)| outcome.as_ref().ok()).collect();
                mean(value, &records?)
            };
            let scores = tune.values.iter().enumerate().map(score).collect();
            cells.push(Cell { name: name.clone(), fold: fold.unwrap_or(WHOLE).to_owned(), scores });
        }
    }
    cells
}

/// The means over seeds; none if a record has no validation accuracy. A loss that is missing is the worst.
fn mean(value: f64, records: &[&Record]) -> Option<Score> {
    let n = records.len() as f64;
    let accuracies: Vec<f64> =
        records.iter().map(|record| record.val.get("accuracy").copied()).collect::<Option<_>>()?;
    let loss = |record: &&Record| record.val.get("loss").copied().unwrap_or(f64::MAX / n);
    Some(Score {
        value,
        accuracy: accuracies.iter().sum::<f64>() / n,
        loss: records.iter().map(loss).sum::<f64>() / n,
    })
}

fn choices(cells: &[Cell]) -> Result<Choices> {
    let mut choices = Choices::new();
    for cell in cells {
        let value = cell.chosen().with_context(|| {
            format!("{}, {}: a result.json has no validation accuracy", cell.name, cell.fold)
        })?;
        choices.entry(cell.name.clone()).or_default().insert(cell.fold.clone(), value);
    }
    Ok(choices)
}

/// How the choice was made: the comment of the file.
fn header(tune: &Tune, selection: &Selection, outcomes: &[Outcome]) -> Vec<String> {
    let numbers = tune.values.iter().map(f64::to_string).collect::<Vec<_>>().join(", ");
    let seeds = selection.seeds.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let mut commits: Vec<&str> = outcomes.iter().flatten().filter_map(|r| r.commit.as_deref()).collect();
    commits.sort_unstable();
    commits.dedup();
    let commit = if commits.is_empty() { "unknown".to_owned() } else { commits.join(", ") };
    let whose = if selection.folds.is_empty() { "the" } else { "that fold's own" };
    vec![
        format!("Made by `{}`, commit {commit}.", typed_command()),
        format!(
            "{}: of {numbers} the value with the best mean accuracy on {whose} validation part, seeds {seeds},",
            tune.key
        ),
        format!(
            "fusion {}; among equals the lower validation loss, then the smaller value. Test parts had no say.",
            selection.fusions.join(", ")
        ),
    ]
}

/// The grid: validation accuracies only.
fn document(experiment: &Experiment, tune: &Tune, header: &[String], cells: &[Cell]) -> Vec<Block> {
    let mut head = vec!["method".to_owned(), "fold".to_owned()];
    head.extend(tune.values.iter().map(f64::to_string));
    head.push("chosen".to_owned());
    let rows = cells.iter().map(|cell| {
        let mut row = vec![cell.name.replace(':', " "), cell.fold.clone()];
        row.extend(cell.scores.iter().map(|score| {
            score.map_or_else(|| "failed".to_owned(), |score| format!("{:.2}", 100.0 * score.accuracy))
        }));
        row.push(cell.chosen().map_or_else(|| "-".to_owned(), |value| value.to_string()));
        row
    });
    vec![
        Block::Title(format!("{}: accuracy on the validation part by {}", experiment.title, tune.key)),
        Block::Grid(Grid { head, rows: rows.collect(), left: vec![1] }),
        Block::Text(header.join(" ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(scores: &[(f64, f64, f64)]) -> Cell {
        let score = |&(value, accuracy, loss): &(f64, f64, f64)| Some(Score { value, accuracy, loss });
        Cell { name: "mlb".to_owned(), fold: "fold1".to_owned(), scores: scores.iter().map(score).collect() }
    }

    #[test]
    fn accuracy_then_loss_then_the_smaller_value() {
        assert_eq!(cell(&[(0.1, 0.7, 9.0), (0.2, 0.8, 9.9), (0.3, 0.6, 0.1)]).chosen(), Some(0.2));
        assert_eq!(cell(&[(0.1, 0.7, 0.5), (0.2, 0.7, 0.4), (0.3, 0.6, 0.1)]).chosen(), Some(0.2));
        assert_eq!(cell(&[(0.3, 0.7, 0.4), (0.1, 0.7, 0.4), (0.2, 0.7, 0.4)]).chosen(), Some(0.1));
        let bits = (0.1 + 0.2 + 0.3) / 3.0; // not the same bits as 0.2
        assert_eq!(cell(&[(0.1, 0.2, 0.4), (0.2, bits, 0.5)]).chosen(), Some(0.1));
    }

    #[test]
    fn a_value_at_which_a_run_failed_is_not_chosen() {
        let mut cell = cell(&[(0.1, 0.7, 0.5), (0.2, 0.8, 0.4)]);
        cell.scores[1] = None;
        assert_eq!(cell.chosen(), Some(0.1));
        cell.scores[0] = None;
        assert_eq!(cell.chosen(), None);
        assert!(choices(&[cell]).is_err());
    }
}
