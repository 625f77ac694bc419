//! The pack of an experiment that begins with raw files.

use super::experiment::{Experiment, Prepare};
use super::mm::{Layout, Program};
use super::plan::{Folders, fnv1a};
use super::settings;
use crate::files::write_atomic;
use anyhow::{Context, Result, bail};
use std::path::PathBuf;
use std::process::Command;
use toml::Value;

/// What is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Planned {
    dataset: String,
    raw: String,
    recipe: String,
    folder: PathBuf,
}

/// The folders of an experiment, and its pack if it has one. The pack's name tells its recipe and raw files apart, so a
/// changed recipe makes another pack.
pub(crate) fn planned(
    experiment: &Experiment,
    layout: &Layout,
    data: String,
) -> Result<(Folders, Option<Planned>)> {
    let Some(Prepare { dataset, raw, recipe }) = &experiment.prepare else {
        return Ok((Folders { data, pack: String::new() }, None));
    };
    let mut raw = Value::String(raw.clone());
    settings::fill_in(&mut raw, "{data}", &data);
    let raw = raw.as_str().unwrap_or_default().to_owned();
    let recipe = toml::to_string(recipe).context("the recipe cannot be written as TOML")?;
    let name = format!("pack-{:08x}", fnv1a(format!("{dataset}\n{raw}\n{recipe}").as_bytes()) >> 32);
    let folder = layout.out().join(name);
    let pack = folder.to_str().with_context(|| format!("{} is not UTF-8; rename it", folder.display()))?;
    let folders = Folders { data, pack: pack.to_owned() };
    Ok((folders, Some(Planned { dataset: dataset.clone(), raw, recipe, folder })))
}

/// Makes the pack; one that is complete stays as it is. False if it was interrupted.
pub(crate) fn make(pack: &Planned, device: Option<&str>) -> Result<bool> {
    let program = Program::find(device, 1)?;
    let recipe = pack.folder.with_extension("toml");
    write_atomic(&recipe, &pack.recipe)?;
    let mut command = Command::new(program.path());
    command.args(["data", "prepare", &pack.dataset, "--raw", &pack.raw, "--recipe"]).arg(&recipe);
    let status =
        command.arg("--out").arg(&pack.folder).status().context("`mm data prepare` cannot be started")?;
    match status.code() {
        Some(0) => Ok(true),
        Some(130) => Ok(false),
        _ => bail!("`mm data prepare` failed ({status}); its message stands above"),
    }
}
