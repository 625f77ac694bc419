//! OPM: on-the-fly prediction modulation drops features of the modality that leads.
//!
//! ```text
//! s_m = mean_i softmax(z^m_i)[y_i]                   z^m: the modality's share of the fused logits, detached
//! ρ_m = s_m / mean_{j≠m} s_j
//! d_m = tanh(max(ρ_m - 1, 0))
//! q_m = clip(q_base (1 + λ d_m), 0, 1)  if ρ_m > 1,  else 0          drop probability
//! θ   = Σ_m D_m q_m / Σ_m D_m
//! h_m ← h_m b_m / (1 - θ),   b_{i,m} ~ Bernoulli(1 - q_m) per sample and modality
//! ```
//!
//! executed in a batch with probability `p_exe`. The factor 1/(1-θ) is one number for *all* modalities, also those not
//! dropped. Rows that lose every modality leave the batch; if none is left the step is skipped.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `q_base` | 0.5 | [0, 1] | drop probability of a bare leader |
//! | `lambda` λ | 0.5 | >= 0 | how much a larger lead adds |
//! | `p_exe` | 0.7 | [0, 1] | share of batches in which anything is dropped |
//! | `start_epoch`, `end_epoch` | 0, none | | when it acts; the released code waits for 6 epochs |
//!
//! Differences. q jumps from 0 to q_base as ρ passes 1. The released code is for M = 2; here ρ compares with the mean of
//! the others for any M (so some modality is never dropped). Fusions that are not a sum over modalities get their
//! scores with the other modalities masked. A modality that a row lacks counts as dropped in it. Dropped features
//! are zeros, as in the released code, not missing ones: a non-linear fusion sees a zero feature, and own heads of a
//! composed method take part with it.
//!
//! Source: Wei et al., "On-the-fly Modulation for Balanced Multimodal Learning", arXiv 2410.11582; released code
//! GeWu-Lab/BML_TPAMI2024 @4b3aa4f (whose Classifier.py does not parse as published).

use crate::{Balancer, Edited, Needs, StepCx, Windowed, score};
use candle_core::{Result, Tensor, bail};
use mm_core::{Checked, ConfigError, Features, Modal};
use serde::{Deserialize, Serialize};

/// Settings of [`Opm`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct OpmConfig {
    /// Drop probability of a bare leader.
    pub q_base: f64,
    /// λ, how much a larger lead adds.
    pub lambda: f64,
    /// Share of batches in which anything is dropped.
    pub p_exe: f64,
    /// First epoch with drops.
    pub start_epoch: usize,
    /// First epoch without drops again.
    pub end_epoch: Option<usize>,
}

impl Default for OpmConfig {
    fn default() -> Self {
        Self { q_base: 0.5, lambda: 0.5, p_exe: 0.7, start_epoch: 0, end_epoch: None }
    }
}

impl OpmConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Windowed<Opm>> {
        ConfigError::check_range("q_base", self.q_base, 0.0, 1.0)?;
        ConfigError::check_range("lambda", self.lambda, 0.0, f64::MAX)?;
        ConfigError::check_range("p_exe", self.p_exe, 0.0, 1.0)?;
        let opm = Opm { config: self.clone(), scores: Vec::new(), q: Vec::new() };
        Ok(Windowed::new(opm, self.start_epoch, self.end_epoch))
    }
}

/// q_m of every modality from the scores s_m; NaN scores mean "no evidence" and give 0.
///
/// ```
/// let q = mm_balance::opm::drop_probabilities(&[0.8, 0.4], 0.5, 0.5);
/// assert!(q[0] > 0.5 && q[1] == 0.0);
/// ```
pub fn drop_probabilities(scores: &[f64], q_base: f64, lambda: f64) -> Vec<f64> {
    let q = |ratio: f64| {
        let lead = (ratio - 1.0).max(0.0).tanh();
        if lead > 0.0 { (q_base * (1.0 + lambda * lead)).clamp(0.0, 1.0) } else { 0.0 }
    };
    score::lead(scores).into_iter().map(q).collect()
}

/// θ, the share of feature entries expected to be dropped.
pub fn dropped_share(q: &[f64], widths: &[usize]) -> f64 {
    let total: usize = widths.iter().sum();
    q.iter().zip(widths).map(|(q, &d)| q * d as f64).sum::<f64>() / total.max(1) as f64
}

/// Applies keep masks: `h_m b_m / (1 - θ)`, and removes the rows that have lost every modality.
///
/// `keep` holds one flag per row for each modality; `present` says which rows had it to begin with.
pub fn drop_features(
    z: &Features,
    keep: &Modal<Vec<bool>>,
    present: &dyn Fn(usize, usize) -> bool,
    theta: f64,
) -> Result<Edited> {
    if !(0.0..1.0).contains(&theta) {
        bail!("OPM: the dropped share θ = {theta} must lie in [0, 1)");
    }
    let Some((_, first)) = z.iter().next() else { return Ok(Edited::all(z.clone())) };
    let rows = first.dim(0)?;
    let kept: Vec<u32> = (0..rows)
        .filter(|&i| keep.iter().any(|(m, flags)| flags[i] && present(m.index(), i)))
        .map(|i| i as u32)
        .collect();
    let factor = 1.0 / (1.0 - theta);
    let all = kept.len() == rows;
    let index = Tensor::new(kept.as_slice(), first.device())?;
    let features = z.try_map(|m, h| {
        let flags = &keep[m];
        let h = if flags.iter().all(|&f| f) {
            h.affine(factor, 0.0)?
        } else {
            let mask: Vec<f64> = flags.iter().map(|&f| if f { factor } else { 0.0 }).collect();
            let mut shape = vec![1; h.rank()];
            shape[0] = rows;
            let mask = Tensor::from_vec(mask, shape, h.device())?.to_dtype(h.dtype())?;
            h.broadcast_mul(&mask)?
        };
        if all || kept.is_empty() { Ok(h) } else { h.index_select(&index, 0) }
    })?;
    Ok(Edited { features, keep: if all { None } else { Some(kept) } })
}

/// See the [module](self).
#[derive(Debug)]
pub struct Opm {
    config: OpmConfig,
    scores: Vec<f64>,
    q: Vec<f64>,
}

impl Balancer for Opm {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn features(&mut self, cx: &StepCx<'_>, z: Features) -> Result<Edited> {
        self.scores = cx.scores(&z, None)?.into_values();
        self.q = drop_probabilities(&self.scores, self.config.q_base, self.config.lambda);
        let mut draws = cx.rng.stream("opm").draws();
        if draws.uniform() >= self.config.p_exe || self.q.iter().all(|&q| q == 0.0) {
            return Ok(Edited::all(z));
        }
        let widths = z.try_map(|_, h| h.dim(h.rank() - 1))?;
        let theta = dropped_share(&self.q, widths.values());
        let rows = cx.batch.rows();
        let keep = z.map(|m, _| {
            let q = self.q[m.index()];
            (0..rows).map(|_| q == 0.0 || draws.uniform() >= q).collect::<Vec<bool>>()
        });
        let present = |m: usize, row: usize| match &cx.batch.present.values()[m] {
            Some(p) => p.rows()[row],
            None => true,
        };
        drop_features(&z, &keep, &present, theta)
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, r) in score::lead(&self.scores).into_iter().enumerate() {
            sink("ratio", Some(m), r);
        }
        for (m, q) in self.q.iter().enumerate() {
            sink("drop_probability", Some(m), *q);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn probabilities_at_the_edges() {
        assert_eq!(drop_probabilities(&[0.5, 0.5], 0.5, 0.5), [0.0, 0.0]);
        assert_eq!(drop_probabilities(&[0.5, 0.0], 0.5, 0.5), [0.75, 0.0]);
        assert_eq!(drop_probabilities(&[0.5, 0.0], 0.9, 1.0), [1.0, 0.0]);
        assert_eq!(drop_probabilities(&[0.0, 0.0], 0.5, 0.5), [0.0, 0.0]);
        assert_eq!(drop_probabilities(&[0.4, f64::NAN], 0.5, 0.5), [0.0, 0.0]);
    }

    #[test]
    fn rows_without_any_modality_leave() {
        let h = Tensor::ones((3, 2), candle_core::DType::F64, &Device::Cpu).unwrap();
        let z = Modal::new(vec![h.clone(), h]);
        let keep = Modal::new(vec![vec![true, false, false], vec![true, true, false]]);
        let edited = drop_features(&z, &keep, &|_, _| true, 0.25).unwrap();
        assert_eq!(edited.keep, Some(vec![0, 1]));
        let first = edited.features.values()[0].to_vec2::<f64>().unwrap();
        assert_eq!(first, [[1.0 / 0.75; 2], [0.0; 2]]);
        assert!(drop_features(&z, &keep, &|_, _| true, 1.0).is_err());
    }
}
