//! CGGM: classifiers on the side tell how fast each modality improves, and modulate the gradients in size and
//! direction.
//!
//! ```text
//! u^m    = U_m [h_m] + c_m                  a classifier of each modality, trained by CE(u^m, y); [ ] stops gradients
//! ε_m    = accuracy of u^m in the batch,   Δ_m = ε_m - ε_m of the step before
//! B_m    = Σ_{j≠m} Δ_j / Σ_j Δ_j            small for who improves most;  cut to [0, `bound`]
//! g_m    ← ρ B_m g_m                        gradient of encoder m
//! L      = CE(z, y) + Σ_m CE(u^m, y) + λ L_gm
//! L_gm   = 1/M Σ_m (|B_m| - B_m cos(G, G_m))
//! G      = 1/B (softmax(z) - Y)ᵀ h_m,   G_m = [1/B (softmax(u^m) - Y)ᵀ h_m]         (C, D_m)
//! ```
//!
//! with Y the labels as rows with a single 1. G is the gradient of the fused cross-entropy w.r.t. a linear map of h_m
//! into z - where the fusion is late-linear or concat, of its own block - and G_m that of the classifier's weight: L_gm
//! turns the one towards the other. Shapes: h_m (B, D_m), averaged over tokens.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `rho` ρ | 1.3 | > 0 | factor of all B |
//! | `lambda` λ | 0.2 | >= 0 | weight of L_gm |
//! | `bound` | 5 | >= 1 | the largest B |
//! | `start_epoch`, `end_epoch` | 0, none | | when gradients are modulated and L_gm acts; classifiers always train |
//!
//! State: the accuracies of the last step.
//!
//! Differences. The paper's text was not to be had; magnitudes and the form of L_gm are the released code's. What it
//! compares in L_gm are the *weights* of the output layers of classifiers and fusion, which its variables call
//! gradients; this computes gradients, in closed form, so that L_gm needs no second derivative: own derivation, not a
//! reproduction. It takes L_gm from the step before; here it is this step's. Its classifiers are transformers with an
//! optimiser of their own; here they are the linear heads. Its B are unbounded: with accuracies of a batch, Σ Δ is
//! often 0 or below, which gives factors of 1e7 and of the wrong sign that only its clipping contains. Here Σ Δ <= 0
//! gives all the same B = (M-1)/M, and B is cut. A modality that the whole batch lacks takes no part, and its encoder
//! is left alone.
//!
//! Source: Guo et al., "Classifier-guided Gradient Modulation for Enhanced Multimodal Learning", NeurIPS 2024, arXiv
//! 2411.01409; released code zrguo/CGGM @d7890a8.

use crate::balancer::saved;
use crate::unimodal::losses_and_scores;
use crate::{Balancer, Needs, State, StepCx};
use candle_core::{Result, Tensor, bail};
use mm_core::model::{pooled, to_host};
use mm_core::{Batch, Checked, ConfigError, Forward, Gradients, Modal};
use mm_kernels::linear::linear;
use mm_kernels::softmax_last;
use serde::{Deserialize, Serialize};

/// Settings of [`Cggm`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CggmConfig {
    /// ρ, factor of all B.
    pub rho: f64,
    /// λ, weight of L_gm.
    pub lambda: f64,
    /// The largest B.
    pub bound: f64,
    /// First epoch with modulation.
    pub start_epoch: usize,
    /// First epoch without modulation again.
    pub end_epoch: Option<usize>,
}

impl Default for CggmConfig {
    fn default() -> Self {
        Self { rho: 1.3, lambda: 0.2, bound: 5.0, start_epoch: 0, end_epoch: None }
    }
}

impl CggmConfig {
    /// Validates for a number of modalities.
    pub fn build(&self, modalities: usize) -> Checked<Cggm> {
        ConfigError::check_range("rho", self.rho, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("lambda", self.lambda, 0.0, f64::MAX)?;
        ConfigError::check_range("bound", self.bound, 1.0, f64::MAX)?;
        Ok(Cggm {
            config: self.clone(),
            before: vec![0.0; modalities],
            scores: Vec::new(),
            balance: Vec::new(),
            cosines: Vec::new(),
        })
    }
}

/// B_m from Δ_m; NaN takes no part and gets 0.
///
/// ```
/// use mm_balance::cggm::balance;
/// assert_eq!(balance(&[0.75, 0.25], 5.0), [0.25, 0.75]);
/// assert_eq!(balance(&[-0.1, 0.1], 5.0), [0.5, 0.5]);
/// ```
pub fn balance(improvements: &[f64], bound: f64) -> Vec<f64> {
    let known = improvements.iter().filter(|d| !d.is_nan()).count() as f64;
    let total: f64 = improvements.iter().filter(|d| !d.is_nan()).sum();
    let one = |d: &f64| match *d {
        d if d.is_nan() => 0.0,
        d if total > 0.0 => ((total - d) / total).clamp(0.0, bound),
        _ => (known - 1.0) / known,
    };
    improvements.iter().map(one).collect()
}

/// The share of rows with the modality whose largest logit is the right one; NaN where there is none.
pub fn accuracy(logits: &Tensor, batch: &Batch, m: mm_core::Modality) -> Result<f64> {
    let (_, classes) = logits.dims2()?;
    let values = to_host(logits)?;
    let (mut right, mut rows) = (0.0, 0.0);
    for (row, (z, label)) in values.chunks_exact(classes).zip(batch.labels.iter()).enumerate() {
        if batch.present[m].as_ref().is_some_and(|p| !p.rows()[row]) {
            continue;
        }
        let best = z.iter().enumerate().fold(0, |best, (c, x)| if *x > z[best] { c } else { best });
        rows += 1.0;
        right += f64::from(u8::from(best == *label as usize));
    }
    Ok(right / rows)
}

/// cos(G, G_m) of one modality, from features (B, D), fused logits and the classifier's logits (B, C). The gradient
/// reaches features and fused logits, the classifier's side is a constant; 0 where one of the two vanishes.
pub fn cosine(features: &Tensor, fused: &Tensor, classifier: &Tensor, labels: &[u32]) -> Result<Tensor> {
    let (rows, classes) = fused.dims2()?;
    let mut hot = vec![0.0; rows * classes];
    for (row, label) in labels.iter().enumerate().take(rows) {
        match hot[row * classes..(row + 1) * classes].get_mut(*label as usize) {
            Some(entry) => *entry = 1.0,
            None => bail!("row {row} has label {label}, but there are {classes} classes"),
        }
    }
    let hot = Tensor::from_vec(hot, (rows, classes), fused.device())?.to_dtype(fused.dtype())?;
    let gradient = |logits: &Tensor, h: &Tensor| -> Result<Tensor> {
        ((softmax_last(logits)? - &hot)?.t()?.contiguous()?.matmul(&h.contiguous()?))? / rows.max(1) as f64
    };
    let ours = gradient(fused, features)?;
    let theirs = gradient(&classifier.detach(), &features.detach())?;
    // A length of zero has no direction: the tiny term keeps its quotient and its gradient 0.
    let length = |g: &Tensor| (g.sqr()?.sum_all()? + 1e-24)?.sqrt();
    (&ours * &theirs)?.sum_all()? / (length(&ours)? * length(&theirs)?)?
}

/// See the [module](self).
#[derive(Debug)]
pub struct Cggm {
    config: CggmConfig,
    before: Vec<f64>,
    scores: Vec<f64>,
    balance: Vec<f64>,
    cosines: Vec<f64>,
}

impl Cggm {
    fn acts(&self, epoch: usize) -> bool {
        (self.config.start_epoch..self.config.end_epoch.unwrap_or(usize::MAX)).contains(&epoch)
    }

    /// The heads on features whose gradient is stopped.
    fn classifiers(cx: &StepCx<'_>, fwd: &Forward) -> Result<Modal<Tensor>> {
        fwd.features.try_map(|m, h| {
            let name = cx.model.modalities().name(m);
            let part = |part: &str| match cx.params.find(&format!("head.{name}.{part}")) {
                Some(p) => Ok(p.var().as_tensor().clone()),
                None => bail!("CGGM needs a linear head per modality, and there is no `head.{name}.{part}`"),
            };
            linear(&pooled(h)?.detach(), &part("weight")?, Some(&part("bias")?))
        })
    }

    /// ρ B_m; 1 where the batch says nothing about m.
    fn coefficients(&self) -> Vec<f64> {
        let pairs = self.balance.iter().zip(&self.scores);
        pairs.map(|(b, s)| if s.is_nan() { 1.0 } else { self.config.rho * b }).collect()
    }
}

impl Balancer for Cggm {
    fn needs(&self) -> Needs {
        Needs { heads: true, modalities: 2, ..Needs::default() }
    }

    fn auxiliary(&mut self, cx: &StepCx<'_>, fwd: &Forward) -> Result<Option<Tensor>> {
        let logits = Self::classifiers(cx, fwd)?;
        let (mut loss, scores) = losses_and_scores(&logits, cx.batch)?;
        self.scores = scores.into_values();
        let now = logits.try_map(|m, u| accuracy(u, cx.batch, m))?.into_values();
        let improvements: Vec<f64> = now.iter().zip(&self.before).map(|(now, before)| now - before).collect();
        for (before, now) in self.before.iter_mut().zip(now) {
            if !now.is_nan() {
                *before = now;
            }
        }
        (self.balance, self.cosines) = (Vec::new(), Vec::new());
        if !self.acts(cx.epoch) {
            return Ok(Some(loss));
        }
        self.balance = balance(&improvements, self.config.bound);
        for (m, h) in fwd.features.iter() {
            let cosine = cosine(&pooled(h)?, &fwd.fused, &logits[m], &cx.batch.labels)?;
            self.cosines.push(to_host(&cosine)?[0]);
            let b = self.balance[m.index()];
            let scale = self.config.lambda / logits.len() as f64;
            // |B| adds the same to every step that has this B, and no gradient.
            loss = (loss + cosine.affine(-scale * b, scale * b.abs())?)?;
        }
        Ok(Some(loss))
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        for (m, k) in self.coefficients().into_iter().enumerate() {
            let name = cx.model.modalities().name(mm_core::Modality::new(m));
            g.scale(cx.params, &format!("encoder.{name}"), k);
        }
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("score", Some(m), *s);
        }
        for (m, k) in self.coefficients().into_iter().enumerate() {
            sink("coefficient", Some(m), k);
        }
        for (m, c) in self.cosines.iter().enumerate() {
            sink("cosine", Some(m), *c);
        }
    }

    fn state(&self) -> State {
        State::from([("accuracies".to_owned(), self.before.clone())])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        self.before = saved(state, "CGGM", "accuracies", self.before.len())?.to_vec();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balance_at_the_edges() {
        assert_eq!(balance(&[0.2, 0.0], 5.0), [0.0, 1.0]);
        assert_eq!(balance(&[0.0, 0.0, 0.0], 5.0), [2.0 / 3.0; 3]);
        // Who falls back would get more than 1, and the other less than 0.
        assert_eq!(balance(&[0.5, -0.25], 5.0), [0.0, 2.0]);
        assert_eq!(balance(&[0.5, -0.25], 1.5), [0.0, 1.5]);
        assert_eq!(balance(&[f64::NAN, 0.5], 5.0), [0.0, 0.0]);
    }
}
