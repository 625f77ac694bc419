//! AGM: the fused logits are split into one contribution per modality, and the gradient that enters each is scaled.
//!
//! ```text
//! f(S)    logits with the modalities outside of S masked, for every coalition S;  f(∅) counts as 0
//! φ_m     = Σ_{S∌m} |S|! (M-|S|-1)!/M! [f(S+m) - f(S)]            Σ_m φ_m = f(all) = z
//! ℓ_m     = mean_i -log max(softmax(φ_m)_i[y_i], 1e-8)
//! r_m     = exp(M/(M-1) (mean_j ℓ_j - ℓ_m))                       above 1 where m leads;  M = 2: exp(ℓ_other - ℓ_m)
//! r̄_m     the same of the running means of ℓ over all batches before this one
//! κ_m     = exp(α min(r̄_m - r_m, cap))                            below 1 where m leads by more than it used to
//! ∂L/∂θ   = Σ_m κ_m (∂φ_m/∂θ)ᵀ ∂L/∂z,   L = CE(z, y)
//! ```
//!
//! so every parameter, the fusion's too, sees each contribution through its own κ. In the code this is the gradient of
//! CE plus that of `Σ_m (κ_m - 1) ⟨∂L/∂z, φ_m - [φ_m]⟩`, where [ ] stops gradients: a term whose value is 0. Shapes:
//! all logits (B, C).
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `alpha` α | 1 | > 0 | strength |
//! | `cap` | 10 for M = 2, else 7 | > 0 | largest r̄ - r |
//! | `mask` | `inputs` | | what is zero of a masked modality; `features`: its features, as if it were missing |
//! | `start_epoch`, `end_epoch` | 0, none | | when it acts; the released run stops after epoch 20 |
//!
//! `mask = "inputs"` encodes every modality once more, in evaluation mode as the released code does, so that dropout
//! and batch statistics of the training pass are untouched; gradients flow. `features` reuses the features of the step.
//! Both fuse 2^M - 2 times more, which is why M is at most 8.
//!
//! Differences. The formulas are the released code's; the paper's text was not to be had. There a confident
//! contribution is clamped at 1e-8 for M = 2 only, else its score is infinite. Released for M = 2 and 3, here any M up
//! to 8. Outside of its epochs the released code keeps the last κ; here κ is 1 and nothing is computed. It also clips
//! the global gradient norm to 1 where the head's gradient exceeds 1: set `train.clip_norm`, since κ has no bound but
//! e^(α cap). A modality that the whole batch lacks has κ = 1, takes no part in the means, and its running mean waits.
//!
//! Source: Li et al., "Boosting Multi-modal Model Performance with Adaptive Gradient Modulation", ICCV 2023, arXiv
//! 2308.07686; released code lihong2303/AGM_ICCV2023 @5a65542.

use crate::balancer::saved;
use crate::{Balancer, Needs, State, StepCx, score};
use candle_core::{Result, Tensor, bail};
use mm_core::{Batch, Checked, ConfigError, Features, Forward, Modal, Mode, Presence};
use mm_kernels::softmax_last;
use serde::{Deserialize, Serialize};

/// More would fuse 510 times in a step.
const MOST: usize = 8;
const FLOOR: f64 = 1e-8;

/// How a modality is masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mask {
    /// Its inputs are zeros.
    #[default]
    Inputs,
    /// Its features are zeros and marked missing.
    Features,
}

/// Settings of [`Agm`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgmConfig {
    /// α, strength.
    pub alpha: f64,
    /// The largest r̄ - r; 10 for two modalities and 7 for more where not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cap: Option<f64>,
    /// How a modality is masked.
    pub mask: Mask,
    /// First epoch with modulation.
    pub start_epoch: usize,
    /// First epoch without modulation again.
    pub end_epoch: Option<usize>,
}

impl Default for AgmConfig {
    fn default() -> Self {
        Self { alpha: 1.0, cap: None, mask: Mask::Inputs, start_epoch: 0, end_epoch: None }
    }
}

impl AgmConfig {
    /// Validates for a number of modalities.
    pub fn build(&self, modalities: usize) -> Checked<Agm> {
        ConfigError::check_range("alpha", self.alpha, f64::MIN_POSITIVE, f64::MAX)?;
        let cap = self.cap.unwrap_or(if modalities == 2 { 10.0 } else { 7.0 });
        ConfigError::check_range("cap", cap, f64::MIN_POSITIVE, f64::MAX)?;
        if modalities > MOST {
            let rule =
                format!("fuses 2^M - 2 coalitions in every step: at most {MOST} modalities; use ogm or mlb");
            return Err(ConfigError::new("kind", format!("\"agm\" with {modalities} modalities"), rule));
        }
        Ok(Agm {
            config: self.clone(),
            cap,
            running: Running::new(modalities),
            ratios: Vec::new(),
            coefficients: Vec::new(),
        })
    }
}

/// φ_m of every modality. `value` gives the logits of a coalition, a set of bits with bit m for modality m; it is asked
/// once for each but the empty one.
pub fn contributions<F>(modalities: usize, mut value: F) -> Result<Vec<Tensor>>
where
    F: FnMut(u32) -> Result<Tensor>,
{
    if modalities == 0 || modalities > MOST {
        bail!("AGM: {modalities} modalities; it takes 1 to {MOST}");
    }
    let all = (1u32 << modalities) - 1;
    let values: Vec<Tensor> = (1..=all).map(&mut value).collect::<Result<_>>()?;
    let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
    (0..modalities)
        .map(|m| {
            let mut total: Option<Tensor> = None;
            for (set, logits) in (1..=all).zip(&values) {
                // f(S) enters with the weight of S - m where m is in S, and with minus the weight of S where it is not.
                let inside = set & (1 << m) != 0;
                let others = set.count_ones() as usize - usize::from(inside);
                let weight = factorial(others) * factorial(modalities - others - 1) / factorial(modalities);
                let term = logits.affine(if inside { weight } else { -weight }, 0.0)?;
                total = Some(match total {
                    Some(sum) => (sum + term)?,
                    None => term,
                });
            }
            total.ok_or_else(|| candle_core::Error::Msg("AGM: no coalition".into()))
        })
        .collect()
}

/// ℓ_m of every contribution; NaN where the batch has no row of the modality.
pub fn log_losses(contributions: &Modal<Tensor>, batch: &Batch) -> Result<Vec<f64>> {
    let probabilities = score::probabilities(contributions.values(), &batch.labels)?;
    let mean = |m: usize, p: &[f64]| {
        let here = |row: usize| batch.present.values()[m].as_ref().is_none_or(|present| present.rows()[row]);
        let losses: Vec<f64> =
            (0..p.len()).filter(|&row| here(row)).map(|row| -p[row].max(FLOOR).ln()).collect();
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    Ok(probabilities.iter().enumerate().map(|(m, p)| mean(m, p)).collect())
}

/// r_m from ℓ_m; 1 where there is nothing to compare, and NaN takes no part.
///
/// ```
/// let r = mm_balance::agm::ratios(&[0.5, 1.5]);
/// assert!((r[0] - 1f64.exp()).abs() < 1e-12 && r[1] < 1.0);
/// ```
pub fn ratios(losses: &[f64]) -> Vec<f64> {
    let known: Vec<f64> = losses.iter().copied().filter(|l| !l.is_nan()).collect();
    let count = known.len() as f64;
    let mean = known.iter().sum::<f64>() / count;
    let ratio = |l: &f64| {
        if l.is_nan() || known.len() < 2 { 1.0 } else { (count / (count - 1.0) * (mean - l)).exp() }
    };
    losses.iter().map(ratio).collect()
}

/// κ_m from ℓ_m of this batch and their running means before it.
pub fn coefficients(losses: &[f64], running: &[f64], alpha: f64, cap: f64) -> Vec<f64> {
    // What this batch knows nothing about is left out of the reference, too.
    let reference: Vec<f64> =
        running.iter().zip(losses).map(|(n, l)| if l.is_nan() { f64::NAN } else { *n }).collect();
    let pairs = ratios(&reference).into_iter().zip(ratios(losses));
    pairs
        .zip(losses)
        .map(|((was, is), l)| if l.is_nan() { 1.0 } else { coefficient(was, is, alpha, cap) })
        .collect()
}

/// κ from r̄ and r.
pub fn coefficient(reference: f64, ratio: f64, alpha: f64, cap: f64) -> f64 {
    (alpha * (reference - ratio).min(cap)).exp()
}

/// The running means of ℓ_m.
#[derive(Debug, Clone, PartialEq)]
pub struct Running {
    means: Vec<f64>,
    batches: Vec<f64>,
}

impl Running {
    /// Before the first batch: all means are 0.
    pub fn new(modalities: usize) -> Self {
        Self { means: vec![0.0; modalities], batches: vec![0.0; modalities] }
    }

    /// The means so far.
    pub fn means(&self) -> &[f64] {
        &self.means
    }

    /// Takes a batch's losses in; NaN is passed over.
    pub fn push(&mut self, losses: &[f64]) {
        for ((mean, batches), loss) in self.means.iter_mut().zip(&mut self.batches).zip(losses) {
            if !loss.is_nan() {
                *batches += 1.0;
                *mean = *mean * (*batches - 1.0) / *batches + loss / *batches;
            }
        }
    }
}

/// A term of value 0 whose gradient adds `(κ_m - 1)` times what the cross-entropy of `fused` sends through φ_m.
pub fn modulation(
    contributions: &[Tensor],
    coefficients: &[f64],
    fused: &Tensor,
    labels: &[u32],
) -> Result<Tensor> {
    let fused = fused.detach();
    let (rows, classes) = fused.dims2()?;
    let mut hot = vec![0.0; rows * classes];
    for (row, label) in labels.iter().enumerate().take(rows) {
        match hot[row * classes..(row + 1) * classes].get_mut(*label as usize) {
            Some(entry) => *entry = 1.0,
            None => bail!("row {row} has label {label}, but there are {classes} classes"),
        }
    }
    let hot = Tensor::from_vec(hot, (rows, classes), fused.device())?.to_dtype(fused.dtype())?;
    let through = ((softmax_last(&fused)? - hot)? / rows.max(1) as f64)?;
    let mut total = through.zeros_like()?;
    for (phi, k) in contributions.iter().zip(coefficients) {
        total = (total + (phi - phi.detach())?.affine(k - 1.0, 0.0)?)?;
    }
    (total * through)?.sum_all()
}

/// See the [module](self).
#[derive(Debug)]
pub struct Agm {
    config: AgmConfig,
    cap: f64,
    running: Running,
    ratios: Vec<f64>,
    coefficients: Vec<f64>,
}

impl Agm {
    fn acts(&self, epoch: usize) -> bool {
        (self.config.start_epoch..self.config.end_epoch.unwrap_or(usize::MAX)).contains(&epoch)
    }

    /// The features of each modality as it is, and as it is masked, with what is present then.
    fn sources(&self, cx: &StepCx<'_>, fwd: &Forward) -> Result<(Features, Features)> {
        if self.config.mask == Mask::Features {
            return Ok((fwd.features.clone(), fwd.features.try_map(|_, h| h.zeros_like())?));
        }
        let full = cx.model.encode_all(cx.batch, Mode::Eval)?;
        let masked = full.try_map(|m, h| {
            // Rows of one length would be equal: one is encoded, and repeated.
            let mut silent =
                if cx.batch.lengths[m].is_some() { cx.batch.clone() } else { cx.batch.select(&[0])? };
            silent.inputs[m] = silent.inputs[m].zeros_like()?;
            silent.present[m] = None;
            let encoded = cx.model.encode(m, &silent, Mode::Eval)?;
            let repeated = encoded.broadcast_as(h.shape())?.contiguous()?;
            match &cx.batch.present[m] {
                Some(present) => present.apply(&repeated),
                None => Ok(repeated),
            }
        })?;
        Ok((full, masked))
    }

    fn coalition(&self, cx: &StepCx<'_>, full: &Features, masked: &Features, set: u32) -> Result<Tensor> {
        let inside = |m: mm_core::Modality| set & (1 << m.index()) != 0;
        let z = full.map(|m, h| if inside(m) { h.clone() } else { masked[m].clone() });
        let present = cx.batch.present.try_map(|m, p| {
            if inside(m) || self.config.mask == Mask::Inputs {
                return Ok(p.clone());
            }
            let h = &full[m];
            Presence::new(vec![false; cx.batch.rows()], h.dtype(), h.device()).map(Some)
        })?;
        Ok(cx.model.fuse(z, &present, Mode::Eval)?.fused)
    }
}

impl Balancer for Agm {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        (self.ratios, self.coefficients) = (Vec::new(), Vec::new());
        if !self.acts(cx.epoch) {
            return Ok(None);
        }
        let modalities = fwd.features.len();
        let (full, masked) = self.sources(cx, fwd)?;
        let all = (1u32 << modalities) - 1;
        let phi = contributions(modalities, |set| {
            if set == all { Ok(fwd.fused.clone()) } else { self.coalition(cx, &full, &masked, set) }
        })?;
        let losses = log_losses(&Modal::new(phi.clone()), cx.batch)?;
        self.ratios = ratios(&losses);
        self.coefficients = coefficients(&losses, self.running.means(), self.config.alpha, self.cap);
        self.running.push(&losses);
        modulation(&phi, &self.coefficients, &fwd.fused, &cx.batch.labels).map(Some)
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, r) in self.ratios.iter().enumerate() {
            sink("ratio", Some(m), *r);
        }
        for (m, k) in self.coefficients.iter().enumerate() {
            sink("coefficient", Some(m), *k);
        }
    }

    fn state(&self) -> State {
        State::from([
            ("means".to_owned(), self.running.means.clone()),
            ("batches".to_owned(), self.running.batches.clone()),
        ])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        let count = self.running.means.len();
        self.running.means = saved(state, "AGM", "means", count)?.to_vec();
        self.running.batches = saved(state, "AGM", "batches", count)?.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coefficients_at_the_edges() {
        assert_eq!(coefficients(&[1.0, 1.0], &[0.0, 0.0], 1.0, 10.0), [1.0, 1.0]);
        assert_eq!(coefficients(&[f64::NAN, 1.0], &[0.0, 0.0], 1.0, 10.0), [1.0, 1.0]);
        let k = coefficients(&[0.0, 18.0], &[1.0, 1.0], 1.0, 10.0);
        assert!(k[0] < 1e-300 && k[1] > 1.0 && k[1] < 1f64.exp(), "{k:?}");
        assert_eq!(coefficient(100.0, 0.0, 0.2, 10.0), 2f64.exp());
    }

    #[test]
    fn running_means_wait_where_nothing_is_known() {
        let mut running = Running::new(2);
        running.push(&[1.0, 2.0]);
        running.push(&[f64::NAN, 4.0]);
        assert_eq!(running.means(), [1.0, 3.0]);
    }
}
