//! `cargo xtask ci`: what CI checks after the tests.

use crate::workspace::{cargo, packages, run as run_command};
use anyhow::{Result, bail};
use std::process::{Command, ExitCode};

/// Runs what CI runs after the tests: formatting, lints, documentation, and each crate checked alone.
///
/// All checks run even if one fails; the end names those that did.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  cargo xtask ci
  cargo xtask test && cargo xtask ci        everything that CI does")]
pub(crate) struct Args {}

/// Runs the task.
pub(crate) fn run(_: &Args) -> Result<ExitCode> {
    let mut failed = Vec::new();
    for command in steps()? {
        if let Err(error) = run_command(command) {
            eprintln!("error: {error:#}");
            failed.push(format!("  {error}"));
        }
    }
    if !failed.is_empty() {
        bail!("{} of the checks failed:\n{}", failed.len(), failed.join("\n"));
    }
    eprintln!("all checks passed");
    Ok(ExitCode::SUCCESS)
}

/// The checks in order, the quick ones first.
fn steps() -> Result<Vec<Command>> {
    let mut documentation = cargo(&["doc", "--workspace", "--no-deps"]);
    documentation.env("RUSTDOCFLAGS", "-D warnings");
    let mut steps = vec![
        cargo(&["fmt", "--all", "--check"]),
        cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        documentation,
    ];
    // A workspace build joins the features of all members; alone, a crate shows those it forgot to ask for.
    steps.extend(packages()?.iter().map(|name| cargo(&["check", "-p", name])));
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::shown;

    #[test]
    fn every_crate_is_checked_alone() {
        let shown: Vec<String> = steps().expect("crates can be listed").iter().map(shown).collect();
        assert_eq!(shown[0], "cargo fmt --all --check");
        assert_eq!(shown[1], "cargo clippy --workspace --all-targets -- -D warnings");
        assert_eq!(shown[2], "cargo doc --workspace --no-deps");
        for name in ["mm-metrics", "mm-cli", "xtask"] {
            assert!(shown.contains(&format!("cargo check -p {name}")), "{shown:?}");
        }
    }
}
