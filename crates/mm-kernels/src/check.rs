//! Gradient checks by central differences, for tests.

use crate::rng::StepRng;
use candle_core::{DType, Result, Tensor, Var, bail};

/// What a gradient check found.
#[derive(Debug, Clone, PartialEq)]
pub struct GradCheckReport {
    /// The number of input elements that were compared.
    pub elements: usize,
    /// The largest error, |analytic - numeric| / max(1, |analytic|, |numeric|); NaN where either is NaN.
    pub max_error: f64,
    /// The input and the element (in row-major order) of the largest error.
    pub worst: (usize, usize),
    /// The gradient of candle there.
    pub analytic: f64,
    /// The central difference there.
    pub numeric: f64,
    /// The inputs that the gradient did not reach: candle holds none for them, and they were compared as zeros.
    pub unreached: Vec<usize>,
}

/// Compares the gradients of `f` with central differences at every element of every input.
///
/// ```text
/// L = sum_i r[i] f(inputs)[i],   numeric[j] = (L(x[j] + eps) - L(x[j] - eps)) / (2 eps)
/// ```
///
/// with fixed random weights r, so that a gradient which is right only in the sum does not pass. The inputs are `f64`
/// of any shape and are passed to `f` in order; what `f` returns may have any shape. `f` must be deterministic, and
/// smooth within `eps` of the inputs. `eps = 1e-6` with `tol = 1e-7` suits values near one.
///
/// It is an error, naming the worst element, if the error is above `tol` or NaN; use [`differences`] to look at
/// gradients that may be wrong.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mm_kernels::check::gradcheck;
/// let x = Tensor::new(&[0.5f64, -1.5], &Device::Cpu)?;
/// let report = gradcheck(|x| x[0].sqr(), &[x], 1e-6, 1e-8)?;
/// assert_eq!(report.elements, 2);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn gradcheck(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    eps: f64,
    tol: f64,
) -> Result<GradCheckReport> {
    let report = differences(f, inputs, eps)?;
    if report.max_error.is_nan() || report.max_error > tol {
        let (input, element) = report.worst;
        bail!(
            "gradcheck: input {input}, element {element}: gradient {:e}, central difference {:e}, error {:e} above {tol:e} \
             (inputs without a gradient: {:?})",
            report.analytic,
            report.numeric,
            report.max_error,
            report.unreached
        )
    }
    Ok(report)
}

/// As [`gradcheck`], without a verdict.
pub fn differences(
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    inputs: &[Tensor],
    eps: f64,
) -> Result<GradCheckReport> {
    let variables = inputs.iter().map(|x| Var::from_tensor(&x.detach())).collect::<Result<Vec<_>>>()?;
    let tracked: Vec<Tensor> = variables.iter().map(|v| v.as_tensor().clone()).collect();
    for (i, x) in inputs.iter().enumerate() {
        if x.dtype() != DType::F64 {
            bail!("gradcheck: input {i} is {:?}; central differences need F64", x.dtype())
        }
    }
    let y = f(&tracked)?;
    let mut draws = StepRng::new(0).stream("gradcheck").draws();
    let r: Vec<f64> = (0..y.elem_count()).map(|_| draws.normal()).collect();
    let r = Tensor::from_vec(r, y.shape(), y.device())?;
    let grads = (&y * &r)?.sum_all()?.backward()?;
    let loss = |x: &[Tensor]| -> Result<f64> { (f(x)?.detach() * &r)?.sum_all()?.to_scalar::<f64>() };

    let mut report = GradCheckReport {
        elements: 0,
        max_error: 0.0,
        worst: (0, 0),
        analytic: 0.0,
        numeric: 0.0,
        unreached: Vec::new(),
    };
    let mut moved: Vec<Tensor> = inputs.iter().map(Tensor::detach).collect();
    for (i, (input, variable)) in inputs.iter().zip(&tracked).enumerate() {
        let gradient = if let Some(gradient) = grads.get(variable) {
            gradient.flatten_all()?.to_vec1::<f64>()?
        } else {
            report.unreached.push(i);
            vec![0.0; input.elem_count()]
        };
        let values = input.flatten_all()?.to_vec1::<f64>()?;
        let mut at = |j: usize, delta: f64| -> Result<f64> {
            let mut values = values.clone();
            values[j] += delta;
            moved[i] = Tensor::from_vec(values, input.shape(), input.device())?;
            loss(&moved)
        };
        for (j, &analytic) in gradient.iter().enumerate() {
            let numeric = (at(j, eps)? - at(j, -eps)?) / (2.0 * eps);
            let error = (analytic - numeric).abs() / analytic.abs().max(numeric.abs()).max(1.0);
            report.elements += 1;
            if error > report.max_error || (error.is_nan() && !report.max_error.is_nan()) {
                report = GradCheckReport { max_error: error, worst: (i, j), analytic, numeric, ..report };
            }
        }
        moved[i] = input.detach();
    }
    Ok(report)
}
