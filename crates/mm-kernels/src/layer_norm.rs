//! Layer normalisation over the last dimension.

use crate::host::{Real, View, by_dtype, slice, sum_of, sum_pairs};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::OnceLock;

const NAME: &str = "layer_norm";

/// Normalises each row of the last dimension to mean 0 and variance 1, then scales and shifts it.
///
/// ```text
/// y[.., d] = (x[.., d] - mean) / sqrt(var + eps) * weight[d] + bias[d]
/// ```
///
/// where `var` is the biased variance of the row. Shapes: `x (.., D)`, `weight (D)`, `bias (D)`; the shape of `x` is
/// kept. On CPU the arguments are all `f32` or all `f64`. Gradients reach `x`, `weight` and `bias` (candle's fused layer
/// norm drops them all without a word).
///
/// Errors: an empty last dimension, and a `weight` or `bias` that is not `(D)`.
pub fn layer_norm(x: &Tensor, weight: Option<&Tensor>, bias: Option<&Tensor>, eps: f64) -> Result<Tensor> {
    let Some(&width) = x.dims().last().filter(|&&width| width > 0) else {
        bail!("{NAME}: x must have a last dimension that is not empty, got {:?}", x.shape())
    };
    for (what, tensor) in [("weight", weight), ("bias", bias)] {
        if let Some(t) = tensor.filter(|t| t.dims() != [width]) {
            bail!("{NAME}: {what} {:?} does not fit x {:?}: it must be [{width}]", t.shape(), x.shape())
        }
    }
    let weight = weight.map_or_else(|| Tensor::ones(width, x.dtype(), x.device()), Tensor::contiguous)?;
    let bias = bias.map_or_else(|| Tensor::zeros(width, x.dtype(), x.device()), Tensor::contiguous)?;
    if !x.device().is_cpu() {
        return composed(x, &weight, &bias, eps);
    }
    x.contiguous()?.apply_op3(&weight, &bias, LayerNorm { eps, rows: OnceLock::new() })
}

struct LayerNorm {
    eps: f64,
    /// Mean and 1 / sqrt(var + eps) of each row, kept for the backward pass.
    rows: OnceLock<Vec<(f64, f64)>>,
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
        b: &CpuStorage,
        bl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, x.dtype(), T => {
            let (x, w, b) = (slice::<T>(NAME, x, xl)?, slice::<T>(NAME, w, wl)?, slice::<T>(NAME, b, bl)?);
            let mut y = Vec::with_capacity(x.len());
            let mut rows = Vec::with_capacity(x.len() / w.len());
            for x in x.chunks_exact(w.len()) {
                let (mean, scale) = moments(x, self.eps);
                y.extend(x.iter().zip(w).zip(b).map(|((&x, &w), &b)| (x - mean) * scale * w + b));
                rows.push((WithDType::to_f64(mean), WithDType::to_f64(scale)));
            }
            self.rows.get_or_init(|| rows);
            Ok((T::to_cpu_storage_owned(y), xl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let Some(rows) = self.rows.get() else { bail!("{NAME}: backward before forward") };
        let grad = grad.contiguous()?;
        by_dtype!(NAME, x.dtype(), T => {
            let (xv, wv, gv) = (View::new(x), View::new(w), View::new(&grad));
            let (xs, ws, gs) = (xv.slice::<T>(NAME)?, wv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
            let (dx, dw, db) = pull(xs, ws, gs, rows, x.track_op());
            let tensor = |values: Vec<T>, like: &Tensor| {
                like.track_op().then(|| Tensor::from_vec(values, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dx, x)?, tensor(dw, w)?, tensor(db, b)?))
        })
    }
}

/// The mean of a row and 1 / sqrt(var + eps), in two passes: the variance of large values stays exact.
#[inline]
fn moments<T: Real>(x: &[T], eps: f64) -> (T, T) {
    let n = T::from_f64(x.len() as f64);
    let mean = sum_of(x, |x| x) / n;
    let var = sum_of(x, |x| (x - mean) * (x - mean)) / n;
    (mean, T::one() / (var + T::from_f64(eps)).sqrt())
}

/// With n = (x - mean) scale and h = g w: dx = scale (h - mean(h) - n mean(h n)), dw = sum g n, db = sum g.
fn pull<T: Real>(x: &[T], w: &[T], g: &[T], rows: &[(f64, f64)], with_dx: bool) -> (Vec<T>, Vec<T>, Vec<T>) {
    let d = w.len();
    let size = T::from_f64(d as f64);
    let (mut dw, mut db) = (vec![T::zero(); d], vec![T::zero(); d]);
    let mut dx = Vec::with_capacity(if with_dx { x.len() } else { 0 });
    let (mut n, mut h) = (vec![T::zero(); d], vec![T::zero(); d]);
    for ((x, g), &(mean, scale)) in x.chunks_exact(d).zip(g.chunks_exact(d)).zip(rows) {
        let (mean, scale) = (T::from_f64(mean), T::from_f64(scale));
        for (((((n, h), &x), &g), &w), (dw, db)) in
            n.iter_mut().zip(&mut h).zip(x).zip(g).zip(w).zip(dw.iter_mut().zip(&mut db))
        {
            *n = (x - mean) * scale;
            *h = g * w;
            *dw += g * *n;
            *db += g;
        }
        if with_dx {
            let mean_h = sum_of(&h, |h| h) / size;
            let mean_hn = sum_pairs(&h, &n, |h, n| h * n) / size;
            dx.extend(h.iter().zip(&n).map(|(&h, &n)| scale * (h - mean_h - n * mean_hn)));
        }
    }
    (dx, dw, db)
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    centred.broadcast_div(&deviation)?.broadcast_mul(weight)?.broadcast_add(bias)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        // Longer than the interleaved sums are wide, and not a multiple of that.
        let x = [(normal(&[3, 2, 37], 1)? + 2.0)?, normal(&[37], 2)?, normal(&[37], 3)?];
        let fused = |x: &[Tensor]| layer_norm(&x[0], Some(&x[1]), Some(&x[2]), 1e-5);
        assert_same(fused, |x| composed(&x[0], &x[1], &x[2], 1e-5), &x)
    }
}
