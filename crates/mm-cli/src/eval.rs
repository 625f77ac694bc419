//! `mm eval`.

use crate::output;
use mm_core::ConfigError;
use mm_train::evaluate::{Evaluator, scores};
use mm_train::optim::dtype;
use mm_train::predict::Predictor;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `mm eval`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mm eval runs/mlb --part val --json")]
pub(crate) struct Args {
    /// Folder of a finished run.
    run: PathBuf,
    /// Which part: train, val or test.
    #[arg(long, default_value = "test")]
    part: String,
    /// Print all metrics as JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let parts = ["train", "val", "test"];
    if !parts.contains(&args.part.as_str()) {
        return Err(ConfigError::unknown("--part", &args.part, &parts).into());
    }
    let predictor = Predictor::open(&args.run)?;
    let config = predictor.config();
    let prepared = config.data.prepare(config.seed)?;
    let rows = match args.part.as_str() {
        "train" => &prepared.splits.train,
        "val" => &prepared.splits.val,
        _ => &prepared.splits.test,
    };
    if rows.is_empty() {
        let rule = "this run's split has no such part";
        return Err(ConfigError::new("--part", format!("\"{}\"", args.part), rule).into());
    }
    let built = predictor.built();
    let evaluator = Evaluator {
        model: &built.model,
        step: built.step.as_ref(),
        data: &prepared.dataset,
        dtype: dtype(config.train.precision),
        device: &built.device,
        prefetch: config.train.prefetch(),
    };
    let scores = scores(&evaluator.predictions(&evaluator.encode(rows)?)?, prepared.dataset.classes)?;
    if args.json {
        output::print(&format!("{}\n", serde_json::to_string_pretty(&scores)?))?;
    } else {
        let mut text = String::new();
        output::scores(&mut text, &args.part, &scores)?;
        output::print(&text)?;
    }
    Ok(ExitCode::SUCCESS)
}
