//! The pack of an experiment that begins with raw files.

use super::experiment::{Experiment, Prepare, Synth};
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
    /// The options of `mm data synth`, where the raw files are generated.
    synth: Option<Vec<String>>,
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
    mut data: String,
) -> Result<(Folders, Option<Planned>)> {
    let Some(Prepare { dataset, raw, recipe, synth }) = &experiment.prepare else {
        return Ok((Folders { data, pack: String::new() }, None));
    };
    // Without a data folder the raw files are generated into one, whose name tells their settings apart.
    let synth = synth.as_ref().filter(|_| data.is_empty()).map(options).transpose()?;
    if let Some(options) = &synth {
        let name = format!("generated-{:08x}", fnv1a(format!("{dataset}\n{options:?}").as_bytes()) >> 32);
        let folder = layout.out().join(name);
        let text =
            folder.to_str().with_context(|| format!("{} is not UTF-8; rename it", folder.display()))?;
        text.clone_into(&mut data);
    }
    let mut raw = Value::String(raw.clone());
    settings::fill_in(&mut raw, "{data}", &data);
    let raw = raw.as_str().unwrap_or_default().to_owned();
    let recipe = toml::to_string(recipe).context("the recipe cannot be written as TOML")?;
    let name = format!("pack-{:08x}", fnv1a(format!("{dataset}\n{raw}\n{recipe}").as_bytes()) >> 32);
    let folder = layout.out().join(name);
    let pack = folder.to_str().with_context(|| format!("{} is not UTF-8; rename it", folder.display()))?;
    let folders = Folders { data, pack: pack.to_owned() };
    Ok((folders, Some(Planned { synth, dataset: dataset.clone(), raw, recipe, folder })))
}

/// Makes the pack; one that is complete stays as it is. False if it was interrupted.
pub(crate) fn make(pack: &Planned, device: Option<&str>) -> Result<bool> {
    let program = Program::find(device, 1)?;
    if let Some(options) = &pack.synth {
        let mut command = Command::new(program.path());
        command.args(["data", "synth", &pack.dataset, "--out", &pack.raw]).args(options);
        if !done(command, "mm data synth")? {
            return Ok(false);
        }
    }
    let recipe = pack.folder.with_extension("toml");
    write_atomic(&recipe, &pack.recipe)?;
    let mut command = Command::new(program.path());
    command.args(["data", "prepare", &pack.dataset, "--raw", &pack.raw, "--recipe"]).arg(&recipe);
    command.arg("--out").arg(&pack.folder);
    done(command, "mm data prepare")
}

/// Runs a command; false if it was interrupted.
fn done(mut command: Command, name: &str) -> Result<bool> {
    let status = command.status().with_context(|| format!("`{name}` cannot be started"))?;
    match status.code() {
        Some(0) => Ok(true),
        Some(130) => Ok(false),
        _ => bail!("`{name}` failed ({status}); its message stands above"),
    }
}

/// The settings of a stand-in as options of the command line; a switch is there or not.
fn options(synth: &Synth) -> Result<Vec<String>> {
    let mut options = Vec::new();
    for (key, value) in &synth.set {
        match value {
            Value::Boolean(true) => options.push(format!("--{key}")),
            Value::Boolean(false) => {}
            Value::Integer(number) => options.extend([format!("--{key}"), number.to_string()]),
            Value::Float(number) => options.extend([format!("--{key}"), number.to_string()]),
            Value::String(text) => options.extend([format!("--{key}"), text.clone()]),
            _ => bail!(
                "prepare.synth.set.{key} is a table or a list; an option of `mm data synth` is a single value"
            ),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::experiment::tests::SMALL;

    const SYNTH: &str = "[prepare]\ndataset = \"d\"\nraw = \"{data}/d\"\n[prepare.synth]\ntitle = \"T\"\nnote = \"N\"\n\
                         set = { actors = 3, variation = 0.5, video = true, quiet = false }\n";

    #[test]
    fn raw_files_are_generated_where_there_is_no_data_folder() {
        let text = SMALL
            .replace("[[folds]]\n        name = \"fold1\"", &format!("{SYNTH}[[folds]]\nname = \"fold1\""));
        let experiment = Experiment::parse("small", &text).expect("valid");
        let layout = Layout::new("/out".into());
        let (folders, pack) = planned(&experiment, &layout, String::new()).expect("planned");
        let pack = pack.expect("a pack");
        let expected = ["--actors", "3", "--variation", "0.5", "--video"].map(str::to_owned).to_vec();
        assert_eq!(pack.synth, Some(expected));
        assert!(folders.data.starts_with("/out/generated-"), "{}", folders.data);
        assert_eq!(pack.raw, format!("{}/d", folders.data));
        let (folders, real) = planned(&experiment, &layout, "/real".into()).expect("planned");
        let real = real.expect("a pack");
        assert_eq!((folders.data.as_str(), real.raw.as_str(), &real.synth), ("/real", "/real/d", &None));
        assert_ne!(real.folder, pack.folder);
    }
}
