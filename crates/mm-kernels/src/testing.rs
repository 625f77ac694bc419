//! What the unit tests share: the fused kernel and the composition that other devices run must be one function.

use crate::StepRng;
use candle_core::{DType, Device, Result, Tensor, Var};

/// Standard normal values, f64.
pub(crate) fn normal(shape: &[usize], seed: u64) -> Result<Tensor> {
    let mut draws = StepRng::new(seed).draws();
    Tensor::from_vec((0..shape.iter().product()).map(|_| draws.normal()).collect(), shape, &Device::Cpu)
}

#[track_caller]
pub(crate) fn assert_close(a: &Tensor, b: &Tensor, tol: f64) -> Result<()> {
    assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()));
    let [a, b] = [a, b].map(|x| x.detach().to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>());
    for (i, (a, b)) in a?.iter().zip(&b?).enumerate() {
        assert!((a - b).abs() <= tol * b.abs().max(1.0), "element {i}: {a:e} and {b:e}");
    }
    Ok(())
}

/// Compares values and all gradients of two functions, in f32 and f64; both are given the same variables.
#[track_caller]
pub(crate) fn assert_same(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    g: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
) -> Result<()> {
    for (dtype, tol) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        let cast = inputs.iter().map(|x| Ok(Var::from_tensor(&x.to_dtype(dtype)?)?.into_inner()));
        let x = cast.collect::<Result<Vec<_>>>()?;
        let (a, b) = (f(&x)?, g(&x)?);
        assert_close(&a, &b, tol)?;
        let r = normal(a.dims(), 99)?.to_dtype(dtype)?;
        let [a, b] = [(a * &r)?.sum_all()?.backward()?, (b * &r)?.sum_all()?.backward()?];
        for x in &x {
            assert_close(a.get(x).expect("fused gradient"), b.get(x).expect("composed gradient"), tol)?;
        }
    }
    Ok(())
}
