//! Cross-entropy of logits against labels or against distributions, and the probability of the true class.

use crate::host::{Real, View, by_dtype, largest, slice, sum_of};
use crate::softmax::composed_log_softmax;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Device, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::OnceLock;

const NAME: &str = "cross_entropy";

/// The weighted mean of the cross-entropy of `logits` against class indices.
///
/// ```text
/// L = sum_i w_i (log sum_c exp(z[i, c]) - z[i, labels[i]]) / sum_i w_i
/// ```
///
/// Shapes: `logits (B, C)`, `labels` of length B, `weights` of length B (1 everywhere by default); a scalar results. On
/// CPU `logits` is `f32` or `f64`. The gradient reaches `logits`; it is computed along with the value.
///
/// Where the weights sum to zero (or the batch is empty) the result is a zero whose gradient is zero - not absent - so
/// that a step which masks out every row does no harm.
///
/// Errors: a label that is not below C, naming row, label and C; a weight that is negative or not finite; a length
/// that is not B.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f64, 0.0], [0.0, 0.0]], &Device::Cpu)?;
/// let loss = mm_kernels::cross_entropy(&logits, &[0, 1], None)?;
/// assert!((loss.to_scalar::<f64>()? - 2f64.ln()).abs() < 1e-15);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn cross_entropy(logits: &Tensor, labels: &[u32], weights: Option<&[f64]>) -> Result<Tensor> {
    let (batch, classes) = dims(logits)?;
    check_labels(labels, batch, classes)?;
    let weights = normalised(weights, batch)?;
    if !logits.device().is_cpu() {
        return composed(logits, &one_hot(labels, classes, logits)?, &weights);
    }
    node(logits, Targets::Labels(labels.to_vec()), weights)
}

/// The weighted mean of the cross-entropy of `logits` against rows of target weights, as for soft labels.
///
/// ```text
/// L = - sum_i w_i sum_c t[i, c] log softmax(z[i, :])[c] / sum_i w_i
/// ```
///
/// Shapes: `logits (B, C)`, `targets (B, C)` of the same dtype, `weights` of length B; a scalar results. The rows of
/// `targets` are commonly distributions, but need not sum to one. The gradient reaches `logits` alone: `targets` are
/// detached. Everything else is as in [`cross_entropy`].
pub fn cross_entropy_soft(logits: &Tensor, targets: &Tensor, weights: Option<&[f64]>) -> Result<Tensor> {
    let (batch, _) = dims(logits)?;
    if targets.shape() != logits.shape() {
        bail!("{NAME}: targets {:?} must have the shape of the logits {:?}", targets.shape(), logits.shape())
    }
    let weights = normalised(weights, batch)?;
    let targets = targets.detach().contiguous()?;
    if !logits.device().is_cpu() {
        return composed(logits, &targets, &weights);
    }
    node(logits, Targets::Rows(targets), weights)
}

/// The softmax probability of each row's label, on the host and in `f64`.
///
/// ```text
/// p[i] = softmax(z[i, :])[labels[i]]
/// ```
///
/// `logits (B, C)` of any float type and on any device, read in one transfer; no graph is built. The errors are those
/// of [`cross_entropy`].
///
/// ```
/// use candle_core::{Device, Tensor};
/// let logits = Tensor::new(&[[0f32, 0.0, 0.0, 0.0]], &Device::Cpu)?;
/// assert_eq!(mm_kernels::true_class_probability(&logits, &[2])?, [0.25]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn true_class_probability(logits: &Tensor, labels: &[u32]) -> Result<Vec<f64>> {
    let (batch, classes) = dims(logits)?;
    check_labels(labels, batch, classes)?;
    let host = logits.detach().to_device(&Device::Cpu)?.to_dtype(DType::F64)?.contiguous()?;
    let view = View::new(&host);
    let rows = view.slice::<f64>("true_class_probability")?.chunks_exact(classes.max(1));
    Ok(rows
        .zip(labels)
        .map(|(row, &label)| {
            let max = largest(row);
            (row[label as usize] - max).exp() / row.iter().map(|z| (z - max).exp()).sum::<f64>()
        })
        .collect())
}

fn dims(logits: &Tensor) -> Result<(usize, usize)> {
    match *logits.dims() {
        [batch, classes] => Ok((batch, classes)),
        _ => bail!("{NAME}: logits must be (batch, classes), got {:?}", logits.shape()),
    }
}

fn check_labels(labels: &[u32], batch: usize, classes: usize) -> Result<()> {
    if labels.len() != batch {
        bail!("{NAME}: {} labels for a batch of {batch}", labels.len())
    }
    if let Some((row, label)) = labels.iter().enumerate().find(|&(_, &label)| label as usize >= classes) {
        bail!("{NAME}: row {row} has label {label}, but there are {classes} classes")
    }
    Ok(())
}

/// w_i / sum w, all zero where the sum is zero.
fn normalised(weights: Option<&[f64]>, batch: usize) -> Result<Vec<f64>> {
    let Some(weights) = weights else {
        return Ok(vec![1.0 / batch as f64; batch]);
    };
    if weights.len() != batch {
        bail!("{NAME}: {} weights for a batch of {batch}", weights.len())
    }
    if let Some((row, w)) = weights.iter().enumerate().find(|(_, w)| !(w.is_finite() && **w >= 0.0)) {
        bail!("{NAME}: row {row} has weight {w}; weights must be finite and not negative")
    }
    let total: f64 = weights.iter().sum();
    Ok(weights.iter().map(|w| if total > 0.0 { w / total } else { 0.0 }).collect())
}

enum Targets {
    Labels(Vec<u32>),
    Rows(Tensor),
}

struct CrossEntropy {
    targets: Targets,
    /// Sums to one, or is zero throughout.
    weights: Vec<f64>,
    /// The gradient with respect to the logits, kept by the forward pass where there is a graph to keep it for.
    gradient: Option<OnceLock<Tensor>>,
}

fn node(logits: &Tensor, targets: Targets, weights: Vec<f64>) -> Result<Tensor> {
    let gradient = logits.track_op().then(OnceLock::new);
    logits.contiguous()?.apply_op1(CrossEntropy { targets, weights, gradient })
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, logits: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let classes = layout.dims()[1];
        by_dtype!(NAME, logits.dtype(), T => {
            let z = slice::<T>(NAME, logits, layout)?;
            let mut softmax = vec![T::from_f64(0.0); z.len()];
            let loss = match &self.targets {
                Targets::Labels(labels) => against_labels(z, labels, &self.weights, &mut softmax),
                Targets::Rows(targets) => {
                    against_rows(z, View::new(targets).slice(NAME)?, classes, &self.weights, &mut softmax)
                }
            };
            if let Some(kept) = &self.gradient {
                // A second forward pass of the same operation would keep the same values: the first ones stay.
                let _ = kept.set(Tensor::from_vec(softmax, layout.shape(), &Device::Cpu)?);
            }
            Ok((T::to_cpu_storage_owned(vec![T::from_f64(loss)]), Shape::from(())))
        })
    }

    fn bwd(&self, _logits: &Tensor, _loss: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(kept) = self.gradient.as_ref().and_then(OnceLock::get) else {
            bail!("{NAME}: no gradient was kept, because the logits were outside every graph")
        };
        let scale = grad.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        Ok(Some(if scale == 1.0 { kept.clone() } else { kept.affine(scale, 0.0)? }))
    }
}

/// Fills `gradient` with w_i (softmax - one-hot) and returns the loss.
fn against_labels<T: Real>(z: &[T], labels: &[u32], weights: &[f64], gradient: &mut [T]) -> f64 {
    let classes = (z.len() / labels.len().max(1)).max(1);
    let rows = z.chunks_exact(classes).zip(gradient.chunks_exact_mut(classes));
    let mut loss = 0.0;
    for (((z, g), &label), &weight) in rows.zip(labels).zip(weights) {
        if weight == 0.0 {
            continue; // a row that does not count may hold anything, even a NaN
        }
        let label = label as usize;
        let (max, sum) = exponentials(z, g);
        loss += weight * (sum.ln() - (z[label] - max)).to_f64();
        let scale = T::from_f64(weight) / sum;
        for g in g.iter_mut() {
            *g *= scale;
        }
        g[label] -= T::from_f64(weight);
    }
    loss
}

/// Fills `gradient` with w_i (softmax sum_c t[i, c] - t[i, :]) and returns the loss.
fn against_rows<T: Real>(z: &[T], targets: &[T], classes: usize, weights: &[f64], gradient: &mut [T]) -> f64 {
    let classes = classes.max(1);
    let rows =
        z.chunks_exact(classes).zip(targets.chunks_exact(classes)).zip(gradient.chunks_exact_mut(classes));
    let mut loss = 0.0;
    for (((z, t), g), &weight) in rows.zip(weights) {
        if weight == 0.0 {
            continue;
        }
        let (max, sum) = exponentials(z, g);
        let log_sum = sum.ln();
        // A class of target zero does not count, even where its logit is -inf.
        let row = z
            .iter()
            .zip(t)
            .filter(|(_, t)| **t != T::zero())
            .map(|(&z, &t)| t * (log_sum - (z - max)))
            .sum::<T>();
        loss += weight * row.to_f64();
        let scale = T::from_f64(weight) * sum_of(t, |t| t) / sum;
        let weight = T::from_f64(weight);
        for (g, &t) in g.iter_mut().zip(t) {
            *g = *g * scale - weight * t;
        }
    }
    loss
}

/// Fills `e` with exp(z - max z); returns the maximum and the sum.
#[inline]
fn exponentials<T: Real>(z: &[T], e: &mut [T]) -> (T, T) {
    let max = largest(z);
    for (e, &z) in e.iter_mut().zip(z) {
        *e = (z - max).exp();
    }
    (max, sum_of(e, |e| e))
}

fn one_hot(labels: &[u32], classes: usize, like: &Tensor) -> Result<Tensor> {
    let mut rows = vec![0f32; labels.len() * classes];
    for (row, &label) in labels.iter().enumerate() {
        rows[row * classes + label as usize] = 1.0;
    }
    Tensor::from_vec(rows, (labels.len(), classes), like.device())?.to_dtype(like.dtype())
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed(logits: &Tensor, targets: &Tensor, weights: &[f64]) -> Result<Tensor> {
    let weights =
        Tensor::from_slice(weights, (weights.len(), 1), logits.device())?.to_dtype(logits.dtype())?;
    let weighted = targets.broadcast_mul(&weights)?;
    (composed_log_softmax(logits)? * weighted)?.sum_all()?.neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        let (x, labels) = ([normal(&[4, 3], 1)?], [2, 0, 1, 1]);
        let soft = normal(&[4, 3], 2)?.abs()?;
        for weights in [None, Some([0.5, 0.0, 2.0, 1.0].as_slice()), Some([0.0; 4].as_slice())] {
            let shares = normalised(weights, 4)?;
            let hard = |x: &[Tensor]| composed(&x[0], &one_hot(&labels, 3, &x[0])?, &shares);
            assert_same(|x| cross_entropy(&x[0], &labels, weights), hard, &x)?;
            let cast = |x: &[Tensor]| soft.to_dtype(x[0].dtype());
            let rows = |x: &[Tensor]| composed(&x[0], &cast(x)?, &shares);
            assert_same(|x| cross_entropy_soft(&x[0], &cast(x)?, weights), rows, &x)?;
        }
        Ok(())
    }
}
