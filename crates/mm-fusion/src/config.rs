//! The fusion of a model as a configuration file names it.

use crate::{
    ConcatConfig, FilmConfig, GatedConfig, LateLinearConfig, MidMlpConfig, MmtmConfig, SumConfig,
    TransformerConfig, concat, film, gated, late_linear, mid_mlp, mmtm, sum, transformer,
};
use candle_core::{Result, bail};
use mm_core::{ConfigError, Fusion, Modal, Modalities, Scope};
use serde::{Deserialize, Serialize};

/// Where the settings of a fusion stand in a configuration.
const FIELD: &str = "model.fusion";

/// A fusion and its settings; `kind` says which.
///
/// ```
/// use mm_fusion::FusionConfig;
/// let config: FusionConfig = toml::from_str("kind = \"film\"\nconditioner = \"audio\"")?;
/// assert_eq!(config.name(), "film");
/// let error = toml::from_str::<FusionConfig>("kind = \"film\"\ngate = \"audio\"").unwrap_err();
/// assert!(error.to_string().contains("unknown field `gate`"));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum FusionConfig {
    /// See [`mod@late_linear`].
    LateLinear(LateLinearConfig),
    /// See [`mod@concat`].
    Concat(ConcatConfig),
    /// See [`mod@sum`].
    Sum(SumConfig),
    /// See [`mod@mid_mlp`].
    MidMlp(MidMlpConfig),
    /// See [`mod@film`].
    Film(FilmConfig),
    /// See [`mod@gated`].
    Gated(GatedConfig),
    /// See [`mod@mmtm`].
    Mmtm(MmtmConfig),
    /// See [`mod@transformer`].
    Transformer(TransformerConfig),
}

impl Default for FusionConfig {
    fn default() -> Self {
        Self::LateLinear(LateLinearConfig::default())
    }
}

impl FusionConfig {
    /// The fusion called `name` with its default settings; an unknown name is an error that lists the known ones.
    pub fn named(name: &str) -> std::result::Result<Self, ConfigError> {
        all().into_iter().find(|config| config.name() == name).ok_or_else(|| {
            ConfigError::unknown(format!("{FIELD}.kind"), name, &catalogue().map(|info| info.name))
        })
    }

    /// Its name, as `kind` has it.
    pub fn name(&self) -> &'static str {
        self.info().name
    }

    /// What there is to know about it.
    pub fn info(&self) -> &'static FusionInfo {
        match self {
            Self::LateLinear(_) => &late_linear::INFO,
            Self::Concat(_) => &concat::INFO,
            Self::Sum(_) => &sum::INFO,
            Self::MidMlp(_) => &mid_mlp::INFO,
            Self::Film(_) => &film::INFO,
            Self::Gated(_) => &gated::INFO,
            Self::Mmtm(_) => &mmtm::INFO,
            Self::Transformer(_) => &transformer::INFO,
        }
    }

    /// Checks every setting for a model with these modalities. Errors name the field as `model.fusion.<setting>`.
    pub fn check(&self, modalities: &Modalities) -> std::result::Result<(), ConfigError> {
        match self {
            Self::LateLinear(_) | Self::Concat(_) | Self::Sum(_) => Ok(()),
            Self::MidMlp(config) => config.check(),
            Self::Film(config) => config.check(modalities),
            Self::Gated(config) => config.check(modalities),
            Self::Mmtm(config) => config.check(modalities),
            Self::Transformer(config) => config.check(),
        }
        .map_err(|error| error.within(FIELD))
    }

    /// Makes the fusion of features of widths `dims` into logits of `classes` classes, with its parameters in `scope`
    /// (which is already at `fusion`). Settings that [`FusionConfig::check`] refuses are an error.
    pub fn build(
        &self,
        scope: Scope<'_>,
        modalities: &Modalities,
        dims: &Modal<usize>,
        classes: usize,
    ) -> Result<Box<dyn Fusion>> {
        self.check(modalities).map_err(candle_core::Error::wrap)?;
        if dims.len() != modalities.len() {
            bail!("{} feature widths for {} modalities", dims.len(), modalities.len());
        }
        if classes == 0 || dims.values().contains(&0) {
            bail!("a fusion needs at least one class and one feature, got {classes} and {:?}", dims.values());
        }
        Ok(match self {
            Self::LateLinear(c) => Box::new(c.build(scope, modalities, dims, classes)?),
            Self::Concat(c) => Box::new(c.build(scope, modalities, dims, classes)?),
            Self::Sum(c) => Box::new(c.build(scope, modalities, dims, classes)?),
            Self::MidMlp(c) => Box::new(c.build(scope, modalities, dims, classes)?),
            Self::Film(c) => Box::new(c.build(scope, modalities, dims, classes)?),
            Self::Gated(c) => Box::new(c.build(scope, modalities, dims, classes)?),
            Self::Mmtm(c) => Box::new(c.build(scope, modalities, dims, classes)?),
            Self::Transformer(c) => Box::new(c.build(scope, modalities, dims, classes)?),
        })
    }
}

/// Every fusion with its default settings.
fn all() -> [FusionConfig; 8] {
    [
        FusionConfig::LateLinear(LateLinearConfig::default()),
        FusionConfig::Concat(ConcatConfig::default()),
        FusionConfig::Sum(SumConfig::default()),
        FusionConfig::MidMlp(MidMlpConfig::default()),
        FusionConfig::Film(FilmConfig::default()),
        FusionConfig::Gated(GatedConfig::default()),
        FusionConfig::Mmtm(MmtmConfig::default()),
        FusionConfig::Transformer(TransformerConfig::default()),
    ]
}

/// What there is to know about one fusion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FusionInfo {
    /// Its name, as `kind` has it.
    pub name: &'static str,
    /// One line about what it does.
    pub summary: &'static str,
    /// How unimodal predictions arise.
    pub unimodal: &'static str,
    /// The names of its parameters.
    pub parameters: &'static [&'static str],
}

/// All fusions, in the order in which one would try them.
pub fn catalogue() -> [&'static FusionInfo; 8] {
    all().map(|config| config.info())
}
