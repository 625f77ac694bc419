//! `mm encode`.

use crate::data::{interruptible, open};
use crate::output;
use mm_core::ConfigError;
use mm_encoders::weights::{Matching, Source};
use mm_encoders::{EncoderConfig, PretrainedConfig, pretrained};
use mm_train::encode::{Encoding, encode};
use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `mm encode`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The features are a file for `data.kind = \"features\"`: x_MODALITY, with the labels, columns and index lists of the pack, and its
other modalities where those are vectors. The encoder runs in evaluation mode; where it came from is in the file's metadata.

Examples:
  mm data prepare ravdess --raw RAVDESS --out packs/ravdess-wave --set inputs.audio.sound.front_end.kind=waveform
  mm encode packs/ravdess-wave --modality audio --repo facebook/wav2vec2-base-960h --out wav2vec2.safetensors
  mm encode packs/faces --modality image --weights enet_b2.safetensors --set kind=efficientnet --out faces.safetensors
  mm encode packs/mine --modality audio --weights runs/mlb/model --prefix encoder.audio --set kind=conformer --set dim=64 \\
      --out conformer.safetensors")]
pub(crate) struct Args {
    /// The folder of a pack (`mm data prepare`).
    pack: PathBuf,
    /// The modality to encode.
    #[arg(long, value_name = "NAME")]
    modality: String,
    /// The feature file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// A checkpoint: a safetensors file, or a folder with config.json and model.safetensors.
    #[arg(long, value_name = "PATH", conflicts_with = "repo")]
    weights: Option<PathBuf>,
    /// A repository of the hub, owner/name.
    #[arg(long, value_name = "REPO")]
    repo: Option<String>,
    /// A branch, tag or commit of the repository.
    #[arg(long, value_name = "REVISION", requires = "repo")]
    revision: Option<String>,
    /// Only tensors under this prefix, in the names of this program.
    #[arg(long, value_name = "PREFIX")]
    prefix: Option<String>,
    /// Load what fits instead of refusing a checkpoint that does not fit wholly.
    #[arg(long)]
    partial: bool,
    /// A setting of the encoder, such as kind=wav2vec2 or num_hidden_layers=12; without a kind, config.json says what it is.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    sets: Vec<String>,
    /// Rows at a time.
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u64).range(1..=65536))]
    batch_size: u64,
    /// cpu, cuda, cuda:N or metal.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// No progress bar and no summary.
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let weights = match (&args.weights, &args.repo) {
        (None, None) => {
            let rule = "give the --weights of the encoder, or the --repo of the hub that has them";
            return Err(ConfigError::new("--weights", "nothing", rule).into());
        }
        (path, repo) => PretrainedConfig {
            path: path.clone(),
            repo: repo.clone(),
            revision: args.revision.clone(),
            prefix: args.prefix.clone(),
            matching: if args.partial { Matching::Partial } else { Matching::Strict },
        },
    };
    weights.check()?;
    let mut table = toml::Table::new();
    for assignment in &args.sets {
        mm_train::parse::set(&mut table, assignment)?;
    }
    if !table.contains_key("kind") {
        // What the folder says, with the settings of the command line over it.
        let described = toml::Table::try_from(pretrained::describe(&weights.open()?)?)?;
        table = described.into_iter().chain(table).collect();
    }
    let encoder: EncoderConfig = mm_train::parse::section(table, "encoder")?;
    let data = open(&args.pack)?;
    let encoding = Encoding {
        modality: args.modality.clone(),
        encoder,
        weights: Some(weights),
        seed: 0,
        batch_size: args.batch_size as usize,
        device: mm_train::build::device(&args.device)?,
    };
    let stop = interruptible()?;
    let hidden = args.quiet || !std::io::stderr().is_terminal();
    let rows = data.rows() as u64;
    let bar = if hidden { indicatif::ProgressBar::hidden() } else { indicatif::ProgressBar::new(rows) };
    if let Ok(style) =
        indicatif::ProgressStyle::with_template("{bar:30} {pos}/{len} rows, {per_sec}, {eta} left")
    {
        bar.set_style(style);
    }
    let Some(done) = encode(&data, &encoding, &args.out, &|row| bar.set_position(row as u64), &stop)? else {
        output::note("stopped; nothing was written");
        return Ok(ExitCode::from(130));
    };
    bar.finish_and_clear();
    if !args.quiet {
        let from = match &done.source {
            Some(Source::Hub { repo, commit, .. }) => format!("{repo} at {commit}"),
            Some(Source::File { path } | Source::Folder { path }) => path.display().to_string(),
            None => "drawn values".to_owned(),
        };
        let mut text = format!(
            "{} rows of {} features from {} ({from})\n",
            done.rows,
            done.dim,
            encoding.encoder.name()
        );
        for (names, what) in [(&done.copied, "written as they are"), (&done.left_out, "left out, no vectors")]
        {
            if !names.is_empty() {
                writeln!(text, "{what}: {}", names.join(", "))?;
            }
        }
        output::print(&format!("{text}written to {}\n", args.out.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}
