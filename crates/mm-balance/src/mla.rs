//! MLA: modalities take turns on one shared head, whose gradient is kept from undoing what the others have learned; a
//! decision weighs the modalities by their certainty.
//!
//! ```text
//! for m = 1..M, each with an optimiser step of its own:
//!     L_m = CE(W h^m + b, y)
//!     ∇W  ← ∇W P                                     P = I at the start of training
//!     P   ← P - k kᵀ / (α + r k),   r = mean row of h^m,   k = P rᵀ,   α = 0.1^{1 + t/T}
//! decision: z = Σ_m g_m z^m,   g = softmax_m(-H(softmax(z^m)))
//! ```
//!
//! t is the batch within the epoch, T the number of batches, H the entropy of a row. P (D, D) is a recursive
//! least-squares projector: directions that mean features have taken are closed to the head. Shapes: h^m (B, D) of
//! one width, or (B, N, D) whose mean over tokens is taken; W (C, D), b (C). The method brings the shared head as its
//! own fusion, in the place of the configured one, and does the whole step, so it stands alone.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `gate` | `row` | | `batch`: as released; `even`: the same weight for all modalities |
//! | `projector` | true | | whether P is used |
//! | `alpha` | 0.1 | (0, 1] | the base of α |
//!
//! Parameters: `fusion.weight`, `fusion.bias`, U(±1/√D).
//!
//! Differences. The released projector never runs, because it looks for a parameter name that does not exist; if it
//! ran, it would divide by an outer product and rescale P to length 1. This is the update that its comments and the
//! paper describe; as the paper speaks of what other modalities have learned, a modality's own features enter P after
//! its step (the released order is before). The released entropy runs over the whole batch, softmax along the rows,
//! which gives one weight per modality and batch that is close to 0 or 1 (`gate = "batch"`: a decision then depends
//! on the rows beside it). A row weighs only the modalities that it has. Mixing weights of released runs without a
//! gate are constants per data set; here they are even.
//!
//! Source: Zhang et al., "Multimodal Representation Learning by Alternating Unimodal Adaptation", CVPR 2024, arXiv
//! 2311.10707; released code Cecile-hi/Multimodal-Learning-with-Alternating-Unimodal-Adaptation @ab6c184.

use crate::{EpochCx, EpochReport, Needs, Optimizer, State, StepCx, StepReport, TrainStep, score};
use candle_core::{Result, Tensor, bail};
use mm_core::model::{pooled, to_host};
use mm_core::{Batch, Features, Forward, Fusion, Gradients, Init, Modal, Mode, Multimodal, Presence, Scope};
use mm_core::{Checked, ConfigError};
use mm_kernels::softmax::log_softmax_last;
use mm_kernels::{cross_entropy, linear};
use serde::{Deserialize, Serialize};

/// How a decision weighs the modalities.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Gate {
    /// By the entropy of each row.
    #[default]
    Row,
    /// By one entropy per modality over the whole batch, as released.
    Batch,
    /// All the same.
    Even,
}

/// Settings of [`Mla`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MlaConfig {
    /// How a decision weighs the modalities.
    pub gate: Gate,
    /// Whether the head's gradient is projected.
    pub projector: bool,
    /// The base of α.
    pub alpha: f64,
}

impl Default for MlaConfig {
    fn default() -> Self {
        Self { gate: Gate::Row, projector: true, alpha: 0.1 }
    }
}

impl MlaConfig {
    /// What the method asks for.
    pub fn needs(&self) -> Needs {
        Needs { fusion: false, equal_widths: true, modalities: 2, ..Needs::default() }
    }

    /// Validates.
    pub fn build(&self) -> Checked<Mla> {
        ConfigError::check_range("alpha", self.alpha, f64::MIN_POSITIVE, 1.0)?;
        Ok(Mla { config: self.clone(), projector: Vec::new(), batch: 0, batches: 1, checked: false })
    }

    /// Makes the shared head under `scope`.
    pub fn fusion(&self, mut scope: Scope<'_>, widths: &Modal<usize>, classes: usize) -> Result<SharedHead> {
        let width = widths.values().first().copied().unwrap_or(0);
        if widths.values().iter().any(|&w| w != width) {
            bail!(
                "MLA has one head for all modalities: features of widths {:?} do not fit it",
                widths.values()
            );
        }
        let weight = scope.param("weight", (classes, width), Init::linear(width))?;
        let bias = scope.param("bias", classes, Init::linear(width))?;
        Ok(SharedHead { weight, bias, gate: self.gate })
    }
}

/// Entropy of the softmax of each row of logits (B, C), on the host.
pub fn entropies(logits: &Tensor) -> Result<Vec<f64>> {
    let classes = logits.dim(1)?.max(1);
    let log = to_host(&log_softmax_last(&logits.detach())?)?;
    // p log p with p = exp(log p) is 0 where p is.
    Ok(log
        .chunks(classes)
        .map(|row| -row.iter().map(|l| if *l < -700.0 { 0.0 } else { l.exp() * l }).sum::<f64>())
        .collect())
}

/// `softmax_m(-H_m)` over the modalities of a row; NaN means that the row lacks the modality, which gets 0.
///
/// ```
/// let g = mm_balance::mla::gates(&[0.5, f64::NAN, 0.5]);
/// assert_eq!(g, [0.5, 0.0, 0.5]);
/// ```
pub fn gates(entropies: &[f64]) -> Vec<f64> {
    let least = entropies.iter().copied().fold(f64::INFINITY, f64::min); // ignores NaN
    let raw: Vec<f64> = entropies.iter().map(|h| if h.is_nan() { 0.0 } else { (least - h).exp() }).collect();
    let total: f64 = raw.iter().sum();
    raw.into_iter().map(|g| if total > 0.0 { g / total } else { 0.0 }).collect()
}

/// The released entropy of a whole batch: softmax along the rows, summed over all entries.
pub fn batch_entropy(logits: &Tensor) -> Result<f64> {
    Ok(entropies(&logits.detach().t()?.contiguous()?)?.iter().sum())
}

/// `P - k kᵀ / (α + r k)` with k = P rᵀ: P (D, D), row-major, and a feature row r (D).
pub fn absorb(projector: &mut [f64], r: &[f64], alpha: f64) {
    let width = r.len();
    let k: Vec<f64> =
        projector.chunks(width.max(1)).map(|row| row.iter().zip(r).map(|(p, r)| p * r).sum()).collect();
    let scale = 1.0 / (alpha + r.iter().zip(&k).map(|(r, k)| r * k).sum::<f64>());
    for (row, a) in projector.chunks_mut(width.max(1)).zip(&k) {
        for (p, b) in row.iter_mut().zip(&k) {
            *p -= scale * a * b;
        }
    }
}

/// The released update, which never ran: an element-wise division by α + k r, an outer product, and a rescaling to
/// Frobenius norm 1.
pub fn absorb_released(projector: &mut [f64], r: &[f64], alpha: f64) {
    let width = r.len();
    let k: Vec<f64> =
        projector.chunks(width.max(1)).map(|row| row.iter().zip(r).map(|(p, r)| p * r).sum()).collect();
    for (row, a) in projector.chunks_mut(width.max(1)).zip(&k) {
        for ((p, b), r) in row.iter_mut().zip(&k).zip(r) {
            *p -= a * b / (alpha + a * r);
        }
    }
    let norm = projector.iter().map(|p| p * p).sum::<f64>().sqrt();
    for p in projector {
        *p /= norm;
    }
}

/// `g Pᵀ`: the gradient (C, D) of a head's weight through the projector.
pub fn project(gradient: &Tensor, projector: &[f64]) -> Result<Tensor> {
    let width = gradient.dim(1)?;
    let p = Tensor::from_slice(projector, (width, width), gradient.device())?.to_dtype(gradient.dtype())?;
    gradient.matmul(&p.t()?)
}

/// One linear head for the features of every modality, and the gate.
#[derive(Debug)]
pub struct SharedHead {
    weight: Tensor,
    bias: Tensor,
    gate: Gate,
}

/// The weighted sum of logits (B, C) per modality; rows weigh the modalities that they have.
pub fn decide(logits: &Modal<Tensor>, present: &Modal<Option<Presence>>, gate: Gate) -> Result<Tensor> {
    let Some((_, first)) = logits.iter().next() else { bail!("MLA: a decision of no modality") };
    let rows = first.dim(0)?;
    let mut certainty: Vec<Vec<f64>> = Vec::with_capacity(logits.len());
    for (m, z) in logits.iter() {
        let mut h = match gate {
            Gate::Row => entropies(z)?,
            Gate::Batch => vec![batch_entropy(z)?; rows],
            Gate::Even => vec![0.0; rows],
        };
        if let Some(p) = &present[m] {
            h.iter_mut().zip(p.rows()).filter(|(_, here)| !**here).for_each(|(h, _)| *h = f64::NAN);
        }
        certainty.push(h);
    }
    let mut weights: Vec<Vec<f64>> = vec![Vec::with_capacity(rows); logits.len()];
    for row in 0..rows {
        let h: Vec<f64> = certainty.iter().map(|h| h[row]).collect();
        for (w, g) in weights.iter_mut().zip(gates(&h)) {
            w.push(g);
        }
    }
    let parts = logits
        .values()
        .iter()
        .zip(weights)
        .map(|(z, w)| z.broadcast_mul(&Tensor::from_vec(w, (rows, 1), z.device())?.to_dtype(z.dtype())?));
    mm_core::model::sum(&parts.collect::<Result<Vec<_>>>()?)
}

impl Fusion for SharedHead {
    fn fuse(&self, z: &Features, present: &Modal<Option<Presence>>, _: Mode) -> Result<Tensor> {
        decide(&z.try_map(|_, h| linear(&pooled(h)?, &self.weight, Some(&self.bias)))?, present, self.gate)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Mla {
    config: MlaConfig,
    /// P, row-major; empty before the first step.
    projector: Vec<f64>,
    batch: usize,
    batches: usize,
    checked: bool,
}

impl TrainStep for Mla {
    fn needs(&self) -> Needs {
        self.config.needs()
    }

    fn epoch_start(&mut self, cx: &EpochCx<'_>) -> Result<()> {
        self.batch = 0;
        self.batches = cx.train.map_or(1, crate::TrainBatches::count).max(1);
        Ok(())
    }

    fn step(&mut self, cx: &StepCx<'_>, optimizer: &mut dyn Optimizer) -> Result<StepReport> {
        let (Some(head), Some(bias)) = (
            cx.params.ids().find(|&id| cx.params.get(id).name() == "fusion.weight"),
            cx.params.find("fusion.bias"),
        ) else {
            bail!("MLA trains its own shared head: build the model with the fusion of `MlaConfig::fusion`")
        };
        let (weight, bias) = (cx.params.get(head).var().as_tensor(), bias.var().as_tensor());
        let alpha = self.config.alpha.powf(1.0 + self.batch as f64 / self.batches as f64);
        let mut reached = Gradients::empty(cx.params);
        let (mut losses, mut observations) = (Vec::new(), Vec::new());
        for m in cx.model.modalities().iter() {
            let present = cx.batch.present[m].as_ref();
            let h = pooled(&cx.model.encode(m, cx.batch, cx.mode)?)?;
            let z = linear(&h, weight, Some(bias))?;
            let loss = cross_entropy(&z, &cx.batch.labels, cx.batch.weights(m).as_deref())?;
            let mut g = Gradients::collect(cx.params, loss.backward()?);
            if !self.checked {
                for id in cx.params.ids() {
                    if let Some(gradient) = g.get(id)? {
                        reached.set(id, Some(gradient));
                    }
                }
            }
            let score = score::true_class(&Modal::new(vec![z]), &single(cx.batch, m))?.into_values()[0];
            observations.push(("score", Some(m.index()), score));
            let prefix = format!("encoder.{}", cx.model.modalities().name(m));
            observations.push(("grad_norm", Some(m.index()), g.norm(cx.params.group(&prefix))?));
            if present.is_some_and(|p| p.count() == 0) {
                continue; // nothing to learn from; a step would only decay the weights
            }
            if self.config.projector {
                let width = h.dim(1)?;
                if self.projector.len() != width * width {
                    self.projector =
                        (0..width * width).map(|n| f64::from(u8::from(n / width == n % width))).collect();
                }
                if let Some(gradient) = g.get(head)? {
                    g.set(head, Some(project(&gradient, &self.projector)?));
                }
                absorb(&mut self.projector, &mean_row(&h, present)?, alpha);
            }
            optimizer.step(&mut g)?;
            losses.push(to_host(&loss)?[0]);
        }
        if !self.checked {
            reached.check_reached(cx.params)?;
            self.checked = true;
        }
        self.batch += 1;
        let loss = losses.iter().sum::<f64>() / losses.len() as f64;
        let rows = if losses.is_empty() { 0 } else { cx.batch.rows() };
        Ok(StepReport { loss, rows, observations })
    }

    fn epoch_end(&mut self, _: &EpochCx<'_>, _: &EpochReport) -> Result<()> {
        Ok(())
    }

    fn decide(&self, _: &dyn Multimodal, _: &Batch, fwd: &Forward) -> Result<Tensor> {
        Ok(fwd.fused.clone())
    }

    fn state(&self) -> State {
        let counts = vec![self.batch as f64, self.batches as f64];
        State::from([("projector".into(), self.projector.clone()), ("batch".into(), counts)])
    }

    fn restore(&mut self, state: &State) -> Result<()> {
        match (state.get("projector"), state.get("batch").map(Vec::as_slice)) {
            (Some(projector), Some(&[batch, batches])) => {
                self.projector.clone_from(projector);
                (self.batch, self.batches) = (batch as usize, batches as usize);
                Ok(())
            }
            _ => bail!("the checkpoint lacks MLA's projector"),
        }
    }
}

/// The batch as one of a single modality.
fn single(batch: &Batch, m: mm_core::Modality) -> Batch {
    let inputs = Modal::new(vec![batch.inputs[m].clone()]);
    let present = Modal::new(vec![batch.present[m].clone()]);
    let lengths = Modal::new(vec![batch.lengths[m].clone()]);
    Batch { inputs, lengths, present, labels: batch.labels.clone(), ids: batch.ids.clone() }
}

/// The mean of the rows that are there.
fn mean_row(h: &Tensor, present: Option<&Presence>) -> Result<Vec<f64>> {
    let (rows, width) = h.dims2()?;
    let count = present.map_or(rows, Presence::count).max(1) as f64;
    let mut mean = vec![0.0; width];
    // Rows that are missing hold zeros.
    for row in to_host(h)?.chunks(width.max(1)) {
        mean.iter_mut().zip(row).for_each(|(m, x)| *m += x / count);
    }
    Ok(mean)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_direction_that_was_taken_is_closed() {
        let mut p = vec![1.0, 0.0, 0.0, 1.0];
        absorb(&mut p, &[3.0, 4.0], 1e-9);
        let g = Tensor::new(&[[6f64, 8.0], [-4.0, 3.0]], &Device::Cpu).unwrap();
        let g = project(&g, &p).unwrap().to_vec2::<f64>().unwrap();
        assert!(g[0].iter().all(|x| x.abs() < 1e-8), "{g:?}");
        assert!((g[1][0] + 4.0).abs() < 1e-8 && (g[1][1] - 3.0).abs() < 1e-8, "{g:?}");
    }

    #[test]
    fn entropies_of_certain_rows_are_zero() {
        let z = Tensor::new(&[[200f32, -200.0, -200.0], [0.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let h = entropies(&z).unwrap();
        assert!(h[0] < 1e-100 && (h[1] - 3f64.ln()).abs() < 1e-6, "{h:?}");
        assert_eq!(gates(&[f64::NAN, f64::NAN]), [0.0, 0.0]);
    }
}
