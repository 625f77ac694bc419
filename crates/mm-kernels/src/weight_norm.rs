//! A weight whose taps have lengths and directions of their own.
#![allow(unsafe_code)] // results are written into room that holds nothing yet

use crate::host::{ROWS, Real, View, by_dtype, slice, together};
use crate::parallel::{filled, parts};
use crate::simd::{Isa, on};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

const NAME: &str = "weight_norm";

/// The kernel of a convolution whose taps are normalised one by one: weight normalisation over the last dimension.
///
/// ```text
/// w[o, i, k] = size[k] direction[o, i, k] / |direction[.., .., k]|
/// ```
///
/// Shapes: direction (O, I, K), size (1, 1, K); w is (O, I, K). On CPU both are `f32` or both `f64`. Gradients reach both.
/// A tap of zeros has no direction: its numbers are NaN, as in PyTorch. Errors: shapes that do not fit.
///
/// Source: Salimans and Kingma, 2016, <https://arxiv.org/abs/1602.07868>.
pub fn weight_norm(direction: &Tensor, size: &Tensor) -> Result<Tensor> {
    let [_, _, taps] = *direction.dims() else {
        bail!("{NAME}: direction must be (out, in, taps), got {:?}", direction.shape())
    };
    if size.dims() != [1, 1, taps] {
        bail!(
            "{NAME}: size {:?} does not fit direction {:?}: it must be [1, 1, {taps}]",
            size.shape(),
            direction.shape()
        )
    }
    if !direction.device().is_cpu() || direction.elem_count() == 0 {
        return composed(direction, size);
    }
    direction.contiguous()?.apply_op2(&size.contiguous()?, WeightNorm)
}

struct WeightNorm;

/// For each tap the sum of x y over all rows.
fn products<T: Real>(x: &[T], y: &[T], taps: usize) -> Vec<T> {
    assert_eq!(x.len(), y.len(), "matrices of one size");
    let isa = Isa::detect();
    let sums = parts(x, ROWS * taps, |k, x| {
        let y = &y[k * ROWS * taps..][..x.len()];
        let mut sums = vec![T::zero(); taps];
        on(isa, || {
            for (x, y) in x.chunks_exact(taps).zip(y.chunks_exact(taps)) {
                sums.iter_mut().zip(x).zip(y).for_each(|((sum, &x), &y)| *sum += x * y);
            }
        });
        sums
    });
    together(sums, taps)
}

/// a x + b y for each tap.
fn combined<T: Real>(x: &[T], a: &[T], y: Option<(&[T], &[T])>) -> Vec<T> {
    let (isa, taps) = (Isa::detect(), a.len());
    assert!(x.len().is_multiple_of(taps) && y.is_none_or(|(y, b)| y.len() == x.len() && b.len() == taps));
    // SAFETY: pieces are whole rows of taps, each of which is written.
    unsafe {
        filled(x.len(), ROWS * taps, x.len(), |k, out| {
            let at = k * ROWS * taps..k * ROWS * taps + out.len();
            let rows = out.chunks_exact_mut(taps).zip(x[at.clone()].chunks_exact(taps));
            on(isa, || match y {
                None => {
                    for (out, x) in rows {
                        out.iter_mut().zip(x).zip(a).for_each(|((out, &x), &a)| _ = out.write(a * x));
                    }
                }
                Some((y, b)) => {
                    for ((out, x), y) in rows.zip(y[at.clone()].chunks_exact(taps)) {
                        for ((((out, &x), &a), &y), &b) in out.iter_mut().zip(x).zip(a).zip(y).zip(b) {
                            out.write(a * x + b * y);
                        }
                    }
                }
            });
        })
    }
}

impl CustomOp2 for WeightNorm {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        direction: &CpuStorage,
        dl: &Layout,
        size: &CpuStorage,
        sl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, direction.dtype(), T => {
            let (v, g) = (slice::<T>(NAME, direction, dl)?, slice::<T>(NAME, size, sl)?);
            let factors: Vec<T> = g.iter().zip(products(v, v, g.len())).map(|(&g, s)| g / s.sqrt()).collect();
            Ok((T::to_cpu_storage_owned(combined(v, &factors, None)), dl.shape().clone()))
        })
    }

    /// With u the direction of length one: dsize = sum dw u, and ddirection = size / |direction| (dw - u sum dw u).
    fn bwd(
        &self,
        direction: &Tensor,
        size: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, grad.dtype(), T => {
            let (dv, sv, gv) = (View::new(direction), View::new(size), View::new(&grad));
            let (v, g, dw) = (dv.slice::<T>(NAME)?, sv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
            let norms: Vec<T> = products(v, v, g.len()).into_iter().map(T::sqrt).collect();
            let along: Vec<T> =
                products(dw, v, g.len()).into_iter().zip(&norms).map(|(s, norm)| s / norm).collect();
            let a: Vec<T> = g.iter().zip(&norms).map(|(g, norm)| g / norm).collect();
            let b: Vec<T> = a.iter().zip(along.iter().zip(&norms)).map(|(a, (s, norm))| -a * s / norm).collect();
            let tensor = |d: Vec<T>, like: &Tensor| Tensor::from_vec(d, like.shape(), like.device());
            let ddirection = direction.track_op().then(|| tensor(combined(dw, &a, Some((v, &b))), direction));
            Ok((ddirection.transpose()?, size.track_op().then(|| tensor(along, size)).transpose()?))
        })
    }
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed(direction: &Tensor, size: &Tensor) -> Result<Tensor> {
    // In two steps, so that a sum of f32 is not of tens of thousands of terms.
    let norm = direction.sqr()?.sum_keepdim(1)?.sum_keepdim(0)?.sqrt()?;
    direction.broadcast_mul(&(size / norm)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for (outputs, inputs, taps) in [(3, 2, 5), (40, 30, 33)] {
            let x = [normal(&[outputs, inputs, taps], 1)?, normal(&[1, 1, taps], 2)?];
            assert_same(|x| weight_norm(&x[0], &x[1]), |x| composed(&x[0], &x[1]), &x)?;
        }
        Ok(())
    }
}
