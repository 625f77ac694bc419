//! `cargo xtask bench peer`: the same training steps and evaluations here and in PyTorch, and the same files here and in
//! Python's libraries, in turns.

use super::report::{Environment, Measured, Report, Row};
use super::row::{ROWS, fixed_batch, is_data, library, select};
use super::side::{Interrupted, Side};
use crate::files::write_atomic;
use crate::interrupt::Interrupt;
use crate::workspace::{build_program, cargo, commit};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::Duration;

/// The other side's program.
const SCRIPT: &str = include_str!("peer.py");
/// The same for rows of data.
const DATA_SCRIPT: &str = include_str!("peer_data.py");
/// What a check of the other side begins with: as that script, it takes no module from the folder that it is started in.
const NO_FOLDER: &str = "import sys; sys.path = [folder for folder in sys.path if folder]";
/// The allocator of both sides: freed blocks are kept and lie on huge pages, so that neither side pays for maps that
/// come and go.
const TUNABLES: &str =
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=17179869184";
/// Between one side's turn and the other's: longer than threads of OpenMP spin when their work is done.
const PAUSE: Duration = Duration::from_millis(400);

/// Runs the same training steps here and, where Python with torch is installed, in PyTorch, and prints one table.
///
/// Both sides are processes of their own that live as long as their row; while one works the other waits. They take
/// turns in every round, and who begins changes from round to round. Each has the same threads and the same settings
/// of the allocator. Without torch ours runs alone; so do single rows whose other side needs a library that this
/// Python lacks: wav2vec2-base transformers, efficientnet-b2 torchvision. Rows with `-forward` evaluate only. Rows of
/// data read files or analyse them on one thread: data-stft beside librosa, data-jpeg beside Pillow and torchvision,
/// data-wav beside soundfile.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench peer
  cargo xtask bench peer --row resnet18-visual,conformer --rounds 9 --out peer.json
  PEER_PYTHON=~/torch/bin/python cargo xtask bench peer --threads 1
  cargo xtask bench peer --row data --steps 20

The environment variable PEER_PYTHON names the Python that has torch; default python3. PEER_STEP_BIN names another
program for our side than the example `peer_step` of mm-train, which is built otherwise; PEER_DATA_BIN another one than
the example `peer_data` of mm-data, for rows of data.

Measure on an idle machine. Exit codes: 0 done; 1 a side failed; 2 the command line is not right; 130 interrupted.")]
pub(super) struct Args {
    /// Rows by name, or by the beginning of their names
    #[arg(long, value_delimiter = ',', value_name = "NAME", help = rows())]
    row: Vec<String>,
    /// Rounds; in each, either side works once
    #[arg(long, default_value_t = 5, value_parser = at_least_one)]
    rounds: usize,
    /// Steps of a side in a round
    #[arg(long, default_value_t = 3, value_parser = at_least_one)]
    steps: usize,
    /// Steps of a side before the first round
    #[arg(long, default_value_t = 2)]
    warmup: usize,
    /// Threads of either side; default all cores
    #[arg(long, value_parser = at_least_one)]
    threads: Option<usize>,
    /// Rows of a batch; conformer-f32 and efficientnet-b2 always have 8, wav2vec2-base 4, data 16
    #[arg(long, default_value_t = 16, value_parser = at_least_one)]
    batch: usize,
    /// Leave the allocator as the system has it, on both sides
    #[arg(long)]
    default_allocator: bool,
    /// Small inputs: a look at whether it works, not at its speed
    #[arg(long)]
    small: bool,
    /// Write the numbers to this file, as JSON
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

fn rows() -> String {
    format!("Rows by name, or by the beginning of their names: {}", ROWS.join(", "))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("needs a whole number, at least 1".to_owned()),
        Ok(number) => Ok(number),
    }
}

/// Runs the task.
pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let rows = select(&args.row)?;
    let interrupt = Interrupt::listen()?;
    let mut programs = Vec::new();
    for (wanted, package, program, other) in [
        (rows.iter().any(|row| !is_data(row)), "mm-train", "peer_step", "PEER_STEP_BIN"),
        (rows.iter().any(|row| is_data(row)), "mm-data", "peer_data", "PEER_DATA_BIN"),
    ] {
        programs.push(match std::env::var_os(other) {
            _ if !wanted => Ok(PathBuf::new()),
            Some(path) => Ok(PathBuf::from(path)),
            None => {
                build_program(cargo(&["build", "--release", "-p", package, "--example", program]), program)
            }
        });
    }
    if interrupt.came() {
        return Ok(interrupted(0, rows.len()));
    }
    let programs: Vec<PathBuf> = programs.into_iter().collect::<Result<_>>()?;
    let [ours, ours_data] = <[PathBuf; 2]>::try_from(programs).unwrap_or_default();
    let python = std::env::var_os("PEER_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let torch = torch_version(&python);
    if torch.is_none() && rows.iter().any(|row| !is_data(row)) {
        eprintln!(
            "there is no PyTorch under {}: ours runs alone (PEER_PYTHON names a Python that has torch)",
            python.display()
        );
    }
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let files = tempfile::tempdir()?;
    let plan = Plan { args, ours, ours_data, python, torch, threads, interrupt, files: files.path() };

    let environment = Environment {
        cpu: processor(),
        threads,
        peer: plan.torch.clone(),
        commit: commit(),
        system: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        allocator: plan.tunables().map(str::to_owned),
        batch: args.batch,
        rounds: args.rounds,
        steps: args.steps,
        warmup: args.warmup,
        small: args.small,
    };
    let mut report = Report { schema: 1, rows: Vec::new(), environment };
    for (done, name) in rows.iter().enumerate() {
        eprintln!("{name} ({} of {})", done + 1, rows.len());
        match plan.measure(name) {
            Ok(row) => report.rows.push(row),
            Err(error) if error.is::<Interrupted>() => {
                return Ok(interrupted(done, rows.len()));
            }
            Err(error) => return Err(error.context(format!("row {name}"))),
        }
    }
    print!("{}", report.text());
    if let Some(path) = &args.out {
        write_atomic(path, &(serde_json::to_string_pretty(&report)? + "\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn interrupted(done: usize, all: usize) -> ExitCode {
    eprintln!("interrupted: {done} of {all} rows are done");
    ExitCode::from(130)
}

/// What every row needs.
struct Plan<'a> {
    args: &'a Args,
    ours: PathBuf,
    ours_data: PathBuf,
    python: PathBuf,
    torch: Option<String>,
    threads: usize,
    interrupt: Interrupt,
    /// Where rows of data have their files.
    files: &'a Path,
}

impl Plan<'_> {
    fn tunables(&self) -> Option<&'static str> {
        (!self.args.default_allocator).then_some(TUNABLES)
    }

    /// Runs one row: warms both sides up, lets them take turns, and asks for their memory.
    fn measure(&self, name: &str) -> Result<Row> {
        let data = is_data(name);
        let ours = if data { &self.ours_data } else { &self.ours };
        let mut sides = vec![self.start("ours", Command::new(ours), name)?];
        let asked = data || self.torch.is_some();
        let missing = library(name).filter(|library| asked && !has(&self.python, library));
        if let Some(library) = missing {
            eprintln!("there is no {library} under {}: ours runs alone in {name}", self.python.display());
        }
        if asked && missing.is_none() {
            let mut python = Command::new(&self.python);
            python.args(["-c", if data { DATA_SCRIPT } else { SCRIPT }]);
            sides.push(self.start(if data { "Python" } else { "PyTorch" }, python, name)?);
        }
        if self.args.warmup > 0 {
            for (side, _) in &mut sides {
                std::thread::sleep(PAUSE);
                side.steps(self.args.warmup)?;
            }
        }
        for round in 0..self.args.rounds {
            let count = sides.len();
            for turn in 0..count {
                let (side, times) = &mut sides[if round % 2 == 0 { turn } else { count - 1 - turn }];
                std::thread::sleep(PAUSE);
                times.rounds.push(side.steps(self.args.steps)?);
            }
        }
        let mut measured = Vec::with_capacity(2);
        for (side, mut times) in sides {
            times.peak_mib = side.quit()?;
            measured.push(times);
        }
        let peer = (measured.len() > 1).then(|| measured.pop()).flatten();
        let Some(ours) = measured.pop() else { bail!("nothing was measured") };
        Ok(Row::new(name, self.batch(name), ours, peer))
    }

    fn batch(&self, name: &str) -> usize {
        fixed_batch(name).unwrap_or(self.args.batch)
    }

    fn start(&self, who: &'static str, program: Command, name: &str) -> Result<(Side, Measured)> {
        let (side, ready) = Side::start(who, self.command(program, name), &self.interrupt)?;
        Ok((side, Measured { rounds: Vec::new(), start_mib: ready.mib, peak_mib: None }))
    }

    /// A side's call: both get the same arguments and the same environment.
    fn command(&self, mut command: Command, name: &str) -> Command {
        command.args(["--row", name]);
        command.args(["--batch", &self.batch(name).to_string()]);
        if is_data(name) {
            command.arg("--files").arg(self.files);
        }
        if self.args.small {
            command.arg("--small");
        }
        let threads = if is_data(name) { 1 } else { self.threads };
        for variable in ["RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"] {
            command.env(variable, threads.to_string());
        }
        match self.tunables() {
            Some(tunables) => command.env("GLIBC_TUNABLES", tunables),
            None => command.env_remove("GLIBC_TUNABLES"),
        };
        command
    }
}

/// `torch 2.9.0`, where this Python has it.
fn torch_version(python: &Path) -> Option<String> {
    let output = asked(python, "import torch; print('torch', torch.__version__)")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// Whether this Python has the library.
fn has(python: &Path, library: &str) -> bool {
    asked(python, &format!("import {library}")).is_some()
}

/// What this Python makes of `script`, if it makes it.
fn asked(python: &Path, script: &str) -> Option<Output> {
    let output = Command::new(python).args(["-c", &format!("{NO_FOLDER}; {script}")]).output().ok()?;
    output.status.success().then_some(output)
}

/// The name of the processor, where the system tells.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}
