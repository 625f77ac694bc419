//! CML: calibrated multimodal learning - confidence must not rise when a modality is taken away.
//!
//! ```text
//! p      = softmax(z),  p^{-m} = softmax of the logits without modality m
//! conf   = max_c p_c
//! rank_m = mean_i max(0, conf(p^{-m}_i) - conf(p_i)) keep_{m,i}
//! L      = CE(z, y) + λ/M Σ_m rank_m
//! ```
//!
//! keep is 0 for a row that is right without the modality and wrong with it - there the modality misleads, and
//! confidence should fall - and 1 otherwise. Both confidences are differentiated. Shapes: logits (B, C). Rows that
//! lack modality m, or have nothing else, take no part in rank_m.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `weight` λ | 0.1 | > 0 | that of BalanceBenchmark; the released script's default is 0 |
//!
//! Differences. The released code takes the sum over the batch where this takes the mean, and its demonstrations drop
//! views at random where this averages over all M ways to drop one. BalanceBenchmark clips the sum of the batch
//! instead of each row, and adds the cross-entropy of the incomplete rows. With M = 2 "without m" is the other
//! modality alone.
//!
//! Source: Ma et al., "Calibrating Multimodal Learning", ICML 2023; released code QingyangZhang/CML @9d2496e.

use crate::proxies::one_hot;
use crate::{Balancer, Needs, StepCx};
use candle_core::{Result, Tensor};
use mm_core::model::{sum, to_host};
use mm_core::{Checked, ConfigError, Forward, Modality, Presence};
use mm_kernels::relu;
use mm_kernels::softmax::softmax_last;
use serde::{Deserialize, Serialize};

/// Settings of [`Cml`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CmlConfig {
    /// λ, weight of the ranking loss.
    pub weight: f64,
}

impl Default for CmlConfig {
    fn default() -> Self {
        Self { weight: 0.1 }
    }
}

impl CmlConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Cml> {
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        Ok(Cml { weight: self.weight, losses: Vec::new() })
    }
}

/// `max_c softmax(z)_c` of each row, and the class.
fn confidence(logits: &Tensor) -> Result<(Tensor, Vec<u32>)> {
    let best = logits.argmax(1)?.to_vec1::<u32>()?;
    let p = softmax_last(logits)?;
    Ok(((&p * one_hot(&best, p.dim(1)?, &p)?)?.sum(1)?, best))
}

/// keep of every row, from the decisions with fewer and with more modalities.
pub fn kept(fewer: &[u32], more: &[u32], labels: &[u32]) -> Vec<f64> {
    let misled = |((fewer, more), y): ((&u32, &u32), &u32)| fewer == y && more != y;
    fewer.iter().zip(more).zip(labels).map(|row| f64::from(u8::from(!misled(row)))).collect()
}

/// `max(0, conf(fewer) - conf(more)) keep` of every row (B), from logits (B, C).
pub fn rank_losses(fewer: &Tensor, more: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let ((low, with_fewer), (high, with_more)) = (confidence(fewer)?, confidence(more)?);
    let keep = kept(&with_fewer, &with_more, labels);
    let keep = Tensor::from_vec(keep, labels.len(), low.device())?.to_dtype(low.dtype())?;
    relu(&(low - high)?)? * keep
}

/// See the [module](self).
#[derive(Debug)]
pub struct Cml {
    weight: f64,
    losses: Vec<f64>,
}

impl Cml {
    /// rank_m, or nothing where no row can be compared.
    fn rank(cx: &StepCx<'_>, fwd: &Forward, m: Modality) -> Result<Option<Tensor>> {
        let present = &cx.batch.present;
        let has = |j: Modality, row: usize| present[j].as_ref().is_none_or(|p| p.rows()[row]);
        let compared: Vec<f64> = (0..cx.batch.rows())
            .map(|row| has(m, row) && present.iter().any(|(j, _)| j != m && has(j, row)))
            .map(|c| f64::from(u8::from(c)))
            .collect();
        let total: f64 = compared.iter().sum();
        if total == 0.0 {
            return Ok(None);
        }
        let z = fwd.features.try_map(|j, h| if j == m { h.zeros_like() } else { Ok(h.clone()) })?;
        let (dtype, device) = (fwd.fused.dtype(), fwd.fused.device());
        let mut without = present.clone();
        without[m] = Some(Presence::new(vec![false; cx.batch.rows()], dtype, device)?);
        let fewer = cx.model.fuse(z, &without, cx.mode)?.fused;
        let share = Tensor::from_vec(compared, cx.batch.rows(), device)?.to_dtype(dtype)?;
        let each = rank_losses(&fewer, &fwd.fused, &cx.batch.labels)?;
        ((each * share)?.sum_all()? / total).map(Some)
    }
}

impl Balancer for Cml {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let mut terms = Vec::new();
        self.losses = vec![0.0; fwd.features.len()];
        for m in cx.model.modalities().iter() {
            if let Some(rank) = Self::rank(cx, fwd, m)? {
                self.losses[m.index()] = to_host(&rank)?[0];
                terms.push(rank);
            }
        }
        if terms.is_empty() {
            return Ok(None);
        }
        (sum(&terms)? * (self.weight / fwd.features.len() as f64)).map(Some)
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, loss) in self.losses.iter().enumerate() {
            sink("rank_loss", Some(m), *loss);
        }
    }
}
