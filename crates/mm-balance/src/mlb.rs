//! MLB: unimodal losses plus one gradient coefficient per encoder that speeds up who lags and slows down who leads.
//!
//! ```text
//! L   = CE(z, y) + λ Σ_m CE(u^m, y)                      the Multi-Loss
//! s_m = mean_i softmax(u^m_i)[y_i]                       how well modality m does alone
//! r_m = mean_{j≠m} s_j / s_m                             above 1 where m lags behind
//! k_m = 1 + (β_m - 1) tanh(α (r_m - 1)),  β_m = β_max if r_m > 1, else 2
//! ```
//!
//! so k_m lies in (1 - tanh α, 1] for a leader and in [1, β_max) for a laggard. After the backward pass of the *whole*
//! loss, k_m multiplies the gradient of encoder m, of its head and of its block of a linear fusion
//! (late-linear, concat; under `sum` also its own bias); a shared bias
//! and any layer common to all modalities are left alone. Where a linear fusion keeps all blocks in one matrix, it is the
//! gradient of its columns that is scaled, whatever `apply` says.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `alpha` α | 0.8 | > 0 | steepness |
//! | `beta_max` β_max | 5 | >= 1 | ceiling of acceleration; ignored by `released` |
//! | `weight` λ | 1 | > 0 | weight of each unimodal loss |
//! | `variant` | `paper` | | `released`: β = 2 on both sides, the default of the released code |
//! | `apply` | `gradient` | | `learning-rate`: k_m multiplies the learning rate instead |
//! | `start_epoch`, `end_epoch` | 0, none | | when coefficients act; the losses always do |
//!
//! Under Adam a *constant* gradient factor cancels between the two moments and only its variations act;
//! `apply = "learning-rate"` is equation 2 of the paper under any optimiser. Under SGD they agree up to momentum and
//! weight decay.
//!
//! Differences. The paper's equation 4 sums s_m over the batch, the code takes the mean: same ratios. The released
//! default sets β = 2 on both sides; the paper's β_max needs two command-line flags there. The released classes exist
//! for M = 2 and 3; the formula is theirs for any M. At s_m = 0 the released code divides by zero; here r_m = ∞ gives
//! k_m = β_max and 0/0 gives 1. A modality missing in the whole batch keeps k_m = 1.
//!
//! Source: Kontras et al., "Improving Multimodal Learning with Multi-Loss Gradient Modulation", arXiv 2405.07930,
//! equations 2-7; released code kkontras/MLB @357b5ce.

use crate::multi_loss::heads_of;
use crate::unimodal::losses_and_scores;
use crate::{Balancer, Needs, StepCx, Windowed, score};
use candle_core::{Result, Tensor};
use mm_core::model::pooled;
use mm_core::{Checked, ConfigError, Forward, Gradients, Head, Modal, Modality, ParamId};
use serde::{Deserialize, Serialize};

/// Which β a laggard gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// β_max for r > 1, 2 otherwise.
    #[default]
    Paper,
    /// 2 on both sides.
    Released,
}

/// What a coefficient multiplies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Apply {
    /// The gradient, as in the released code.
    #[default]
    Gradient,
    /// The learning rate of this step.
    LearningRate,
}

/// Settings of [`Mlb`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlbConfig {
    /// α, steepness.
    pub alpha: f64,
    /// β_max, ceiling of acceleration.
    pub beta_max: f64,
    /// λ, weight of each unimodal loss.
    pub weight: f64,
    /// Paper or released default.
    pub variant: Variant,
    /// Gradient or learning rate.
    pub apply: Apply,
    /// First epoch with coefficients.
    pub start_epoch: usize,
    /// First epoch without coefficients again.
    pub end_epoch: Option<usize>,
}

impl Default for MlbConfig {
    fn default() -> Self {
        Self {
            alpha: 0.8,
            beta_max: 5.0,
            weight: 1.0,
            variant: Variant::Paper,
            apply: Apply::Gradient,
            start_epoch: 0,
            end_epoch: None,
        }
    }
}

impl MlbConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Windowed<Mlb>> {
        ConfigError::check_range("alpha", self.alpha, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("beta_max", self.beta_max, 1.0, f64::MAX)?;
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        let mlb = Mlb {
            config: self.clone(),
            parameters: Vec::new(),
            scores: Vec::new(),
            coefficients: Vec::new(),
        };
        Ok(Windowed::new(mlb, self.start_epoch, self.end_epoch))
    }

    fn ceiling(&self) -> f64 {
        match self.variant {
            Variant::Paper => self.beta_max,
            Variant::Released => 2.0,
        }
    }
}

/// k_m from a ratio r_m (equation 7).
pub fn coefficient(ratio: f64, alpha: f64, beta_max: f64) -> f64 {
    let beta = if ratio > 1.0 { beta_max } else { 2.0 };
    1.0 + (beta - 1.0) * (alpha * (ratio - 1.0)).tanh()
}

/// k_m of every modality from the scores s_m; NaN scores mean "no evidence" and give 1.
///
/// ```
/// let k = mm_balance::mlb::coefficients(&[0.8, 0.4], 0.8, 5.0);
/// assert!(k[0] < 1.0 && k[1] > 1.0);
/// ```
pub fn coefficients(scores: &[f64], alpha: f64, beta_max: f64) -> Vec<f64> {
    score::lag(scores).into_iter().map(|r| coefficient(r, alpha, beta_max)).collect()
}

/// k_m for regression, where a *large* mean squared error means lagging: `r_m = MSE_m / mean_{j≠m} MSE_j`.
pub fn regression_coefficients(errors: &[f64], alpha: f64, beta_max: f64) -> Vec<f64> {
    score::lead(errors).into_iter().map(|r| coefficient(r, alpha, beta_max)).collect()
}

/// See the [module](self). It belongs to one model, whose parameters it looks up in its first step.
#[derive(Debug)]
pub struct Mlb {
    config: MlbConfig,
    parameters: Vec<(ParamId, Modality)>,
    scores: Vec<f64>,
    coefficients: Vec<f64>,
}

impl Balancer for Mlb {
    fn needs(&self) -> Needs {
        Needs { heads: true, modalities: 2, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let (loss, scores) = losses_and_scores(heads_of(fwd)?, cx.batch)?;
        self.scores = scores.into_values();
        if self.config.weight == 1.0 { Ok(Some(loss)) } else { (loss * self.config.weight).map(Some) }
    }

    fn gradients(&mut self, cx: &StepCx<'_>, fwd: &Forward, g: &mut Gradients) -> Result<()> {
        self.coefficients = coefficients(&self.scores, self.config.alpha, self.config.ceiling());
        scale_branches(&mut self.parameters, cx, fwd, g, &self.coefficients, self.config.apply)
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, r) in score::lag(&self.scores).into_iter().enumerate() {
            sink("ratio", Some(m), r);
        }
        for (m, k) in self.coefficients.iter().enumerate() {
            sink("coefficient", Some(m), *k);
        }
    }
}

/// Multiplies by `k[m]` what belongs to modality m: encoder, head and block of a linear fusion. `parameters` keeps what
/// was looked up.
pub(crate) fn scale_branches(
    parameters: &mut Vec<(ParamId, Modality)>,
    cx: &StepCx<'_>,
    fwd: &Forward,
    g: &mut Gradients,
    k: &[f64],
    apply: Apply,
) -> Result<()> {
    if parameters.is_empty() {
        *parameters = owned(cx, fwd.split.is_some());
    }
    for &(id, m) in parameters.iter() {
        match apply {
            Apply::Gradient => g.scale_one(id, k[m.index()]),
            Apply::LearningRate => g.scale_lr(cx.params, cx.params.get(id).name(), k[m.index()]),
        }
    }
    // A concatenating head keeps all blocks in one matrix: scale its columns.
    if matches!(cx.model.head(), Head::Split { .. })
        && let Some(id) = cx.params.ids().find(|&id| cx.params.get(id).name() == "fusion.weight")
    {
        scale_columns(g, id, &fwd.features, k)?;
    }
    Ok(())
}

/// The parameters of encoder m, its head and its block of a linear fusion, with m.
fn owned(cx: &StepCx<'_>, linear: bool) -> Vec<(ParamId, Modality)> {
    let owner = |id: ParamId| {
        let mut segments = cx.params.get(id).name().split('.');
        match segments.next() {
            Some("encoder" | "head") => {}
            Some("fusion") if linear => {}
            _ => return None,
        }
        let m = cx.model.modalities().find(segments.next()?)?;
        // `fusion.bias` is nobody's, even where a modality is called `bias`.
        segments.next().map(|_| (id, m))
    };
    cx.params.ids().filter_map(owner).collect()
}

fn scale_columns(g: &mut Gradients, id: ParamId, features: &Modal<Tensor>, k: &[f64]) -> Result<()> {
    let Some(grad) = g.get(id)? else { return Ok(()) };
    let mut columns = Vec::new();
    for (m, h) in features.iter() {
        columns.extend(std::iter::repeat_n(k[m.index()], pooled(h)?.dim(1)?));
    }
    let columns = Tensor::from_vec(columns, (1, grad.dim(1)?), grad.device())?.to_dtype(grad.dtype())?;
    g.set(id, Some(grad.broadcast_mul(&columns)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficient_stays_in_its_range() {
        let (alpha, beta) = (0.8, 5.0);
        assert_eq!(coefficient(1.0, alpha, beta), 1.0);
        assert_eq!(coefficient(f64::INFINITY, alpha, beta), beta);
        assert!((coefficient(0.0, alpha, beta) - (1.0 - 0.8f64.tanh())).abs() < 1e-15);
        assert_eq!(coefficients(&[f64::NAN, 0.5], alpha, beta), [1.0, 1.0]);
        assert_eq!(coefficients(&[0.0, 0.0], alpha, beta), [1.0, 1.0]);
    }

    #[test]
    fn settings_are_checked() {
        let bad = MlbConfig { alpha: 0.0, ..MlbConfig::default() };
        assert!(bad.build().unwrap_err().to_string().starts_with("alpha = 0"));
        let bad = MlbConfig { beta_max: 0.5, ..MlbConfig::default() };
        assert!(bad.build().unwrap_err().to_string().contains("at least 1"));
    }
}
