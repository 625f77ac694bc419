//! What several fusions are made of.

use candle_core::{Result, Tensor};
use mm_core::{ConfigError, Init, Modalities, Modality, Mode, Presence, Scope};

/// `x Wᵀ + b` with PyTorch's default initialisation.
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(mut scope: Scope<'_>, input: usize, output: usize) -> Result<Self> {
        let weight = scope.param("weight", (output, input), Init::linear(input))?;
        let bias = scope.param("bias", output, Init::linear(input))?;
        Ok(Self { weight, bias: Some(bias) })
    }

    pub(crate) fn without_bias(mut scope: Scope<'_>, input: usize, output: usize) -> Result<Self> {
        let weight = scope.param("weight", (output, input), Init::linear(input))?;
        Ok(Self { weight, bias: None })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        mm_kernels::linear::linear(x, &self.weight, self.bias.as_ref())
    }
}

/// Dropout in training, nothing in evaluation.
pub(crate) fn dropout(x: &Tensor, p: f64, mode: Mode) -> Result<Tensor> {
    match mode {
        Mode::Train(rng) => mm_kernels::dropout::dropout(x, p, rng),
        Mode::Eval => Ok(x.clone()),
    }
}

/// `x` (B, D) with `value` in every row that lacks the modality.
pub(crate) fn neutral(x: &Tensor, present: Option<&Presence>, value: f64) -> Result<Tensor> {
    let Some(present) = present else {
        return Ok(x.clone());
    };
    let missing = present.mask().to_dtype(x.dtype())?.affine(-value, value)?;
    present.apply(x)?.broadcast_add(&missing)
}

/// The modality that the setting `field` names, or the first.
pub(crate) fn chosen(
    field: &str,
    name: Option<&str>,
    modalities: &Modalities,
) -> std::result::Result<Modality, ConfigError> {
    name.map_or(Ok(Modality::new(0)), |name| modalities.require(field, name))
}

/// Fails where there are fewer than two modalities.
pub(crate) fn at_least_two(kind: &str, modalities: &Modalities) -> std::result::Result<(), ConfigError> {
    if modalities.len() >= 2 {
        return Ok(());
    }
    Err(ConfigError::new("kind", format!("\"{kind}\""), "needs at least two modalities, there is one"))
}

pub(crate) fn check_dropout(value: f64) -> std::result::Result<(), ConfigError> {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new("dropout", value, "must be a number in [0, 1)"))
}

pub(crate) fn check_positive(field: &str, value: usize) -> std::result::Result<(), ConfigError> {
    if value > 0 {
        return Ok(());
    }
    Err(ConfigError::new(field, value, "must be at least 1"))
}
