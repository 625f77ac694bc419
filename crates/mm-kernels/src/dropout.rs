//! Dropout whose mask is a pure function of a random key.
#![allow(unsafe_code)] // results are written into room that holds nothing yet

use crate::host::{Real, View, by_dtype, slice};
use crate::parallel::filled;
use crate::rng::StepRng;
use crate::simd::{Isa, on};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};

const NAME: &str = "dropout";

/// Inverted dropout: each element is zeroed with probability `p` and otherwise divided by `1 - p`.
///
/// ```text
/// y[i] = x[i] keep[i] / (1 - p),   keep[i] = 0 with probability p, else 1
/// ```
///
/// The mask depends on `rng` and on the position of the element alone - not on the dtype, the device or the memory
/// layout. Use another key for every layer and every step. Any shape; on CPU `f32` and `f64`.
///
/// With `p = 0` the tensor itself is returned, without any work. A `p` outside [0, 1) is an error.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use mm_kernels::rng::StepRng;
/// let x = Tensor::ones(1000, DType::F32, &Device::Cpu)?;
/// let key = StepRng::new(1).stream("dropout").step(3);
/// let y = mm_kernels::dropout(&x, 0.5, key)?.to_vec1::<f32>()?;
/// assert!(y.iter().all(|&y| y == 0.0 || y == 2.0));
/// assert_eq!(y, mm_kernels::dropout(&x, 0.5, key)?.to_vec1::<f32>()?);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn dropout(x: &Tensor, p: f64, rng: StepRng) -> Result<Tensor> {
    if !(0.0..1.0).contains(&p) {
        bail!("{NAME}: p must be in [0, 1), got {p}")
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    let keep = mask(x.elem_count(), p, rng);
    if !x.device().is_cpu() {
        return composed(x, p, &keep);
    }
    x.contiguous()?.apply_op1(Dropout { keep, scale: 1.0 / (1.0 - p) })
}

struct Dropout {
    keep: Vec<u8>,
    scale: f64,
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, x.dtype(), T => {
            let y = masked(slice::<T>(NAME, x, layout)?, &self.keep, T::from_f64(self.scale));
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, grad.dtype(), T => {
            let dx = masked(View::new(&grad).slice::<T>(NAME)?, &self.keep, T::from_f64(self.scale));
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

/// Numbers that one task works on.
const PIECE: usize = 1 << 14;

/// scale x where it is kept, else zero.
pub(crate) fn masked<T: Real>(x: &[T], keep: &[u8], scale: T) -> Vec<T> {
    assert_eq!(x.len(), keep.len(), "a flag for each number");
    let isa = Isa::detect();
    // SAFETY: every number of a piece has its own of x and of the mask.
    unsafe {
        filled(x.len(), PIECE, x.len(), |k, y| {
            let at = k * PIECE..k * PIECE + y.len();
            let (x, keep) = (&x[at.clone()], &keep[at]);
            on(isa, || {
                for ((y, &x), &keep) in y.iter_mut().zip(x).zip(keep) {
                    y.write(if keep == 0 { T::zero() } else { x * scale });
                }
            });
        })
    }
}

/// 1 for each element that is kept, else 0: a draw of 32 bits for each.
pub(crate) fn mask(n: usize, p: f64, rng: StepRng) -> Vec<u8> {
    // A draw is a multiple k of 2^-24, and kept if it is at least p: whole numbers are compared without a division.
    let least = (p * f64::from(1u32 << 24)).ceil() as u32;
    let isa = Isa::detect();
    // SAFETY: every flag of a piece has a draw of its own.
    unsafe {
        filled(n, PIECE, n, |k, keep| {
            let mut draws = rng.draws().at_word(k * PIECE);
            let mut bytes = [0u8; 4096];
            for keep in keep.chunks_mut(1024) {
                let bytes = &mut bytes[..4 * keep.len()];
                draws.fill(bytes);
                on(isa, || {
                    for (keep, word) in keep.iter_mut().zip(bytes.as_chunks().0) {
                        keep.write(u8::from(u32::from_le_bytes(*word) >> 8 >= least));
                    }
                });
            }
        })
    }
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed(x: &Tensor, p: f64, keep: &[u8]) -> Result<Tensor> {
    let keep = Tensor::from_vec(keep.to_vec(), x.shape(), x.device())?;
    keep.where_cond(&(x * (1.0 / (1.0 - p)))?, &x.zeros_like()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        let key = StepRng::new(1).stream("dropout");
        let keep = mask(20, 0.4, key);
        assert_same(|x| dropout(&x[0], 0.4, key), |x| composed(&x[0], 0.4, &keep), &[normal(&[4, 5], 1)?])
    }

    #[test]
    fn pieces_of_a_mask_are_one_sequence_of_draws() {
        let (n, key) = (3 * PIECE + 777, StepRng::new(2).stream("pieces"));
        for p in [0.1, 0.5, 1.0 - 1e-9] {
            let mut draws = key.draws();
            let expected: Vec<u8> = (0..n).map(|_| u8::from(f64::from(draws.uniform_f32()) >= p)).collect();
            assert_eq!(mask(n, p, key), expected, "{p}");
        }
    }
}
