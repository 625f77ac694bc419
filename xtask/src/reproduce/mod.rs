//! `cargo xtask reproduce`: runs an experiment and prints its table.

mod agreement;
mod experiment;
mod methods;
mod mm;
mod pack;
mod plan;
mod pool;
mod present;
mod preset;
mod progress;
mod record;
mod report;
mod settings;
mod summary;
pub(crate) mod tune;
mod tuned;

use crate::document;
use crate::error::usage;
use crate::files::write_atomic;
use crate::interrupt::Interrupt;
use crate::workspace::{quoted, root};
use anyhow::{Context, Result, bail};
use experiment::Experiment;
use mm::{Layout, Program};
use plan::{Run, Selection};
use pool::Event;
use progress::Progress;
use record::Record;
use report::{Report, Sources};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::time::Instant;
use summary::Outcome;
use tuned::Tuned;

/// Runs every method of an experiment under the same budget and splits, and prints one table.
///
/// The experiments are files in `experiments/`. `synthetic`, the default, makes its data itself; the others read
/// feature files from `--data`; `cremad` generates a stand-in where no `--data` is given. Runs that are done are kept: the same command again only does what is missing, after
/// an interrupt too. Beside the table, OUT/table.md and OUT/results.json are written; OUT/runs has one folder per run.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// synthetic, cremad, cremad-perception, ravdess-features, ravdess-audio, avmnist, mosi or tcga-breast
    #[arg(default_value = experiment::DEFAULT)]
    pub(crate) experiment: String,
    /// The folder with the data sets [default: ../shared/data beside the workspace, if it exists]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Methods to run, or all [default: the experiment's, else unimodal, ensemble, joint, multi-loss, sum-ce, mlb, ogm,
    /// ogm-ge, opm, opm+ogm, lfm-heuristic, lfm-learned, multimodal-loss; more: agm, amco, arl, cggm, cml, functional-entropy,
    /// g-blend, greedy, info-reg, mbsd, mcr, mla, mmcosine, mmpareto, modality-dropout, mslr, pmr, proxyanchor, proxynca, reconboost,
    /// relearning, softtriple, valuation]
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    pub(crate) method: Vec<String>,
    /// Fusions to run: late-linear, concat, sum, mid-mlp, film, gated, mmtm, transformer [default: the experiment's]
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    pub(crate) fusion: Vec<String>,
    /// How many seeds: 0, 1, … [default: the experiment's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub(crate) seeds: Option<u64>,
    /// Which folds, by name, or the first so many [default: all]
    #[arg(long, value_name = "LIST|N")]
    pub(crate) folds: Option<String>,
    /// Where to write [default: reproduce/EXPERIMENT in the workspace]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Runs side by side; the cores are shared out among them [default: number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024))]
    pub(crate) jobs: Option<u64>,
    /// cpu, cuda, cuda:N or metal [default: cpu]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Do again what is done
    #[arg(long)]
    pub(crate) fresh: bool,
    /// Its size: smoke, reduced or paper, where the experiment has them [default: reduced]
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// A setting of every run, such as optim.lr=0.01; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// List the runs and stop
    #[arg(long)]
    pub(crate) dry_run: bool,
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask reproduce                                       every method on synthetic data, needs nothing
  cargo xtask reproduce --seeds 2 --method joint,mlb          a quick look
  cargo xtask reproduce mosi --data ~/data                    three modalities, from ~/data/mosi-bclstm
  cargo xtask reproduce ravdess-features --folds fold0,fold3  two of the five folds
  cargo xtask reproduce ravdess-audio --data ~/data           from raw wav files: Conformer and ResNet-18
  cargo xtask reproduce cremad                                ResNet-18 on sound and faces, on a generated stand-in
  cargo xtask reproduce cremad --preset smoke                 the same path in minutes
  cargo xtask reproduce --fusion film,gated --out film-gated  other fusions, other folder
  cargo xtask reproduce --set optim.lr=0.01 --dry-run         what would be run

Exit codes: 0 all runs are done; 1 a run failed; 2 the command line or the data are not right; 130 interrupted.";

/// How many lines of a failed run's output are shown.
const TAIL: usize = 20;

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let first = Experiment::load(&experiments(), &args.experiment)?;
    let mut code = one(args)?;
    for (i, name) in first.also.iter().enumerate() {
        if code != ExitCode::SUCCESS {
            return Ok(code);
        }
        // Its own folder: beside the workspace's others, or below the one that was asked for.
        let out = args.out.as_ref().map(|out| out.join(name));
        if !args.dry_run {
            println!("\n[{} of {}] {name}\n", i + 2, first.also.len() + 1);
        }
        code = one(&Args { experiment: name.clone(), out, ..args.clone() })?;
    }
    Ok(code)
}

/// Runs one experiment.
fn one(args: &Args) -> Result<ExitCode> {
    let began = Instant::now();
    let folder = experiments();
    let mut experiment = Experiment::load(&folder, &args.experiment)?;
    experiment.tuned = Tuned::load(&folder, &experiment)?;
    if let Some(name) = &args.preset {
        experiment = preset::apply(experiment, name)?;
    }
    if args.data.is_none() {
        experiment = experiment.on_stand_in();
    }
    let selection = Selection::new(&experiment, args)?;
    let data = match data_folder(&experiment, args.data.as_deref()) {
        Err(_) if args.dry_run => "{data}".to_owned(),
        found => found?,
    };
    let out =
        args.out.clone().unwrap_or_else(|| root().join("reproduce").join(usual_folder(args, &experiment)));
    let layout = Layout::new(std::path::absolute(out)?);
    let (folders, pack) = pack::planned(&experiment, &layout, data)?;
    let runs = plan::plan(&experiment, &selection, &folders)?;
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

    let sources = Sources {
        experiment: &experiment,
        selection: &selection,
        runs: &runs,
        outcomes: &outcomes,
        layout: &layout,
    };
    let report = Report::new(sources, typed_command(), began.elapsed())?;
    let document = report.document();
    write_atomic(&layout.out().join("results.json"), &(serde_json::to_string_pretty(&report)? + "\n"))?;
    write_atomic(&layout.out().join("table.md"), &document::markdown(&document))?;
    print!("{}", document::text(&document));
    if report.failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    Ok(failed(&layout, report.failures.len(), runs.len()))
}

/// The folder of the experiment files: `MM_EXPERIMENTS` if that is set, else the workspace's.
fn experiments() -> PathBuf {
    std::env::var_os("MM_EXPERIMENTS").map_or_else(|| root().join("experiments"), PathBuf::from)
}

/// The folder below `reproduce`: one for each size of an experiment.
fn usual_folder(args: &Args, experiment: &Experiment) -> String {
    match args.preset.as_deref() {
        None | Some(preset::PLAIN) => experiment.name.clone(),
        Some(preset) => format!("{}-{preset}", experiment.name),
    }
}

fn interrupted(layout: &Layout, runs: &[Run], fresh: bool) -> ExitCode {
    let done = runs.iter().filter(|run| is_done(layout, run)).count();
    eprintln!("interrupted: {done} of {} runs are done and kept", runs.len());
    eprintln!("to go on: the same command{}", if fresh { " without --fresh" } else { "" });
    ExitCode::from(130)
}

fn failed(layout: &Layout, failed: usize, all: usize) -> ExitCode {
    eprintln!("{failed} of {all} runs failed; logs: {}", layout.out().join("logs").display());
    ExitCode::FAILURE
}

/// How many runs at a time, and how many threads each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Jobs {
    width: usize,
    threads: usize,
}

impl Jobs {
    fn new(asked: Option<u64>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let width = asked.map_or(cores, |jobs| jobs as usize);
        Self { width, threads: (cores / width).max(1) }
    }
}

/// The folder that `{data}` stands for. An experiment without data has none.
fn data_folder(experiment: &Experiment, asked: Option<&Path>) -> Result<String> {
    let Some(requires) = &experiment.requires else {
        return Ok(String::new());
    };
    if asked.is_none() && experiment.stand_in().is_some() {
        return Ok(String::new()); // it is generated: `pack` says where
    }
    let usual = root().join("../shared/data");
    let folder = asked.map_or(usual, Path::to_owned);
    let missing = requires.files.iter().find(|file| !folder.join(file).is_file());
    if let Some(missing) = missing {
        let place = match asked {
            Some(folder) => format!("there is no {} in {}", missing.display(), folder.display()),
            None => "say with --data DIR in which folder they lie".to_owned(),
        };
        let files: Vec<String> =
            requires.files.iter().map(|file| format!("  DIR/{}", file.display())).collect();
        return Err(usage(format!(
            "the experiment {} needs data: {place}\n\nExpected:\n{}\n{}\n\nWhere to get them:\n{}",
            experiment.name,
            files.join("\n"),
            indented(&requires.layout),
            indented(&requires.source)
        )));
    }
    let folder = folder.canonicalize().with_context(|| format!("cannot open {}", folder.display()))?;
    let text = folder.to_str().with_context(|| format!("{} is not UTF-8; rename it", folder.display()))?;
    Ok(text.to_owned())
}

fn indented(text: &str) -> String {
    text.trim().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// Keeps a second call out of the same folder; let go when this one ends, however it ends.
fn lock(out: &Path) -> Result<File> {
    fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
    let path = out.join(".lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another `reproduce` or `tune` writes to {}; wait for it or choose another --out",
                out.display()
            )
        }
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// Makes the folders, writes the configurations that are new, and with `fresh` removes what these runs left before.
fn prepare(layout: &Layout, runs: &[Run], fresh: bool) -> Result<()> {
    for folder in ["runs", "configs", "logs"] {
        fs::create_dir_all(layout.out().join(folder))?;
    }
    for run in runs {
        let folder = layout.folder(run);
        if folder.exists() && (fresh || !has_config(layout, run)) {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        if !has_config(layout, run) {
            write_atomic(&layout.config(run), &run.config)?;
        }
    }
    Ok(())
}

/// Whether the configuration on disk is exactly the run's.
fn has_config(layout: &Layout, run: &Run) -> bool {
    fs::read_to_string(layout.config(run)).is_ok_and(|text| text == run.config)
}

/// Whether a run with exactly this configuration has a result.
fn is_done(layout: &Layout, run: &Run) -> bool {
    has_config(layout, run) && Record::read(&layout.folder(run)).is_ok()
}

/// Runs what is not done. None if it was interrupted.
fn execute(
    layout: &Layout,
    runs: &[Run],
    jobs: &Jobs,
    device: Option<&str>,
    interrupt: &Interrupt,
) -> Result<Option<Vec<Outcome>>> {
    let open: Vec<usize> = (0..runs.len()).filter(|&i| !is_done(layout, &runs[i])).collect();
    let mut failures: Vec<Option<String>> = vec![None; runs.len()];
    if open.is_empty() {
        eprintln!("all {} runs are done", runs.len());
    } else {
        let program = Program::find(device, jobs.threads)?;
        eprintln!(
            "{} of {} runs to do, {} at a time with {} thread{} each",
            open.len(),
            runs.len(),
            jobs.width.min(open.len()),
            jobs.threads,
            if jobs.threads == 1 { "" } else { "s" }
        );
        let mut progress = Progress::new(open.len());
        let (ensembles, training): (Vec<usize>, Vec<usize>) =
            open.iter().partition(|&&i| runs[i].is_ensemble());
        for phase in [training, ensembles] {
            let mut ready = Vec::new();
            for job in phase {
                match runs[job].members.iter().find(|&&member| failures[member].is_some()) {
                    None => ready.push(job),
                    Some(&member) => failures[job] = Some(format!("{} failed", runs[member].label())),
                }
            }
            let start = |job: usize| program.command(layout, runs, &runs[job]);
            let finished = pool::run(&ready, jobs.width, interrupt, start, |event| match event {
                Event::Working(running) => {
                    let label = running.first().map_or(String::new(), |&job| runs[job].label());
                    progress.working(running.len(), &label);
                }
                Event::Ended(job, status, took) => {
                    failures[job] = failure(layout, &runs[job], status);
                    progress.ended(&runs[job].label(), failures[job].is_some(), took);
                    if let Some(reason) = &failures[job] {
                        progress.clear();
                        eprintln!("run {} failed:\n{}", runs[job].label(), indented(reason));
                    }
                }
            });
            progress.clear();
            if !finished {
                return Ok(None);
            }
        }
    }
    let outcome = |(run, failure): (&Run, Option<String>)| match failure {
        Some(reason) => Err(reason),
        None => Record::read(&layout.folder(run)).map_err(|error| format!("{error:#}")),
    };
    Ok(Some(runs.iter().zip(failures).map(outcome).collect()))
}

/// Why a run that has ended is no success, with the end of what it said.
fn failure(layout: &Layout, run: &Run, status: Result<ExitStatus>) -> Option<String> {
    let problem = match status {
        Err(error) => format!("it could not be started: {error:#}"),
        Ok(status) if !status.success() => format!("{status}"),
        Ok(_) => match Record::read(&layout.folder(run)) {
            Ok(_) => return None,
            Err(error) => format!("{error:#}"),
        },
    };
    let log = fs::read(layout.log(run)).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(TAIL)..];
    Some(std::iter::once(problem.as_str()).chain(tail.iter().copied()).collect::<Vec<_>>().join("\n"))
}

fn list(layout: &Layout, runs: &[Run]) {
    let done = runs.iter().filter(|run| is_done(layout, run)).count();
    for run in runs {
        let state = if is_done(layout, run) { "done" } else { "to do" };
        println!("{state:<6} {:<44} {}", run.label(), run.id);
    }
    println!("{} runs, {done} done", runs.len());
}

/// The command line as it was typed.
fn typed_command() -> String {
    let words = std::env::args_os().skip(1).map(|word| quoted(&word.to_string_lossy()));
    ["cargo".to_owned(), "xtask".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}
