//! Softmax and its logarithm over the last dimension.
#![allow(unsafe_code)] // a formula over vectors of a detected instruction set

use crate::host::{Real, View, by_dtype, largest, slice, sum_of, sum_pairs};
use crate::parallel::pieces;
use crate::simd::Isa;
use crate::vmath::{Map, Mapped, Math, each};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, D, Layout, Result, Shape, Tensor, WithDType, bail};

/// Softmax over the last dimension.
///
/// ```text
/// y[.., c] = exp(x[.., c] - max_k x[.., k]) / sum_j exp(x[.., j] - max_k x[.., k])
/// ```
///
/// Any shape of rank one or more; on CPU `f32` and `f64`. A row of nothing but `-inf` gives NaN, as in PyTorch.
pub fn softmax_last(x: &Tensor) -> Result<Tensor> {
    apply(x, Softmax, composed_softmax)
}

/// The logarithm of [`softmax_last`], stable for logits of any size.
///
/// ```text
/// y[.., c] = x[.., c] - log sum_j exp(x[.., j])
/// ```
pub fn log_softmax_last(x: &Tensor) -> Result<Tensor> {
    apply(x, LogSoftmax, composed_log_softmax)
}

fn apply<O: CustomOp1 + Send + Sync + 'static>(
    x: &Tensor,
    op: O,
    composed: fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if x.rank() == 0 {
        bail!("{}: expected at least one dimension, got a scalar", op.name())
    }
    if x.device().is_cpu() { x.contiguous()?.apply_op1(op) } else { composed(x) }
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax_last"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(self.name(), x.dtype(), T => {
            let x = slice::<T>(self.name(), x, layout)?;
            let isa = Isa::detect();
            Ok((T::to_cpu_storage_owned(by_row(x, layout, |x, y| softmax_row(isa, x, y))), layout.shape().clone()))
        })
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // dx = y (g - sum g y)
        by_dtype!(self.name(), y.dtype(), T => pull::<T>(self.name(), y, grad, |y, g, dx| {
            let dot = sum_pairs(y, g, |y, g| y * g);
            for (dx, (&y, &g)) in dx.iter_mut().zip(y.iter().zip(g)) {
                *dx = y * (g - dot);
            }
        }))
    }
}

struct LogSoftmax;

impl CustomOp1 for LogSoftmax {
    fn name(&self) -> &'static str {
        "log_softmax_last"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(self.name(), x.dtype(), T => {
            let x = slice::<T>(self.name(), x, layout)?;
            let y = by_row(x, layout, |x: &[T], y: &mut [T]| {
                let max = largest(x);
                // Not x - (max + log sum), which rounds to the size of the maximum.
                let log_sum = Real::ln(sum_of(x, |x| Real::exp(x - max)));
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = (x - max) - log_sum;
                }
            });
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, _x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        // dx = g - exp(y) sum g
        by_dtype!(self.name(), y.dtype(), T => pull::<T>(self.name(), y, grad, |y, g, dx| {
            let total = sum_of(g, |g| g);
            for (dx, (&y, &g)) in dx.iter_mut().zip(y.iter().zip(g)) {
                *dx = g - Real::exp(y) * total;
            }
        }))
    }
}

/// e^(x - largest).
struct Shifted(f64);

impl<T> Map<T, 1> for Shifted {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [x]: [V; 1]) -> V {
        // SAFETY: passed on.
        unsafe { x.sub(V::of(self.0)).exp() }
    }
}

fn softmax_row<T: Real + Mapped>(isa: Isa, x: &[T], y: &mut [T]) {
    each(isa, [x], y, &Shifted(largest(x).to_f64()));
    let scale = T::one() / sum_of(y, |y| y);
    for y in y {
        *y *= scale;
    }
}

/// Numbers of whole rows that one task works on.
fn piece(width: usize) -> usize {
    (1usize << 12).div_ceil(width) * width
}

fn by_row<T: Real + Default>(x: &[T], layout: &Layout, row: impl Fn(&[T], &mut [T]) + Sync) -> Vec<T> {
    let width = layout.dims().last().copied().unwrap_or(1).max(1);
    let (size, mut y) = (piece(width), vec![T::default(); x.len()]);
    pieces(&mut y, size, x.len(), |k, y| {
        for (x, y) in x[k * size..].chunks_exact(width).zip(y.chunks_exact_mut(width)) {
            row(x, y);
        }
    });
    y
}

fn pull<T: Real + Default>(
    name: &'static str,
    y: &Tensor,
    grad: &Tensor,
    row: impl Fn(&[T], &[T], &mut [T]) + Sync,
) -> Result<Option<Tensor>> {
    let grad = grad.contiguous()?;
    let (yv, gv) = (View::new(y), View::new(&grad));
    let (ys, gs) = (yv.slice::<T>(name)?, gv.slice::<T>(name)?);
    let width = y.dim(D::Minus1)?.max(1);
    let (size, mut dx) = (piece(width), vec![T::default(); ys.len()]);
    pieces(&mut dx, size, ys.len(), |k, dx| {
        let rows = ys[k * size..].chunks_exact(width).zip(gs[k * size..].chunks_exact(width));
        for ((y, g), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            row(y, g, dx);
        }
    });
    Ok(Some(Tensor::from_vec(dx, y.shape(), y.device())?))
}

// The same functions in candle's own operations: every device but the CPU, and the reference of the tests.
// The maximum is detached, because the result does not depend on it.

fn composed_softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?.exp()?;
    e.broadcast_div(&e.sum_keepdim(D::Minus1)?)
}

pub(crate) fn composed_log_softmax(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.detach().max_keepdim(D::Minus1)?)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};

    #[test]
    fn the_compositions_are_the_same_functions() -> Result<()> {
        let x = [normal(&[3, 2, 5], 1)?];
        assert_same(|x| softmax_last(&x[0]), |x| composed_softmax(&x[0]), &x)?;
        assert_same(|x| log_softmax_last(&x[0]), |x| composed_log_softmax(&x[0]), &x)
    }
}
