//! The toy nets behind the golden files, put together from the pieces of this workspace; and what tests do with models.

use candle_core::{DType, Device, Result, Tensor, bail};
use mm_balance::{Balancer, Joint, Optimizer, StepCx, StepReport, TrainStep};
use mm_core::model::sum;
use mm_core::{
    Batch, Composite, Encoder, Features, Fusion, Gradients, Head, Init, Modal, Modalities, Mode, ParamStore,
    Presence, Scope, StepRng,
};
use mm_kernels::linear::linear;
use mm_testkit::toy::{self, Toy};
use std::collections::BTreeMap;

/// `h = tanh(W x + b)`, with or without b.
#[derive(Debug)]
pub(crate) struct TanhEncoder {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl TanhEncoder {
    pub(crate) fn new(mut scope: Scope<'_>, shape: (usize, usize), bias: bool) -> Result<Self> {
        let weight = scope.param("weight", shape, Init::linear(shape.1))?;
        let bias = bias.then(|| scope.param("bias", shape.0, Init::linear(shape.1))).transpose()?;
        Ok(Self { weight, bias })
    }
}

impl Encoder for TanhEncoder {
    fn forward(&self, x: &Tensor, _: Mode) -> Result<Tensor> {
        mm_kernels::tanh(&linear(x, &self.weight, self.bias.as_ref())?)
    }
    fn dim(&self) -> usize {
        self.weight.dims()[0]
    }
}

/// A square convolution with stride 1 that keeps the size, batch normalisation, tanh, mean over positions.
#[derive(Debug)]
pub(crate) struct ConvEncoder {
    kernel: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
}

impl ConvEncoder {
    pub(crate) fn new(mut scope: Scope<'_>, kernel: &[usize]) -> Result<Self> {
        let init = Init::linear(kernel[1..].iter().product());
        let mut conv = scope.child("0");
        let (weight, bias) = (conv.param("weight", kernel, init)?, conv.param("bias", kernel[0], init)?);
        let mut norm = scope.child("1");
        let scale = norm.param("weight", kernel[0], Init::Const(1.0))?;
        let shift = norm.param("bias", kernel[0], Init::Const(0.0))?;
        Ok(Self { kernel: weight, bias, scale, shift })
    }

    /// The convolution as one matrix product over patches.
    fn convolve(&self, x: &Tensor) -> Result<Tensor> {
        let (rows, channels, height, width) = x.dims4()?;
        let (out, _, size, _) = self.kernel.dims4()?;
        let x = x.pad_with_zeros(2, size / 2, size / 2)?.pad_with_zeros(3, size / 2, size / 2)?;
        let mut shifted = Vec::with_capacity(size * size);
        for y in 0..size {
            for z in 0..size {
                shifted.push(x.narrow(2, y, height)?.narrow(3, z, width)?);
            }
        }
        let patches = Tensor::stack(&shifted, 2)?.permute((0, 3, 4, 1, 2))?.contiguous()?;
        let patches = patches.reshape((rows * height * width, channels * size * size))?;
        let y = linear(&patches, &self.kernel.flatten_from(1)?, Some(&self.bias))?;
        y.reshape((rows, height * width, out))?.transpose(1, 2)?.contiguous()
    }
}

impl Encoder for ConvEncoder {
    fn forward(&self, x: &Tensor, _: Mode) -> Result<Tensor> {
        let y =
            mm_kernels::batch_norm_train(&self.convolve(x)?, Some(&self.scale), Some(&self.shift), 1e-5)?.y;
        mm_kernels::tanh(&y)?.mean(2)
    }
    fn dim(&self) -> usize {
        self.kernel.dims()[0]
    }
}

/// An encoder as a model takes it.
pub(crate) fn boxed<E: Encoder + 'static>(made: Result<E>) -> Result<Box<dyn Encoder>> {
    made.map(|encoder| Box::new(encoder) as Box<dyn Encoder>)
}

/// The inputs are the features.
#[derive(Debug)]
pub(crate) struct Identity(pub(crate) usize);

impl Encoder for Identity {
    fn forward(&self, x: &Tensor, _: Mode) -> Result<Tensor> {
        Ok(x.clone())
    }
    fn dim(&self) -> usize {
        self.0
    }
}

/// The mean of the modalities' own logits, z = 1/M Σ_m z^m: the decision of LFM. With weights z^m = W_m h_m + b_m,
/// without them z^m = h_m.
#[derive(Debug)]
pub(crate) struct MeanLogits(Option<Modal<(Tensor, Tensor)>>);

impl MeanLogits {
    pub(crate) fn of_features() -> Box<dyn Fusion> {
        Box::new(Self(None))
    }

    pub(crate) fn of_heads(
        mut scope: Scope<'_>,
        names: &Modalities,
        shapes: &[[usize; 2]],
    ) -> Result<Box<dyn Fusion>> {
        let heads = Modal::try_from_fn(names.len(), |m| {
            let ([out, width], mut scope) = (shapes[m.index()], scope.child(names.name(m)));
            Result::Ok((
                scope.param("weight", (out, width), Init::linear(width))?,
                scope.param("bias", out, Init::linear(width))?,
            ))
        })?;
        Ok(Box::new(Self(Some(heads))))
    }
}

impl Fusion for MeanLogits {
    fn fuse(&self, z: &Features, _: &Modal<Option<Presence>>, _: Mode) -> Result<Tensor> {
        match self.split_logits(z)? {
            Some(parts) => sum(parts.values()),
            None => bail!("always a sum"),
        }
    }
    fn split_logits(&self, z: &Features) -> Result<Option<Modal<Tensor>>> {
        z.try_map(|m, h| {
            let logits = match &self.0 {
                Some(heads) => linear(h, &heads[m].0, Some(&heads[m].1))?,
                None => h.clone(),
            };
            logits / z.len() as f64
        })
        .map(Some)
    }
    fn head(&self) -> Head<'_> {
        Head::Opaque
    }
}

/// A model over features that are given.
pub(crate) fn over_features(widths: &[usize], classes: usize, dtype: DType) -> Result<Toy> {
    let mut store = ParamStore::new(0, dtype, &Device::Cpu);
    let names = toy::modalities(widths.len())?;
    let encoders = widths.iter().map(|&w| Box::new(Identity(w)) as Box<dyn Encoder>).collect();
    let dims = widths.iter().copied().collect();
    let fusion = toy::split(store.root().at("fusion"), &names, &dims, classes)?;
    Ok(Toy { model: Composite::new(names, classes, encoders, Some(fusion))?, store })
}

/// Sets a parameter of a model.
#[track_caller]
pub(crate) fn set(store: &ParamStore, name: &str, value: &Tensor) -> Result<()> {
    let Some(param) = store.find(name) else { bail!("the model has no parameter `{name}`") };
    param.var().set(value)
}

/// An optimiser that only looks: the gradients that it was given, by parameter name, and their learning-rate factors.
pub(crate) struct Capture<'a> {
    params: &'a ParamStore,
    pub(crate) gradients: BTreeMap<String, Tensor>,
    pub(crate) lr_scales: BTreeMap<String, f64>,
}

impl<'a> Capture<'a> {
    pub(crate) fn new(params: &'a ParamStore) -> Self {
        Self { params, gradients: BTreeMap::new(), lr_scales: BTreeMap::new() }
    }
}

impl Optimizer for Capture<'_> {
    fn step(&mut self, gradients: &mut Gradients) -> Result<Option<f64>> {
        for id in self.params.ids() {
            let name = self.params.get(id).name().to_owned();
            if let Some(gradient) = gradients.get(id)? {
                self.gradients.insert(name.clone(), gradient);
            }
            self.lr_scales.insert(name, gradients.lr_scale(id));
        }
        Ok(None)
    }
}

/// Gradient descent with learning-rate factors.
pub(crate) struct Descent<'a> {
    pub(crate) params: &'a ParamStore,
    pub(crate) rate: f64,
}

impl Optimizer for Descent<'_> {
    fn step(&mut self, gradients: &mut Gradients) -> Result<Option<f64>> {
        for id in self.params.ids() {
            if let Some(gradient) = gradients.get(id)? {
                let var = self.params.get(id).var();
                let step = gradient.affine(self.rate * gradients.lr_scale(id), 0.0)?;
                var.set(&(var.as_tensor().detach() - step)?)?;
            }
        }
        Ok(None)
    }
}

/// One training step of `balancer`; what the optimiser was given.
pub(crate) fn one_step<'a, B: Balancer>(
    toy: &'a Toy,
    batch: &Batch,
    balancer: B,
) -> Result<(StepReport, Capture<'a>)> {
    let mut capture = Capture::new(&toy.store);
    let cx = context(toy, batch, 0);
    let report = Joint::new(balancer).step(&cx, &mut capture)?;
    Ok((report, capture))
}

/// The same for a method that may own the step.
pub(crate) fn one_step_of<'a>(
    toy: &'a Toy,
    batch: &Batch,
    step: &mut dyn TrainStep,
) -> Result<(StepReport, Capture<'a>)> {
    let mut capture = Capture::new(&toy.store);
    let report = step.step(&context(toy, batch, 0), &mut capture)?;
    Ok((report, capture))
}

/// The context of a step of epoch 0.
pub(crate) fn context<'a>(toy: &'a Toy, batch: &'a Batch, step: usize) -> StepCx<'a> {
    StepCx::new(&toy.model, &toy.store, batch, 0, step, StepRng::new(5))
}

/// The values that a step reported under `name`, by modality.
pub(crate) fn observed(report: &StepReport, name: &str) -> Vec<f64> {
    report.observations.iter().filter(|o| o.0 == name && o.1.is_some()).map(|o| o.2).collect()
}
