//! A pack as a configuration names it.

use super::read::Pack;
use crate::config::{self, Summary};
use crate::image::FrameTransform;
use crate::{DataError, Dataset, SplitConfig};
use mm_core::ConfigError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A pack of prepared rows, `kind = "packed"`; see [the module](super) for its files.
///
/// ```toml
/// [data]
/// kind = "packed"
/// path = "packs/ravdess-log-mel"
/// [data.inputs.audio]
/// normalize = "feature"     # default; "all", "row", "none"
/// length = 128              # rows of one length: longer ones are cut, shorter ones filled
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackedConfig {
    /// The folder.
    pub path: PathBuf,
    /// Which modalities, in which order. Default: all, in the pack's order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modalities: Option<Vec<String>>,
    /// Whether inputs are normalised, each as its `normalize` says. Default: yes.
    #[serde(default = "config::yes")]
    pub standardize: bool,
    /// Which rows train, validate and test.
    #[serde(default)]
    pub split: SplitConfig,
    /// How the rows of single modalities are handed on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, PackedInputConfig>,
}

/// Over what a mean and a spread are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Normalize {
    /// Over training rows and all axes but the last: a mean for each bin of a spectrogram, for each feature.
    #[default]
    Feature,
    /// Over training rows and all axes: one mean.
    All,
    /// Over each row by itself.
    Row,
    /// Nothing is normalised.
    None,
}

/// What fills rows that are shorter than `length`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Pad {
    /// Zeros behind the row, after normalisation: the mean.
    #[default]
    Zeros,
    /// The row, over and over again.
    Tile,
}

/// How the rows of a modality are handed on.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PackedInputConfig {
    /// Over what a mean and a spread are taken.
    pub normalize: Normalize,
    /// One length for all rows, in places of their first axis. Longer rows are cut: in training at a random place, else
    /// in the middle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<usize>,
    /// What fills shorter rows.
    pub pad: Pad,
    /// What becomes of frames. Default: they stay as they are, and are normalised as above.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frames: Option<FrameTransform>,
    /// Widest span of places (time) that training hides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_mask: Option<usize>,
    /// Widest span of the last axis (frequency) that training hides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_mask: Option<usize>,
}

impl PackedInputConfig {
    fn check(&self) -> Result<(), ConfigError> {
        for (field, value) in
            [("length", self.length), ("time_mask", self.time_mask), ("feature_mask", self.feature_mask)]
        {
            if value == Some(0) {
                return Err(ConfigError::new(field, 0, "must be at least 1; leave it out for none"));
            }
        }
        if let Some(frames) = &self.frames {
            frames.check().map_err(|e| e.within("frames"))?;
        }
        if self.length.is_none() && self.pad != Pad::Zeros {
            let rule =
                "goes with `length`; without one, a batch is filled with zeros and its lengths are known";
            return Err(ConfigError::new("pad", "\"tile\"", rule));
        }
        Ok(())
    }
}

impl PackedConfig {
    /// The defaults for a folder.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            modalities: None,
            standardize: true,
            split: SplitConfig::default(),
            inputs: BTreeMap::new(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        config::check_path(&self.path)?;
        config::check_common(None, self.modalities.as_deref(), &self.split)?;
        for (name, input) in &self.inputs {
            input.check().map_err(|e| e.within(&format!("inputs.{name}")))?;
        }
        Ok(())
    }

    pub(crate) fn peek(&self) -> Result<Summary, DataError> {
        let pack = Pack::open(&self.path)?;
        let data = pack.dataset(self)?;
        let shapes = data.shapes();
        Ok(Summary { modalities: shapes, classes: Some(data.classes), rows: Some(data.rows()) })
    }

    pub(crate) fn read(&self) -> Result<Dataset, DataError> {
        Pack::open(&self.path)?.dataset(self)
    }
}
