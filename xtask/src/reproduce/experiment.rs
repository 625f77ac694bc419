//! An experiment as its file `experiments/<name>.toml` describes it.

use super::methods::{FUSIONS, METHODS, UNIMODAL};
use super::preset::{self, Preset};
use super::settings;
use super::tuned::{Tune, Tuned, WHOLE};
use crate::suggest::choose;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::Table;

/// What to run, on which data, and how to read the result.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Experiment {
    /// The file's stem.
    #[serde(skip)]
    pub(crate) name: String,
    /// One line.
    pub(crate) title: String,
    /// What the data are and what they are not; printed above the table.
    pub(crate) note: String,
    /// How long and at what size is trained; printed behind the note.
    #[serde(default)]
    pub(crate) schedule: String,
    /// Other sizes of it, by name.
    #[serde(default)]
    pub(crate) presets: BTreeMap<String, Preset>,
    /// How parts are split, models selected and tested.
    pub(crate) protocol: String,
    /// What the confidence intervals do not cover.
    pub(crate) interval_note: String,
    /// Number of seeds: 0, 1, …
    pub(crate) seeds: u64,
    /// Settings that take the seed.
    #[serde(default = "seeded")]
    pub(crate) seeded: Vec<String>,
    /// Fusions unless `--fusion` says otherwise.
    pub(crate) fusions: Vec<String>,
    /// The modalities, in order.
    pub(crate) modalities: Vec<String>,
    /// Modalities that are not trained alone, with the reason.
    #[serde(default)]
    pub(crate) not_alone: BTreeMap<String, String>,
    /// Files that the data folder must have.
    #[serde(default)]
    pub(crate) requires: Option<Requires>,
    /// Raw files that are made into a pack first; `{pack}` stands for it in the configuration.
    #[serde(default)]
    pub(crate) prepare: Option<Prepare>,
    /// Methods unless `--method` says otherwise; none means all.
    #[serde(default)]
    pub(crate) methods_by_default: Vec<String>,
    /// Experiments that belong to it: they run after it, each into a folder of its own, and print their own tables.
    #[serde(default)]
    pub(crate) also: Vec<String>,
    /// Splits; none means one, that of the base configuration.
    #[serde(default)]
    pub(crate) folds: Vec<Fold>,
    /// The configuration that all runs share.
    pub(crate) base: Table,
    /// What differs by method.
    #[serde(default)]
    pub(crate) methods: BTreeMap<String, MethodSettings>,
    /// The search for a setting of each method.
    #[serde(default)]
    pub(crate) tune: Option<Tune>,
    /// Whether a stand-in will not do; a preset may say so.
    #[serde(skip)]
    pub(crate) real: bool,
    /// What that search chose; read from a file of its own.
    #[serde(skip)]
    pub(crate) tuned: Option<Tuned>,
    /// Numbers to compare with.
    #[serde(default)]
    pub(crate) reference: Vec<Reference>,
}

/// How raw files become a pack.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Prepare {
    /// The data set as `mm data prepare` names it.
    pub(crate) dataset: String,
    /// The folder of the raw files.
    pub(crate) raw: String,
    /// The recipe as `mm data prepare --recipe` reads it.
    #[serde(default)]
    pub(crate) recipe: Table,
    /// What is generated in place of the raw files where no `--data` is given.
    #[serde(default)]
    pub(crate) synth: Option<Synth>,
}

/// A stand-in for raw files.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Synth {
    /// The title of the table then.
    pub(crate) title: String,
    /// The note above it then.
    pub(crate) note: String,
    /// The options of `mm data synth` without their dashes.
    #[serde(default)]
    pub(crate) set: Table,
}

/// The data that an experiment needs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Requires {
    /// Paths inside the data folder.
    pub(crate) files: Vec<PathBuf>,
    /// Where the data come from.
    pub(crate) source: String,
    /// What the files must hold.
    pub(crate) layout: String,
}

/// One split.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fold {
    /// Short name, for `--folds` and in the names of runs.
    pub(crate) name: String,
    /// Settings laid over the base configuration.
    pub(crate) set: Table,
}

/// What a method sets differently.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MethodSettings {
    /// Why.
    #[serde(default)]
    pub(crate) note: Option<String>,
    /// Settings laid over the base configuration; only `method` and `optim`, for the budget is the same for all.
    #[serde(default)]
    pub(crate) set: Table,
}

/// A number from elsewhere.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    /// What it is the number of.
    pub(crate) label: String,
    /// As its source prints it.
    pub(crate) value: String,
    /// Where it is from, and how far it compares.
    pub(crate) source: String,
    /// The method whose row it stands beside; `unimodal:<modality>` for one modality alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) method: Option<String>,
    /// The fusion of that row; without it, the experiment's first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fusion: Option<String>,
}

/// Whether methods may differ in this setting: only in `method` and `optim`, for data, model and budget are shared.
pub(crate) fn of_method(key: &str) -> bool {
    matches!(key.split('.').next(), Some("method" | "optim"))
}

fn seeded() -> Vec<String> {
    vec!["seed".to_owned()]
}

/// Names of all experiments in a folder, the default first.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if let (Some("toml"), Some(stem)) = (path.extension().and_then(|e| e.to_str()), path.file_stem()) {
            let stem = stem.to_string_lossy();
            if !stem.ends_with(".tuned") {
                names.push(stem.into_owned());
            }
        }
    }
    names.sort_by_key(|name| (name != DEFAULT, name.clone()));
    Ok(names)
}

/// The experiment that runs when none is named: it needs no data.
pub(crate) const DEFAULT: &str = "synthetic";

impl Experiment {
    /// Reads and checks `<folder>/<name>.toml`.
    pub(crate) fn load(folder: &Path, name: &str) -> Result<Self> {
        let names = names(folder)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let name = choose("experiment", name, &names)?;
        let path = folder.join(format!("{name}.toml"));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(name, &text).with_context(|| format!("in {}", path.display()))
    }

    /// Reads and checks the text of an experiment.
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self> {
        let mut experiment: Self = toml::from_str(text)?;
        name.clone_into(&mut experiment.name);
        experiment.check()?;
        Ok(experiment)
    }

    fn check(&self) -> Result<()> {
        if self.seeds == 0 || self.fusions.is_empty() || self.modalities.is_empty() {
            bail!("`seeds`, `fusions` and `modalities` must not be empty");
        }
        for fusion in &self.fusions {
            choose("fusion", fusion, &FUSIONS)?;
        }
        for method in &self.methods_by_default {
            choose("method", method, &METHODS)?;
        }
        let modalities: Vec<&str> = self.modalities.iter().map(String::as_str).collect();
        for modality in self.not_alone.keys() {
            choose("modality", modality, &modalities)?;
        }
        for (method, settings) in &self.methods {
            choose("method", method, &METHODS)?;
            if let Some(key) = settings.set.keys().find(|key| !of_method(key)) {
                bail!("methods.{method} sets `{key}`: all methods share data, model and budget");
            }
        }
        preset::check(self)?;
        for reference in &self.reference {
            if let Some(method) = &reference.method {
                match method.split_once(':') {
                    Some((UNIMODAL, modality)) => _ = choose("modality", modality, &modalities)?,
                    _ => _ = choose("method", method, &METHODS)?,
                }
            }
            if let Some(fusion) = &reference.fusion {
                choose("fusion", fusion, &FUSIONS)?;
            }
        }
        let mut folds: Vec<&str> = self.fold_names();
        folds.sort_unstable();
        folds.dedup();
        if folds.len() != self.folds.len() {
            bail!("two folds have the same name");
        }
        let plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        if let Some(name) = folds.iter().find(|name| !plain(name) || name.parse::<u64>().is_ok()) {
            bail!("fold name `{name}`: use letters, digits, - and _, and not a bare number");
        }
        if folds.contains(&WHOLE) {
            bail!("fold name `{WHOLE}`: it stands for an experiment without folds");
        }
        for key in &self.seeded {
            settings::get(&self.base, key)
                .filter(|value| value.is_integer())
                .with_context(|| format!("`seeded` names `{key}`, which base does not have as an integer"))?;
        }
        self.tune.as_ref().map_or(Ok(()), Tune::check)
    }

    /// What is generated where no `--data` is given.
    pub(crate) fn stand_in(&self) -> Option<&Synth> {
        self.prepare.as_ref()?.synth.as_ref().filter(|_| !self.real)
    }

    /// The experiment on its stand-in: title and note say so, and numbers of others, which are on the real data, go.
    pub(crate) fn on_stand_in(mut self) -> Self {
        if let Some(synth) = self.stand_in().cloned() {
            self.title = synth.title;
            self.note = synth.note;
            self.reference.clear();
        }
        self
    }

    /// The names of the folds, in order.
    pub(crate) fn fold_names(&self) -> Vec<&str> {
        self.folds.iter().map(|fold| fold.name.as_str()).collect()
    }

    /// The modalities that are trained alone.
    pub(crate) fn alone(&self) -> Vec<&str> {
        self.modalities
            .iter()
            .filter(|name| !self.not_alone.contains_key(*name))
            .map(String::as_str)
            .collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two modalities, two folds, two seeds.
    pub(crate) const SMALL: &str = r#"
        title = "Small"
        note = "Made up."
        protocol = "validation-select"
        interval_note = "Folds share training rows."
        seeds = 2
        fusions = ["late-linear"]
        modalities = ["a", "b"]
        [requires]
        files = ["small.safetensors"]
        source = "nowhere"
        layout = "x_a, x_b, y"
        [[folds]]
        name = "fold1"
        set = { data.split = { train = "one" } }
        [[folds]]
        name = "fold2"
        set = { data.split = { train = "two" } }
        [base]
        seed = 0
        data = { kind = "features", path = "{data}/small.safetensors", split = { train = "none", val = "v" } }
        model.fusion = { kind = "late-linear" }
        train.epochs = 3
        [methods.mlb]
        set.method.alpha = 0.8
        [[reference]]
        label = "majority"
        value = "50.0"
        source = "counted"
    "#;

    #[test]
    fn reads_an_experiment() {
        let small = Experiment::parse("small", SMALL).expect("valid");
        assert_eq!(small.fold_names(), ["fold1", "fold2"]);
        assert_eq!(small.alone(), ["a", "b"]);
        assert_eq!(small.seeded, ["seed"]);
    }

    #[test]
    fn refuses_what_would_be_unfair_or_unclear() {
        let refused = |from: &str, to: &str, says: &str| {
            let error = Experiment::parse("small", &SMALL.replace(from, to)).expect_err(to);
            assert!(format!("{error:#}").contains(says), "{error:#}");
        };
        refused("set.method.alpha = 0.8", "set.train.epochs = 9", "all methods share data, model and budget");
        refused("methods.mlb", "methods.mbl", "did you mean `mlb`?");
        refused("fold2", "fold1", "two folds have the same name");
        refused("\"fold2\"", "\"2\"", "not a bare number");
        refused("[\"late-linear\"]", "[\"late-liner\"]", "did you mean `late-linear`?");
        refused("seed = 0\n", "", "`seeded` names `seed`");
        refused("seeds = 2", "seeds = 2\nsede = 1", "unknown field `sede`");
    }

    #[test]
    fn a_stand_in_says_what_it_is_and_is_compared_with_nothing() {
        let synth = "[prepare]\ndataset = \"d\"\nraw = \"{data}/d\"\nsynth = { title = \"Generated\", note = \"Made.\" }\n";
        let text = SMALL
            .replace("[[folds]]\n        name = \"fold1\"", &format!("{synth}[[folds]]\nname = \"fold1\""));
        let real = Experiment::parse("small", &text).expect("valid");
        assert_eq!((real.title.as_str(), real.reference.len()), ("Small", 1));
        let made = real.on_stand_in();
        assert_eq!(
            (made.title.as_str(), made.note.as_str(), made.reference.len()),
            ("Generated", "Made.", 0)
        );
    }
}
