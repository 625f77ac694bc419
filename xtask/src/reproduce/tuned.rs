//! What a search chose for every method, in `experiments/<name>.tuned.toml`, and the grid that it searched.

use super::experiment::{Experiment, of_method};
use super::methods::ENSEMBLE;
use super::plan::{Selection, Variant, variants};
use crate::suggest::choose;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Stands for the fold where an experiment has none.
pub(crate) const WHOLE: &str = "all";

/// The search for one setting: every value with every seed, for every method, modality alone and fold.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tune {
    /// The setting, such as `optim.lr`.
    pub(crate) key: String,
    /// The values to try.
    pub(crate) values: Vec<f64>,
    /// The seeds to try them with; they enter the settings in `seeded`.
    pub(crate) seeds: Vec<u64>,
}

impl Tune {
    pub(crate) fn check(&self) -> Result<()> {
        if !of_method(&self.key) {
            bail!("tune.key = `{}`: all methods share data, model and budget", self.key);
        }
        let distinct = |n: usize, all: usize| n == all && n > 0;
        let mut values: Vec<u64> = self.values.iter().map(|value| value.to_bits()).collect();
        values.sort_unstable();
        values.dedup();
        if !distinct(values.len(), self.values.len()) || self.values.iter().any(|value| !value.is_finite()) {
            bail!("tune.values: give at least one number, each once");
        }
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        seeds.dedup();
        if !distinct(seeds.len(), self.seeds.len()) {
            bail!("tune.seeds: give at least one seed, each once");
        }
        Ok(())
    }
}

/// The values that a search chose: by row (`mlb`, `unimodal:audio`) and fold (`all` where there are none).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Tuned {
    /// The file that they are from, in the workspace.
    pub(crate) source: String,
    /// The setting.
    pub(crate) key: String,
    /// Its value by row and fold.
    pub(crate) values: Choices,
}

/// Values by row and fold.
pub(crate) type Choices = BTreeMap<String, BTreeMap<String, f64>>;

/// The file that holds the choices for an experiment.
pub(crate) fn path(folder: &Path, experiment: &str) -> PathBuf {
    folder.join(format!("{experiment}.tuned.toml"))
}

/// The same for people.
pub(crate) fn source(experiment: &str) -> String {
    format!("experiments/{experiment}.tuned.toml")
}

impl Tuned {
    /// Reads and checks the file of an experiment; none if there is none.
    pub(crate) fn load(folder: &Path, experiment: &Experiment) -> Result<Option<Self>> {
        let path = path(folder, &experiment.name);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                Self::parse(experiment, &text).map(Some).with_context(|| format!("in {}", path.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Reads and checks the text of such a file.
    pub(crate) fn parse(experiment: &Experiment, text: &str) -> Result<Self> {
        let name = &experiment.name;
        let tune =
            experiment.tune.as_ref().with_context(|| format!("the experiment {name} has no [tune]"))?;
        let values: Choices = toml::from_str(text)?;
        let rows = names(experiment);
        let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
        let mut folds = experiment.fold_names();
        if folds.is_empty() {
            folds.push(WHOLE);
        }
        for (row, by_fold) in &values {
            choose("method", row, &rows)?;
            for (fold, value) in by_fold {
                choose("fold", fold, &folds)?;
                if !tune.values.contains(value) {
                    bail!(
                        "{row}, {fold}: {value} is not in tune.values; run `cargo xtask tune {name}` again"
                    );
                }
            }
        }
        Ok(Self { source: source(name), key: tune.key.clone(), values })
    }

    /// The value for a run.
    pub(crate) fn value(&self, variant: &Variant, fold: Option<&str>) -> Option<f64> {
        self.values.get(&variant.tuned_name())?.get(fold.unwrap_or(WHOLE)).copied()
    }

    /// Only what these runs use, and what they lack; none if the command line sets the key for all of them.
    pub(crate) fn used(&self, experiment: &Experiment, selection: &Selection) -> Option<(Self, Vec<String>)> {
        if selection.sets(&self.key) {
            return None;
        }
        let folds: Vec<Option<&str>> = match selection.folds.as_slice() {
            [] => vec![None],
            folds => folds.iter().map(|fold| Some(fold.name.as_str())).collect(),
        };
        let mut values = Choices::new();
        let mut missing = Vec::new();
        for variant in variants(experiment, selection).iter().filter(|variant| variant.method != ENSEMBLE) {
            for &fold in &folds {
                let (name, fold_name) = (variant.tuned_name(), fold.unwrap_or(WHOLE).to_owned());
                match self.value(variant, fold) {
                    Some(value) => {
                        values.entry(name).or_default().insert(fold_name, value);
                    }
                    None => missing.push(format!("{name} ({fold_name})")),
                }
            }
        }
        Some((Self { values, ..self.clone() }, missing))
    }

    /// One text per row, such as `mlb 0.005` or `mlb 0.005 (fold1, fold3) 0.02 (fold2)`, rows in the order of the table.
    pub(crate) fn shown(&self, names: &[String]) -> Vec<String> {
        let mut lines = Vec::new();
        for name in names {
            let Some(by_fold) = self.values.get(name) else {
                continue;
            };
            let mut folds_of: Vec<(f64, Vec<&str>)> = Vec::new();
            for (fold, value) in by_fold {
                match folds_of.iter_mut().find(|(other, _)| other == value) {
                    Some((_, folds)) => folds.push(fold),
                    None => folds_of.push((*value, vec![fold])),
                }
            }
            let parts: Vec<String> = match folds_of.as_slice() {
                [(value, _)] => vec![value.to_string()],
                several => {
                    several.iter().map(|(value, folds)| format!("{value} ({})", folds.join(", "))).collect()
                }
            };
            lines.push(format!("{} {}", name.replace(':', " "), parts.join(" ")));
        }
        lines
    }
}

/// The rows that a search chooses for, in the order of the table: each method, and each modality alone.
pub(crate) fn names(experiment: &Experiment) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for method in super::methods::METHODS.into_iter().filter(|&method| method != ENSEMBLE) {
        if method == super::methods::UNIMODAL {
            names.extend(experiment.alone().into_iter().map(|modality| format!("{method}:{modality}")));
        } else {
            names.push(method.to_owned());
        }
    }
    names
}

/// The text of the file: a comment, then one table per row.
pub(crate) fn text(header: &[String], names: &[String], choices: &Choices) -> String {
    let mut text = String::new();
    for line in header {
        let _ = writeln!(text, "# {line}"); // a String takes all
    }
    for name in names {
        let Some(by_fold) = choices.get(name) else {
            continue;
        };
        let bare = name.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
        let title = if bare { name.clone() } else { toml::Value::String(name.clone()).to_string() };
        let _ = write!(text, "\n[{title}]\n");
        for (fold, value) in by_fold {
            let _ = writeln!(text, "{fold} = {}", toml::Value::Float(*value));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::experiment::tests::SMALL;
    use crate::reproduce::plan::{Folders, plan, tests::args};

    const TUNE: &str = "[tune]\nkey = 'optim.lr'\nvalues = [0.1, 0.02]\nseeds = [0]\n[methods.mlb]";
    const CHOSEN: &str = "[mlb]\nfold1 = 0.1\nfold2 = 0.02\n['unimodal:b']\nfold1 = 0.02\nfold2 = 0.02\n";

    fn experiment() -> Experiment {
        let text = SMALL
            .replace("[methods.mlb]", TUNE)
            .replace("set.method.alpha = 0.8", "set = { method.alpha = 0.8, optim.lr = 9.0 }");
        let mut experiment = Experiment::parse("small", &text).expect("valid");
        experiment.tuned = Some(Tuned::parse(&experiment, CHOSEN).expect("valid"));
        experiment
    }

    fn rates(experiment: &Experiment, line: &str) -> Vec<(String, Option<f64>)> {
        let selection = Selection::new(experiment, &args(line)).expect("valid");
        let rate = |config: &str| {
            let config: toml::Table = toml::from_str(config).expect("TOML");
            super::super::settings::get(&config, "optim.lr").and_then(toml::Value::as_float)
        };
        plan(experiment, &selection, &Folders { data: "folder".into(), ..Folders::default() })
            .expect("valid")
            .iter()
            .map(|run| (run.label(), rate(&run.config)))
            .collect()
    }

    #[test]
    fn choices_win_over_the_method_and_lose_to_the_command_line() {
        let experiment = experiment();
        let expected = |rows: &[(&str, Option<f64>)]| -> Vec<(String, Option<f64>)> {
            rows.iter().map(|(label, rate)| ((*label).to_owned(), *rate)).collect()
        };
        assert_eq!(
            rates(&experiment, "--method unimodal,mlb --seeds 1"),
            expected(&[
                ("unimodal a, fold1, seed 0", None),
                ("unimodal b, fold1, seed 0", Some(0.02)),
                ("mlb, late-linear, fold1, seed 0", Some(0.1)),
                ("unimodal a, fold2, seed 0", None),
                ("unimodal b, fold2, seed 0", Some(0.02)),
                ("mlb, late-linear, fold2, seed 0", Some(0.02)),
            ])
        );
        let set = rates(&experiment, "--method mlb --seeds 1 --folds 1 --set optim.lr=0.5");
        assert_eq!(set[0].1, Some(0.5));
    }

    #[test]
    fn says_what_is_used_and_what_is_missing() {
        let experiment = experiment();
        let tuned = experiment.tuned.as_ref().expect("parsed above");
        let used = |line: &str| {
            let selection = Selection::new(&experiment, &args(line)).expect("valid");
            tuned.used(&experiment, &selection)
        };
        let (all, missing) = used("--method ensemble,mlb").expect("used");
        assert_eq!(all.shown(&names(&experiment)), ["unimodal b 0.02", "mlb 0.1 (fold1) 0.02 (fold2)"]);
        assert_eq!(missing, ["unimodal:a (fold1)", "unimodal:a (fold2)"]);
        let (one, missing) = used("--method mlb --folds fold2").expect("used");
        assert_eq!((one.shown(&names(&experiment)), missing), (vec!["mlb 0.02".to_owned()], vec![]));
        assert_eq!(used("--method mlb --set optim.lr=0.5"), None);
        assert_eq!(used("--method mlb --set optim={kind='adam'}"), None);
    }

    #[test]
    fn files_survive_the_round_trip_and_slips_are_found() {
        let experiment = experiment();
        let choices = Choices::from(
            [("opm+ogm", 0.1), ("mlb", 0.02), ("unimodal:a", 0.1)]
                .map(|(name, value)| (name.to_owned(), BTreeMap::from([("fold1".to_owned(), value)]))),
        );
        let written = text(&["why".to_owned()], &names(&experiment), &choices);
        assert_eq!(
            written,
            "# why\n\n[\"unimodal:a\"]\nfold1 = 0.1\n\n[mlb]\nfold1 = 0.02\n\n[\"opm+ogm\"]\nfold1 = 0.1\n"
        );
        assert_eq!(Tuned::parse(&experiment, &written).expect("valid").values, choices);
        let says =
            |text: &str| format!("{:#}", Tuned::parse(&experiment, text).expect_err("a slip is in it"));
        assert!(says("[mlbb]\nfold1 = 0.1").contains("did you mean `mlb`?"));
        assert!(says("[ensemble]\nfold1 = 0.1").contains("there is no method `ensemble`"));
        assert!(says("[mlb]\nall = 0.1").contains("allowed: fold1, fold2"));
        assert!(says("[mlb]\nfold1 = 0.3").contains("0.3 is not in tune.values"));
    }

    #[test]
    fn grids_are_checked() {
        let says = |from: &str, to: &str| {
            let text = SMALL.replace("[methods.mlb]", &TUNE.replace(from, to));
            format!("{:#}", Experiment::parse("small", &text).expect_err(to))
        };
        assert!(says("optim.lr", "train.epochs").contains("all methods share data, model and budget"));
        assert!(says("[0.1, 0.02]", "[]").contains("tune.values"));
        assert!(says("[0.1, 0.02]", "[0.1, 0.1]").contains("tune.values"));
        assert!(says("[0]", "[]").contains("tune.seeds"));
    }
}
