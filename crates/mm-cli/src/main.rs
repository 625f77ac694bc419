//! `mm`: train, evaluate and predict with balanced multimodal classifiers.

mod data;
mod encode;
mod eval;
mod methods;
mod output;
mod predict;
mod train;

use clap::{Parser, Subcommand};
use mm_core::ConfigError;
use mm_data::DataError;
use mm_train::TrainError;
use std::path::PathBuf;
use std::process::ExitCode;

/// Train, evaluate and predict with multimodal classifiers that do not let one modality starve the others.
#[derive(Debug, Parser)]
#[command(name = "mm", version, max_term_width = 110, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a run from a configuration file.
    Train(train::Args),
    /// Evaluate a finished run again.
    Eval(eval::Args),
    /// Predict the rows of a file, with modalities missing or not.
    Predict(predict::Args),
    /// Average finished runs, such as unimodal ones.
    Ensemble(EnsembleArgs),
    /// Make packs from raw files, and look into them.
    #[command(subcommand)]
    Data(data::Verb),
    /// Run one pretrained encoder over a pack and write its features.
    Encode(encode::Args),
    /// List the balancing methods and fusions, with settings and papers.
    Methods(methods::Args),
}

/// Arguments of `mm ensemble`.
#[derive(Debug, clap::Args)]
struct EnsembleArgs {
    /// Folders of finished runs on the same data and split.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// Folder to write result.json and predictions.json to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Average log-probabilities (the geometric mean) instead of probabilities.
    #[arg(long)]
    log_mean: bool,
}

/// Writes the number of worker threads down before anything asks for it.
///
/// candle looks at the environment for it in every matrix product, and where it finds nothing it reads the machine's
/// description from files again and again, which costs more than a small product itself.
#[allow(unsafe_code)]
fn fix_thread_count() {
    if std::env::var_os("RAYON_NUM_THREADS").is_none() {
        let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        // SAFETY: this is the first thing that `main` does; no other thread exists that could read the environment.
        unsafe { std::env::set_var("RAYON_NUM_THREADS", count.to_string()) };
    }
}

/// Tells glibc to keep freed memory instead of giving it back after every large tensor.
///
/// A training step frees and takes the same few blocks over and over; handing them to the system and having them
/// zeroed page by page again costs a third of a small step.
#[allow(unsafe_code)]
fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: `mallopt` only sets two parameters of the allocator, before any other thread exists. The values are in
    // the range it takes; were one refused, it would return 0 and change nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 32 << 20);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 1 << 30);
    }
}

fn main() -> ExitCode {
    fix_thread_count();
    keep_freed_memory();
    let outcome = match Cli::parse().command {
        Command::Train(args) => train::run(&args),
        Command::Eval(args) => eval::run(&args),
        Command::Predict(args) => predict::run(&args),
        Command::Ensemble(args) => ensemble(&args),
        Command::Data(verb) => data::run(&verb),
        Command::Encode(args) => encode::run(&args),
        Command::Methods(args) => methods::run(&args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) if output::is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            output::error(&error);
            // 2 says: the command or its configuration is wrong, nothing was tried.
            ExitCode::from(if is_configuration(&error) { 2 } else { 1 })
        }
    }
}

/// Whether a setting is at fault; our errors are transparent about it, which hides it from the chain.
fn is_configuration(error: &anyhow::Error) -> bool {
    error.chain().any(|e| {
        e.is::<ConfigError>()
            || matches!(e.downcast_ref(), Some(DataError::Config(_)))
            || matches!(
                e.downcast_ref(),
                Some(TrainError::Config(_) | TrainError::Data(DataError::Config(_)))
            )
    })
}

fn ensemble(args: &EnsembleArgs) -> anyhow::Result<ExitCode> {
    let rule = if args.log_mean {
        mm_balance::ensemble::Average::LogMean
    } else {
        mm_balance::ensemble::Average::Mean
    };
    let result = mm_train::ensemble::ensemble(&args.runs, &args.out, rule)?;
    output::result(&result, &args.out)?;
    Ok(ExitCode::SUCCESS)
}
