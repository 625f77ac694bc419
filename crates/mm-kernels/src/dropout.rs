//! Dropout whose mask is a pure function of a random key.

use crate::host::{Real, View, by_dtype, slice};
use crate::rng::StepRng;
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
    keep: Vec<bool>,
    scale: f64,
}

impl CustomOp1 for Dropout {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(NAME, x.dtype(), T => {
            let y = self.masked(slice::<T>(NAME, x, layout)?);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, grad.dtype(), T => {
            let dx = self.masked(View::new(&grad).slice::<T>(NAME)?);
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

impl Dropout {
    fn masked<T: Real>(&self, x: &[T]) -> Vec<T> {
        let scale = T::from_f64(self.scale);
        x.iter().zip(&self.keep).map(|(&x, &keep)| if keep { x * scale } else { T::zero() }).collect()
    }
}

fn mask(n: usize, p: f64, rng: StepRng) -> Vec<bool> {
    let mut draws = rng.draws();
    (0..n).map(|_| f64::from(draws.uniform_f32()) >= p).collect()
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed(x: &Tensor, p: f64, keep: &[bool]) -> Result<Tensor> {
    let keep: Vec<u8> = keep.iter().map(|&keep| u8::from(keep)).collect();
    let keep = Tensor::from_vec(keep, x.shape(), x.device())?;
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
}
