//! `mm predict`.

use crate::output;
use anyhow::Context as _;
use mm_core::ConfigError;
use mm_train::predict::Predictor;
use mm_train::record::write_atomic;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments of `mm predict`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The input is a safetensors file with `x_<modality>` tensors or a CSV manifest. A modality that is absent from the
file, or empty or NaN in a row, is missing there: the model predicts without it.

Example:
  mm predict runs/mlb new.csv --out predictions.csv")]
pub(crate) struct Args {
    /// Folder of a finished run.
    run: PathBuf,
    /// File with inputs (.safetensors or .csv).
    input: PathBuf,
    /// File to write to [default: standard output].
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// csv or jsonl.
    #[arg(long, default_value = "csv")]
    format: String,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let formats = ["csv", "jsonl"];
    if !formats.contains(&args.format.as_str()) {
        return Err(ConfigError::unknown("--format", &args.format, &formats).into());
    }
    let predictor = Predictor::open(&args.run)?;
    let predictions = predictor.predict_file(&args.input)?;
    let mut text = String::new();
    if args.format == "jsonl" {
        for p in &predictions {
            writeln!(text, "{}", serde_json::to_string(p)?)?;
        }
    } else {
        write!(text, "id,class,present")?;
        for class in predictor.classes() {
            write!(text, ",{}", field(&format!("p_{class}")))?;
        }
        writeln!(text)?;
        for p in &predictions {
            write!(text, "{},{},{}", field(&p.id), field(&p.class), field(&p.present.join("|")))?;
            for probability in &p.probabilities {
                write!(text, ",{probability:.6}")?;
            }
            writeln!(text)?;
        }
    }
    match &args.out {
        // A device, a pipe or a link is written to, not replaced.
        Some(path) if std::fs::symlink_metadata(path).is_ok_and(|m| !m.is_file()) => {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Some(path) => write_atomic(path, text.as_bytes())?,
        None => output::print(&text)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A CSV field, quoted where it must be.
fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}
