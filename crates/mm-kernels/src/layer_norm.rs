//! Layer normalisation over the last dimension.
#![allow(unsafe_code)] // results are written into room that holds nothing yet

use crate::host::{Real, View, by_dtype, slice, sum_of, sum_pairs, together};
use crate::parallel::{parts, pieces2};
use crate::scratch::Shared;
use crate::simd::{Isa, on};
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
            let (y, rows) = normalise(x, w, b, self.eps);
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

/// The rows normalised, and what backward needs of them.
pub(crate) fn normalise<T: Real>(x: &[T], w: &[T], b: &[T], eps: f64) -> (Vec<T>, Vec<(f64, f64)>) {
    let (isa, d, count) = (Isa::detect(), w.len(), x.len() / w.len());
    assert!(b.len() == d && x.len() == count * d, "whole rows, and a shift for each scale");
    let (mut y, mut rows) = (Vec::with_capacity(x.len()), Vec::with_capacity(count));
    let room = (&mut y.spare_capacity_mut()[..count * d], ROWS * d);
    let kept = (&mut rows.spare_capacity_mut()[..count], ROWS);
    pieces2(room, kept, x.len(), |k, y, rows| {
        let x = &x[k * ROWS * d..];
        on(isa, || {
            for ((x, y), row) in x.chunks_exact(d).zip(y.chunks_exact_mut(d)).zip(rows) {
                let (mean, scale) = moments(x, eps);
                for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                    y.write((x - mean) * scale * w + b);
                }
                row.write((WithDType::to_f64(mean), WithDType::to_f64(scale)));
            }
        });
    });
    // SAFETY: the pieces are all rows, and each was written with its two numbers.
    unsafe {
        y.set_len(count * d);
        rows.set_len(count);
    }
    (y, rows)
}

/// The mean of a row and 1 / sqrt(var + eps), in two passes: the variance of large values stays exact.
#[inline(always)]
fn moments<T: Real>(x: &[T], eps: f64) -> (T, T) {
    let n = T::from_f64(x.len() as f64);
    let mean = sum_of(x, |x| x) / n;
    let var = sum_of(x, |x| (x - mean) * (x - mean)) / n;
    (mean, T::one() / (var + T::from_f64(eps)).sqrt())
}

/// Rows of a piece: the cut, and so the bits, do not depend on the number of threads.
const ROWS: usize = 32;

/// With n = (x - mean) scale and h = g w: dx = scale (h - mean(h) - n mean(h n)), dw = sum g n, db = sum g.
pub(crate) fn pull<T: Real>(
    x: &[T],
    w: &[T],
    g: &[T],
    rows: &[(f64, f64)],
    with_dx: bool,
) -> (Vec<T>, Vec<T>, Vec<T>) {
    let (isa, d) = (Isa::detect(), w.len());
    assert!(x.len() == rows.len() * d && g.len() == x.len(), "a gradient for each number of each row");
    let size = T::from_f64(d as f64);
    let count = if with_dx { rows.len() * d } else { 0 };
    let mut dx: Vec<T> = Vec::with_capacity(count);
    let room = Shared::new(dx.as_mut_ptr());
    let sums = parts(&x[..rows.len() * d], ROWS * d, |k, x| {
        let (g, rows) = (&g[k * ROWS * d..], &rows[k * ROWS..]);
        let mut sums = vec![T::zero(); 2 * d];
        let (dw, db) = sums.split_at_mut(d);
        let (mut n, mut h) = (vec![T::zero(); d], vec![T::zero(); d]);
        let mut at = k * ROWS * d;
        on(isa, || {
            for ((x, g), &(mean, scale)) in x.chunks_exact(d).zip(g.chunks_exact(d)).zip(rows) {
                let (mean, scale) = (T::from_f64(mean), T::from_f64(scale));
                for (((((n, h), &x), &g), &w), (dw, db)) in
                    n.iter_mut().zip(&mut h).zip(x).zip(g).zip(w).zip(dw.iter_mut().zip(db.iter_mut()))
                {
                    *n = (x - mean) * scale;
                    *h = g * w;
                    *dw += g * *n;
                    *db += g;
                }
                if with_dx {
                    let mean_h = sum_of(&h, |h| h) / size;
                    let mean_hn = sum_pairs(&h, &n, |h, n| h * n) / size;
                    assert!(at + d <= count, "a row has room");
                    for (i, (&h, &n)) in h.iter().zip(&n).enumerate() {
                        // SAFETY: within the capacity, and this row is this piece's own.
                        unsafe { room.get().add(at + i).write(scale * (h - mean_h - n * mean_hn)) };
                    }
                }
                at += d;
            }
        });
        sums
    });
    // SAFETY: the pieces are all rows, and each number of them was written if there is room for it.
    unsafe { dx.set_len(count) };
    let mut dw = together(sums, 2 * d);
    let db = dw.split_off(d);
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
