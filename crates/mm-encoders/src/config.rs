//! The encoder of a modality as a configuration file names it.

use crate::MlpConfig;
use candle_core::Result;
use mm_core::{ConfigError, Encoder, Scope};
use serde::{Deserialize, Serialize};

/// An encoder and its settings; `kind` says which.
///
/// ```
/// use mm_encoders::EncoderConfig;
/// let config: EncoderConfig = toml::from_str("kind = \"mlp\"\nhidden = [32]\ndim = 16")?;
/// assert_eq!((config.name(), config.dim()), ("mlp", 16));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum EncoderConfig {
    /// [`crate::mlp`]
    Mlp(MlpConfig),
}

impl Default for EncoderConfig {
    fn default() -> Self {
        Self::Mlp(MlpConfig::default())
    }
}

impl EncoderConfig {
    /// The encoder called `name` with its default settings; an unknown name is an error that lists the known ones.
    pub fn named(name: &str) -> std::result::Result<Self, ConfigError> {
        match name {
            "mlp" => Ok(Self::default()),
            _ => Err(ConfigError::unknown("kind", name, &["mlp"])),
        }
    }

    /// Its name, as `kind` has it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mlp(_) => "mlp",
        }
    }

    /// The width of the features it makes.
    pub fn dim(&self) -> usize {
        match self {
            Self::Mlp(config) => config.dim,
        }
    }

    /// Checks every setting. Errors name the field alone, such as `dropout`: the caller knows which modality it is and
    /// puts the path before it with [`ConfigError::within`].
    pub fn check(&self) -> std::result::Result<(), ConfigError> {
        match self {
            Self::Mlp(config) => config.check(),
        }
    }

    /// Makes the encoder of inputs of `input_dim` numbers per row, with its parameters in `scope` (which is already at
    /// `encoder.<modality>`). Settings that [`EncoderConfig::check`] refuses are an error.
    pub fn build(&self, scope: Scope<'_>, input_dim: usize) -> Result<Box<dyn Encoder>> {
        match self {
            Self::Mlp(config) => Ok(Box::new(config.build(scope, input_dim)?)),
        }
    }
}
