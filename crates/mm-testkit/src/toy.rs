//! Toy models and data: small enough for a test, learnable, and with one modality stronger than the next.
//!
//! ```text
//! h_m = W_m x_m + b_m            encoder.<modality>.{weight,bias}
//! z   = Σ_m V_m h_m + b          fusion.<modality>.weight, fusion.bias      (`split`)
//! z   = V tanh(Σ_m V_m h_m) + b  fusion.in.<modality>.weight, fusion.out.{weight,bias}  (`opaque`)
//! ```

use candle_core::{DType, Device, Result, Tensor};
use mm_core::model::{pooled, sum, to_host};
use mm_core::{
    Batch, Composite, Encoder, Features, Fusion, Gradients, Head, Init, Modal, Modalities, Mode, Multimodal,
    ParamStore, Presence, Scope, StepRng,
};
use mm_kernels::{activation::tanh, cross_entropy::cross_entropy, linear::linear};

/// A model and the store of its parameters.
#[derive(Debug)]
pub struct Toy {
    /// The model.
    pub model: Composite,
    /// Its parameters.
    pub store: ParamStore,
}

/// What a toy model is made of; modalities are called `m0`, `m1`, ….
#[derive(Debug, Clone)]
pub struct Options {
    /// Seed of the initial values.
    pub seed: u64,
    /// Input width of each modality.
    pub dims: Vec<usize>,
    /// Feature width of every encoder.
    pub width: usize,
    /// Number of classes.
    pub classes: usize,
    /// Element type of everything.
    pub dtype: DType,
    /// Whether each modality has a head of its own (`head.<modality>.{weight,bias}`).
    pub heads: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, dims: vec![4, 6], width: 5, classes: 3, dtype: DType::F64, heads: false }
    }
}

impl Options {
    /// The model with the fusion that `fusion` makes: [`split`], [`opaque`], or a closure around a real one. It gets the
    /// scope `fusion`, the modalities, the feature widths and the number of classes.
    pub fn build<F>(&self, fusion: F) -> Result<Toy>
    where
        F: FnOnce(Scope<'_>, &Modalities, &Modal<usize>, usize) -> Result<Box<dyn Fusion>>,
    {
        let mut store = ParamStore::new(self.seed, self.dtype, &Device::Cpu);
        let modalities = modalities(self.dims.len())?;
        let encoders = self.encoders(&mut store, &modalities)?;
        let widths = encoders.map(|_, encoder| encoder.dim());
        let fusion = fusion(store.root().at("fusion"), &modalities, &widths, self.classes)?;
        let model = Composite::new(modalities, self.classes, encoders, Some(fusion))?;
        let model = if self.heads { model.with_heads(store.root())? } else { model };
        Ok(Toy { model, store })
    }

    /// The model without a fusion: its logits are the sum of its heads, whatever `heads` says.
    pub fn build_without_fusion(&self) -> Result<Toy> {
        let mut store = ParamStore::new(self.seed, self.dtype, &Device::Cpu);
        let modalities = modalities(self.dims.len())?;
        let encoders = self.encoders(&mut store, &modalities)?;
        let model = Composite::new(modalities, self.classes, encoders, None)?.with_heads(store.root())?;
        Ok(Toy { model, store })
    }

    fn encoders(&self, store: &mut ParamStore, modalities: &Modalities) -> Result<Modal<Box<dyn Encoder>>> {
        Modal::try_from_fn(self.dims.len(), |m| {
            let scope = store.root().at("encoder").at(modalities.name(m));
            let encoder = LinearEncoder::new(scope, self.dims[m.index()], self.width)?;
            Ok(Box::new(encoder) as Box<dyn Encoder>)
        })
    }

    /// A batch that fits the model; see [`batch`].
    pub fn batch(&self, seed: u64, rows: usize) -> Result<Batch> {
        let means = |m: usize, class: usize| {
            let mut draws = StepRng::new(0).stream("toy means").sample((m * 1000 + class) as u64).draws();
            (0..self.dims[m]).map(|_| 2.0 * draws.normal()).collect::<Vec<f64>>()
        };
        let labels: Vec<u32> = (0..rows).map(|row| (row % self.classes.max(1)) as u32).collect();
        let inputs = Modal::try_from_fn(self.dims.len(), |m| {
            let (m, mut noise) =
                (m.index(), StepRng::new(seed).stream("toy noise").sample(m.index() as u64).draws());
            let means: Vec<_> = (0..self.classes).map(|class| means(m, class)).collect();
            let mut values = Vec::with_capacity(rows * self.dims[m]);
            for &label in &labels {
                values.extend(
                    means[label as usize].iter().map(|mean| mean + (1.0 + m as f64) * noise.normal()),
                );
            }
            Tensor::from_vec(values, (rows, self.dims[m]), &Device::Cpu)?.to_dtype(self.dtype)
        })?;
        Batch::new(inputs, labels)
    }
}

/// A toy model in f64 without heads; see [`Options`] for everything else.
pub fn composite<F>(seed: u64, dims: &[usize], classes: usize, fusion: F) -> Result<Toy>
where
    F: FnOnce(Scope<'_>, &Modalities, &Modal<usize>, usize) -> Result<Box<dyn Fusion>>,
{
    Options { seed, dims: dims.to_vec(), classes, ..Options::default() }.build(fusion)
}

/// Gaussian clusters in f64, one per class and modality: row r has class r mod C.
///
/// The centres do not depend on the seed, so batches of different seeds are training and test data of one problem. The
/// noise has standard deviation 1 in the first modality, 2 in the second and so on: the first is learnt fastest.
pub fn batch(seed: u64, rows: usize, dims: &[usize], classes: usize) -> Result<Batch> {
    Options { dims: dims.to_vec(), classes, ..Options::default() }.batch(seed, rows)
}

/// The names `m0`, `m1`, ….
pub fn modalities(count: usize) -> Result<Modalities> {
    Modalities::new((0..count).map(|m| format!("m{m}"))).map_err(candle_core::Error::wrap)
}

/// Plain gradient descent on the cross-entropy of the fused logits over one batch; returns the loss of every step.
///
/// Training mode, a new key each step. Fails where a parameter receives no gradient in the first step.
pub fn descend(toy: &Toy, batch: &Batch, steps: usize, rate: f64) -> Result<Vec<f64>> {
    let mut losses = Vec::with_capacity(steps);
    for step in 0..steps {
        let mode = Mode::Train(StepRng::new(0).stream("toy").step(step));
        let logits = toy.model.forward(batch, mode)?.fused;
        let loss = cross_entropy(&logits, &batch.labels, None)?;
        let grads = Gradients::collect(&toy.store, loss.backward()?);
        if step == 0 {
            grads.check_reached(&toy.store)?;
        }
        for id in toy.store.ids() {
            if let Some(grad) = grads.get(id)? {
                let var = toy.store.get(id).var();
                var.set(&(var.as_tensor().detach() - grad.affine(rate, 0.0)?)?)?;
            }
        }
        losses.push(to_host(&loss)?[0]);
    }
    Ok(losses)
}

/// The fraction of rows whose largest logit is the one of their class.
pub fn accuracy(logits: &Tensor, labels: &[u32]) -> Result<f64> {
    let best = logits.argmax(1)?.to_vec1::<u32>()?;
    let right = best.iter().zip(labels).filter(|(a, b)| a == b).count();
    Ok(right as f64 / labels.len().max(1) as f64)
}

/// `h = W x + b`.
#[derive(Debug)]
pub struct LinearEncoder {
    weight: Tensor,
    bias: Tensor,
}

impl LinearEncoder {
    /// Makes `weight` (width, `input_dim`) and `bias` (width) in `scope`.
    pub fn new(mut scope: Scope<'_>, input_dim: usize, width: usize) -> Result<Self> {
        Ok(Self {
            weight: scope.param("weight", (width, input_dim), Init::linear(input_dim))?,
            bias: scope.param("bias", width, Init::linear(input_dim))?,
        })
    }
}

impl Encoder for LinearEncoder {
    fn forward(&self, x: &Tensor, _mode: Mode) -> Result<Tensor> {
        linear(x, &self.weight, Some(&self.bias))
    }

    fn dim(&self) -> usize {
        self.bias.elem_count()
    }
}

/// The split head: one weight block per modality and one bias; see the equations of this module.
pub fn split(
    mut scope: Scope<'_>,
    modalities: &Modalities,
    dims: &Modal<usize>,
    classes: usize,
) -> Result<Box<dyn Fusion>> {
    let fan_in = dims.values().iter().sum();
    let weights = dims.try_map(|m, &dim| {
        scope.child(modalities.name(m)).param("weight", (classes, dim), Init::linear(fan_in))
    })?;
    let bias = scope.param("bias", classes, Init::linear(fan_in))?;
    Ok(Box::new(Split { weights, bias }))
}

#[derive(Debug)]
struct Split {
    weights: Modal<Tensor>,
    bias: Tensor,
}

impl Fusion for Split {
    fn fuse(&self, z: &Features, _present: &Modal<Option<Presence>>, _mode: Mode) -> Result<Tensor> {
        sum(&self.parts(z)?.into_values())
    }

    fn split_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>> {
        self.parts(z).map(Some)
    }

    fn head(&self) -> Head<'_> {
        Head::Split { weights: self.weights.values().iter().collect(), bias: Some(&self.bias) }
    }
}

impl Split {
    fn parts(&self, z: &Features) -> Result<Modal<Tensor>> {
        let share = self.bias.affine(1.0 / z.len() as f64, 0.0)?;
        z.try_map(|m, h| linear(&pooled(h)?, &self.weights[m], Some(&share)))
    }
}

/// A fusion that is not a sum over modalities; see the equations of this module.
pub fn opaque(
    mut scope: Scope<'_>,
    modalities: &Modalities,
    dims: &Modal<usize>,
    classes: usize,
) -> Result<Box<dyn Fusion>> {
    let width = dims.values().iter().copied().max().unwrap_or(1);
    let inner = dims.try_map(|m, &dim| {
        scope.child("in").at(modalities.name(m)).param("weight", (width, dim), Init::linear(dim))
    })?;
    let mut out = scope.child("out");
    let weight = out.param("weight", (classes, width), Init::linear(width))?;
    let bias = out.param("bias", classes, Init::linear(width))?;
    Ok(Box::new(Opaque { inner, weight, bias }))
}

#[derive(Debug)]
struct Opaque {
    inner: Modal<Tensor>,
    weight: Tensor,
    bias: Tensor,
}

impl Fusion for Opaque {
    fn fuse(&self, z: &Features, _present: &Modal<Option<Presence>>, _mode: Mode) -> Result<Tensor> {
        let parts = z.try_map(|m, h| linear(&pooled(h)?, &self.inner[m], None))?;
        linear(&tanh(&sum(parts.values())?)?, &self.weight, Some(&self.bias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check_gradients;
    use crate::gradients::probe;

    #[test]
    fn names_and_gradients_are_right() {
        let options = Options { heads: true, ..Options::default() };
        let batch = options.batch(0, 4).unwrap();
        let toy = options.build(split).unwrap();
        let names: Vec<&str> = toy.store.params().iter().map(mm_core::Param::name).collect();
        assert_eq!(names[..2], ["encoder.m0.weight", "encoder.m0.bias"]);
        assert_eq!(names[4..7], ["fusion.m0.weight", "fusion.m1.weight", "fusion.bias"]);
        assert_eq!(names[7..9], ["head.m0.weight", "head.m0.bias"]);
        for toy in [toy, options.build(opaque).unwrap()] {
            let total = || {
                let forward = toy.model.forward(&batch, Mode::Eval)?;
                let heads = forward.heads.expect("heads were asked for");
                sum(&[probe(&forward.fused)?, probe(&heads.values()[0])?, probe(&heads.values()[1])?])
            };
            check_gradients(&toy.store, &[], 1e-6, total).unwrap();
        }
    }

    #[test]
    fn the_clusters_are_learnt_and_carry_over() {
        let (dims, classes) = ([4, 6, 3], 3);
        let options = Options { seed: 1, dims: dims.to_vec(), classes, ..Options::default() };
        let toys = [options.build(split), options.build(opaque), options.build_without_fusion()];
        for toy in toys.map(candle_core::Result::unwrap) {
            let train = batch(1, 48, &dims, classes).unwrap();
            let losses = descend(&toy, &train, 60, 0.05).unwrap();
            assert!(losses[59] < 0.3 * losses[0], "{losses:?}");
            let test = batch(2, 90, &dims, classes).unwrap();
            let logits = toy.model.forward(&test, Mode::Eval).unwrap().fused;
            let found = accuracy(&logits, &test.labels).unwrap();
            assert!(found > 0.9, "{found}");
        }
    }

    #[test]
    fn a_seed_fixes_model_and_batch() {
        let bits = |seed: u64| {
            let toy = composite(seed, &[4, 6], 3, opaque).unwrap();
            let batch = batch(seed, 6, &[4, 6], 3).unwrap();
            let logits = toy.model.forward(&batch, Mode::Eval).unwrap().fused;
            mm_core::model::to_host(&logits).unwrap()
        };
        assert_eq!(bits(3), bits(3));
        assert_ne!(bits(3), bits(4));
    }
}
