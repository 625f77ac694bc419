//! Presets: one experiment at several sizes, `--preset smoke | reduced | paper`.

use super::experiment::{Experiment, Fold};
use super::methods::{FUSIONS, METHODS};
use super::settings::overlay;
use crate::error::usage;
use crate::suggest::choose;
use anyhow::Result;
use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Table;

/// The name of an experiment as its file describes it, without a preset.
pub(crate) const PLAIN: &str = "reduced";

/// What a preset sets differently; everything that it does not name stays as it is. Where it changes what the words of
/// the experiment say, it has words of its own.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Preset {
    /// What the schedule is; replaces the experiment's sentence below the table's title.
    pub(crate) schedule: String,
    /// The title; without one, the experiment's with the preset's name behind it.
    title: Option<String>,
    /// What the data are and what they are not.
    note: Option<String>,
    /// The same for the stand-in.
    synth_note: Option<String>,
    /// What the confidence intervals do not cover.
    interval_note: Option<String>,
    /// How parts are split, models selected and tested.
    protocol: Option<String>,
    /// Number of seeds.
    seeds: Option<u64>,
    /// Which folds.
    folds: Option<Vec<String>>,
    /// Other folds in the place of the experiment's.
    splits: Option<Vec<Fold>>,
    /// Whether it is of no use on a stand-in.
    #[serde(default)]
    pub(crate) real: bool,
    /// Methods unless `--method` says otherwise.
    methods: Option<Vec<String>>,
    /// Fusions unless `--fusion` says otherwise.
    fusions: Option<Vec<String>>,
    /// Settings laid over the configuration that all runs share.
    #[serde(default)]
    set: Table,
    /// Settings laid over the recipe of the pack.
    #[serde(default)]
    recipe: Table,
    /// Options of `mm data synth` laid over those of the stand-in.
    #[serde(default)]
    synth: Table,
}

/// Refuses a preset that would only fail when it is asked for.
pub(crate) fn check(experiment: &Experiment) -> Result<()> {
    let folds = experiment.fold_names();
    for preset in experiment.presets.values() {
        for method in preset.methods.iter().flatten() {
            choose("method", method, &METHODS)?;
        }
        for fusion in preset.fusions.iter().flatten() {
            choose("fusion", fusion, &FUSIONS)?;
        }
        for fold in preset.folds.iter().flatten() {
            choose("fold", fold, &folds)?;
        }
    }
    Ok(())
}

/// The experiment under a preset.
pub(crate) fn apply(mut experiment: Experiment, name: &str) -> Result<Experiment> {
    if name == PLAIN && !experiment.presets.contains_key(PLAIN) {
        return Ok(experiment);
    }
    if experiment.presets.is_empty() {
        return Err(usage(format!(
            "--preset {name}: the experiment {} has one size only; leave --preset out",
            experiment.name
        )));
    }
    let presets: BTreeMap<String, Preset> = std::mem::take(&mut experiment.presets);
    let mut names: Vec<&str> = presets.keys().map(String::as_str).collect();
    names.push(PLAIN);
    let name = choose("preset", name, &names).map_err(|error| usage(error.to_string()))?;
    let Some(preset) = presets.get(name).cloned() else { return Ok(experiment) };
    for title in [
        Some(&mut experiment.title),
        experiment.prepare.as_mut().and_then(|p| p.synth.as_mut()).map(|s| &mut s.title),
    ]
    .into_iter()
    .flatten()
    {
        let plain = title.strip_suffix(&format!(" ({PLAIN})")).unwrap_or(title);
        *title = format!("{plain} ({name})");
    }
    experiment.schedule = preset.schedule;
    experiment.title = preset.title.unwrap_or(experiment.title);
    experiment.note = preset.note.unwrap_or(experiment.note);
    experiment.interval_note = preset.interval_note.unwrap_or(experiment.interval_note);
    if let Some(protocol) = preset.protocol {
        experiment.protocol = protocol;
    }
    experiment.seeds = preset.seeds.unwrap_or(experiment.seeds);
    experiment.real |= preset.real;
    if let Some(splits) = preset.splits {
        experiment.folds = splits;
    }
    if let Some(folds) = preset.folds {
        experiment.folds.retain(|fold| folds.contains(&fold.name));
    }
    if let Some(methods) = preset.methods {
        experiment.methods_by_default = methods;
    }
    if let Some(fusions) = preset.fusions {
        experiment.fusions = fusions;
    }
    overlay(&mut experiment.base, &preset.set);
    if let Some(prepare) = &mut experiment.prepare {
        overlay(&mut prepare.recipe, &preset.recipe);
        if let Some(synth) = &mut prepare.synth {
            overlay(&mut synth.set, &preset.synth);
            synth.note = preset.synth_note.unwrap_or_else(|| std::mem::take(&mut synth.note));
        }
    }
    Ok(experiment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reproduce::experiment::tests::SMALL;

    const PRESET: &str = "[presets.smoke]\nschedule = \"One epoch.\"\nfolds = [\"fold1\"]\nseeds = 1\n\
                          methods = [\"joint\"]\nset = { train.epochs = 1 }\n";

    fn with(preset: &str) -> Result<Experiment> {
        let head = "[[folds]]\n        name = \"fold1\"";
        Experiment::parse("small", &SMALL.replacen(head, &format!("{preset}{head}"), 1))
    }

    #[test]
    fn a_preset_changes_what_it_names_and_nothing_else() {
        let plain = with(PRESET).expect("valid");
        let small = apply(plain.clone(), "smoke").expect("known");
        assert_eq!(
            (small.title.as_str(), small.seeds, small.fold_names()),
            ("Small (smoke)", 1, vec!["fold1"])
        );
        assert_eq!(small.methods_by_default, ["joint"]);
        assert_eq!(small.schedule, "One epoch.");
        assert_eq!(small.base["train"]["epochs"].as_integer(), Some(1));
        assert_eq!(small.base["data"], plain.base["data"]);
        let same = apply(plain, "reduced").expect("the plain one");
        assert_eq!((same.title.as_str(), same.seeds, same.folds.len()), ("Small", 2, 2));
    }

    #[test]
    fn a_preset_has_words_of_its_own() {
        let words = "title = \"Tiny\"\nnote = \"Two rows.\"\ninterval_note = \"None.\"\nsynth_note = \"Drawn.\"\nset =";
        let plain = with(&PRESET.replace("set =", words)).expect("valid");
        let small = apply(plain.clone(), "smoke").expect("known");
        assert_eq!([&*small.title, &*small.note, &*small.interval_note], ["Tiny", "Two rows.", "None."]);
        let same = apply(plain, "reduced").expect("the plain one");
        assert_eq!([&*same.note, &*same.interval_note], ["Made up.", "Folds share training rows."]);
    }

    /// The words of the files that are shipped, as each preset shows them, with and without data.
    #[test]
    fn shipped_presets_do_not_contradict_themselves() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../experiments");
        let said = |name: &str, preset: &str, stand_in: bool| {
            let mut experiment =
                Experiment::load(&folder, name).and_then(|e| apply(e, preset)).expect(preset);
            if stand_in {
                experiment = experiment.on_stand_in();
            }
            let Experiment { title, note, schedule, protocol, interval_note, .. } = experiment;
            [title, note, schedule, protocol, interval_note].join("\n")
        };
        let mut presets = 0;
        for name in crate::reproduce::experiment::names(&folder).expect("readable") {
            for preset in Experiment::load(&folder, &name).expect("valid").presets.keys() {
                assert!(!said(&name, preset, false).contains("(reduced)"), "{name} {preset}");
                presets += 1;
            }
        }
        assert_eq!(presets, 3);
        let paper = said("cremad", "paper", true);
        for reduced in ["48 x 48", "below 2 kHz", "One seed", "0.005", "generated"] {
            assert!(!paper.contains(reduced), "paper says {reduced}: {paper}");
        }
        let smoke = said("cremad", "smoke", true);
        assert!(smoke.contains("180 clips of 10 actors") && !smoke.contains("1440"), "{smoke}");
        assert!(smoke.contains("generated"), "{smoke}");
        let clean = said("avmnist", "clean", false);
        assert!(!clean.contains("noisy") && !clean.contains("25 %"), "{clean}");
        let paper = Experiment::load(&folder, "cremad").and_then(|e| apply(e, "paper")).expect("valid");
        assert_eq!(paper.base["schedule"]["warmup"].as_str(), Some("constant"), "as its words say");
    }

    #[test]
    fn unknown_names_are_refused_with_what_there_is() {
        let refused = |of: Result<Experiment>, says: &str| {
            let error = of.and_then(|e| apply(e, "smok")).expect_err(says);
            assert!(format!("{error:#}").contains(says), "{error:#}");
        };
        refused(with(PRESET), "did you mean `smoke`?");
        refused(with(""), "one size only");
        refused(with(&PRESET.replace("fold1", "fold9")), "fold9");
        refused(with(&PRESET.replace("joint", "jiont")), "did you mean `joint`?");
    }
}
