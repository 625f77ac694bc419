//! `cargo xtask test`: every test of the workspace.

use crate::workspace::{cargo, run as run_command};
use anyhow::Result;
use std::process::ExitCode;

/// Runs all tests of the workspace, documentation examples included.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask test
  cargo xtask test -- --release
  cargo xtask test -- paired                only tests whose name contains `paired`")]
pub(crate) struct Args {
    /// Further arguments of `cargo test --workspace`, after `--`
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut command = cargo(&["test", "--workspace"]);
    command.args(&args.rest);
    run_command(command)?;
    Ok(ExitCode::SUCCESS)
}
