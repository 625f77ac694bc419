//! PMR: prototypical modal rebalance adds a loss over class prototypes to the modality that lags.
//!
//! ```text
//! c^m_k   = mean of h^m over training rows of class k, once per epoch; from the second epoch's end on
//!           c^m_k ← (1-ε) c^m_k(new) + ε c^m_k(old)
//! u^m_k   = -‖h^m - c^m_k‖                                    prototypes are constants
//! s_m     = mean_i softmax(u^m_i)[y_i],     r_m = mean_{j≠m} s_j / s_m        above 1 where m lags
//! L       = CE(z, y) + α Σ_m b_m CE(u^m, y) - μ Σ_m e_m H(softmax(u^m))
//! b_m     = clip(r_m - 1, 0, 1),   e_m = clip(1/r_m - 1, 0, 1)                (paper)
//! b_m     = 1 if r_m > 1, else 0;  no entropy                                 (released)
//! ```
//!
//! H is the mean entropy over rows; its term keeps the leader's prototypes from being settled too early and acts in
//! the first `entropy_epochs` epochs only. Shapes: h^m (B, D_m), or (B, N, D_m) whose mean over tokens is taken; c^m
//! (C, D_m) per modality. With M = 2, r_0 = s_1/s_0 is one over the papers' ρ.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `alpha` α | 1 | > 0 | weight of the prototype losses |
//! | `variant` | `paper` | | `released`: the hard switch |
//! | `entropy_weight` μ | 0.01 | >= 0 | `paper` only |
//! | `entropy_epochs` | 10 | | epochs with the entropy term |
//! | `momentum` ε | 0.2 | [0, 1] | share of the old prototypes |
//! | `share` | 0.1 | (0, 1] | share of an epoch's batches that prototypes are computed from; at least one batch |
//! | `start_epoch`, `end_epoch` | 0, none | | when the losses act; the released runs end at 100 of 150 |
//!
//! Differences. The released code has the hard switch and neither the clipped coefficients nor the entropy term;
//! those follow the paper's text as it is known from secondary sources, with μ and the number of epochs chosen by us:
//! `paper` is a reading and no reproduction. Released for M = 2; here each modality is compared with the mean of the
//! others. A class that the sampled batches lack keeps its old prototype (NaN there); while it has none its rows take
//! no part. The distance's gradient is 0 at distance 0 (NaN there). Prototypes come from training rows in evaluation
//! mode; some of the released scripts take them from the validation or the test part.
//!
//! Source: Fan et al., "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023; released code
//! fanyunfeng-bit/Modal-Imbalance-PMR @3615e48.

use crate::score;
use crate::{Balancer, EpochCx, Needs, State, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::model::{pooled, sum, to_host};
use mm_core::{Checked, ConfigError, Forward, Mode};
use mm_kernels::softmax::{log_softmax_last, softmax_last};
use mm_kernels::{cross_entropy, true_class_probability};
use serde::{Deserialize, Serialize};

/// Which coefficients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Variant {
    /// Clipped ratios, and the entropy term.
    #[default]
    Paper,
    /// A hard switch.
    Released,
}

/// Settings of [`Pmr`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PmrConfig {
    /// α, weight of the prototype losses.
    pub alpha: f64,
    /// Paper or released coefficients.
    pub variant: Variant,
    /// μ, weight of the entropy term.
    pub entropy_weight: f64,
    /// Epochs with the entropy term.
    pub entropy_epochs: usize,
    /// ε, share of the old prototypes.
    pub momentum: f64,
    /// Share of an epoch's batches that prototypes are computed from.
    pub share: f64,
    /// First epoch with the losses.
    pub start_epoch: usize,
    /// First epoch without the losses again.
    pub end_epoch: Option<usize>,
}

impl Default for PmrConfig {
    fn default() -> Self {
        Self {
            alpha: 1.0,
            variant: Variant::Paper,
            entropy_weight: 0.01,
            entropy_epochs: 10,
            momentum: 0.2,
            share: 0.1,
            start_epoch: 0,
            end_epoch: None,
        }
    }
}

impl PmrConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Pmr> {
        ConfigError::check_range("alpha", self.alpha, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("entropy_weight", self.entropy_weight, 0.0, f64::MAX)?;
        ConfigError::check_range("momentum", self.momentum, 0.0, 1.0)?;
        ConfigError::check_range("share", self.share, 1e-9, 1.0)?;
        Ok(Pmr { config: self.clone(), prototypes: Vec::new(), scores: Vec::new(), coefficients: Vec::new() })
    }
}

/// The prototypes of one modality: class means of features, for the classes that were seen.
#[derive(Debug, Clone, PartialEq)]
pub struct Prototypes {
    width: usize,
    /// (C, D), row-major; zeros where a class was not seen.
    values: Vec<f64>,
    /// Which classes were seen.
    known: Vec<bool>,
}

impl Prototypes {
    /// Class means of rows of `width` features.
    pub fn new(features: &[f64], labels: &[u32], width: usize, classes: usize) -> Result<Self> {
        if features.len() != labels.len() * width {
            bail!("PMR: {} features for {} rows of width {width}", features.len(), labels.len());
        }
        let (mut values, mut counts) = (vec![0.0; classes * width], vec![0usize; classes]);
        for (row, &label) in features.chunks(width.max(1)).zip(labels) {
            let class = label as usize;
            let Some(count) = counts.get_mut(class) else {
                bail!("PMR: label {label}, but there are {classes} classes")
            };
            *count += 1;
            for (total, x) in values[class * width..].iter_mut().zip(row) {
                *total += x;
            }
        }
        for (row, &count) in values.chunks_mut(width.max(1)).zip(&counts) {
            for x in row {
                *x /= count.max(1) as f64;
            }
        }
        Ok(Self { width, values, known: counts.iter().map(|&count| count > 0).collect() })
    }

    /// Prototypes of every class from values (C, D), row-major.
    pub fn from_values(values: Vec<f64>, width: usize) -> Result<Self> {
        if width == 0 || !values.len().is_multiple_of(width) {
            bail!("PMR: {} numbers are no prototypes of width {width}", values.len());
        }
        Ok(Self { width, known: vec![true; values.len() / width], values })
    }

    /// `(1-ε) new + ε old` for the classes that both know; the known one for the others.
    #[must_use]
    pub fn after(mut self, old: &Self, momentum: f64) -> Self {
        if self.width != old.width || self.known.len() != old.known.len() {
            return self;
        }
        for (class, old_known) in old.known.iter().enumerate().filter(|(_, known)| **known) {
            let keep = if self.known[class] { momentum } else { 1.0 };
            let range = class * self.width..(class + 1) * self.width;
            for (new, old) in self.values[range.clone()].iter_mut().zip(&old.values[range]) {
                *new = (1.0 - keep) * *new + keep * old;
            }
            self.known[class] = *old_known;
        }
        self
    }

    /// (C, D), row-major; zeros where a class was not seen.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// Which classes were seen.
    pub fn known(&self) -> &[bool] {
        &self.known
    }

    /// `-‖h - c_k‖`: logits (B, C) of features (B, D); classes that were never seen get no probability.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        let (device, dtype) = (features.device(), features.dtype());
        let classes = self.known.len();
        let centers = Tensor::from_slice(&self.values, (1, classes, self.width), device)?.to_dtype(dtype)?;
        let square = features.unsqueeze(1)?.broadcast_sub(&centers)?.sqr()?.sum(2)?;
        // Adding 1 where the distance vanishes keeps the root's derivative finite; it is taken off again.
        let none = square.detach().le(1e-24)?.to_dtype(dtype)?;
        let distance = ((square + &none)?.sqrt()? - none)?;
        if self.known.iter().all(|&known| known) {
            return distance.neg();
        }
        let known: Vec<f64> = self.known.iter().map(|&known| f64::from(u8::from(known))).collect();
        let known = Tensor::from_vec(known, (1, classes), device)?.to_dtype(dtype)?;
        distance.neg()?.broadcast_mul(&known)?.broadcast_add(&known.affine(1e9, -1e9)?)
    }
}

/// b_m and e_m of every modality from the scores s_m by the clipped ratios; 0 where there is no evidence.
///
/// ```
/// let (b, e) = mm_balance::pmr::coefficients(&[0.6, 0.4]);
/// assert!(b[0] == 0.0 && (b[1] - 0.5).abs() < 1e-12 && (e[0] - 0.5).abs() < 1e-12 && e[1] == 0.0);
/// ```
pub fn coefficients(scores: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let excess = |ratios: Vec<f64>| ratios.into_iter().map(|r| (r - 1.0).clamp(0.0, 1.0)).collect();
    (excess(score::lag(scores)), excess(score::lead(scores)))
}

/// b_m by the hard switch: 1 where the modality lags.
pub fn coefficients_released(scores: &[f64]) -> Vec<f64> {
    score::lag(scores).into_iter().map(|r| f64::from(u8::from(r > 1.0))).collect()
}

/// See the [module](self).
#[derive(Debug)]
pub struct Pmr {
    config: PmrConfig,
    prototypes: Vec<Prototypes>,
    scores: Vec<f64>,
    coefficients: Vec<f64>,
}

impl Pmr {
    /// Uses these prototypes, one per modality, from now on.
    pub fn set_prototypes(&mut self, prototypes: Vec<Prototypes>) {
        self.prototypes = prototypes;
    }

    fn acts(&self, epoch: usize) -> bool {
        let end = self.config.end_epoch.unwrap_or(usize::MAX);
        (self.config.start_epoch..end).contains(&epoch) && !self.prototypes.is_empty()
    }

    /// Class means over the first batches of the epoch that begins.
    fn compute(&self, cx: &EpochCx<'_>) -> Result<Vec<Prototypes>> {
        let Some(rows) = cx.train else {
            bail!(
                "PMR computes prototypes from training rows: the trainer must pass them in `EpochCx::training`"
            )
        };
        let batches = ((rows.count() as f64 * self.config.share) as usize).max(1).min(rows.count());
        let count = cx.model.modalities().len();
        let mut seen: Vec<(Vec<f64>, Vec<u32>, usize)> = vec![(Vec::new(), Vec::new(), 0); count];
        for n in 0..batches {
            let batch = rows.get(n)?;
            let z = cx.model.encode_all(&batch, Mode::Eval)?;
            for ((m, h), (features, labels, width)) in z.iter().zip(&mut seen) {
                let h = pooled(h)?;
                *width = h.dim(1)?;
                let present = batch.present[m].as_ref();
                for (row, values) in to_host(&h)?.chunks((*width).max(1)).enumerate() {
                    if present.is_none_or(|p| p.rows()[row]) {
                        features.extend_from_slice(values);
                        labels.push(batch.labels[row]);
                    }
                }
            }
        }
        let classes = cx.model.classes();
        seen.iter()
            .map(|(features, labels, width)| Prototypes::new(features, labels, *width, classes))
            .collect()
    }
}

impl Balancer for Pmr {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        let new = self.compute(cx)?;
        // The prototypes of the untrained encoders are not worth keeping a share of.
        let momentum = if cx.epoch < 2 { 0.0 } else { self.config.momentum };
        self.prototypes = if self.prototypes.len() == new.len() {
            new.into_iter().zip(&self.prototypes).map(|(new, old)| new.after(old, momentum)).collect()
        } else {
            new
        };
        Ok(())
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        self.scores.clear();
        self.coefficients.clear();
        if !self.acts(cx.epoch) {
            return Ok(None);
        }
        let (mut logits, mut weights) = (Vec::new(), Vec::new());
        for ((m, h), prototypes) in fwd.features.iter().zip(&self.prototypes) {
            let u = prototypes.logits(&pooled(h)?)?;
            let known = |label: u32| prototypes.known().get(label as usize).is_some_and(|&known| known);
            let present = cx.batch.present[m].as_ref();
            let w: Vec<f64> = (cx.batch.labels.iter().enumerate())
                .map(|(row, &y)| f64::from(u8::from(known(y) && present.is_none_or(|p| p.rows()[row]))))
                .collect();
            let total: f64 = w.iter().sum();
            let right = true_class_probability(&u, &cx.batch.labels)?;
            let score: f64 = right.iter().zip(&w).filter(|(_, w)| **w > 0.0).map(|(p, _)| p).sum();
            self.scores.push(if total > 0.0 { score / total } else { f64::NAN });
            logits.push(u);
            weights.push(w);
        }
        let (boost, entropy) = match self.config.variant {
            Variant::Paper => coefficients(&self.scores),
            Variant::Released => (coefficients_released(&self.scores), vec![0.0; self.scores.len()]),
        };
        let mut terms = Vec::new();
        for ((u, w), (b, e)) in logits.iter().zip(&weights).zip(boost.iter().zip(&entropy)) {
            if *b > 0.0 {
                terms.push((cross_entropy(u, &cx.batch.labels, Some(w))? * (self.config.alpha * b))?);
            }
            let mu = self.config.entropy_weight * e;
            if mu > 0.0 && cx.epoch < self.config.entropy_epochs {
                terms.push((mean_entropy(u, w)? * -mu)?);
            }
        }
        self.coefficients = boost.iter().map(|b| self.config.alpha * b).collect();
        if terms.is_empty() { Ok(None) } else { sum(&terms).map(Some) }
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("prototype_score", Some(m), *s);
        }
        for (m, b) in self.coefficients.iter().enumerate() {
            sink("prototype_weight", Some(m), *b);
        }
    }

    fn state(&self) -> State {
        let mut state = State::new();
        for (m, p) in self.prototypes.iter().enumerate() {
            state.insert(format!("prototypes.{m}"), p.values.clone());
            state.insert(format!("known.{m}"), p.known.iter().map(|&k| f64::from(u8::from(k))).collect());
        }
        state
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.prototypes.clear();
        for m in 0..state.len() / 2 {
            let (Some(values), Some(known)) =
                (state.get(&format!("prototypes.{m}")), state.get(&format!("known.{m}")))
            else {
                bail!("the checkpoint lacks PMR's prototypes of modality {m}");
            };
            if known.is_empty() || !values.len().is_multiple_of(known.len()) {
                bail!(
                    "the checkpoint's prototypes of modality {m} are {} numbers for {} classes",
                    values.len(),
                    known.len()
                );
            }
            self.prototypes.push(Prototypes {
                width: values.len() / known.len(),
                values: values.clone(),
                known: known.iter().map(|&k| k != 0.0).collect(),
            });
        }
        Ok(())
    }
}

/// The weighted mean of the entropies of rows of logits.
pub fn mean_entropy(logits: &Tensor, weights: &[f64]) -> Result<Tensor> {
    let total: f64 = weights.iter().sum();
    let share: Vec<f64> = weights.iter().map(|w| if total > 0.0 { w / total } else { 0.0 }).collect();
    let share = Tensor::from_vec(share, logits.dim(0)?, logits.device())?.to_dtype(logits.dtype())?;
    let each = (softmax_last(logits)? * log_softmax_last(logits)?)?.sum(1)?.neg()?;
    (each * share)?.sum_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_that_is_not_seen_keeps_its_prototype() {
        let old = Prototypes::new(&[1.0, 2.0, 3.0, 4.0], &[0, 1], 2, 3).unwrap();
        let new = Prototypes::new(&[5.0, 5.0], &[1], 2, 3).unwrap().after(&old, 0.25);
        assert_eq!(new.values(), [1.0, 2.0, 4.5, 4.75, 0.0, 0.0]);
        assert_eq!(new.known(), [true, true, false]);
        assert!(Prototypes::new(&[1.0], &[3], 1, 3).unwrap_err().to_string().contains("label 3"));
    }
}
