//! `cargo xtask bench`: the benches of the balancing methods.

use crate::workspace::{cargo, run as run_command};
use anyhow::Result;
use std::process::ExitCode;

/// Runs the benches of the balancing methods (`cargo bench -p mm-balance`).
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask bench
  cargo xtask bench -- mlb                  only benches whose name contains `mlb`
  cargo xtask bench -- -- --save-baseline before")]
pub(crate) struct Args {
    /// Further arguments of `cargo bench -p mm-balance`, after `--`
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut command = cargo(&["bench", "-p", "mm-balance"]);
    command.args(&args.rest);
    run_command(command)?;
    Ok(ExitCode::SUCCESS)
}
