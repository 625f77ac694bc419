//! Where data comes from, as a table of settings.

use crate::{
    CsvConfig, DataError, Dataset, FeaturesConfig, PackedConfig, SplitConfig, Splits, Standardizer,
    SyntheticConfig,
};
use mm_core::{ConfigError, Modalities, RowShape};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// A data set, told apart by `kind`: `synthetic`, `features`, `csv` or `packed`.
///
/// All kinds share `modalities` (which ones, in which order; default all), `standardize` (default true) and `split`
/// ([`SplitConfig`]; default the set's own parts).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum DataConfig {
    /// Generated data with controlled noise.
    Synthetic(SyntheticConfig),
    /// Precomputed features in a safetensors file.
    Features(FeaturesConfig),
    /// A CSV manifest.
    Csv(CsvConfig),
    /// A pack of prepared rows of any shape.
    Packed(PackedConfig),
}

impl Default for DataConfig {
    fn default() -> Self {
        Self::Synthetic(SyntheticConfig::default())
    }
}

/// What the head of a data set says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Name of each modality and what its rows look like, in order.
    pub modalities: Vec<(String, RowShape)>,
    /// Number of classes, where the head or the configuration tells.
    pub classes: Option<usize>,
    /// Number of rows, where the head tells; a CSV file does not.
    pub rows: Option<usize>,
}

/// Data that is ready to train on.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The rows, standardised where the configuration says so.
    pub dataset: Dataset,
    /// The checked parts.
    pub splits: Splits,
    /// The statistics of the training rows, to save beside the model; `None` without standardisation.
    pub standardizer: Option<Standardizer>,
}

impl DataConfig {
    /// Checks everything that can be checked without touching a file. Fields are named `data.…`.
    pub fn check(&self) -> Result<(), ConfigError> {
        let checked = match self {
            Self::Synthetic(c) => c.check(),
            Self::Features(c) => c.check(),
            Self::Csv(c) => c.check(),
            Self::Packed(c) => c.check(),
        };
        checked.map_err(|e| e.within("data"))
    }

    /// Reads the head of the file only: enough to build a model.
    pub fn peek(&self) -> Result<Summary, DataError> {
        self.check()?;
        match self {
            Self::Synthetic(c) => Ok(c.peek()),
            Self::Features(c) => c.peek(),
            Self::Csv(c) => c.peek(),
            Self::Packed(c) => c.peek(),
        }
    }

    /// Reads or generates the data and splits it. Nothing is standardised yet: see [`DataConfig::prepare`].
    ///
    /// `seed` is the run's; it draws the fractions of a split that has no `seed` of its own, and nothing else. What a
    /// synthetic set looks like depends on its own seed (`data.seed`).
    pub fn load(&self, seed: u64) -> Result<(Dataset, Splits), DataError> {
        self.check()?;
        let data = match self {
            Self::Synthetic(c) => c.read()?,
            Self::Features(c) => c.read()?,
            Self::Csv(c) => c.read()?,
            Self::Packed(c) => c.read()?,
        };
        let splits = data.split_seeded(self.split(), seed)?;
        Ok((data, splits))
    }

    /// [`DataConfig::load`], then standardises by the training rows where `standardize` is set.
    pub fn prepare(&self, seed: u64) -> Result<Prepared, DataError> {
        let (mut dataset, splits) = self.load(seed)?;
        let standardizer = if self.standardize() {
            let standardizer = Standardizer::fit(&dataset, &splits.train)?;
            standardizer.apply(&mut dataset)?;
            Some(standardizer)
        } else {
            None
        };
        Ok(Prepared { dataset, splits, standardizer })
    }

    /// Whether features are standardised.
    pub fn standardize(&self) -> bool {
        match self {
            Self::Synthetic(c) => c.standardize,
            Self::Features(c) => c.standardize,
            Self::Csv(c) => c.standardize,
            Self::Packed(c) => c.standardize,
        }
    }

    /// How the rows are split.
    pub fn split(&self) -> &SplitConfig {
        match self {
            Self::Synthetic(c) => &c.split,
            Self::Features(c) => &c.split,
            Self::Csv(c) => &c.split,
            Self::Packed(c) => &c.split,
        }
    }

    /// The modalities asked for, or `None` for all.
    pub fn modalities(&self) -> Option<&[String]> {
        match self {
            Self::Synthetic(c) => c.modalities.as_deref(),
            Self::Features(c) => c.modalities.as_deref(),
            Self::Csv(c) => c.modalities.as_deref(),
            Self::Packed(c) => c.modalities.as_deref(),
        }
    }

    /// Asks for these modalities, or for all with `None`.
    pub fn set_modalities(&mut self, names: Option<Vec<String>>) {
        match self {
            Self::Synthetic(c) => c.modalities = names,
            Self::Features(c) => c.modalities = names,
            Self::Csv(c) => c.modalities = names,
            Self::Packed(c) => c.modalities = names,
        }
    }

    /// The file, for kinds that have one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Synthetic(_) => None,
            Self::Features(c) => Some(&c.path),
            Self::Csv(c) => Some(&c.path),
            Self::Packed(c) => Some(&c.path),
        }
    }

    /// The same data with a relative path taken from `base`, such as the folder of the configuration file.
    #[must_use]
    pub fn relative_to(mut self, base: &Path) -> Self {
        let path: Option<&mut PathBuf> = match &mut self {
            Self::Synthetic(_) => None,
            Self::Features(c) => Some(&mut c.path),
            Self::Csv(c) => Some(&mut c.path),
            Self::Packed(c) => Some(&mut c.path),
        };
        if let Some(path) = path {
            *path = base.join(&*path);
        }
        self
    }
}

pub(crate) fn yes() -> bool {
    true
}

pub(crate) fn check_path(path: &Path) -> Result<(), ConfigError> {
    if path.as_os_str().is_empty() {
        return Err(ConfigError::new("path", "\"\"", "name the file"));
    }
    Ok(())
}

pub(crate) fn check_common(
    classes: Option<usize>,
    modalities: Option<&[String]>,
    split: &SplitConfig,
) -> Result<(), ConfigError> {
    if let Some(classes) = classes
        && !(2..=1_000_000).contains(&classes)
    {
        return Err(ConfigError::new("classes", classes, "must be an integer in [2, 1000000]"));
    }
    if let Some(names) = modalities {
        Modalities::new(names.iter().cloned())?;
    }
    split.check()
}
