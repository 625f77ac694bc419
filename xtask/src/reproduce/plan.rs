//! From an experiment and the command line to the list of runs.

use super::Args;
use super::experiment::{Experiment, Fold};
use super::methods::{ENSEMBLE, FUSIONS, ITS_FUSION, LINEAR_HEAD, METHODS, UNIMODAL, USUAL, WITHOUT_FUSION};
use super::settings;
use crate::error::usage;
use crate::suggest::choose;
use anyhow::{Context, Result};
use toml::{Table, Value};

/// What was chosen of an experiment.
#[derive(Debug, Clone)]
pub(crate) struct Selection {
    /// Methods in the order of the table.
    pub(crate) methods: Vec<&'static str>,
    /// Fusions in the order they were asked for.
    pub(crate) fusions: Vec<String>,
    /// Seeds.
    pub(crate) seeds: Vec<u64>,
    /// Folds; empty where the experiment has none.
    pub(crate) folds: Vec<Fold>,
    /// Settings of the command line, laid over everything else.
    pub(crate) set: Vec<(String, Value)>,
}

/// The folders that configurations name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Folders {
    /// What `{data}` stands for.
    pub(crate) data: String,
    /// What `{pack}` stands for.
    pub(crate) pack: String,
}

/// One row of the table: the same method under several seeds and folds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variant {
    /// Its method.
    pub(crate) method: &'static str,
    /// The modality of a unimodal run.
    pub(crate) modality: Option<String>,
    /// The fusion; none for what fuses nothing.
    pub(crate) fusion: Option<String>,
}

/// One call of `mm`.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    /// Name of its folder: what it is and a hash of its configuration.
    pub(crate) id: String,
    /// The row it counts for.
    pub(crate) variant: Variant,
    /// Its seed.
    pub(crate) seed: u64,
    /// The name of its fold.
    pub(crate) fold: Option<String>,
    /// The configuration; for an ensemble, the list of its members.
    pub(crate) config: String,
    /// The runs that an ensemble averages, as positions in the plan; empty for a training run.
    pub(crate) members: Vec<usize>,
    /// The setting that a search tries with it.
    pub(crate) tried: Option<String>,
}

impl Selection {
    /// Checks the names on the command line against the experiment.
    pub(crate) fn new(experiment: &Experiment, args: &Args) -> Result<Self> {
        let mut methods = Vec::new();
        let asked = match (args.method.as_slice(), experiment.methods_by_default.as_slice()) {
            ([], []) => USUAL.map(str::to_owned).to_vec(),
            ([], usual) => usual.to_vec(),
            (asked, _) => asked.to_vec(),
        };
        for name in &asked {
            if name == "all" {
                methods.extend(METHODS);
            } else {
                methods
                    .push(choose("method", name, &METHODS).map_err(|error| usage(format!("{error}, all")))?);
            }
        }
        if methods.contains(&ENSEMBLE) {
            methods.push(UNIMODAL); // an ensemble is made from them
        }
        let methods = METHODS.into_iter().filter(|name| methods.contains(name)).collect();
        let mut fusions: Vec<String> = Vec::new();
        for name in if args.fusion.is_empty() { &experiment.fusions } else { &args.fusion } {
            let name = choose("fusion", name, &FUSIONS)?.to_owned();
            if !fusions.contains(&name) {
                fusions.push(name);
            }
        }
        let mut set = args
            .set
            .iter()
            .map(|text| settings::parse(text).map_err(|error| usage(error.to_string())))
            .collect::<Result<Vec<_>>>()?;
        if let Some(device) = &args.device {
            set.push(("train.device".to_owned(), Value::String(checked_device(device)?)));
        }
        Ok(Self {
            methods,
            fusions,
            seeds: (0..args.seeds.unwrap_or(experiment.seeds)).collect(),
            folds: chosen_folds(experiment, args.folds.as_deref())?,
            set,
        })
    }

    /// The shared configuration of all runs with the settings of the command line.
    pub(crate) fn base(&self, experiment: &Experiment) -> Result<Table> {
        let mut base = experiment.base.clone();
        self.lay_over(&mut base)?;
        Ok(base)
    }

    /// Whether the command line sets this key for every run.
    pub(crate) fn sets(&self, key: &str) -> bool {
        self.set.iter().any(|(set, _)| key == set || key.starts_with(&format!("{set}.")))
    }

    fn lay_over(&self, config: &mut Table) -> Result<()> {
        for (key, value) in &self.set {
            settings::set(config, key, value.clone())
                .map_err(|error| usage(format!("--set {key}: {error}")))?;
        }
        Ok(())
    }
}

/// Every run of a selection: fold by fold and seed by seed, so that what is done first can be compared first;
/// ensembles follow their members.
pub(crate) fn plan(experiment: &Experiment, selection: &Selection, data: &Folders) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let folds: Vec<Option<&Fold>> =
        if selection.folds.is_empty() { vec![None] } else { selection.folds.iter().map(Some).collect() };
    for fold in folds {
        for &seed in &selection.seeds {
            let first = runs.len();
            for variant in variants(experiment, selection) {
                let fold_name = fold.map(|fold| fold.name.clone());
                let (config, members) = if variant.method == ENSEMBLE {
                    let unimodal = |run: &Run| run.variant.method == UNIMODAL;
                    let members: Vec<usize> = (first..runs.len()).filter(|&i| unimodal(&runs[i])).collect();
                    let ids: Vec<String> = members.iter().map(|&i| format!("{:?}", runs[i].id)).collect();
                    (format!("method = \"ensemble\"\nmembers = [{}]\n", ids.join(", ")), members)
                } else {
                    (config(experiment, selection, &variant, fold, seed, data)?, Vec::new())
                };
                let id = run_id(&variant, fold_name.as_deref(), seed, &config);
                runs.push(Run { id, variant, seed, fold: fold_name, config, members, tried: None });
            }
        }
    }
    Ok(runs)
}

/// The rows of the table, in order.
pub(crate) fn variants(experiment: &Experiment, selection: &Selection) -> Vec<Variant> {
    let mut rows = Vec::new();
    for &method in &selection.methods {
        match method {
            UNIMODAL => rows.extend(experiment.alone().into_iter().map(|modality| Variant {
                method,
                modality: Some(modality.to_owned()),
                fusion: None,
            })),
            _ if method == ENSEMBLE || WITHOUT_FUSION.contains(&method) => {
                rows.push(Variant { method, modality: None, fusion: None });
            }
            _ if method == ITS_FUSION.0 => {
                rows.push(Variant { method, modality: None, fusion: Some(ITS_FUSION.1.to_owned()) });
            }
            _ => rows.extend(selection.fusions.iter().map(|fusion| Variant {
                method,
                modality: None,
                fusion: Some(fusion.clone()),
            })),
        }
    }
    rows
}

impl Variant {
    /// As in the first column of the table.
    pub(crate) fn label(&self) -> String {
        match &self.modality {
            Some(modality) => format!("{} {modality}", self.method),
            None => self.method.to_owned(),
        }
    }

    /// As in the file of what a search chose: `unimodal:audio`, `mlb`. One name for all fusions.
    pub(crate) fn tuned_name(&self) -> String {
        self.label().replace(' ', ":")
    }
}

impl Run {
    /// As in messages.
    pub(crate) fn label(&self) -> String {
        let mut label = self.variant.label();
        for part in [&self.variant.fusion, &self.fold].into_iter().flatten() {
            label = format!("{label}, {part}");
        }
        label = format!("{label}, seed {}", self.seed);
        match &self.tried {
            Some(tried) => format!("{label}, {tried}"),
            None => label,
        }
    }

    /// Whether it averages other runs.
    pub(crate) fn is_ensemble(&self) -> bool {
        self.variant.method == ENSEMBLE
    }
}

/// The configuration file of a training run.
fn config(
    experiment: &Experiment,
    selection: &Selection,
    variant: &Variant,
    fold: Option<&Fold>,
    seed: u64,
    data: &Folders,
) -> Result<String> {
    let mut config = Table::new();
    config.insert("name".to_owned(), Value::String(format!("{}-{}", experiment.name, variant.method)));
    settings::overlay(&mut config, &experiment.base);
    if let Some(fold) = fold {
        settings::overlay(&mut config, &fold.set);
    }
    let mut method = Table::new();
    method.insert("kind".to_owned(), Value::String(variant.method.to_owned()));
    if let Some(modality) = &variant.modality {
        method.insert("modality".to_owned(), Value::String(modality.clone()));
    }
    config.insert("method".to_owned(), Value::Table(method));
    let mut fusion = Table::new();
    let kind = variant.fusion.as_deref().unwrap_or(LINEAR_HEAD);
    settings::set(&mut fusion, "model.fusion.kind", Value::String(kind.to_owned()))?;
    settings::overlay(&mut config, &fusion);
    if let Some(settings) = experiment.methods.get(variant.method) {
        settings::overlay(&mut config, &settings.set);
    }
    if let Some(tuned) = &experiment.tuned
        && let Some(value) = tuned.value(variant, fold.map(|fold| fold.name.as_str()))
    {
        settings::set(&mut config, &tuned.key, Value::Float(value))?;
    }
    for key in &experiment.seeded {
        let seed = i64::try_from(seed).context("seeds go up to 2^63 - 1")?;
        settings::set(&mut config, key, Value::Integer(seed))?;
    }
    selection.lay_over(&mut config)?;
    let mut config = Value::Table(config);
    settings::fill_in(&mut config, "{data}", &data.data);
    settings::fill_in(&mut config, "{pack}", &data.pack);
    Ok(toml::to_string(&config)?)
}

/// The name of a run's folder. The hash tells configurations apart, so no run ever replaces another.
fn run_id(variant: &Variant, fold: Option<&str>, seed: u64, config: &str) -> String {
    let mut parts = vec![variant.method.to_owned()];
    parts.extend(variant.modality.clone());
    parts.extend(variant.fusion.clone());
    parts.extend(fold.map(str::to_owned));
    parts.push(format!("s{seed}"));
    parts.push(format!("{:08x}", fnv1a(config.as_bytes()) >> 32));
    parts.join("-")
}

/// FNV-1a: short, and the same everywhere and for ever, unlike the standard library's hasher.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The folds of `--folds`: a number means the first so many, otherwise names.
fn chosen_folds(experiment: &Experiment, asked: Option<&str>) -> Result<Vec<Fold>> {
    let Some(asked) = asked else {
        return Ok(experiment.folds.clone());
    };
    let names = experiment.fold_names();
    if names.is_empty() {
        return Err(usage(format!("the experiment {} has no folds", experiment.name)));
    }
    if let Ok(count) = asked.parse::<usize>() {
        if count == 0 || count > names.len() {
            return Err(usage(format!(
                "--folds {count}: a number means the first so many folds, 1 to {}; or name them: {}",
                names.len(),
                names.join(", ")
            )));
        }
        return Ok(experiment.folds[..count].to_vec());
    }
    let mut wanted = Vec::new();
    for name in asked.split(',').map(str::trim) {
        wanted.push(choose("fold", name, &names)?);
    }
    Ok(experiment.folds.iter().filter(|fold| wanted.contains(&fold.name.as_str())).cloned().collect())
}

/// `cpu`, `cuda`, `cuda:N` or `metal`.
fn checked_device(device: &str) -> Result<String> {
    let numbered = device.strip_prefix("cuda:").is_some_and(|n| n.parse::<u16>().is_ok());
    if !numbered {
        let allowed = ["cpu", "cuda", "metal"];
        choose("device", device, &allowed).map_err(|error| usage(format!("{error}, cuda:N")))?;
    }
    Ok(device.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::reproduce::experiment::tests::SMALL;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    pub(crate) fn args(line: &str) -> Args {
        Line::try_parse_from(format!("reproduce {line}").split_whitespace()).expect("valid line").args
    }

    /// The small experiment, planned with these options.
    pub(crate) fn small(line: &str) -> (Experiment, Selection, Vec<Run>) {
        let experiment = Experiment::parse("small", SMALL).expect("valid");
        let selection = Selection::new(&experiment, &args(line)).expect("valid options");
        let runs = plan(&experiment, &selection, &Folders { data: "folder".into(), ..Folders::default() })
            .expect("valid plan");
        (experiment, selection, runs)
    }

    #[test]
    fn expands_methods_seeds_and_folds() {
        let (_, _, runs) = small("");
        assert_eq!(runs.len(), 14 * 2 * 2); // two unimodal, ensemble, eleven fused; seeds; folds
        let labels: Vec<String> = runs.iter().take(4).map(Run::label).collect();
        assert_eq!(
            labels,
            [
                "unimodal a, fold1, seed 0",
                "unimodal b, fold1, seed 0",
                "ensemble, fold1, seed 0",
                "joint, late-linear, fold1, seed 0"
            ]
        );
        let ensembles: Vec<&Run> = runs.iter().filter(|run| run.is_ensemble()).collect();
        assert_eq!(ensembles[1].members, [14, 15]);
        let mut ids: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), runs.len());
    }

    #[test]
    fn options_narrow_and_widen() {
        assert_eq!(small("--method mlb,joint --seeds 3 --folds 1").2.len(), 2 * 3);
        assert_eq!(small("--method ensemble --folds fold2").2.len(), 3 * 2);
        assert_eq!(small("--method unimodal,mlb --fusion film,gated").2.len(), (2 + 2) * 4);
        assert_eq!(small("--method mlb --folds fold2 --seeds 1").2[0].fold.as_deref(), Some("fold2"));
    }

    #[test]
    fn configurations_lay_over_one_another() {
        let (_, _, runs) =
            small("--method mlb --set optim.lr=0.5 --device cuda:1 --seeds 2 --folds fold2 --fusion film");
        let config: Table = toml::from_str(&runs[1].config).expect("valid TOML");
        let expected: Table = toml::from_str(
            r#"
            name = "small-mlb"
            seed = 1
            data = { kind = "features", path = "folder/small.safetensors", split = { train = "two", val = "v" } }
            model.fusion.kind = "film"
            method = { kind = "mlb", alpha = 0.8 }
            train = { epochs = 3, device = "cuda:1" }
            optim.lr = 0.5
            "#,
        )
        .expect("valid TOML");
        assert_eq!(config, expected);
        assert!(runs[1].id.starts_with("mlb-film-fold2-s1-"), "{}", runs[1].id);
    }

    #[test]
    fn the_same_arguments_give_the_same_folders_and_others_do_not() {
        let ids = |line: &str| -> Vec<String> { small(line).2.into_iter().map(|run| run.id).collect() };
        assert_eq!(ids("--method mlb"), ids("--method mlb"));
        assert_ne!(ids("--method mlb"), ids("--method mlb --set optim.lr=0.5"));
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
    }

    #[test]
    fn unknown_names_are_refused_with_a_guess() {
        let experiment = Experiment::parse("small", SMALL).expect("valid");
        let says = |line: &str| Selection::new(&experiment, &args(line)).expect_err(line).to_string();
        assert!(says("--method mlbb").contains("did you mean `mlb`?"));
        assert!(says("--method mlbb").ends_with("valuation, all"));
        assert!(says("--fusion flim").contains("did you mean `film`?"));
        assert!(says("--folds 3").contains("1 to 2"));
        assert!(says("--folds fold3").contains("allowed: fold1, fold2"));
        assert!(says("--device cdua").contains("allowed: cpu, cuda, metal, cuda:N"));
        assert!(says("--set lr").contains("KEY=VALUE"));
    }
}
