//! `mm data`: raw files into packs, what is in a pack, and raw files that are generated.

use crate::output;
use anyhow::Context as _;
use mm_core::ConfigError;
use mm_data::image::{Frame, sheet};
use mm_data::pack::{self, Pack, WriteProgress, Written};
use mm_data::prepare::{LabelSource, Recipe, Report, Source, check, mend_listed, prepare_listed};
use mm_data::synth::{CremadConfig, Generated, cremad};
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
    /// Open every raw file of a data set: what is there, and what is wrong with it.
    VerifyRaw(VerifyRawArgs),
    /// Generate raw files in the layout of a published data set.
    Synth(SynthArgs),
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
  ravdess          speech clips 03-01-EE-II-SS-RR-AA.wav in any folder below, df_average_AUs_total.csv
  cremad           AudioWAV/*.wav with Image-01-FPS/<clip>/*.jpg or VideoFlash/*.flv (by ffmpeg), Face_features/*.npy
  ave              trainSet.txt, valSet.txt, testSet.txt; AVE/<id>.mp4
  ucf51            UCF-101/<class>/*.avi, ucfTrainTestlist/; soundClasses.txt, or ffmpeg is asked
  kinetics-sounds  my_train.txt, my_test.txt; <id>_<start>_<end>.mp4 in any folder below
  vggsound         vggsound.csv; <id>_<start>.mp4 in any folder below
  avmnist          pairs.csv with id, digit, speaker, split, wav, png
  manifest         manifest.csv with id, label, optionally split and integer columns, and a column of paths per modality

A recipe says what becomes of each modality; without one, sound becomes log-mel spectrograms and images keep their size, which must be one:
  [inputs.audio.sound.front_end]
  kind = \"log-mel\"            # stft, psd, kaldi-fbank, mfcc, waveform; ogm-stft and other published recipes
  bins = 64
  [inputs.image.image]
  size = [224, 224]
  channels = 3
  [inputs.video.frames]       # the first frames of a clip (cremad)
  size = [224, 224]
  count = 3

Or a published recipe by name, which --set may change:
  --preset ogm            cremad, vggsound
  --preset mlb-resnet     cremad, ave, ucf51
  --preset mlb-conformer  cremad

Ctrl-C or a kill loses nothing that is complete: the same command goes on. A complete pack is left as it is; with --mend
it is read, and the files that are damaged are made again.

Examples:
  mm data prepare ravdess --raw RAVDESS --out packs/ravdess
  mm data prepare cremad --raw CREMA-D --out packs/cremad-ogm --preset ogm --set inputs.video.frames.size=[224,224]
  mm data prepare manifest --raw FOLDER --out packs/mine --recipe recipe.toml")]
pub(crate) struct PrepareArgs {
    /// Its name, see below.
    dataset: String,
    /// The folder of the raw files.
    #[arg(long, value_name = "DIR")]
    raw: PathBuf,
    /// The folder of the pack.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What becomes of each modality (TOML).
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    recipe: Option<PathBuf>,
    /// A published recipe: ogm, mlb-resnet, mlb-conformer.
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Change one setting of the recipe; may be given several times.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// Read a complete pack, and make its damaged files again.
    #[arg(long)]
    mend: bool,
    /// No progress bar and no summary.
    #[arg(long, short)]
    quiet: bool,
}

/// Arguments of `mm data verify-raw`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Faults are files that cannot be read, git-LFS pointers among them, classes without rows, actors in several folds and rows
in two parts of one split. Exit codes: 0 no fault; 1 faults; 2 the command is not right.

Example:
  mm data verify-raw cremad --raw CREMA-D")]
pub(crate) struct VerifyRawArgs {
    /// Its name, as of `mm data prepare`.
    dataset: String,
    /// The folder of the raw files.
    #[arg(long, value_name = "DIR")]
    raw: PathBuf,
    /// intended or consensus (cremad) [default: intended]
    #[arg(long, value_name = "NAME")]
    labels: Option<String>,
}

/// Arguments of `mm data synth`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The folder has the layout of CREMA-D: AudioWAV, Image-01-FPS, processedResults/summaryTable.csv. Voices are synthesised
and faces are drawn; a README.md in it says so. The same command again goes on where it was stopped.

Example:
  mm data synth cremad --out CREMA-D --actors 10 --clips 30 --width 160")]
pub(crate) struct SynthArgs {
    /// cremad.
    dataset: String,
    /// The folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// How many actors, at most 91 [default: 24]
    #[arg(long, value_name = "N")]
    actors: Option<usize>,
    /// Clips of an actor, at most 82 [default: 82]
    #[arg(long, value_name = "N")]
    clips: Option<usize>,
    /// Which actors and clips [default: 0]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How often the voice shows the emotion of the name [default: 0.9]
    #[arg(long, value_name = "P")]
    audio_reliability: Option<f64>,
    /// How often the face does [default: 0.6]
    #[arg(long, value_name = "P")]
    visual_reliability: Option<f64>,
    /// Spread of the clips of one actor and emotion [default: 1]
    #[arg(long, value_name = "X")]
    variation: Option<f64>,
    /// Width of a frame in pixels; the height is three quarters of it [default: 480]
    #[arg(long, value_name = "PIXELS")]
    width: Option<usize>,
    /// Write VideoFlash too, by ffmpeg
    #[arg(long)]
    video: bool,
    /// No progress bar
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
        Verb::VerifyRaw(args) => verify_raw(args),
        Verb::Synth(args) => synth(args),
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
    let recipe = recipe(args, source)?;
    let stop = interruptible()?;
    let bar = bar(&args.dataset, "rows", args.quiet);
    let progress = |p: WriteProgress| {
        bar.set_length(p.rows as u64);
        bar.set_position(p.done as u64);
    };
    let listing = source.list_by(&args.raw, recipe.labels)?;
    for warning in listing.warnings.iter().filter(|_| !args.quiet) {
        output::note(&format!("warning: {warning}"));
    }
    if args.mend {
        let mended = mend_listed(source, listing, &recipe, &args.out, &progress, &stop)?;
        bar.finish_and_clear();
        for file in &mended.made {
            output::note(&format!("{file} was damaged and is made again"));
        }
        if mended.stopped {
            output::note("stopped: what was made again is kept; the same command goes on");
            return Ok(ExitCode::from(130));
        }
        let (files, made, place) = (mended.files, mended.made.len(), args.out.display());
        output::print(&format!("{place}: {files} files, {made} of them made again, all checksums right\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let written = prepare_listed(source, listing, &recipe, &args.out, &progress, &stop)?;
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

/// A bar on standard error where people look at it.
fn bar(prefix: &str, what: &str, quiet: bool) -> indicatif::ProgressBar {
    let hidden = quiet || !std::io::stderr().is_terminal();
    let bar = if hidden { indicatif::ProgressBar::hidden() } else { indicatif::ProgressBar::new(0) };
    let template = format!("{{prefix}} {{bar:30}} {{pos}}/{{len}} {what}, {{per_sec}}, {{eta}} left");
    if let Ok(style) = indicatif::ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar.set_prefix(prefix.to_owned());
    bar
}

fn synth(args: &SynthArgs) -> anyhow::Result<ExitCode> {
    if args.dataset != "cremad" {
        return Err(ConfigError::unknown("dataset", &args.dataset, &["cremad"]).into());
    }
    let usual = CremadConfig::default();
    let config = CremadConfig {
        actors: args.actors.unwrap_or(usual.actors),
        clips: args.clips.unwrap_or(usual.clips),
        seed: args.seed.unwrap_or(usual.seed),
        audio_reliability: args.audio_reliability.unwrap_or(usual.audio_reliability),
        visual_reliability: args.visual_reliability.unwrap_or(usual.visual_reliability),
        variation: args.variation.unwrap_or(usual.variation),
        width: args.width.unwrap_or(usual.width),
        video: args.video,
    };
    let stop = interruptible()?;
    let bar = bar("cremad (generated)", "clips", args.quiet);
    let progress = |done: usize, all: usize| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    };
    let generated = cremad(&config, &args.out, &progress, &stop)?;
    bar.finish_and_clear();
    match generated {
        Generated::Stopped { done } => {
            output::note(&format!("stopped: {done} clips are complete and kept; the same command goes on"));
            Ok(ExitCode::from(130))
        }
        Generated::Done { clips, made } => {
            output::print(&format!("{}: {clips} generated clips, {made} of them now\n", args.out.display()))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn verify_raw(args: &VerifyRawArgs) -> anyhow::Result<ExitCode> {
    let known = [LabelSource::Intended, LabelSource::Consensus];
    let named = |name: &String| {
        let names = known.map(LabelSource::name);
        known
            .into_iter()
            .find(|l| l.name() == name)
            .ok_or_else(|| ConfigError::unknown("--labels", name, &names))
    };
    let labels = args.labels.as_ref().map(named).transpose()?;
    let report = check(Source::named(&args.dataset)?, &args.raw, labels)?;
    output::print(&described(&report)?)?;
    Ok(ExitCode::from(u8::from(!report.faults.is_empty())))
}

fn described(report: &Report) -> anyhow::Result<String> {
    let mut text = format!("{} rows\n", report.rows);
    for held in &report.modalities {
        let mib = held.bytes as f64 / f64::from(1 << 20);
        write!(text, "  {:<12} {} rows, {} files, {mib:.1} MiB", held.name, held.rows, held.files)?;
        for (kind, count) in &held.kinds {
            write!(text, ", {kind}: {count}")?;
        }
        if let Some([low, high]) = held.seconds {
            write!(text, ", {low:.2} to {high:.2} s")?;
        }
        text.push('\n');
    }
    writeln!(text, "classes")?;
    for (name, count) in &report.classes {
        writeln!(text, "  {name:<12} {count}")?;
    }
    for (fold, count) in &report.folds {
        writeln!(text, "fold {fold}: {count} rows")?;
    }
    for (name, count) in &report.lists {
        writeln!(text, "list {name}: {count} rows")?;
    }
    for warning in &report.warnings {
        writeln!(text, "warning: {warning}")?;
    }
    for fault in &report.faults {
        writeln!(text, "FAULT: {fault}")?;
    }
    writeln!(text, "{} faults", report.faults.len())?;
    Ok(text)
}

fn recipe(args: &PrepareArgs, source: Source) -> anyhow::Result<Recipe> {
    let mut table = match (&args.recipe, &args.preset) {
        (None, None) => toml::Table::new(),
        (None, Some(name)) => toml::Table::try_from(Recipe::preset(source, name)?)?,
        (Some(path), _) => {
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
    Ok(Pack::open(path)?.dataset(&PackedConfig::new(path))?)
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
