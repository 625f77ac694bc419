//! `cargo xtask golden`: encoders of published size against the libraries that publish them, and our exports in theirs.
//!
//! Python's side is `tests/golden/generate/full.py` and `export_check.py`, ours the example `golden_full` of mm-encoders.
//! Both work on files of one folder, one after the other, so that only one network is in memory at a time.

use crate::document::{Block, Grid, markdown, text};
use crate::files::write_atomic;
use crate::interrupt::Interrupt;
use crate::suggest::choose;
use crate::workspace::{build_program, cargo, root, shown};
use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use tempfile::TempDir;

/// What `--full` writes when nothing is left out.
const PAGE: &str = "docs/golden-full.md";
/// What Python must have.
const NEEDED: [&str; 6] = ["torch", "torchvision", "timm", "transformers", "numpy", "safetensors"];
const EXPORT_BAR: f64 = 1e-5;
/// How many times further from it than it is from its own f64 a network in f32 may be.
const OWN: f64 = 3.0;

/// Compares encoders of published size with torchvision, timm and transformers, weights, outputs and every gradient.
///
/// Python makes a network with seeded random weights and saves it as its library does, with an input, the outputs and the
/// gradient of every parameter in evaluation and in training. The example golden_full of mm-encoders loads that checkpoint
/// and computes the same. With --export it is the other way round: Python loads what `weights::export` has written.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask golden --full --export                      everything; writes docs/golden-full.md
  cargo xtask golden --full --numbers f32 --case resnet,bert-base
  cargo xtask golden --export --python ~/torch/bin/python

The environment variable PEER_PYTHON names the Python, too; default python3. MM_GOLDEN_BIN names another program for
our side than the example golden_full, which is built otherwise. The largest case takes 6 GB of memory and 5 GB in the
folder for temporary files (TMPDIR).

Exit codes: 0 all errors are within their bars; 1 one is not, or Python lacks something; 2 the command line is not
right; 130 interrupted.")]
pub(crate) struct Args {
    /// Networks of published size against the libraries that publish them
    #[arg(long, required_unless_present = "export")]
    full: bool,
    /// Our checkpoints in torchvision and transformers
    #[arg(long)]
    export: bool,
    /// The Python that has torch, torchvision, timm and transformers
    #[arg(long, value_name = "PROGRAM")]
    python: Option<PathBuf>,
    /// Leave with 0 where Python lacks something
    #[arg(long)]
    if_available: bool,
    /// Cases by name, or by the beginning of their names
    #[arg(long, value_delimiter = ',', value_name = "NAME", requires = "full")]
    case: Vec<String>,
    /// In which numbers both sides compute
    #[arg(long, value_delimiter = ',', default_values = ["f32", "f64"], value_parser = ["f32", "f64"])]
    numbers: Vec<String>,
    /// Write the tables to this file, as Markdown; docs/golden-full.md where no case and no type is left out
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let interrupt = Interrupt::listen()?;
    let done = compare(args, &interrupt);
    // The table has what was done until then, and the temporary files are gone by now.
    if interrupt.came() {
        eprintln!("interrupted");
        return Ok(ExitCode::from(130));
    }
    done
}

fn compare(args: &Args, interrupt: &Interrupt) -> Result<ExitCode> {
    let python = args.python.clone().or_else(|| std::env::var_os("PEER_PYTHON").map(PathBuf::from));
    let python = Python(python.unwrap_or_else(|| PathBuf::from("python3")));
    let versions = match python.versions() {
        Ok(versions) => versions,
        Err(error) if args.if_available => {
            eprintln!("skipped: {error:#}");
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) => return Err(error),
    };
    let cases = if args.full { select(&python.cases()?, &args.case)? } else { Vec::new() };
    let ours = if let Some(path) = std::env::var_os("MM_GOLDEN_BIN") {
        PathBuf::from(path)
    } else {
        let mut build = cargo(&["build", "-p", "mm-encoders", "--example", "golden_full"]);
        if args.full {
            build.arg("--release"); // Networks of published size in f64 take minutes each otherwise.
        }
        build_program(build, "golden_full")?
    };
    let mut report = Report { versions, cases: Vec::new(), exports: Vec::new() };
    let mut failed = Vec::new();
    'cases: for numbers in &args.numbers {
        for case in &cases {
            if interrupt.came() {
                break 'cases;
            }
            eprintln!("{case} in {numbers}");
            match one(&python, &ours, case, numbers) {
                Ok(outcome) => {
                    let (outputs, gradients) = (outcome.outputs.error, outcome.gradients.error);
                    eprintln!("  outputs {outputs:.1e}, gradients {gradients:.1e}");
                    report.cases.push(outcome);
                }
                Err(_) if interrupt.came() => break 'cases,
                Err(error) => failed.push(format!("{case} in {numbers} failed: {error:#}")),
            }
        }
    }
    if args.export && !interrupt.came() {
        eprintln!("exports");
        report.exports = exports(&python, &ours)?;
    }
    let blocks = report.blocks();
    print!("{}", text(&blocks));
    let whole = args.full
        && args.case.is_empty()
        && ["f32", "f64"].iter().all(|n| args.numbers.iter().any(|m| m == n));
    let out = args.out.clone().or_else(|| whole.then(|| root().join(PAGE)));
    if let Some(path) = out.filter(|_| failed.is_empty() && !interrupt.came()) {
        write_atomic(&path, &markdown(&blocks))?;
    }
    failed.extend(report.over());
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Err(anyhow!("{} failed or are over their bars:\n  {}", failed.len(), failed.join("\n  ")))
}

/// One network: Python writes the folder, ours reads it.
fn one(python: &Python, ours: &Path, case: &str, numbers: &str) -> Result<Outcome> {
    let folder = scratch()?;
    let mut theirs = python.script("full.py");
    theirs.args([case, numbers]).arg(folder.path());
    output(theirs)?;
    let mut command = Command::new(ours);
    command.arg("compare").arg(folder.path());
    lines(&output(command)?)?.pop().context("golden_full printed nothing")
}

/// Ours writes the folder, Python loads what is in it.
fn exports(python: &Python, ours: &Path) -> Result<Vec<Export>> {
    let folder = scratch()?;
    let mut command = Command::new(ours);
    command.arg("export").arg(folder.path());
    output(command)?;
    let mut theirs = python.script("export_check.py");
    theirs.arg(folder.path());
    lines(&output(theirs)?)
}

fn scratch() -> Result<TempDir> {
    tempfile::Builder::new()
        .prefix("mm-golden-")
        .tempdir()
        .context("cannot make a temporary folder: set TMPDIR")
}

/// What a command prints; its errors are shown as they come.
fn output(mut command: Command) -> Result<String> {
    // Without it every product of candle's reads the machine's description to count cores.
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        command.env("RAYON_NUM_THREADS", threads.to_string());
    }
    let typed = shown(&command);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start `{typed}`"))?;
    if !output.status.success() {
        bail!("`{typed}` failed ({})", output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The lines of a text that are JSON objects.
fn lines<T: DeserializeOwned>(text: &str) -> Result<Vec<T>> {
    let objects = text.lines().filter(|line| line.starts_with('{'));
    objects
        .map(|line| serde_json::from_str(line).with_context(|| format!("not understood: {line}")))
        .collect()
}

/// The cases that are called so, or whose names begin so up to a hyphen, in their order.
fn select(all: &[String], wanted: &[String]) -> Result<Vec<String>> {
    let begins = |case: &str, name: &str| case.strip_prefix(name).is_some_and(|rest| rest.starts_with('-'));
    // `resnet` is the beginning of `resnet18-image`, though no hyphen follows.
    let takes = |case: &str, name: &str| {
        case == name
            || begins(case, name)
            || case.strip_prefix(name).is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()))
    };
    let names: Vec<&str> = all.iter().map(String::as_str).collect();
    for name in wanted {
        if !names.iter().any(|case| takes(case, name)) {
            choose("case", name, &names)?;
        }
    }
    let chosen = |case: &&String| wanted.is_empty() || wanted.iter().any(|name| takes(case, name));
    Ok(all.iter().filter(chosen).cloned().collect())
}

/// The interpreter of the other side.
struct Python(PathBuf);

impl Python {
    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(&self.0);
        command.arg(root().join("tests/golden/generate").join(name));
        command
    }

    /// What is installed, if all is that is needed.
    fn versions(&self) -> Result<BTreeMap<String, String>> {
        let program = self.0.display();
        let remedy = "name another Python by --python or PEER_PYTHON";
        let mut command = self.script("full.py");
        let found = command.arg("--versions").stderr(Stdio::null()).output();
        let found = found.ok().filter(|found| found.status.success());
        let found = found.with_context(|| format!("`{program}` is no Python of at least 3.10: {remedy}"))?;
        let mut answers: Vec<BTreeMap<String, Option<String>>> =
            lines(&String::from_utf8_lossy(&found.stdout))?;
        let answer =
            answers.pop().with_context(|| format!("`{program}` did not say what it has: {remedy}"))?;
        let has = |library: &&str| answer.get(*library).is_some_and(Option::is_some);
        let missing: Vec<&str> = NEEDED.into_iter().filter(|library| !has(library)).collect();
        if !missing.is_empty() {
            let missing = missing.join(" ");
            bail!(
                "`{program}` lacks {}: install with `{program} -m pip install {missing}` (the versions of the table are \
                 at the head of tests/golden/generate/full.py), or {remedy}",
                missing.replace(' ', ", ")
            );
        }
        Ok(answer.into_iter().filter_map(|(name, version)| Some((name, version?))).collect())
    }

    fn cases(&self) -> Result<Vec<String>> {
        let mut command = self.script("full.py");
        command.arg("--list");
        Ok(output(command)?.lines().map(str::to_owned).collect())
    }
}

/// The largest error of some tensors.
#[derive(Debug, Deserialize)]
struct Worst {
    tensors: usize,
    error: f64,
    name: String,
}

/// How far PyTorch in f32 is from PyTorch in f64.
#[derive(Debug, Deserialize)]
struct Own {
    outputs: f64,
    gradients: f64,
}

/// A line of `golden_full compare`.
#[derive(Debug, Deserialize)]
struct Outcome {
    case: String,
    dtype: String,
    loaded: usize,
    parameters: usize,
    outputs: Worst,
    gradients: Worst,
    statistics: Worst,
    own: Option<Own>,
    seconds: f64,
}

impl Outcome {
    /// The bars of outputs, which running statistics share, and of gradients.
    fn bars(&self) -> (f64, f64) {
        if self.dtype == "f64" {
            return (1e-8, 1e-8);
        }
        let own = self.own.as_ref().map_or(0.0, |own| own.gradients);
        (1e-4, (OWN * own).max(1e-3))
    }

    fn over(&self) -> Vec<String> {
        let (outputs, gradients) = self.bars();
        let parts = [
            ("output", &self.outputs, outputs),
            ("gradient", &self.gradients, gradients),
            ("running statistic", &self.statistics, outputs),
        ];
        let over = parts.into_iter().filter(|(_, worst, bar)| worst.error >= *bar);
        over.map(|(what, worst, bar)| {
            let (case, dtype, name, error) = (&self.case, &self.dtype, &worst.name, worst.error);
            format!("{case} in {dtype}, {what} `{name}`: {error:.1e}, the bar is {bar:.1e}")
        })
        .collect()
    }

    fn row(&self) -> Vec<String> {
        let own = |value: fn(&Own) -> f64| self.own.as_ref().map_or("-".to_owned(), |own| short(value(own)));
        let compared = self.outputs.tensors + self.gradients.tensors + self.statistics.tensors;
        let statistics =
            if self.statistics.tensors > 0 { short(self.statistics.error) } else { "-".to_owned() };
        vec![
            self.case.clone(),
            format!("{:.1} M", self.parameters as f64 / 1e6),
            self.loaded.to_string(),
            compared.to_string(),
            short(self.outputs.error),
            statistics,
            short(self.gradients.error),
            own(|own| own.outputs),
            own(|own| own.gradients),
            format!("{:.0}", self.seconds),
        ]
    }
}

/// A line of `export_check.py`.
#[derive(Debug, Deserialize)]
struct Export {
    case: String,
    loaded: usize,
    error: f64,
}

struct Report {
    versions: BTreeMap<String, String>,
    cases: Vec<Outcome>,
    exports: Vec<Export>,
}

impl Report {
    /// What is over its bar.
    fn over(&self) -> Vec<String> {
        let exports = self.exports.iter().filter(|e| e.error >= EXPORT_BAR);
        let exports =
            exports.map(|e| format!("export {}: {:.1e}, the bar is {EXPORT_BAR:.1e}", e.case, e.error));
        self.cases.iter().flat_map(Outcome::over).chain(exports).collect()
    }

    fn blocks(&self) -> Vec<Block> {
        let versions: Vec<String> =
            self.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
        let full = if self.cases.is_empty() { "" } else { " --full" };
        let what = full.to_owned() + if self.exports.is_empty() { "" } else { " --export" };
        let mut blocks = vec![
            Block::Title("Parity at full size".to_owned()),
            Block::Text(format!("Written by `cargo xtask golden{what}`, with {}.", versions.join(", "))),
        ];
        if !self.cases.is_empty() {
            blocks.push(Block::Text(ABOUT.to_owned()));
        }
        let mut numbers: Vec<&str> = self.cases.iter().map(|case| case.dtype.as_str()).collect();
        numbers.dedup();
        for dtype in numbers {
            let rows = self.cases.iter().filter(|case| case.dtype == dtype);
            blocks.push(Block::Heading(dtype.to_owned()));
            blocks.push(Block::Grid(grid(&HEAD, rows.map(Outcome::row).collect())));
        }
        if !self.exports.is_empty() {
            blocks.push(Block::Heading("Exports".to_owned()));
            blocks.push(Block::Text(EXPORTS.to_owned()));
            let row = |e: &Export| vec![e.case.clone(), e.loaded.to_string(), short(e.error)];
            blocks.push(Block::Grid(grid(
                &["checkpoint", "tensors", "outputs"],
                self.exports.iter().map(row).collect(),
            )));
        }
        blocks
    }
}

const HEAD: [&str; 10] = [
    "case",
    "parameters",
    "loaded",
    "compared",
    "outputs",
    "statistics",
    "gradients",
    "PyTorch: outputs",
    "PyTorch: gradients",
    "seconds",
];

const ABOUT: &str = "\
Each case is a network of published size with seeded random weights, saved as its library saves it and loaded here, strictly
by name. Compared are the outputs in evaluation and in training without dropout, the gradient of every parameter and of
the input in both, and the running statistics afterwards. An error is the largest difference over the largest entry of the
reference's tensor; the table has the largest of all tensors. Bars: in f64 1e-8; in f32 1e-4 for outputs and statistics and
1e-3 for gradients.

Inputs: for ResNet-18 four images of 3 x 224 x 224 or spectrograms of 1 x 257 x 188, for ResNet-50 two; two faces of 3 x 260 x 260;
four seconds of audio, for the large layout two clips, one of them shorter; for Conformers three sequences of 100, 77 and 31 places
or two of 199; texts of 128 and 90 tokens. A number at the end of a name is that of the layers that are kept.

Gradients that are zero by construction - of a key's bias in attention, of a shift that the next normalisation takes out -
are rounding on both sides; they are taken over the gradient of the same module's weight.

The columns \"PyTorch\" say how far PyTorch in f32 is from PyTorch in f64, on the same weights. Where a ReLU is near zero, f32
may fall on the other side of it, and all gradients of that channel move at once: a ResNet in f32 is no closer to
itself than these columns say. So a gradient in f32 is also within its bar if it is at most three times as far away; that the
formulas are right, f64 says.

Seconds are ours alone: loading, two passes and their gradients, in the profile `release`, whatever else the machine did meanwhile.";

const EXPORTS: &str = "\
Folders that `weights::export::save_folder` wrote, opened in Python: ResNet-18 by torchvision's `load_state_dict(strict=True)`, a
small Wav2Vec2 by transformers' `from_pretrained`, without a missing or unexpected name. The bar is 1e-5.";

fn grid(head: &[&str], rows: Vec<Vec<String>>) -> Grid {
    Grid { head: head.iter().map(|&name| name.to_owned()).collect(), rows, left: Vec::new() }
}

fn short(error: f64) -> String {
    format!("{error:.1e}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case(dtype: &str, [outputs, gradients]: [f64; 2], own: Option<f64>) -> Outcome {
        let worst = |error| Worst { tensors: 2, error, name: "w".to_owned() };
        Outcome {
            case: "net".to_owned(),
            dtype: dtype.to_owned(),
            loaded: 3,
            parameters: 1_250_000,
            outputs: worst(outputs),
            gradients: worst(gradients),
            statistics: Worst { tensors: 0, error: 0.0, name: String::new() },
            own: own.map(|gradients| Own { outputs: 1e-7, gradients }),
            seconds: 2.4,
        }
    }

    #[test]
    fn bars_depend_on_the_numbers_and_on_pytorch_itself() {
        assert!(case("f32", [9e-5, 9e-4], Some(1e-6)).over().is_empty());
        assert_eq!(
            case("f32", [2e-4, 2e-3], Some(1e-6)).over(),
            [
                "net in f32, output `w`: 2.0e-4, the bar is 1.0e-4",
                "net in f32, gradient `w`: 2.0e-3, the bar is 1.0e-3"
            ]
        );
        assert!(case("f32", [0.0, 0.1], Some(0.04)).over().is_empty());
        assert_eq!(case("f32", [0.0, 0.1], Some(0.03)).over().len(), 1);
        assert!(case("f64", [1e-14, 9e-9], None).over().is_empty());
        assert_eq!(case("f64", [2e-8, f64::MAX], None).over().len(), 2);
    }

    #[test]
    fn rows_say_what_was_compared() {
        let row = case("f64", [1e-14, 2e-13], None).row();
        assert_eq!(row, ["net", "1.2 M", "3", "4", "1.0e-14", "-", "2.0e-13", "-", "-", "2"]);
    }

    #[test]
    fn cases_are_chosen_by_name_or_beginning() {
        let all = ["resnet18-image", "resnet50-image", "bert-base", "distilbert"].map(str::to_owned);
        let chosen = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|&name| name.to_owned()).collect();
            select(&all, &wanted)
        };
        assert_eq!(chosen(&[]).expect("all"), all);
        assert_eq!(
            chosen(&["bert", "resnet"]).expect("known"),
            ["resnet18-image", "resnet50-image", "bert-base"]
        );
        assert_eq!(chosen(&["resnet50"]).expect("known"), ["resnet50-image"]);
        let error = chosen(&["distelbert"]).expect_err("unknown").to_string();
        assert!(error.contains("there is no case `distelbert`; did you mean `distilbert`?"), "{error}");
    }
}
