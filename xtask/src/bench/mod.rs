//! `cargo xtask bench`: the benches of the balancing methods, those of the kernels, and whole training steps beside
//! PyTorch's.

mod peer;
mod report;
mod row;
mod side;

use crate::workspace::{cargo, run as run_command};
use anyhow::Result;
use std::process::ExitCode;

/// Runs the benches of the balancing methods (`cargo bench -p mm-balance`), or what the subcommand names.
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  cargo xtask bench
  cargo xtask bench -- mlb                  only benches whose name contains `mlb`
  cargo xtask bench -- -- --save-baseline before
  cargo xtask bench kernels -- conv         the kernels' benches whose name contains `conv`
  cargo xtask bench peer                    training steps beside PyTorch's
  cargo xtask bench peer --row data         files and front-ends beside librosa, Pillow, soundfile"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Further arguments of `cargo bench -p mm-balance`, after `--`
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    Kernels(Kernels),
    Peer(peer::Args),
}

/// Runs the benches of the kernels (`cargo bench -p mm-kernels`).
#[derive(Debug, clap::Args)]
struct Kernels {
    /// Further arguments of `cargo bench -p mm-kernels`, after `--`
    #[arg(last = true, value_name = "ARGUMENTS")]
    rest: Vec<String>,
}

/// Runs the task.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.what {
        None => bench("mm-balance", &args.rest),
        Some(What::Kernels(kernels)) => bench("mm-kernels", &kernels.rest),
        Some(What::Peer(peer)) => peer::run(peer),
    }
}

fn bench(package: &str, rest: &[String]) -> Result<ExitCode> {
    let mut command = cargo(&["bench", "-p", package]);
    command.args(rest);
    run_command(command)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parsed(line: &str) -> Result<Args, clap::Error> {
        Cli::try_parse_from(std::iter::once("bench").chain(line.split_whitespace())).map(|cli| cli.args)
    }

    #[test]
    fn a_subcommand_is_optional_and_arguments_go_where_they_belong() {
        let plain = parsed("").expect("no arguments");
        assert!(plain.what.is_none() && plain.rest.is_empty());
        let filtered = parsed("-- mlb -- --save-baseline before").expect("arguments of cargo bench");
        assert!(filtered.what.is_none());
        assert_eq!(filtered.rest, ["mlb", "--", "--save-baseline", "before"]);
        assert_eq!(parsed("-- peer").expect("a filter").rest, ["peer"]);
        match parsed("kernels -- conv").expect("kernels").what {
            Some(What::Kernels(kernels)) => assert_eq!(kernels.rest, ["conv"]),
            other => panic!("{other:?}"),
        }
        assert!(matches!(parsed("peer --row conformer").expect("peer").what, Some(What::Peer(_))));
        assert!(parsed("mlb").is_err(), "a filter without -- was never taken");
    }
}
