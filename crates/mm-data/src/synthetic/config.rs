//! The settings of a synthetic set, and their defaults in one place.

use crate::config::{self, Summary};
use crate::{DataError, Dataset, SplitConfig};
use mm_core::{ConfigError, Modalities, RowShape};
use serde::{Deserialize, Serialize};

/// A synthetic set: Gaussian class clusters in a latent space per modality, seen through a fixed random map.
///
/// Row i with class y has in modality m the latent
///
/// $$ z = a \mu_c + \varepsilon, \quad \varepsilon \sim N(0, I_k) $$
///
/// where by default a = 1 and c = y; in a share of the rows the modality is *weak* (a = `weak_scale`), *absent*
/// (a = 0) or in *conflict* (c is another class), independently of the other modalities. The features are
///
/// $$ x = V\,\tanh(g (W_d \cdots \tanh(g (W_1 [z, n] + b_1)) \cdots + b_d)) + \text{noise} \cdot \eta $$
///
/// with fixed random matrices, nuisance n and observation noise eta. Classes are balanced in every part. Every row has
/// a random stream of its own, so that changing the size of one part, or another modality, changes nothing else.
///
/// The set has the columns `state_<modality>` ([`super::State`] as a number) and `shown_<modality>` (the class whose
/// mean was used, -1 where absent), and the parts `train_index`, `val_index` and `test_index`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SyntheticConfig {
    /// Number of classes, 2 to 10000. Default 6.
    pub classes: usize,
    /// Training rows, at least 2. Default 2000.
    pub n_train: usize,
    /// Validation rows; may be 0. Default 500.
    pub n_val: usize,
    /// Test rows, at least 1. Default 1000.
    pub n_test: usize,
    /// Seed of the data, apart from the run's. Default 0.
    pub seed: u64,
    /// The modalities. Default: `fast` and `slow`.
    pub sources: Vec<SourceConfig>,
    /// Which of the sources are given to the model, in which order. Default: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modalities: Option<Vec<String>>,
    /// Whether features get zero mean and unit spread by the training rows. Default: yes.
    pub standardize: bool,
    /// Which rows train, validate and test. Default: the parts as generated.
    pub split: SplitConfig,
}

impl Default for SyntheticConfig {
    /// Two modalities. `fast` is fitted within an epoch; in 30 % of the rows it says nothing about the class, and its
    /// many noisy features let a network memorise those rows too. `slow` tells as much, but its class directions lie
    /// below twelve nuisance directions of ten times the spread, which gradient descent fits first. Trained together,
    /// the loss is gone before the encoder of `slow` has learned what it learns alone.
    fn default() -> Self {
        Self {
            classes: 6,
            n_train: 2000,
            n_val: 500,
            n_test: 1000,
            seed: 0,
            sources: vec![
                SourceConfig {
                    name: "fast".to_owned(),
                    dim: 256,
                    noise: 1.0,
                    absent: 0.3,
                    hardness: 0.3,
                    ..SourceConfig::default()
                },
                SourceConfig {
                    name: "slow".to_owned(),
                    dim: 96,
                    separation: 4.0,
                    noise: 0.05,
                    weak: 0.10,
                    conflict: 0.05,
                    hardness: 0.1,
                    hidden: 128,
                    nuisance: 12,
                    nuisance_scale: 10.0,
                    ..SourceConfig::default()
                },
            ],
            modalities: None,
            standardize: true,
            split: SplitConfig::default(),
        }
    }
}

/// One modality of a synthetic set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SourceConfig {
    /// Its name: letters, digits, `_` and `-`. Required.
    pub name: String,
    /// Features, 1 to 65536. Default 64.
    pub dim: usize,
    /// Latent dimensions k that carry the class, 1 to 1024. Default 8.
    pub latent: usize,
    /// Length of each class mean, in standard deviations of the latent noise; at least 0. Default 4.
    pub separation: f64,
    /// Standard deviation of the observation noise, beside features of order 1; at least 0. Default 0.3.
    pub noise: f64,
    /// Share of rows without class information, in [0, 1]. Default 0.
    pub absent: f64,
    /// Share of rows that show another class, in [0, 1]. Default 0.
    pub conflict: f64,
    /// Share of rows whose class mean is scaled down, in [0, 1]. Default 0. The three shares sum to at most 1.
    pub weak: f64,
    /// The factor of weak rows, in [0, 1]. Default 0.3.
    pub weak_scale: f64,
    /// Share of rows that lack the modality altogether, in [0, 1). Default 0. A row always keeps at least one modality.
    pub missing: f64,
    /// Layers of tanh in the map, 0 (linear) to 8. Default 1.
    pub depth: usize,
    /// Gain g before each tanh, 0.01 to 100: near 0 the map is linear, above 1 the layers saturate, which also loses
    /// information where the nuisance is strong. Default 0.3.
    pub hardness: f64,
    /// Width of the layers, 1 to 4096. Default 64.
    pub hidden: usize,
    /// Latent dimensions that carry no class information, 0 to 1024. Many of large spread make a modality slow to learn.
    /// Default 0.
    pub nuisance: usize,
    /// Standard deviation of the nuisance; at least 0. Default 2.
    pub nuisance_scale: f64,
}

impl Default for SourceConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            dim: 64,
            latent: 8,
            separation: 4.0,
            noise: 0.3,
            absent: 0.0,
            conflict: 0.0,
            weak: 0.0,
            weak_scale: 0.3,
            missing: 0.0,
            depth: 1,
            hardness: 0.3,
            hidden: 64,
            nuisance: 0,
            nuisance_scale: 2.0,
        }
    }
}

/// The largest number of features in a generated modality, over all rows.
const MAX_VALUES: usize = 1 << 31;

impl SyntheticConfig {
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        integer("classes", self.classes, 2, 10_000)?;
        integer("n_train", self.n_train, 2, 100_000_000)?;
        integer("n_val", self.n_val, 0, 100_000_000)?;
        integer("n_test", self.n_test, 1, 100_000_000)?;
        let sources = self.check_sources()?;
        for (i, source) in self.sources.iter().enumerate() {
            source.check().map_err(|e| e.within(&format!("sources[{i}]")))?;
            if self.rows().saturating_mul(source.dim) > MAX_VALUES {
                let rule = format!("rows times features must not exceed {MAX_VALUES}");
                return Err(ConfigError::new(format!("sources[{i}].dim"), source.dim, rule));
            }
            if source.missing > 0.0 && self.sources.len() == 1 {
                let rule = "the only modality cannot be missing";
                return Err(ConfigError::new(format!("sources[{i}].missing"), source.missing, rule));
            }
        }
        config::check_common(None, self.modalities.as_deref(), &self.split)?;
        for name in self.modalities.iter().flatten() {
            sources.require("modalities", name)?;
        }
        Ok(())
    }

    fn check_sources(&self) -> Result<Modalities, ConfigError> {
        Modalities::new(self.sources.iter().map(|s| s.name.clone()))
            .map_err(|e| ConfigError { field: "sources".to_owned(), ..e })
    }

    /// Rows of all parts together.
    pub fn rows(&self) -> usize {
        self.n_train.saturating_add(self.n_val).saturating_add(self.n_test)
    }

    pub(crate) fn peek(&self) -> Summary {
        let names = self.names();
        let dims = names
            .iter()
            .filter_map(|name| self.sources.iter().find(|s| s.name == *name))
            .map(|s| (s.name.clone(), RowShape::fixed([s.dim])));
        Summary { modalities: dims.collect(), classes: Some(self.classes), rows: Some(self.rows()) }
    }

    fn names(&self) -> Vec<String> {
        self.modalities.clone().unwrap_or_else(|| self.sources.iter().map(|s| s.name.clone()).collect())
    }

    pub(crate) fn read(&self) -> Result<Dataset, DataError> {
        let set = self.generate()?.dataset;
        if self.modalities.is_some() { set.select_modalities(&self.names()) } else { Ok(set) }
    }
}

impl SourceConfig {
    fn check(&self) -> Result<(), ConfigError> {
        integer("dim", self.dim, 1, 65_536)?;
        integer("latent", self.latent, 1, 1024)?;
        integer("depth", self.depth, 0, 8)?;
        integer("hidden", self.hidden, 1, 4096)?;
        integer("nuisance", self.nuisance, 0, 1024)?;
        for (field, value) in
            [("separation", self.separation), ("noise", self.noise), ("nuisance_scale", self.nuisance_scale)]
        {
            ConfigError::check_range(field, value, 0.0, 1e6)?;
        }
        for (field, value) in [
            ("absent", self.absent),
            ("conflict", self.conflict),
            ("weak", self.weak),
            ("weak_scale", self.weak_scale),
        ] {
            ConfigError::check_range(field, value, 0.0, 1.0)?;
        }
        if !(0.0..1.0).contains(&self.missing) {
            return Err(ConfigError::new("missing", self.missing, "must be a number in [0, 1)"));
        }
        ConfigError::check_range("hardness", self.hardness, 0.01, 100.0)?;
        let sum = self.absent + self.conflict + self.weak;
        if sum > 1.0 + 1e-9 {
            let rule = format!("absent, conflict and weak sum to {sum}, but they must not exceed 1");
            return Err(ConfigError::new("absent", self.absent, rule));
        }
        Ok(())
    }
}

fn integer(field: &str, value: usize, low: usize, high: usize) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(field, value, format!("must be an integer in [{low}, {high}]")))
}
