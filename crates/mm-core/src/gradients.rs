//! Gradients by parameter, with scale factors that the optimiser applies for free.

use crate::{ParamId, ParamStore};
use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Result, Storage, Tensor, Var, bail};

/// The gradient of every parameter of a store, in the store's order.
///
/// Scaling is lazy: [`Gradients::scale`] multiplies a number that belongs to the parameter, and the optimiser's fused
/// update multiplies the gradient by it while it reads it. A parameter may have no gradient at all, which is not the
/// same as a zero gradient: with momentum or weight decay only the latter moves the parameter.
#[derive(Debug)]
pub struct Gradients {
    grads: Vec<Option<Tensor>>,
    scales: Vec<f64>,
    lr_scales: Vec<f64>,
}

impl Gradients {
    /// Takes the gradients of a store's parameters out of what `backward` returned.
    pub fn collect(params: &ParamStore, mut store: GradStore) -> Self {
        let grads: Vec<_> = params.params().iter().map(|p| store.remove(p.var().as_tensor())).collect();
        let ones = vec![1.0; grads.len()];
        Self { grads, scales: ones.clone(), lr_scales: ones }
    }

    /// No gradient anywhere.
    pub fn empty(params: &ParamStore) -> Self {
        let ones = vec![1.0; params.len()];
        Self { grads: vec![None; params.len()], scales: ones.clone(), lr_scales: ones }
    }

    /// The unscaled gradient and its pending factor.
    pub fn raw(&self, id: ParamId) -> Option<(&Tensor, f64)> {
        self.grads[id.index()].as_ref().map(|g| (g, self.scales[id.index()]))
    }

    /// The gradient with its factor applied.
    pub fn get(&self, id: ParamId) -> Result<Option<Tensor>> {
        match self.raw(id) {
            None => Ok(None),
            Some((g, 1.0)) => Ok(Some(g.clone())),
            Some((g, k)) => g.affine(k, 0.0).map(Some),
        }
    }

    /// Replaces a gradient; its pending factor becomes 1.
    pub fn set(&mut self, id: ParamId, grad: Option<Tensor>) {
        self.grads[id.index()] = grad;
        self.scales[id.index()] = 1.0;
    }

    /// Adds to a gradient, after its pending factor.
    pub fn add(&mut self, id: ParamId, term: &Tensor) -> Result<()> {
        let total = match self.get(id)? {
            Some(g) => (g + term)?,
            None => term.clone(),
        };
        self.set(id, Some(total));
        Ok(())
    }

    /// Multiplies one parameter's gradient by `k`.
    pub fn scale_one(&mut self, id: ParamId, k: f64) {
        self.scales[id.index()] *= k;
    }

    /// Multiplies the gradients of all parameters under a dotted prefix by `k`.
    pub fn scale(&mut self, params: &ParamStore, prefix: &str, k: f64) {
        for id in params.group(prefix) {
            self.scale_one(id, k);
        }
    }

    /// Multiplies the *learning rate* of all parameters under a dotted prefix by `k`, for this step only.
    ///
    /// Under SGD this equals scaling the gradient up to momentum and weight decay; under Adam it differs: there a
    /// constant gradient factor cancels between the two moments, a learning-rate factor does not.
    pub fn scale_lr(&mut self, params: &ParamStore, prefix: &str, k: f64) {
        for id in params.group(prefix) {
            self.lr_scales[id.index()] *= k;
        }
    }

    /// The factor of a parameter's learning rate in this step.
    pub fn lr_scale(&self, id: ParamId) -> f64 {
        self.lr_scales[id.index()]
    }

    /// Multiplies every gradient by `k`.
    pub fn scale_all(&mut self, k: f64) {
        for s in &mut self.scales {
            *s *= k;
        }
    }

    /// Euclidean norm over some parameters, factors applied; 0 where none has a gradient.
    pub fn norm(&self, ids: impl IntoIterator<Item = ParamId>) -> Result<f64> {
        let mut total = 0.0;
        for id in ids {
            if let Some((g, k)) = self.raw(id) {
                total += k * k * square_sum(g)?;
            }
        }
        Ok(total.sqrt())
    }

    /// Euclidean norm over everything.
    pub fn global_norm(&self) -> Result<f64> {
        let mut total = 0.0;
        for (g, k) in self.grads.iter().zip(&self.scales) {
            if let Some(g) = g {
                total += k * k * square_sum(g)?;
            }
        }
        Ok(total.sqrt())
    }

    /// Scales everything by `max_norm / (norm + 1e-6)` where the global norm is larger (PyTorch's `clip_grad_norm_`);
    /// returns the norm before.
    pub fn clip_norm(&mut self, max_norm: f64) -> Result<f64> {
        let norm = self.global_norm()?;
        let k = max_norm / (norm + 1e-6);
        if k < 1.0 {
            self.scale_all(k);
        }
        Ok(norm)
    }

    /// Fails with the name of the first parameter that received no gradient, or one that is not finite.
    pub fn check_reached(&self, params: &ParamStore) -> Result<()> {
        for id in params.ids() {
            let name = params.get(id).name();
            let Some((g, _)) = self.raw(id) else {
                bail!(
                    "trainable parameter `{name}` receives no gradient: it is unused by the loss, or an operation \
                     between it and the loss has no backward pass (see docs/candle-notes.md)"
                );
            };
            if !square_sum(g)?.is_finite() {
                bail!("the gradient of parameter `{name}` is not finite in the first batch");
            }
        }
        Ok(())
    }
}

/// Σ x², accumulated in f64; reads CPU tensors in place.
pub fn square_sum(x: &Tensor) -> Result<f64> {
    {
        let (storage, layout) = x.storage_and_layout();
        if let (Storage::Cpu(cpu), Some((start, end))) = (&*storage, layout.contiguous_offsets()) {
            match cpu {
                CpuStorage::F32(v) => return Ok(square_sum_f32(&v[start..end])),
                CpuStorage::F64(v) => return Ok(v[start..end].iter().map(|x| x * x).sum()),
                _ => {}
            }
        }
    }
    x.to_dtype(DType::F64)?.sqr()?.sum_all()?.to_scalar::<f64>()
}

fn square_sum_f32(values: &[f32]) -> f64 {
    // Eight independent f64 sums: the order is fixed, so the bits are, and the loop vectorises.
    let mut lanes = [0f64; 8];
    let chunks = values.chunks_exact(8);
    let tail: f64 = chunks.remainder().iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    for chunk in chunks {
        for (lane, &x) in lanes.iter_mut().zip(chunk) {
            *lane += f64::from(x) * f64::from(x);
        }
    }
    lanes.iter().sum::<f64>() + tail
}

/// Multiplies the gradients of `vars` inside candle's own store by `k`, for training loops that do not use
/// [`ParamStore`]. Variables without a gradient are left alone.
pub fn scale<'a>(grads: &mut GradStore, vars: impl IntoIterator<Item = &'a Var>, k: f64) -> Result<()> {
    for var in vars {
        if let Some(g) = grads.remove(var.as_tensor()) {
            grads.insert(var.as_tensor(), g.affine(k, 0.0)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Init;
    use candle_core::Device;

    fn setup() -> (ParamStore, Gradients) {
        let mut store = ParamStore::new(0, DType::F64, &Device::Cpu);
        let a = store.root().at("encoder.a").param("w", 3, Init::Const(2.0)).unwrap();
        let b = store.root().at("encoder.b").param("w", 3, Init::Const(1.0)).unwrap();
        store.root().at("fusion").param("w", 1, Init::Const(1.0)).unwrap();
        let loss = (a.sqr().unwrap().sum_all().unwrap() + b.sum_all().unwrap()).unwrap();
        let grads = Gradients::collect(&store, loss.backward().unwrap());
        (store, grads)
    }

    #[test]
    fn scales_add_up_and_reach_values_and_norms() {
        let (store, mut g) = setup();
        g.scale(&store, "encoder.a", 0.5);
        g.scale(&store, "encoder.a", 0.5);
        let id = store.group("encoder.a").next().unwrap();
        assert_eq!(g.get(id).unwrap().unwrap().to_vec1::<f64>().unwrap(), [1.0; 3]);
        assert!((g.norm(store.group("encoder")).unwrap() - 6f64.sqrt()).abs() < 1e-12);
        let before = g.clip_norm(1.0).unwrap();
        assert!((before - 6f64.sqrt()).abs() < 1e-12);
        assert!((g.global_norm().unwrap() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn a_parameter_without_gradient_is_named() {
        let (store, g) = setup();
        let error = g.check_reached(&store).unwrap_err().to_string();
        assert!(error.contains("`fusion.w` receives no gradient"), "{error}");
    }

    #[test]
    fn square_sums_read_views_right() {
        let x = Tensor::arange(0f32, 20., &Device::Cpu).unwrap().reshape((4, 5)).unwrap();
        let view = x.narrow(0, 1, 2).unwrap();
        let expected: f64 = (5..15).map(|i| f64::from(i * i)).sum();
        assert_eq!(square_sum(&view).unwrap(), expected);
        assert_eq!(square_sum(&x.t().unwrap().narrow(0, 0, 1).unwrap()).unwrap(), 0.0 + 25.0 + 100.0 + 225.0);
    }
}
