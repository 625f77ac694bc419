//! MBSD: self-distillation from the modality that knows a row best to those that know it less.
//!
//! ```text
//! p^m_i   = softmax(u^m_i)                                    u^m: logits of the modality's own head
//! s(i)    = argmax_m p^m_i[y_i]
//! w_{i,m} = p^s_i[y_i] - p^m_i[y_i]  if s decides row i rightly,  else 0
//! K       = 1/B Σ_i 1/(M-1) Σ_{m≠s(i)} w_{i,m} KL(p^s_i ‖ p^m_i)
//! L       = CE(z, y) + γ Σ_m CE(u^m, y) + λ K
//! ```
//!
//! The leader's distribution and the weights are constants: knowledge goes one way. Shapes: u^m (B, C). A modality that
//! a row lacks neither leads nor learns in it.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `weight` λ | 1 | > 0 | weight of the self-distillation |
//! | `unimodal` γ | 1 | > 0 | weight of the unimodal losses |
//!
//! Differences. The paper pre-trains one model of images and text; its equations could not be read, and no code of its
//! authors was found. This is a reading of its sentence that knowledge goes from the dominant modality to the weaker
//! one, with the weights of BalanceBenchmark's port, and no reproduction. That port differentiates the weights,
//! compares single probabilities instead of distributions in a KL divergence that takes them for logarithms, and adds a
//! squared difference between the modalities' logits.
//!
//! Source: Liu et al., "Multimodal Pre-Training with Self-Distillation for Product Understanding in E-Commerce", WSDM
//! 2023; weights by GeWu-Lab/BalanceBenchmark @4c1482f.

use crate::multi_loss::heads_of;
use crate::unimodal::losses_and_scores;
use crate::{Balancer, Needs, StepCx, score};
use candle_core::{Result, Tensor, bail};
use mm_core::model::{sum, to_host};
use mm_core::{Batch, Checked, ConfigError, Forward, Modal};
use mm_kernels::softmax::{log_softmax_last, softmax_last};
use serde::{Deserialize, Serialize};

/// Settings of [`Mbsd`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MbsdConfig {
    /// λ, weight of the self-distillation.
    pub weight: f64,
    /// γ, weight of the unimodal losses.
    pub unimodal: f64,
}

impl Default for MbsdConfig {
    fn default() -> Self {
        Self { weight: 1.0, unimodal: 1.0 }
    }
}

impl MbsdConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Mbsd> {
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("unimodal", self.unimodal, f64::MIN_POSITIVE, f64::MAX)?;
        Ok(Mbsd { config: self.clone(), scores: Vec::new(), led: Vec::new(), value: None })
    }
}

/// s(i): the modality with the most probability for the right class; NaN means that the row lacks it. The first of
/// equals.
pub fn leader(right: &[f64]) -> Option<usize> {
    let better = |best: Option<usize>, m: usize| match best {
        _ if right[m].is_nan() => best,
        Some(b) if right[b] >= right[m] => Some(b),
        _ => Some(m),
    };
    (0..right.len()).fold(None, better)
}

/// `Σ_i w_i KL(softmax(leader_i) ‖ softmax(learner_i))` for logits (B, C); leader and weights are constants.
pub fn transfer(learner: &Tensor, leader: &Tensor, weights: &[f64]) -> Result<Tensor> {
    if learner.dims() != leader.dims() || learner.dim(0)? != weights.len() {
        bail!("MBSD: logits {:?} and {:?}, {} weights", learner.shape(), leader.shape(), weights.len());
    }
    let leader = leader.detach();
    let difference = (log_softmax_last(&leader)? - log_softmax_last(learner)?)?;
    let each = (softmax_last(&leader)? * difference)?.sum(1)?;
    let weights = Tensor::from_slice(weights, weights.len(), learner.device())?.to_dtype(learner.dtype())?;
    (each * weights)?.sum_all()
}

/// K, and for each row the modality that leads (`None` where no modality of it decides rightly).
pub fn self_distillation(logits: &Modal<Tensor>, batch: &Batch) -> Result<(Tensor, Vec<Option<usize>>)> {
    let (rows, count) = (batch.rows(), logits.len());
    let Some((_, first)) = logits.iter().next() else { bail!("MBSD: no modality") };
    let mut right = score::probabilities(logits.values(), &batch.labels)?;
    for ((m, _), right) in logits.iter().zip(&mut right) {
        if let Some(present) = &batch.present[m] {
            for (p, _) in right.iter_mut().zip(present.rows()).filter(|(_, here)| !**here) {
                *p = f64::NAN;
            }
        }
    }
    let decided: Vec<Vec<u32>> =
        logits.values().iter().map(|u| u.argmax(1)?.to_vec1::<u32>()).collect::<Result<_>>()?;
    let leaders: Vec<Option<usize>> = (0..rows)
        .map(|row| {
            let s = leader(&right.iter().map(|p| p[row]).collect::<Vec<f64>>());
            s.filter(|&s| decided[s][row] == batch.labels[row])
        })
        .collect();
    // Row i of the leaders' logits is row s(i) B + i of all logits one below the other.
    let index: Vec<u32> =
        leaders.iter().enumerate().map(|(row, s)| (s.unwrap_or(0) * rows + row) as u32).collect();
    let all: Vec<Tensor> = logits.values().iter().map(Tensor::detach).collect();
    let best = Tensor::cat(&all, 0)?.index_select(&Tensor::from_vec(index, rows, first.device())?, 0)?;
    let scale = 1.0 / (rows.max(1) * (count - 1).max(1)) as f64;
    let mut terms = Vec::with_capacity(count);
    for ((_, u), own) in logits.iter().zip(&right) {
        let weight = |row: usize| match leaders[row] {
            Some(s) if !own[row].is_nan() => scale * (right[s][row] - own[row]),
            _ => 0.0,
        };
        terms.push(transfer(u, &best, &(0..rows).map(weight).collect::<Vec<f64>>())?);
    }
    Ok((sum(&terms)?, leaders))
}

/// See the [module](self).
#[derive(Debug)]
pub struct Mbsd {
    config: MbsdConfig,
    scores: Vec<f64>,
    led: Vec<f64>,
    value: Option<f64>,
}

impl Balancer for Mbsd {
    fn needs(&self) -> Needs {
        Needs { heads: true, modalities: 2, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let heads = heads_of(fwd)?;
        let (losses, scores) = losses_and_scores(heads, cx.batch)?;
        self.scores = scores.into_values();
        let (transferred, leaders) = self_distillation(heads, cx.batch)?;
        let rows = cx.batch.rows().max(1) as f64;
        let led = |m: usize| leaders.iter().filter(|s| **s == Some(m)).count() as f64 / rows;
        self.led = (0..heads.len()).map(led).collect();
        self.value = Some(to_host(&transferred)?[0]);
        ((losses * self.config.unimodal)? + (transferred * self.config.weight)?).map(Some)
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, led) in self.led.iter().enumerate() {
            sink("led", Some(m), *led);
        }
        if let Some(value) = self.value {
            sink("transfer", None, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_that_is_there_leads() {
        assert_eq!(leader(&[0.2, 0.5, 0.5]), Some(1));
        assert_eq!(leader(&[f64::NAN, 0.1]), Some(1));
        assert_eq!(leader(&[f64::NAN, f64::NAN]), None);
    }
}
