//! ARL: asymmetric representation learning lets the modality lead that is certain, and not equalises.
//!
//! ```text
//! z^m  = fused logits with every other modality masked
//! L    = CE(z, y) + γ Σ_m CE(z^m, y)
//! d_m  = share of m in Σ_j mean_i Σ_c |z^j_{i,c}|                    how much the decision leans on m
//! H_m  = share of m in Σ_j mean entropy of softmax(z^j), at least 0.6/M
//! a_m  = (1/H_m) / Σ_j (1/H_j)                                         how certain m is
//! w_m  = softmax_m(T a_m mean_{j≠m} d_j)
//! g_m  ← (1 + w_m) g_m
//! ```
//!
//! for the gradients g_m of the encoder of m. A certain modality on which the decision leans little is sped up most,
//! until the dependence is as the inverse of the uncertainty. Shapes: z^m (B, C); rows that lack m take no part in
//! its loss and its numbers. A modality that the whole batch lacks has factor 1.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `temperature` T | 8 | > 0 | sharpness of the weights |
//! | `weight` γ | 1 | > 0 | weight of the unimodal losses |
//! | `start_epoch`, `end_epoch` | 6, none | | when gradients are changed; the losses always act |
//!
//! Differences. The paper argues with variances; the released code takes entropies in their place, and this follows
//! the code: the paper's equations could not be read. The released floor of 0.3 is for M = 2, as all of it; floor and
//! mean over the others are our extension. The released factors are those of the step before. Under Adam a constant
//! factor cancels between the moments; only variations act.
//!
//! Source: Wei, Luo and Luo, "Improving Multimodal Learning via Imbalanced Learning", ICCV 2025, arXiv 2507.10203;
//! released code shicaiwei123/ICCV2025-ARL @51a9de3.

use crate::mla::entropies;
use crate::unimodal::losses_and_scores;
use crate::{Balancer, Needs, StepCx, Windowed};
use candle_core::{Result, Tensor};
use mm_core::model::to_host;
use mm_core::{Batch, Checked, ConfigError, Forward, Gradients, Modal};
use serde::{Deserialize, Serialize};

/// Settings of [`Arl`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ArlConfig {
    /// T, sharpness of the weights.
    pub temperature: f64,
    /// γ, weight of the unimodal losses.
    pub weight: f64,
    /// First epoch in which gradients are changed.
    pub start_epoch: usize,
    /// First epoch in which they are not again.
    pub end_epoch: Option<usize>,
}

impl Default for ArlConfig {
    fn default() -> Self {
        Self { temperature: 8.0, weight: 1.0, start_epoch: 6, end_epoch: None }
    }
}

impl ArlConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Windowed<Arl>> {
        ConfigError::check_range("temperature", self.temperature, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        let arl = Arl { config: self.clone(), scores: Vec::new(), coefficients: Vec::new() };
        Ok(Windowed::new(arl, self.start_epoch, self.end_epoch))
    }
}

/// Mean over rows of Σ_c |z_c|, and of the entropy, for logits (B, C) per modality; NaN where no row has the modality.
pub fn statistics(logits: &Modal<Tensor>, batch: &Batch) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut magnitudes, mut uncertainties) = (Vec::new(), Vec::new());
    for (m, z) in logits.iter() {
        let here = |row: usize| batch.present[m].as_ref().is_none_or(|p| p.rows()[row]);
        let mean = |values: Vec<f64>| {
            let kept: Vec<f64> =
                values.into_iter().enumerate().filter(|(row, _)| here(*row)).map(|(_, x)| x).collect();
            kept.iter().sum::<f64>() / kept.len() as f64
        };
        magnitudes.push(mean(to_host(&z.detach().abs()?.sum(1)?)?));
        uncertainties.push(mean(entropies(z)?));
    }
    Ok((magnitudes, uncertainties))
}

/// w_m from magnitudes and entropies; 0 where there is no evidence (NaN).
///
/// ```
/// let w = mm_balance::arl::weights(&[3.0, 1.0], &[0.5, 0.5], 8.0);
/// assert!(w[0] < w[1] && (w[0] + w[1] - 1.0).abs() < 1e-12);
/// ```
pub fn weights(magnitudes: &[f64], entropies: &[f64], temperature: f64) -> Vec<f64> {
    let there: Vec<usize> =
        (0..magnitudes.len()).filter(|&m| !magnitudes[m].is_nan() && !entropies[m].is_nan()).collect();
    let count = there.len() as f64;
    // Nothing at all is as good as equal shares.
    let share = |values: &[f64], m: usize| {
        let total: f64 = there.iter().map(|&j| values[j]).sum();
        if total > 0.0 { values[m] / total } else { 1.0 / count }
    };
    let certainty = |m: usize| 1.0 / share(entropies, m).max(0.6 / count);
    let total: f64 = there.iter().map(|&m| certainty(m)).sum();
    let exponent = |m: usize| {
        let others = (1.0 - share(magnitudes, m)) / (count - 1.0).max(1.0);
        temperature * others * certainty(m) / total
    };
    let largest = there.iter().map(|&m| exponent(m)).fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = there.iter().map(|&m| (exponent(m) - largest).exp()).sum();
    (0..magnitudes.len())
        .map(|m| if there.contains(&m) { (exponent(m) - largest).exp() / sum } else { 0.0 })
        .collect()
}

/// See the [module](self).
#[derive(Debug)]
pub struct Arl {
    config: ArlConfig,
    scores: Vec<f64>,
    coefficients: Vec<f64>,
}

impl Balancer for Arl {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let alone = fwd
            .features
            .try_map(|m, _| cx.model.masked_logits(m, &fwd.features, &cx.batch.present, cx.mode))?;
        let (loss, scores) = losses_and_scores(&alone, cx.batch)?;
        self.scores = scores.into_values();
        let (magnitudes, entropies) = statistics(&alone, cx.batch)?;
        let weights = weights(&magnitudes, &entropies, self.config.temperature);
        self.coefficients = weights.into_iter().map(|w| 1.0 + w).collect();
        (loss * self.config.weight).map(Some)
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        for (m, k) in cx.model.modalities().iter().zip(&self.coefficients) {
            g.scale(cx.params, &format!("encoder.{}", cx.model.modalities().name(m)), *k);
        }
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, k) in self.coefficients.iter().enumerate() {
            sink("coefficient", Some(m), *k);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_at_the_edges() {
        let even = weights(&[1.0, 1.0], &[0.3, 0.3], 8.0);
        assert_eq!(even, [0.5, 0.5]);
        assert_eq!(weights(&[0.0, 0.0], &[0.0, 0.0], 8.0), [0.5, 0.5]);
        assert_eq!(weights(&[1.0, f64::NAN], &[0.3, f64::NAN], 8.0), [1.0, 0.0]);
        // The more certain of two on which the decision leans alike is sped up.
        let w = weights(&[1.0, 1.0, 1.0], &[0.1, 0.3, 0.3], 8.0);
        assert!(w[0] > w[1] && w[1] == w[2], "{w:?}");
    }
}
