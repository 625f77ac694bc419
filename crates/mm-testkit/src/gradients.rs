//! Finite-difference checks of a whole model's gradients.

use candle_core::{DType, Result, Tensor, Var};
use mm_core::ParamStore;
use mm_core::model::to_host;

/// Step of the central differences.
const STEP: f64 = 1e-5;

/// Panics unless backward gives every parameter of `store`, and every one of `inputs`, the gradient that central
/// finite differences give, entry by entry, up to `relative` of the largest entry of that tensor's gradient (but at
/// least of 1e-3, below which differences are all rounding).
///
/// `loss` evaluates the scalar loss at the current values; it is called twice per entry, so models are tiny. Everything
/// is f64. A parameter without gradient is an error unless its finite differences are all zero.
#[track_caller]
pub fn check_gradients(
    store: &ParamStore,
    inputs: &[Var],
    relative: f64,
    loss: impl Fn() -> Result<Tensor>,
) -> Result<()> {
    let named = store.params().iter().map(|p| (p.name().to_owned(), p.var().clone()));
    let inputs = inputs.iter().enumerate().map(|(i, v)| (format!("input {i}"), v.clone()));
    let grads = loss()?.backward()?;
    for (name, var) in named.chain(inputs) {
        assert_eq!(var.dtype(), DType::F64, "gradients are checked in f64, `{name}` is not");
        let exact = match grads.get(var.as_tensor()) {
            Some(grad) => {
                assert_eq!(grad.dims(), var.dims(), "the gradient of `{name}` has another shape");
                to_host(grad)?
            }
            None => vec![0.0; var.elem_count()],
        };
        let start = to_host(var.as_tensor())?;
        let mut differences = Vec::with_capacity(start.len());
        for i in 0..start.len() {
            let at = |shift: f64| -> Result<f64> {
                let mut moved = start.clone();
                moved[i] += shift;
                var.set(&Tensor::from_vec(moved, var.shape(), var.device())?)?;
                loss()?.to_scalar::<f64>()
            };
            differences.push((at(STEP)? - at(-STEP)?) / (2.0 * STEP));
        }
        var.set(&Tensor::from_vec(start, var.shape(), var.device())?)?;
        let scale = exact.iter().fold(1e-3_f64, |s, g| s.max(g.abs()));
        for (i, (g, d)) in exact.iter().zip(&differences).enumerate() {
            assert!(
                (g - d).abs() <= relative * scale,
                "gradient of `{name}` at [{i}]: backward {g:e}, finite difference {d:e}, allowed gap {:e}",
                relative * scale
            );
        }
    }
    Ok(())
}

/// A scalar that depends on every entry of `x` with a different weight: Σ_i w_i x_i + Σ_i x_i²/2, w_i = cos(i + 1).
///
/// A plain sum would hide gradients that are only permuted or averaged.
pub fn probe(x: &Tensor) -> Result<Tensor> {
    let weights: Vec<f64> = (0..x.elem_count()).map(|i| (i as f64 + 1.0).cos()).collect();
    let weights = Tensor::from_vec(weights, x.shape(), x.device())?.to_dtype(x.dtype())?;
    ((x * weights)? + (x.sqr()? * 0.5)?)?.sum_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;
    use mm_core::Init;

    fn setup() -> (ParamStore, Tensor, Var) {
        let mut store = ParamStore::new(1, DType::F64, &Device::Cpu);
        let w = store.root().param("w", (2, 3), Init::linear(3)).unwrap();
        let x = Var::from_vec(vec![0.5, -1.0, 2.0], (3, 1), &Device::Cpu).unwrap();
        (store, w, x)
    }

    #[test]
    fn right_gradients_pass_and_values_are_put_back() {
        let (store, w, x) = setup();
        let before = to_host(&w).unwrap();
        let loss = || probe(&w.matmul(&x)?);
        check_gradients(&store, std::slice::from_ref(&x), 1e-7, loss).unwrap();
        assert_eq!(to_host(&w).unwrap(), before);
    }

    #[test]
    #[should_panic(expected = "gradient of `w` at [0]")]
    fn a_missing_gradient_is_found() {
        let (store, w, x) = setup();
        check_gradients(&store, std::slice::from_ref(&x), 1e-7, || probe(&w.detach().matmul(&x)?)).unwrap();
    }
}
