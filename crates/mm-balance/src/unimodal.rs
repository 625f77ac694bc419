//! The cross-entropies of several unimodal predictions and their scores, in one pass over the logits.
//!
//! ```text
//! L   = Σ_m 1/|P_m| Σ_{i in P_m} -log p^m_i[y_i],   p^m = softmax(u^m)
//! s_m = 1/|P_m| Σ_{i in P_m} p^m_i[y_i]
//! ```
//!
//! over the rows P_m that have modality m. Shapes: logits u^m (B, C) per modality, labels (B). L is a scalar with a
//! gradient to every u^m; the scores are on the host, NaN where P_m is empty, and equal
//! [`crate::score::true_class`]. A modality of which the batch has no row adds nothing to L, and its
//! gradient is zero.
//!
//! Multi-Loss and MLB need both in every step; computed apart they would take two passes and 2M graph nodes. On devices
//! other than the CPU they are computed apart.

use crate::score;
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, WithDType,
    bail,
};
use mm_core::{Batch, Modal, Modality};
use mm_kernels::cross_entropy;
use std::sync::{Arc, OnceLock};

/// L and s_m; see the [module](self).
pub fn losses_and_scores(logits: &Modal<Tensor>, batch: &Batch) -> Result<(Tensor, Modal<f64>)> {
    let Some((_, first)) = logits.iter().next() else { bail!("a unimodal loss over no modality") };
    let (rows, classes) = first.dims2()?;
    let plain = |z: &Tensor| z.device().is_cpu() && z.dtype() == first.dtype() && z.dims() == [rows, classes];
    let known = matches!(first.dtype(), DType::F32 | DType::F64);
    if !known || rows == 0 || !logits.values().iter().all(plain) {
        return Ok((apart(logits, batch)?, score::true_class(logits, batch)?));
    }
    if batch.labels.len() != rows {
        bail!("{} labels for {rows} rows of logits", batch.labels.len());
    }
    if let Some((row, label)) = batch.labels.iter().enumerate().find(|(_, label)| **label as usize >= classes)
    {
        bail!("row {row} has label {label}, but there are {classes} classes");
    }
    let (mut total, mut scores) = (None, Vec::with_capacity(logits.len()));
    // An operation takes up to three arguments.
    for (n, group) in logits.values().chunks(3).enumerate() {
        let parts =
            group.iter().enumerate().map(|(i, _)| Part::of(batch, Modality::new(3 * n + i))).collect();
        let op = Op(Arc::new(Pass { labels: batch.labels.clone(), classes, parts }));
        let shared = op.0.clone();
        let loss = match group {
            [a] => a.contiguous()?.apply_op1(op)?,
            [a, b] => a.contiguous()?.apply_op2(&b.contiguous()?, op)?,
            [a, b, c, ..] => a.contiguous()?.apply_op3(&b.contiguous()?, &c.contiguous()?, op)?,
            [] => continue,
        };
        scores.extend(shared.parts.iter().map(Part::score));
        total = Some(match total {
            Some(sum) => (loss + sum)?,
            None => loss,
        });
    }
    match total {
        Some(total) => Ok((total, Modal::new(scores))),
        None => bail!("a unimodal loss over no modality"),
    }
}

/// The losses alone, by one node each: every device, and the reference of the tests.
fn apart(logits: &Modal<Tensor>, batch: &Batch) -> Result<Tensor> {
    let losses = logits.try_map(|m, z| cross_entropy(z, &batch.labels, batch.weights(m).as_deref()))?;
    mm_core::model::sum(losses.values())
}

/// What belongs to one modality.
struct Part {
    present: Option<Arc<[bool]>>,
    rows: usize,
    found: OnceLock<(Tensor, f64)>,
}

impl Part {
    fn of(batch: &Batch, m: Modality) -> Self {
        let present = batch.present[m].as_ref();
        Self {
            rows: present.map_or(batch.rows(), mm_core::Presence::count),
            present: present.map(|p| p.rows().into()),
            found: OnceLock::new(),
        }
    }

    fn score(&self) -> f64 {
        self.found.get().map_or(f64::NAN, |(_, score)| *score)
    }

    /// The mean loss; keeps its gradient w.r.t. the logits, and the mean probability.
    fn run<T: Float>(&self, z: &[T], labels: &[u32], classes: usize) -> Result<f64> {
        let mut gradient = vec![T::zero(); z.len()];
        let (mut loss, mut score) = (0.0, 0.0);
        let weight = T::from_f64(1.0 / self.rows.max(1) as f64);
        for (row, (z, g)) in z.chunks_exact(classes).zip(gradient.chunks_exact_mut(classes)).enumerate() {
            if self.present.as_ref().is_some_and(|p| !p[row]) {
                continue; // a row that does not count may hold anything
            }
            let label = labels[row] as usize;
            let largest = z.iter().fold(z[0], |a, &b| if b > a || b.is_nan() { b } else { a });
            let mut sum = T::zero();
            for (g, &z) in g.iter_mut().zip(z) {
                *g = (z - largest).exp();
                sum += *g;
            }
            loss += (sum.ln() - (z[label] - largest)).to_f64();
            score += (g[label] / sum).to_f64();
            let scale = weight / sum;
            for g in g.iter_mut() {
                *g *= scale;
            }
            g[label] -= weight;
        }
        let rows = self.rows as f64;
        let gradient = Tensor::from_vec(gradient, (labels.len(), classes), &Device::Cpu)?;
        // Backward may run many times, but forward runs once for each node.
        self.found.set((gradient, score / rows)).ok();
        Ok(if self.rows == 0 { 0.0 } else { loss / rows })
    }

    fn pull(&self, scale: f64) -> Result<Option<Tensor>> {
        match self.found.get() {
            Some((gradient, _)) if scale == 1.0 => Ok(Some(gradient.clone())),
            Some((gradient, _)) => gradient.affine(scale, 0.0).map(Some),
            None => bail!("{NAME}: backward before forward"),
        }
    }
}

/// `f32` and `f64`.
trait Float: WithDType {
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn is_nan(self) -> bool;
}

impl Float for f32 {
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

impl Float for f64 {
    fn exp(self) -> Self {
        self.exp()
    }
    fn ln(self) -> Self {
        self.ln()
    }
    fn is_nan(self) -> bool {
        self.is_nan()
    }
}

struct Pass {
    labels: Arc<[u32]>,
    classes: usize,
    parts: Vec<Part>,
}

const NAME: &str = "unimodal_losses";

struct Op(Arc<Pass>);

impl Op {
    fn forward(&self, logits: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        fn total<T: Float>(pass: &Pass, logits: &[(&CpuStorage, &Layout)]) -> Result<CpuStorage> {
            let mut loss = 0.0;
            for (part, (storage, layout)) in pass.parts.iter().zip(logits) {
                let Some((start, end)) = layout.contiguous_offsets() else { bail!("{NAME}: not contiguous") };
                loss += part.run(&storage.as_slice::<T>()?[start..end], &pass.labels, pass.classes)?;
            }
            Ok(T::to_cpu_storage_owned(vec![T::from_f64(loss)]))
        }
        let total = match logits[0].0.dtype() {
            DType::F32 => total::<f32>(&self.0, logits)?,
            DType::F64 => total::<f64>(&self.0, logits)?,
            other => bail!("{NAME}: unsupported element type {other:?}"),
        };
        Ok((total, Shape::from(())))
    }

    fn scale(gradient: &Tensor) -> Result<f64> {
        Ok(mm_core::model::to_host(gradient)?[0])
    }
}

impl CustomOp1 for Op {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(&self, a: &CpuStorage, al: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(a, al)])
    }
    fn bwd(&self, _: &Tensor, _: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        self.0.parts[0].pull(Self::scale(g)?)
    }
}

impl CustomOp2 for Op {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(a, al), (b, bl)])
    }
    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (parts, scale) = (&self.0.parts, Self::scale(g)?);
        Ok((parts[0].pull(scale)?, parts[1].pull(scale)?))
    }
}

impl CustomOp3 for Op {
    fn name(&self) -> &'static str {
        NAME
    }
    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        al: &Layout,
        b: &CpuStorage,
        bl: &Layout,
        c: &CpuStorage,
        cl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(a, al), (b, bl), (c, cl)])
    }
    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        g: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (parts, scale) = (&self.0.parts, Self::scale(g)?);
        Ok((parts[0].pull(scale)?, parts[1].pull(scale)?, parts[2].pull(scale)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use mm_core::{Presence, StepRng};

    /// Loss and scores, and the gradients, of one pass and of separate ones.
    #[test]
    fn one_pass_equals_many() -> Result<()> {
        for (dtype, tolerance) in [(DType::F64, 1e-14), (DType::F32, 1e-6)] {
            for count in 1..=7 {
                let mut draws = StepRng::new(count as u64).draws();
                let leaves = Modal::try_from_fn(count, |_| {
                    let values: Vec<f64> = (0..15).map(|_| 3.0 * draws.normal()).collect();
                    Var::from_tensor(&Tensor::from_vec(values, (5, 3), &Device::Cpu)?.to_dtype(dtype)?)
                })?;
                let logits = leaves.map(|_, z| z.as_tensor().clone());
                let mut batch = Batch::new(logits.map(|_, z| z.detach()), vec![0, 2, 1, 1, 0])?;
                for (m, gone) in [(0, 3), (1, 5)].into_iter().filter(|(m, _)| *m < count) {
                    let rows = (0..5).map(|row| row >= gone).collect();
                    batch.present[Modality::new(m)] = Some(Presence::new(rows, dtype, &Device::Cpu)?);
                }
                let (loss, scores) = losses_and_scores(&logits, &batch)?;
                let expected = apart(&logits, &batch)?;
                let close = |a: &Tensor, b: &Tensor| mm_testkit::assert_close(a, b, tolerance);
                close(&loss, &expected);
                for (a, b) in scores.values().iter().zip(score::true_class(&logits, &batch)?.values()) {
                    assert!((a - b).abs() < tolerance || (a.is_nan() && b.is_nan()), "{a} {b}");
                }
                let (one, many) = ((loss * 0.5)?.backward()?, (expected * 0.5)?.backward()?);
                for leaf in leaves.values() {
                    let leaf = leaf.as_tensor();
                    match (one.get(leaf), many.get(leaf)) {
                        (Some(a), Some(b)) => close(a, b),
                        _ => panic!("a leaf without gradient"),
                    }
                }
            }
        }
        Ok(())
    }

    #[test]
    fn labels_are_checked() -> Result<()> {
        let z = Tensor::zeros((2, 3), DType::F32, &Device::Cpu)?;
        let batch = Batch::new(Modal::new(vec![z.clone()]), vec![0, 3])?;
        let error = losses_and_scores(&batch.inputs, &batch).err().map(|e| e.to_string());
        assert!(error.is_some_and(|e| e.contains("row 1 has label 3, but there are 3 classes")));
        Ok(())
    }
}
