//! `cargo xtask`: the tasks of this workspace. One subcommand is one module.
//!
//! Knows nothing about candle: it runs `cargo` and the binary `mm`, and reads the files that they write.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a command line tool talks to its user

mod bench;
mod ci;
mod document;
mod error;
mod files;
mod golden;
mod interrupt;
mod reproduce;
mod suggest;
mod test;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tasks of the workspace: reproduce experiments, run tests, benches, comparisons and the checks of CI.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    Reproduce(Box<reproduce::Args>),
    Tune(reproduce::tune::Args),
    Test(test::Args),
    Ci(ci::Args),
    Bench(bench::Args),
    Golden(golden::Args),
}

const EXAMPLES: &str = "\
Examples:
  cargo xtask reproduce                     every method on the embedded synthetic data, one table at the end
  cargo xtask reproduce mosi --method mlb,joint --seeds 3
  cargo xtask tune synthetic                choose the learning rates by validation accuracy
  cargo xtask test                          all tests, documentation examples included
  cargo xtask ci                            what CI checks after the tests
  cargo xtask bench -- ogm                  the benches whose name contains `ogm`
  cargo xtask bench peer                    training steps beside PyTorch's
  cargo xtask golden --full --export        encoders of published size beside their libraries

`cargo xtask <task> --help` says more about a task.";

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Reproduce(args) => reproduce::run(&args),
        Task::Tune(args) => reproduce::tune::run(&args),
        Task::Test(args) => test::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Golden(args) => golden::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        error::exit_code(&error)
    })
}
