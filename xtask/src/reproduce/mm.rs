//! The program `mm`: building it and calling it.

use super::plan::Run;
use crate::workspace::{build_program, cargo, commit, root};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where things lie in the output folder.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    out: PathBuf,
}

impl Layout {
    /// Everything below `out`.
    pub(crate) fn new(out: PathBuf) -> Self {
        Self { out }
    }

    /// The output folder.
    pub(crate) fn out(&self) -> &Path {
        &self.out
    }

    /// A run's folder relative to the output folder, with `/` on every system.
    pub(crate) fn relative(run: &Run) -> String {
        format!("runs/{}", run.id)
    }

    /// A run's folder.
    pub(crate) fn folder(&self, run: &Run) -> PathBuf {
        self.out.join("runs").join(&run.id)
    }

    /// A run's configuration.
    pub(crate) fn config(&self, run: &Run) -> PathBuf {
        self.out.join("configs").join(format!("{}.toml", run.id))
    }

    /// What a run printed.
    pub(crate) fn log(&self, run: &Run) -> PathBuf {
        self.out.join("logs").join(format!("{}.log", run.id))
    }
}

/// The program `mm`, ready to be called.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    path: PathBuf,
    commit: Option<String>,
    threads: usize,
}

impl Program {
    /// `MM_BIN` if that is set, else what cargo builds in release mode; every call gets so many threads.
    pub(crate) fn find(device: Option<&str>, threads: usize) -> Result<Self> {
        let path = match std::env::var_os("MM_BIN") {
            Some(path) => std::path::absolute(PathBuf::from(path))?,
            None => build(device)?,
        };
        if !path.is_file() {
            bail!("there is no program {} (MM_BIN names it if that is set)", path.display());
        }
        Ok(Self { path, commit: std::env::var("MM_COMMIT").ok().or_else(commit), threads })
    }

    /// The program itself.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The call for a run; what it prints goes to the run's log.
    pub(crate) fn command(&self, layout: &Layout, runs: &[Run], run: &Run) -> Result<Command> {
        let mut command = Command::new(&self.path);
        if run.is_ensemble() {
            command.arg("ensemble").args(run.members.iter().map(|&member| layout.folder(&runs[member])));
        } else {
            command.arg("train").arg(layout.config(run)).args(["--resume", "--quiet"]);
        }
        command.arg("--out").arg(layout.folder(run));
        command.env("RAYON_NUM_THREADS", self.threads.to_string());
        if let Some(commit) = &self.commit {
            command.env("MM_COMMIT", commit); // the program writes it into result.json
        }
        let log = File::create(layout.log(run))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }
}

fn build(device: Option<&str>) -> Result<PathBuf> {
    let mut command = cargo(&["build", "--release", "-p", "mm-cli"]);
    if let Some(feature) = device.and_then(|device| device.split(':').next())
        && has_feature(feature)?
    {
        command.args(["--features", feature]);
    }
    build_program(command, "mm")
}

fn has_feature(name: &str) -> Result<bool> {
    let path = root().join("crates/mm-cli/Cargo.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: toml::Table = toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
    Ok(manifest.get("features").and_then(|features| features.get(name)).is_some())
}
