//! The affine map of a fully connected layer.

use crate::conv::Precision;
use crate::host::{View, by_dtype, column_sums, slice};
use crate::products::Products;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};

/// A fully connected layer without its state.
///
/// ```text
/// y[.., o] = sum_i x[.., i] weight[o, i] + bias[o]
/// ```
///
/// Shapes: `x (.., in)` of rank two or more, `weight (out, in)`, `bias (out)`; the result is `(.., out)`.
/// On CPU the arguments are all `f32` or all `f64`.
///
/// Gradients reach `x`, `weight` and `bias`. The gradient of an argument outside every graph - the data under a first
/// layer, a frozen weight - is not computed.
///
/// Shapes that do not fit are an error that names them.
///
/// ```
/// use candle_core::{Device, Tensor};
/// let x = Tensor::new(&[[1f32, 2.0]], &Device::Cpu)?;
/// let weight = Tensor::new(&[[3f32, 4.0], [5.0, 6.0]], &Device::Cpu)?;
/// let bias = Tensor::new(&[0.5f32, -0.5], &Device::Cpu)?;
/// let y = mm_kernels::linear(&x, &weight, Some(&bias))?;
/// assert_eq!(y.to_vec2::<f32>()?, [[11.5, 16.5]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn linear(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    linear_in(x, weight, bias, Precision::F32)
}

/// [`linear`] with its products taken in a given precision; `f64` tensors are always computed in `f64`.
///
/// In `F32` the product is that of the crate `gemm`, as candle's is; the others run on the kernels of [`crate::conv`], and where the processor has no
/// bfloat16 they are `F32`. Devices other than the CPU compute in the tensors' own type.
pub fn linear_in(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, precision: Precision) -> Result<Tensor> {
    let dims = x.dims();
    let [out, inputs] = *weight.dims() else {
        bail!("linear: weight must be (out, in), got {:?}", weight.shape())
    };
    if dims.len() < 2 || dims[dims.len() - 1] != inputs {
        bail!("linear: x {:?} does not fit weight {:?}: x must be (.., {inputs})", x.shape(), weight.shape())
    }
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!(
            "linear: bias {:?} does not fit weight {:?}: bias must be [{out}]",
            bias.shape(),
            weight.shape()
        )
    }
    if !x.device().is_cpu() {
        return composed(x, weight, bias);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        None => x.apply_op2(&weight, Linear(precision)),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, Linear(precision)),
    }
}

const NAME: &str = "linear";

struct Linear(Precision);

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        product(self, (x, xl), (w, wl), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = rows(grad)?;
        Ok((grad_x(self, x, w, &grad)?, grad_weight(self, x, w, &grad)?))
    }
}

impl CustomOp3 for Linear {
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
        product(self, (x, xl), (w, wl), Some((b, bl)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = rows(grad)?;
        Ok((grad_x(self, x, w, &grad)?, grad_weight(self, x, w, &grad)?, grad_bias(b, &grad)?))
    }
}

fn product(
    op: &Linear,
    (x, xl): (&CpuStorage, &Layout),
    (w, wl): (&CpuStorage, &Layout),
    bias: Option<(&CpuStorage, &Layout)>,
) -> Result<(CpuStorage, Shape)> {
    let mut dims = xl.dims().to_vec();
    let (outputs, inputs) = wl.shape().dims2()?;
    let rows = dims[..dims.len() - 1].iter().product();
    if let Some(last) = dims.last_mut() {
        *last = outputs;
    }
    by_dtype!(NAME, x.dtype(), T => {
        let (x, w) = (slice::<T>(NAME, x, xl)?, slice::<T>(NAME, w, wl)?);
        let bias = bias.map(|(b, bl)| slice::<T>(NAME, b, bl)).transpose()?;
        let y = Products { rows, inputs, outputs, precision: op.0 }.forward(NAME, x, w, bias)?;
        Ok((T::to_cpu_storage_owned(y), Shape::from(dims)))
    })
}

/// The incoming gradient as a contiguous matrix, leading dimensions flattened.
fn rows(grad: &Tensor) -> Result<Tensor> {
    let grad = grad.contiguous()?;
    if grad.rank() == 2 { Ok(grad) } else { matrix(&grad) }
}

fn matrix(x: &Tensor) -> Result<Tensor> {
    let columns = x.dim(candle_core::D::Minus1)?;
    let rows: usize = x.dims()[..x.rank() - 1].iter().product();
    x.reshape((rows, columns))
}

fn products(op: &Linear, weight: &Tensor, grad: &Tensor) -> Result<Products> {
    let (outputs, inputs) = weight.dims2()?;
    Ok(Products { rows: grad.dim(0)?, inputs, outputs, precision: op.0 })
}

fn grad_x(op: &Linear, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if !x.track_op() {
        return Ok(None);
    }
    by_dtype!(NAME, grad.dtype(), T => {
        let (wv, gv) = (View::new(weight), View::new(grad));
        let (w, g) = (wv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
        let dx = products(op, weight, grad)?.grad_input(NAME, g, w)?;
        Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
    })
}

fn grad_weight(op: &Linear, x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if !weight.track_op() {
        return Ok(None);
    }
    by_dtype!(NAME, grad.dtype(), T => {
        let (xv, gv) = (View::new(x), View::new(grad));
        let (x, g) = (xv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
        let dw = products(op, weight, grad)?.grad_weight(NAME, x, g)?;
        Ok(Some(Tensor::from_vec(dw, weight.shape(), weight.device())?))
    })
}

fn grad_bias(bias: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if !bias.track_op() {
        return Ok(None);
    }
    by_dtype!(NAME, grad.dtype(), T => {
        let sums = column_sums(View::new(grad).slice::<T>(NAME)?, bias.elem_count());
        Ok(Some(Tensor::from_vec(sums, bias.shape(), grad.device())?))
    })
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    let flat = if x.rank() == 2 { x.clone() } else { matrix(x)? };
    let mut y = flat.matmul(&weight.t()?)?;
    if let Some(bias) = bias {
        y = y.broadcast_add(bias)?;
    }
    if x.rank() == 2 {
        return Ok(y);
    }
    let mut dims = x.dims().to_vec();
    if let Some(last) = dims.last_mut() {
        *last = weight.dim(0)?;
    }
    y.reshape(dims)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};
    use candle_core::DType;

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        let (w, b) = (normal(&[5, 3], 2)?, normal(&[5], 3)?);
        for shape in [vec![4, 3], vec![2, 4, 3]] {
            let x = [normal(&shape, 1)?, w.clone(), b.clone()];
            assert_same(|x| linear(&x[0], &x[1], Some(&x[2])), |x| composed(&x[0], &x[1], Some(&x[2])), &x)?;
            assert_same(|x| linear(&x[0], &x[1], None), |x| composed(&x[0], &x[1], None), &x[..2])?;
        }
        Ok(())
    }

    #[test]
    fn precisions_differ_by_their_bits() -> Result<()> {
        for (precision, tol) in [(Precision::Bf16, 3e-2), (Precision::Bf16x3, 1e-4)] {
            let run = |x: &Tensor, w: &Tensor, precision| -> Result<[Tensor; 3]> {
                let y = linear_in(x, w, None, precision)?;
                let grads = y.sqr()?.sum_all()?.backward()?;
                let of =
                    |t: &Tensor| grads.get(t).cloned().ok_or_else(|| candle_core::Error::msg("no gradient"));
                Ok([y.detach(), of(x)?, of(w)?])
            };
            for dtype in [DType::F32, DType::F64] {
                let x = candle_core::Var::from_tensor(&normal(&[2, 9, 40], 1)?.to_dtype(dtype)?)?;
                let w = candle_core::Var::from_tensor(&normal(&[24, 40], 2)?.to_dtype(dtype)?)?;
                let (got, exact) = (run(&x, &w, precision)?, run(&x, &w, Precision::F32)?);
                for (got, exact) in got.iter().zip(&exact) {
                    let scale = exact.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                    let error = (got - exact)?.abs()?.max_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
                    assert!(error <= tol * scale, "{precision:?} {dtype:?}: {error} of {scale}");
                    assert!(dtype == DType::F32 || error == 0.0);
                }
            }
        }
        Ok(())
    }
}
