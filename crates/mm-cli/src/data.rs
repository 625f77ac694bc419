//! `mm data`: raw files into packs, and what is in a pack.

use crate::output;
use anyhow::Context as _;
use mm_core::ConfigError;
use mm_data::image::{Frame, sheet};
use mm_data::pack::{self, Pack, WriteProgress, Written};
use mm_data::prepare::{Recipe, Source, prepare};
use mm_data::{Dataset, PackedConfig};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Verbs of `mm data`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Verb {
    /// Make a pack from the raw files of a data set.
    Prepare(PrepareArgs),
    /// Read a pack from end to end and compare its checksums.
    Verify(PackArgs),
    /// What a pack holds: shapes, classes, columns.
    Stats(PackArgs),
    /// Draw some rows of a pack into a PNG: frames beside spectrograms.
    Inspect(InspectArgs),
}

/// Arguments of `mm data prepare`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Data sets:
  ravdess    speech clips 03-01-EE-II-SS-RR-AA.wav in any folder below, df_average_AUs_total.csv
  avmnist    pairs.csv with id, digit, speaker, split, wav, png
  manifest   manifest.csv with id, label, optionally split and integer columns, and a column of paths per modality

A recipe says what becomes of each modality; without one, sound becomes log-mel spectrograms and images keep their size:
  [inputs.audio.sound.front_end]
  kind = \"log-mel\"            # stft, psd, kaldi-fbank, mfcc, waveform; ogm-stft and other published recipes
  bins = 64
  [inputs.image.image]
  size = [224, 224]
  channels = 3

Ctrl-C or a kill loses nothing that is complete: the same command goes on. A complete pack is left as it is.

Examples:
  mm data prepare ravdess --raw RAVDESS --out packs/ravdess
  mm data prepare manifest --raw FOLDER --out packs/mine --recipe recipe.toml")]
pub(crate) struct PrepareArgs {
    /// ravdess, avmnist or manifest.
    dataset: String,
    /// The folder of the raw files.
    #[arg(long, value_name = "DIR")]
    raw: PathBuf,
    /// The folder of the pack.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What becomes of each modality (TOML).
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Change one setting of the recipe; may be given several times.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// No progress bar and no summary.
    #[arg(long, short)]
    quiet: bool,
}

/// A pack.
#[derive(Debug, clap::Args)]
pub(crate) struct PackArgs {
    /// The folder of the pack.
    pack: PathBuf,
}

/// Arguments of `mm data inspect`.
#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// The folder of the pack.
    pack: PathBuf,
    /// The picture to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// How many rows, evenly spaced.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u64).range(1..=200))]
    clips: u64,
    /// Height of a picture in pixels.
    #[arg(long, value_name = "PIXELS", default_value = "128", value_parser = clap::value_parser!(u64).range(16..=1024))]
    height: u64,
}

pub(crate) fn run(verb: &Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Prepare(args) => run_prepare(args),
        Verb::Verify(args) => {
            let read = pack::verify(&args.pack)?;
            output::print(&format!(
                "{}: {} rows in {} files, {:.1} MiB, all checksums right\n",
                args.pack.display(),
                read.rows,
                read.files,
                read.bytes as f64 / f64::from(1 << 20)
            ))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Stats(args) => {
            output::print(&stats(&open(&args.pack)?)?)?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Inspect(args) => inspect(args),
    }
}

/// Signals as a flag; the second of a kind ends the process at once.
pub(crate) fn interruptible() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

fn run_prepare(args: &PrepareArgs) -> anyhow::Result<ExitCode> {
    let source = Source::named(&args.dataset)?;
    let recipe = recipe(args)?;
    let stop = interruptible()?;
    let hidden = args.quiet || !std::io::stderr().is_terminal();
    let bar = if hidden { indicatif::ProgressBar::hidden() } else { indicatif::ProgressBar::new(0) };
    if let Ok(style) =
        indicatif::ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} rows, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    bar.set_prefix(args.dataset.clone());
    let progress = |p: WriteProgress| {
        bar.set_length(p.rows as u64);
        bar.set_position(p.done as u64);
    };
    let written = prepare(source, &args.raw, &recipe, &args.out, &progress, &stop)?;
    bar.finish_and_clear();
    match written {
        Written::Stopped { done } => {
            output::note(&format!("stopped: {done} rows are complete and kept; the same command goes on"));
            return Ok(ExitCode::from(130));
        }
        Written::Done { made: 0 } if !args.quiet => output::note("this pack is complete already"),
        Written::Done { .. } => {}
    }
    if !args.quiet {
        output::print(&stats(&open(&args.out)?)?)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn recipe(args: &PrepareArgs) -> anyhow::Result<Recipe> {
    let mut table = match &args.recipe {
        None => toml::Table::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the recipe {}; check the path", path.display()))?;
            text.parse().map_err(|e: toml::de::Error| {
                ConfigError::new("--recipe", path.display(), format!("is not valid TOML: {}", e.message()))
            })?
        }
    };
    for assignment in &args.sets {
        mm_train::parse::set(&mut table, assignment)?;
    }
    Ok(mm_train::parse::section(table, "recipe")?)
}

/// A pack as it lies there, nothing normalised.
pub(crate) fn open(path: &std::path::Path) -> anyhow::Result<Dataset> {
    Ok(Pack::open(path)?.dataset(&PackedConfig { standardize: false, ..PackedConfig::new(path) })?)
}

fn stats(data: &Dataset) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "{}: {} rows, {} classes", data.name, data.rows(), data.classes)?;
    for (name, shape) in data.shapes() {
        let m = data.modalities.require("modality", &name)?;
        let present = data.inputs[m].present_count();
        let missing = data.rows() - present;
        let gaps = if missing == 0 { String::new() } else { format!(", missing in {missing} rows") };
        writeln!(text, "  {name:<12} {shape}{gaps}")?;
    }
    let all: Vec<usize> = (0..data.rows()).collect();
    writeln!(text, "classes")?;
    for (class, count) in data.class_counts(&all).iter().enumerate() {
        let name = data.class_names.get(class).map_or("", String::as_str);
        writeln!(text, "  {class:>3} {name:<20} {count}")?;
    }
    for (name, values) in &data.columns {
        let mut distinct = values.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let (low, high) = (distinct.first().unwrap_or(&0), distinct.last().unwrap_or(&0));
        writeln!(text, "column {name}: {} values from {low} to {high}", distinct.len())?;
    }
    for (name, rows) in &data.indices {
        writeln!(text, "list {name}: {} rows", rows.len())?;
    }
    Ok(text)
}

fn inspect(args: &InspectArgs) -> anyhow::Result<ExitCode> {
    let data = open(&args.pack)?;
    let count = (args.clips as usize).min(data.rows());
    let rows: Vec<usize> = (0..count).map(|i| i * data.rows() / count).collect();
    let mut drawn: Vec<(String, Vec<Frame>, Vec<sheet::Spectrogram>)> = Vec::new();
    for &row in &rows {
        let class = data.class_names.get(data.labels[row] as usize).map_or("", String::as_str);
        let label = format!("{} {class}", data.ids.get(row).map_or("", String::as_str));
        let (mut frames, mut spectrograms) = (Vec::new(), Vec::new());
        for (_, x) in data.inputs.iter().filter(|(_, x)| x.is_present(row)) {
            match x.picture(row)? {
                mm_data::Picture::Frames(all) => frames.extend(all),
                mm_data::Picture::Spectrogram(one) => spectrograms.push(one),
                _ => {}
            }
        }
        drawn.push((label, frames, spectrograms));
    }
    if drawn.iter().all(|(_, frames, spectrograms)| frames.is_empty() && spectrograms.is_empty()) {
        anyhow::bail!("{} holds no frames and no spectrograms to draw", args.pack.display());
    }
    let sheet_rows: Vec<sheet::Row<'_>> = drawn
        .iter()
        .map(|(label, frames, spectrograms)| sheet::Row { label: label.clone(), frames, spectrograms })
        .collect();
    sheet::draw(&sheet_rows, args.height as usize)?.write_png(&args.out)?;
    output::print(&format!("{count} rows drawn into {}\n", args.out.display()))?;
    Ok(ExitCode::SUCCESS)
}
