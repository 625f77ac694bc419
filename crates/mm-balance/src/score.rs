//! The statistic that MLB, OGM and OPM balance by: how much probability a modality alone gives to the right class.
//!
//! `s_m = 1/|P_m| Σ_{i in P_m} softmax(z^m_i)[y_i]`, over the rows P_m in which the modality is present.
//!
//! The papers write a sum over the batch, the released code of MLB a mean; only ratios are used, which are the same
//! where every modality is present. The mean stays comparable when one is missing in some rows.
//!
//! Shapes: logits (B, C) per modality, labels (B). The result is on the host; no gradient flows through it.

use candle_core::{Result, Tensor, bail};
use mm_core::{Batch, Modal};
use mm_kernels::cross_entropy::true_class_probability;

/// Mean true-class probability per modality; NaN where the modality is missing in every row ("no evidence").
pub fn true_class(logits: &Modal<Tensor>, batch: &Batch) -> Result<Modal<f64>> {
    let probabilities = probabilities(logits.values(), &batch.labels)?;
    Ok(logits.map(|m, _| {
        let p = &probabilities[m.index()];
        match &batch.present[m] {
            None => p.iter().sum::<f64>() / p.len() as f64,
            Some(present) => {
                let total: f64 =
                    p.iter().zip(present.rows()).filter(|(_, here)| **here).map(|(p, _)| p).sum();
                if present.count() == 0 { f64::NAN } else { total / present.count() as f64 }
            }
        }
    }))
}

/// The true-class probability of every row for every modality: one device-to-host transfer for all of them.
pub fn probabilities(logits: &[Tensor], labels: &[u32]) -> Result<Vec<Vec<f64>>> {
    let Some(first) = logits.first() else { bail!("scores of no modality") };
    if labels.is_empty() {
        return Ok(vec![Vec::new(); logits.len()]);
    }
    if first.device().is_cpu() {
        return logits.iter().map(|z| true_class_probability(z, labels)).collect();
    }
    let detached: Vec<Tensor> = logits.iter().map(Tensor::detach).collect();
    let stacked = Tensor::cat(&detached, 0)?.to_device(&candle_core::Device::Cpu)?;
    let repeated: Vec<u32> = logits.iter().flat_map(|_| labels.iter().copied()).collect();
    let all = true_class_probability(&stacked, &repeated)?;
    Ok(all.chunks(labels.len()).map(<[f64]>::to_vec).collect())
}

/// `ratio_m = s_m / mean_{j != m} s_j` over the modalities with evidence: above 1 where `m` leads the others.
///
/// 1 where there is nothing to compare (a single modality, no evidence, or 0/0); infinite where the others score 0.
pub fn lead(scores: &[f64]) -> Vec<f64> {
    (0..scores.len())
        .map(|m| {
            let others = || (0..scores.len()).filter(|&j| j != m && !scores[j].is_nan()).map(|j| scores[j]);
            let mean = others().sum::<f64>() / others().count() as f64;
            let ratio = scores[m] / mean;
            if ratio.is_nan() { 1.0 } else { ratio }
        })
        .collect()
}

/// `ratio_m = mean_{j != m} s_j / s_m`, the inverse of [`lead`]: above 1 where `m` lags behind the others.
pub fn lag(scores: &[f64]) -> Vec<f64> {
    lead(scores).into_iter().map(|r| if r == 0.0 { f64::INFINITY } else { 1.0 / r }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_at_the_edges() {
        assert_eq!(lead(&[2.0, 1.0]), [2.0, 0.5]);
        assert_eq!(lag(&[2.0, 1.0, 3.0]), [1.0, 2.5, 0.5]);
        assert_eq!(lead(&[0.0, 0.0]), [1.0, 1.0]);
        assert_eq!(lag(&[0.0, 0.5]), [f64::INFINITY, 0.0]);
        assert_eq!(lead(&[0.3]), [1.0]);
        assert_eq!(lead(&[f64::NAN, 0.5, 0.25]), [1.0, 2.0, 0.5]);
    }
}
