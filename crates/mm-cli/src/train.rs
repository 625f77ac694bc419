//! `mm train`.

use crate::output;
use anyhow::Context;
use mm_train::{Options, Outcome, RunConfig};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// Arguments of `mm train`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  mm train config.toml
  mm train config.toml --set method.kind=mlb --set optim.lr=0.02 --out runs/mlb
  mm train config.toml --resume            # after Ctrl-C, a kill or a crash: goes on with the same bits

Ctrl-C stops after the current step and saves a checkpoint; exit code 130.")]
pub(crate) struct Args {
    /// Configuration file (TOML); `-` reads standard input.
    config: PathBuf,
    /// Override one setting; may be given several times.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    sets: Vec<String>,
    /// Folder of the run [default: runs/NAME-HASH, the hash being that of the configuration].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the last checkpoint; without one, start.
    #[arg(long)]
    resume: bool,
    /// Delete an earlier run in the folder first.
    #[arg(long, conflicts_with = "resume")]
    fresh: bool,
    /// No progress bar and no summary.
    #[arg(long, short)]
    quiet: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let text = if args.config == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("cannot read the configuration from standard input")?;
        text
    } else {
        std::fs::read_to_string(&args.config).with_context(|| {
            format!("cannot read the configuration {}; check the path", args.config.display())
        })?
    };
    let config = RunConfig::parse(&text, &args.sets).with_context(|| args.config.display().to_string())?;
    let dir = match &args.out {
        Some(dir) => dir.clone(),
        None => PathBuf::from("runs").join(format!("{}-{}", config.name, config.hash8()?)),
    };
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The second signal of a kind ends the process at once, as people expect of a second Ctrl-C.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&interrupted))?;
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let commit = option_env!("MM_COMMIT").map(str::to_owned).or_else(|| std::env::var("MM_COMMIT").ok());
    let options = Options {
        resume: args.resume,
        fresh: args.fresh,
        quiet: args.quiet,
        interrupted: &interrupted,
        commit: commit.as_deref(),
    };
    match mm_train::train(&config, &dir, options)? {
        Outcome::Done(result) => {
            if !args.quiet {
                output::result(&result, &dir)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::AlreadyDone(result) => {
            if !args.quiet {
                output::note("this configuration is done already (--fresh redoes it)");
                output::result(&result, &dir)?;
            }
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Interrupted { step } => {
            output::note(&format!("stopped after step {step}, checkpoint saved; go on with --resume"));
            Ok(ExitCode::from(130))
        }
    }
}
