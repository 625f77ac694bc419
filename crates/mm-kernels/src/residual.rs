//! What a part of a network adds to its input, as one pass.
#![allow(unsafe_code)] // results are written into room that holds nothing yet

use crate::dropout::{dropout, mask, masked};
use crate::host::{Real, View, by_dtype, slice};
use crate::parallel::filled;
use crate::rng::StepRng;
use crate::simd::{Isa, on};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

const NAME: &str = "residual";
/// Numbers that one task works on.
const PIECE: usize = 1 << 14;

/// Adds a multiple of y, parts of which are dropped, to x.
///
/// ```text
/// out[i] = x[i] + factor dropout(y)[i]
/// ```
///
/// `drop` is the probability and the key of [`dropout`](crate::dropout()), whose mask it takes: the result is that of the
/// three operations one after the other. Without it, or with a probability of zero, nothing is dropped. Shapes: x and y
/// alike. On CPU both are `f32` or `f64`. Gradients reach both.
///
/// Errors: shapes that differ, a probability outside [0, 1).
///
/// ```
/// use candle_core::{Device, Tensor};
/// let (x, y) = (Tensor::new(&[1f32, 2.0], &Device::Cpu)?, Tensor::new(&[4f32, 6.0], &Device::Cpu)?);
/// assert_eq!(mm_kernels::residual(&x, &y, 0.5, None)?.to_vec1::<f32>()?, [3.0, 5.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn residual(x: &Tensor, y: &Tensor, factor: f64, drop: Option<(f64, StepRng)>) -> Result<Tensor> {
    if x.shape() != y.shape() {
        bail!("{NAME}: y {:?} must have the shape of x {:?}", y.shape(), x.shape())
    }
    if !x.device().is_cpu() {
        return composed(x, y, factor, drop);
    }
    let keep = kept(x.elem_count(), drop)?;
    x.contiguous()?.apply_op2(&y.contiguous()?, Residual { factor, keep })
}

/// The mask and the factor of what is kept.
pub(crate) type Kept = Option<(Vec<u8>, f64)>;

/// The mask of a dropout over `n` numbers, if there is to be one.
pub(crate) fn kept(n: usize, drop: Option<(f64, StepRng)>) -> Result<Kept> {
    match drop {
        Some((p, _)) if !(0.0..1.0).contains(&p) => bail!("dropout: p must be in [0, 1), got {p}"),
        Some((p, rng)) if p > 0.0 => Ok(Some((mask(n, p, rng), 1.0 / (1.0 - p)))),
        _ => Ok(None),
    }
}

struct Residual {
    factor: f64,
    keep: Kept,
}

impl CustomOp2 for Residual {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        y: &CpuStorage,
        yl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, x.dtype(), T => {
            let (x, y) = (slice::<T>(NAME, x, xl)?, slice::<T>(NAME, y, yl)?);
            Ok((T::to_cpu_storage_owned(add(x, y, self.factor, &self.keep)), xl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        y: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let below = || {
            if self.factor == 1.0 && self.keep.is_none() {
                return Ok(grad.clone());
            }
            let grad = grad.contiguous()?;
            by_dtype!(NAME, grad.dtype(), T => {
                let dy = pull(View::new(&grad).slice::<T>(NAME)?, self.factor, &self.keep);
                Tensor::from_vec(dy, grad.shape(), grad.device())
            })
        };
        Ok((x.track_op().then(|| grad.clone()), y.track_op().then(below).transpose()?))
    }
}

/// x + factor dropout(y).
pub(crate) fn add<T: Real>(x: &[T], y: &[T], factor: f64, keep: &Kept) -> Vec<T> {
    assert!(x.len() == y.len() && keep.as_ref().is_none_or(|(keep, _)| keep.len() == y.len()));
    let isa = Isa::detect();
    let (factor, scale) = (T::from_f64(factor), T::from_f64(keep.as_ref().map_or(1.0, |(_, scale)| *scale)));
    // SAFETY: every number of a piece has its own of x, y and the mask.
    unsafe {
        filled(x.len(), PIECE, x.len(), |k, out| {
            let at = k * PIECE..k * PIECE + out.len();
            let (x, y) = (&x[at.clone()], &y[at.clone()]);
            on(isa, || match keep {
                None => {
                    for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                        out.write(x + y * factor);
                    }
                }
                Some((keep, _)) => {
                    for (((out, &x), &y), &keep) in out.iter_mut().zip(x).zip(y).zip(&keep[at.clone()]) {
                        out.write(x + if keep == 0 { T::zero() } else { y * scale * factor });
                    }
                }
            });
        })
    }
}

/// The gradient of y.
pub(crate) fn pull<T: Real>(grad: &[T], factor: f64, keep: &Kept) -> Vec<T> {
    if let Some((keep, scale)) = keep {
        return masked(grad, keep, T::from_f64(factor * scale));
    }
    let (isa, factor) = (Isa::detect(), T::from_f64(factor));
    // SAFETY: every number of a piece has its own of the gradient.
    unsafe {
        filled(grad.len(), PIECE, grad.len(), |k, out| {
            let grad = &grad[k * PIECE..][..out.len()];
            on(isa, || out.iter_mut().zip(grad).for_each(|(out, &g)| _ = out.write(g * factor)));
        })
    }
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed(x: &Tensor, y: &Tensor, factor: f64, drop: Option<(f64, StepRng)>) -> Result<Tensor> {
    let y = drop.map_or_else(|| Ok(y.clone()), |(p, rng)| dropout(y, p, rng))?;
    x + (y * factor)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        let key = StepRng::new(1).stream("residual");
        let x = [normal(&[3, 40], 1)?, normal(&[3, 40], 2)?];
        for drop in [None, Some((0.0, key)), Some((0.4, key))] {
            for factor in [1.0, 0.5] {
                assert_same(
                    |x| residual(&x[0], &x[1], factor, drop),
                    |x| composed(&x[0], &x[1], factor, drop),
                    &x,
                )?;
            }
        }
        // On several threads.
        let x = [normal(&[3, 20_001], 1)?, normal(&[3, 20_001], 2)?];
        let drop = Some((0.1, key));
        assert_same(|x| residual(&x[0], &x[1], 0.5, drop), |x| composed(&x[0], &x[1], 0.5, drop), &x)
    }
}
