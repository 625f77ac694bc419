//! Functional-entropy regularisation: the prediction must depend on every modality's input.
//!
//! ```text
//! x̃^m_{i,r} = x^m_i + σ_m ∘ ξ,   ξ ~ N(0, I),  r = 1..n        σ_m: deviation of each input feature over the batch
//! t_i       = softmax(z(x_i))
//! ℓ         = mean over rows (i,r) and classes of BCE(z(x̃_{i,r}), t_i)
//! s_m       = mean_{i,r} ‖∂ℓ/∂x̃^m_{i,r}‖² [/ ℓ]     Fisher information: bounds the functional entropy (variance)
//! R         = ‖(1/s_1, …, 1/s_M)‖₂      (inverse)
//!           = 0.1 - ‖(s_1, …, s_M)‖₂    (margin)
//!           = ‖(s_1, …, s_M)‖₂          (minimum: the opposite)
//! L         = CE(z, y) + δ R
//! ```
//!
//! The division by ℓ makes it the functional entropy; without it, it is the variance. Everything is differentiated
//! with respect to the parameters, the targets t included. Inputs are any real-valued tensors (B, …); rows that lack
//! a modality have no part in s_m.
//!
//! | parameter | default | range | meaning |
//! |---|---|---|---|
//! | `weight` δ | 1e-10 | > 0 | the scores are tiny: 1/s is near 1e4 in small nets |
//! | `replicas` n | 10 | >= 1 | perturbed copies of a row |
//! | `estimate` | `entropy` | | `variance` |
//! | `form` | `inverse` | | `margin`, `minimum` |
//! | `start_epoch`, `end_epoch` | 0, none | | when it acts |
//!
//! How. R holds first derivatives, so its gradient holds mixed second ones, which candle does not have. With v_m =
//! ∂R/∂s_m ∂s_m/∂g^m the gradient is d/dε ∇_θ ℓ(x̃ + ε v) at 0, a fourth-order central difference of four more
//! backward passes, besides the part through ℓ itself; the step suits inputs of about unit scale, as standardisation
//! makes them. The extra passes run in evaluation mode, so that running statistics move once per step; dropout and
//! batch statistics do not enter R, which they do in the released code. A step costs about 1 + 5n steps. The loss
//! that a step reports is without δ R, which is reported by itself. A modality whose score is 0 is left out.
//!
//! It takes the fused logits and stands beside no method that decides otherwise.
//!
//! Source: Gat et al., "Removing Bias in Multi-modal Classifiers: Regularization by Maximizing Functional Entropies",
//! NeurIPS 2020; released code itaigat/removing-bias-in-multi-modal-classifiers @f76416c.

use crate::{Balancer, Needs, StepCx, Windowed};
use candle_core::{DType, Result, Tensor, Var, bail};
use mm_core::gradients::square_sum;
use mm_core::model::to_host;
use mm_core::{
    Batch, Checked, ConfigError, Forward, Gradients, Modal, Mode, Multimodal, ParamStore, Presence,
};
use mm_kernels::softmax::softmax_last;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What the scores bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Estimate {
    /// The functional entropy: squared gradients over the loss.
    #[default]
    Entropy,
    /// The variance: squared gradients.
    Variance,
}

/// How scores become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `‖1/s‖₂`: maximises the scores.
    #[default]
    Inverse,
    /// `0.1 - ‖s‖₂`: maximises them, too.
    Margin,
    /// `‖s‖₂`: minimises them.
    Minimum,
}

/// Settings of [`FunctionalEntropy`]; see the [module](self) for ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FunctionalEntropyConfig {
    /// δ, weight of the regulariser.
    pub weight: f64,
    /// n, perturbed copies of a row.
    pub replicas: usize,
    /// What the scores bound.
    pub estimate: Estimate,
    /// How scores become one number.
    pub form: Form,
    /// First epoch with the regulariser.
    pub start_epoch: usize,
    /// First epoch without it again.
    pub end_epoch: Option<usize>,
}

impl Default for FunctionalEntropyConfig {
    fn default() -> Self {
        Self {
            weight: 1e-10,
            replicas: 10,
            estimate: Estimate::Entropy,
            form: Form::Inverse,
            start_epoch: 0,
            end_epoch: None,
        }
    }
}

impl FunctionalEntropyConfig {
    /// Validates.
    pub fn build(&self) -> Checked<Windowed<FunctionalEntropy>> {
        ConfigError::check_range("weight", self.weight, f64::MIN_POSITIVE, f64::MAX)?;
        ConfigError::check_range("replicas", self.replicas as f64, 1.0, 1e6)?;
        let method = FunctionalEntropy { config: self.clone(), scores: Vec::new(), value: None };
        Ok(Windowed::new(method, self.start_epoch, self.end_epoch))
    }
}

/// R and ∂R/∂s_m; scores that are 0 or not finite have no part in it.
pub fn regulariser(scores: &[f64], form: Form) -> (f64, Vec<f64>) {
    let counts = |s: f64| s.is_finite() && s > 0.0;
    let term = |s: f64| match form {
        _ if !counts(s) => 0.0,
        Form::Inverse => 1.0 / s,
        Form::Margin | Form::Minimum => s,
    };
    let norm = scores.iter().map(|&s| term(s) * term(s)).sum::<f64>().sqrt();
    let slopes = scores.iter().map(|&s| match form {
        _ if !counts(s) || norm == 0.0 => 0.0,
        Form::Inverse => -term(s) / norm * term(s) * term(s),
        Form::Margin => -s / norm,
        Form::Minimum => s / norm,
    });
    let slopes = slopes.collect();
    (if form == Form::Margin { 0.1 - norm } else { norm }, slopes)
}

/// Estimates from positive numbers f (rows, copies of a row), which the scores bound; training needs none of them.
pub mod statistics {
    /// The unbiased variance of each row.
    pub fn variances(f: &[Vec<f64>]) -> Vec<f64> {
        let variance = |row: &Vec<f64>| {
            let mean = row.iter().sum::<f64>() / row.len() as f64;
            row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / (row.len() as f64 - 1.0)
        };
        f.iter().map(variance).collect()
    }

    /// `E[f log f] - E[f] log E[f]` over all entries, each row divided by its sum first.
    pub fn functional_entropy(f: &[Vec<f64>]) -> f64 {
        let shares = f.iter().flat_map(|row| {
            let total: f64 = row.iter().sum();
            row.iter().map(move |x| x / total)
        });
        let shares: Vec<f64> = shares.collect();
        let mean = |values: &mut dyn Iterator<Item = f64>| values.sum::<f64>() / shares.len() as f64;
        let level = mean(&mut shares.iter().copied());
        mean(&mut shares.iter().map(|x| x * x.ln())) - level * level.ln()
    }

    /// `-Σ f log f`.
    pub fn differential_entropy(f: &[Vec<f64>]) -> f64 {
        -f.iter().flatten().map(|x| x * x.ln()).sum::<f64>()
    }
}

/// `x_i + σ ∘ ξ`: each row n times in a row, with the deviation (unbiased, over the repeated rows) of each feature
/// times the standard normal `noise`, of the shape of the result.
pub fn perturbed(x: &Tensor, replicas: usize, noise: &Tensor) -> Result<Tensor> {
    let repeated = repeated(x, replicas)?;
    let rows = repeated.dim(0)?;
    if rows < 2 {
        return Ok(repeated);
    }
    let centred = repeated.broadcast_sub(&repeated.mean_keepdim(0)?)?;
    let deviation = (centred.sqr()?.sum_keepdim(0)? / (rows - 1) as f64)?.sqrt()?;
    repeated + noise.broadcast_mul(&deviation)?
}

/// Each row n times in a row.
fn repeated(x: &Tensor, replicas: usize) -> Result<Tensor> {
    let rows = x.dim(0)?;
    let index: Vec<u32> = (0..rows * replicas).map(|n| (n / replicas) as u32).collect();
    x.index_select(&Tensor::from_vec(index, rows * replicas, x.device())?, 0)
}

/// Mean binary cross-entropy with logits, differentiated in both arguments.
fn binary_cross_entropy(logits: &Tensor, targets: &Tensor) -> Result<Tensor> {
    // log(1 + e^z) = max(z, 0) + log(1 + e^{-|z|})
    let soft = (logits.abs()?.neg()?.exp()? + 1.0)?.log()?;
    ((mm_kernels::relu(logits)? + soft)? - (logits * targets)?)?.mean_all()
}

/// The regulariser's scores, its value and its gradient.
#[derive(Debug)]
pub struct Found {
    /// ℓ.
    pub loss: f64,
    /// ∂ℓ/∂x̃^m.
    pub input_gradients: Modal<Tensor>,
    /// s_m; NaN where the modality is missing in every row.
    pub scores: Vec<f64>,
    /// R.
    pub value: f64,
    /// ∂R/∂θ, in the order of the parameters.
    pub gradients: Vec<Option<Tensor>>,
}

/// R and its gradient for a batch and its perturbed copies (in `perturbed.inputs`, each row n times in a row).
pub fn evaluate(
    model: &dyn Multimodal,
    params: &ParamStore,
    batch: &Batch,
    perturbed: &Batch,
    estimate: Estimate,
    form: Form,
) -> Result<Found> {
    let replicas = perturbed.rows() / batch.rows().max(1);
    let loss_at = |inputs: Modal<Tensor>| -> Result<Tensor> {
        let targets = repeated(&softmax_last(&model.forward(batch, Mode::Eval)?.fused)?, replicas)?;
        let batch = Batch { inputs, ..perturbed.clone() };
        binary_cross_entropy(&model.forward(&batch, Mode::Eval)?.fused, &targets)
    };
    let inputs = perturbed.inputs.try_map(|_, x| Var::from_tensor(x))?;
    let loss = loss_at(inputs.map(|_, x| x.as_tensor().clone()))?;
    let mut grads = loss.backward()?;
    let g = inputs.try_map(|_, x| match grads.remove(x.as_tensor()) {
        Some(g) => Ok(g),
        None => x.zeros_like(),
    })?;
    let at_start = Gradients::collect(params, grads);
    let loss = to_host(&loss)?[0];
    let divisor = if estimate == Estimate::Entropy { loss } else { 1.0 };
    let rows = perturbed.present.map(|_, p| p.as_ref().map_or(perturbed.rows(), Presence::count) as f64);
    let mut scores = Vec::with_capacity(g.len());
    for (m, g) in g.iter() {
        scores.push(square_sum(g)? / rows[m] / divisor);
    }
    let (value, slopes) = regulariser(&scores, form);

    let directions = g.try_map(|m, g| {
        g.affine(2.0 * slopes[m.index()] / (rows[m] * divisor).max(f64::MIN_POSITIVE), 0.0)
    })?;
    let mut square = 0.0;
    for d in directions.values() {
        square += square_sum(d)?;
    }
    let mut gradients: Vec<Option<Tensor>> = vec![None; params.len()];
    let mut add = |from: &Gradients, weight: f64| -> Result<()> {
        for (id, total) in params.ids().zip(&mut gradients) {
            let Some(g) = from.get(id)? else { continue };
            let term = g.affine(weight, 0.0)?;
            *total = Some(match total.take() {
                Some(sum) => (sum + term)?,
                None => term,
            });
        }
        Ok(())
    };
    if square > 0.0 && square.is_finite() {
        // Where the rounding of the gradients and the error of the formula meet for inputs near 1: 1e-10 in f64, 4e-5
        // in f32.
        let step = if loss_dtype(perturbed) == DType::F64 { 1e-3 } else { 1e-2 };
        let eps = step * (perturbed.rows() as f64).sqrt() / square.sqrt();
        for (multiple, weight) in [(1.0, 8.0), (-1.0, -8.0), (2.0, -1.0), (-2.0, 1.0)] {
            let moved = perturbed.inputs.try_map(|m, x| x + directions[m].affine(multiple * eps, 0.0)?)?;
            add(&Gradients::collect(params, loss_at(moved)?.backward()?), weight / (12.0 * eps))?;
        }
        if estimate == Estimate::Entropy {
            // s = q/ℓ: the part through ℓ.
            let through: f64 =
                scores.iter().zip(&slopes).filter(|(s, _)| s.is_finite()).map(|(s, c)| s * c).sum();
            add(&at_start, -through / loss)?;
        }
    }
    Ok(Found { loss, input_gradients: g, scores, value, gradients })
}

fn loss_dtype(batch: &Batch) -> DType {
    batch.inputs.values().first().map_or(DType::F32, Tensor::dtype)
}

/// See the [module](self).
#[derive(Debug)]
pub struct FunctionalEntropy {
    config: FunctionalEntropyConfig,
    scores: Vec<f64>,
    value: Option<f64>,
}

impl FunctionalEntropy {
    /// The batch n times over, with noise.
    fn copies(&self, cx: &StepCx<'_>) -> Result<Batch> {
        let (n, batch) = (self.config.replicas, cx.batch);
        let inputs = batch.inputs.try_map(|m, x| {
            if !x.dtype().is_float() {
                bail!(
                    "functional-entropy moves inputs a little, and modality `{}` has {:?} inputs, such as tokens; use \
                     another method",
                    cx.model.modalities().name(m),
                    x.dtype()
                );
            }
            let mut draws = cx.rng.stream("functional-entropy").sample(m.index() as u64).draws();
            let noise: Vec<f64> = (0..x.elem_count() * n).map(|_| draws.normal()).collect();
            let mut shape = x.dims().to_vec();
            shape[0] *= n;
            let x = perturbed(x, n, &Tensor::from_vec(noise, shape, x.device())?.to_dtype(x.dtype())?)?;
            match &batch.present[m] {
                Some(present) => copies_of(present, n, &x)?.apply(&x),
                None => Ok(x),
            }
        })?;
        let present = batch
            .present
            .try_map(|m, p| p.as_ref().map(|p| copies_of(p, n, &batch.inputs[m])).transpose())?;
        let labels = batch.labels.iter().flat_map(|&y| std::iter::repeat_n(y, n)).collect();
        let ids = batch.ids.iter().flat_map(|&id| std::iter::repeat_n(id, n)).collect();
        let lengths = batch.lengths.map(|_, lengths| {
            let repeated =
                |lengths: &Arc<[usize]>| lengths.iter().flat_map(|&l| std::iter::repeat_n(l, n)).collect();
            lengths.as_ref().map(repeated)
        });
        Ok(Batch { inputs, lengths, present, labels, ids })
    }
}

fn copies_of(present: &Presence, n: usize, like: &Tensor) -> Result<Presence> {
    let rows = present.rows().iter().flat_map(|&here| std::iter::repeat_n(here, n)).collect();
    Presence::new(rows, like.dtype(), like.device())
}

impl Balancer for FunctionalEntropy {
    fn needs(&self) -> Needs {
        Needs { modalities: 2, ..Needs::default() }
    }

    fn gradients(&mut self, cx: &StepCx<'_>, _: &Forward, g: &mut Gradients) -> Result<()> {
        let copies = self.copies(cx)?;
        let found = evaluate(cx.model, cx.params, cx.batch, &copies, self.config.estimate, self.config.form)?;
        for (id, term) in cx.params.ids().zip(&found.gradients) {
            if let Some(term) = term {
                let term = term.affine(self.config.weight, 0.0)?;
                // Scores near 0 overflow; such a step goes without the regulariser.
                if square_sum(&term)?.is_finite() {
                    g.add(id, &term)?;
                }
            }
        }
        self.scores = found.scores;
        self.value = Some(self.config.weight * found.value);
        Ok(())
    }

    fn observe(&self, sink: &mut dyn FnMut(&'static str, Option<usize>, f64)) {
        for (m, s) in self.scores.iter().enumerate() {
            sink("information", Some(m), if s.is_finite() { *s } else { 0.0 });
        }
        if let Some(value) = self.value.filter(|v| v.is_finite()) {
            sink("regulariser", None, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_the_derivatives() {
        let scores = [0.3, 0.7, 1.1];
        for form in [Form::Inverse, Form::Margin, Form::Minimum] {
            let (_, slopes) = regulariser(&scores, form);
            for m in 0..3 {
                let at = |d: f64| {
                    let mut s = scores;
                    s[m] += d;
                    regulariser(&s, form).0
                };
                let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
                assert!((slopes[m] - numeric).abs() < 1e-8, "{form:?} {m}: {} {numeric}", slopes[m]);
            }
        }
        assert_eq!(regulariser(&[0.0, f64::NAN, 2.0], Form::Inverse), (0.5, vec![0.0, 0.0, -0.25]));
        assert_eq!(regulariser(&[0.0, 0.0], Form::Minimum), (0.0, vec![0.0, 0.0]));
    }
}
