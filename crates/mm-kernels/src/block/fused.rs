//! The block on the CPU: what it keeps, and its backward pass.

use super::channels::{
    Affine, Moments, Other, apply, apply_in_place, finish, mask_by_affine, mask_by_output,
};
use super::{BatchStatistics, BlockConfig, BlockOut, ConvNorm, Shortcut, Statistics};
use crate::buffers::Buffer;
use crate::conv::{Engine, Geometry, Normalised, Number, Stored};
use crate::host::View;
use crate::nary::{Backward, node};
use candle_core::{DType, Device, Result, Tensor, bail};
use std::sync::OnceLock;

pub(super) const NAME: &str = "residual_block";

/// A convolution and its normalisation after a forward pass.
pub(super) struct Layer<T> {
    /// The operation it is part of, for messages.
    name: &'static str,
    pub(super) geometry: Geometry,
    pub(super) weight: Tensor,
    /// The output of the convolution.
    pub(super) y: Buffer<T>,
    pub(super) norm: Affine<T>,
    /// Whether weight, scale and shift want gradients.
    wants: [bool; 3],
    shapes: [candle_core::Shape; 3],
}

/// What a convolution reads.
pub(super) enum Input<'a, T> {
    Stored(&'a [T]),
    Normalised(&'a Layer<T>),
}

impl<T: Number> Layer<T> {
    /// Runs the convolution and takes the statistics.
    pub(super) fn forward(
        name: &'static str,
        engine: Engine,
        config: &BlockConfig,
        given: &ConvNorm<'_>,
        [n, h, w, c]: [usize; 4],
        x: &Input<'_, T>,
    ) -> Result<(Self, Option<BatchStatistics>)> {
        let window = (given.stride, given.stride, given.padding, given.padding, 1, 1);
        let geometry = Geometry::new(name, [n, h, w, c], given.weight.shape(), window, 1)?;
        let g = &geometry;
        let of = [
            ("scale", given.scale),
            ("shift", given.shift),
            ("running mean", given.running.0),
            ("running variance", given.running.1),
        ];
        for (what, tensor) in of {
            if tensor.dims() != [g.co] {
                bail!(
                    "{name}: {what} {:?} does not fit weight {:?}: it must be [{}]",
                    tensor.shape(),
                    given.weight.shape(),
                    g.co
                )
            }
        }
        let count = g.n * g.oh * g.ow;
        if count <= 1 && config.statistics == Statistics::Batch {
            bail!(
                "{name}: expected more than 1 value per channel when training, got an output of {}x{}x{}x{}",
                g.n,
                g.oh,
                g.ow,
                g.co
            )
        }
        let weight = given.weight.detach().contiguous()?;
        let mut y = Buffer::new(count * g.co);
        let parts: Vec<OnceLock<Moments>> = (0..engine.tasks::<T>(g)).map(|_| OnceLock::new()).collect();
        {
            let view = View::new(&weight);
            let w = view.slice::<T>(name)?;
            let done = |task: usize, rows: &mut [T]| {
                if config.statistics == Statistics::Batch {
                    // Each task is run once: there is no second value to lose.
                    let _ = parts[task].set(Moments::of(engine.isa, rows, g.co));
                }
            };
            match x {
                Input::Stored(x) => engine.forward_into(g, &Stored(x), w, &mut y, &done),
                Input::Normalised(layer) => engine.forward_into(g, &layer.activation(), w, &mut y, &done),
            }
        }
        let host = |t: &Tensor| -> Result<Vec<T>> {
            let t = t.detach().contiguous()?;
            Ok(View::new(&t).slice::<T>(name)?.to_vec())
        };
        let (gamma, beta) = (host(given.scale)?, host(given.shift)?);
        let (norm, statistics) = match config.statistics {
            Statistics::Batch => {
                let Some(all) = Moments::merge(parts.iter().filter_map(OnceLock::get)) else {
                    bail!("{name}: no values to take statistics of")
                };
                let variance = all.variance(0.0);
                let norm = Affine::new(&gamma, &beta, (all.mean(), &variance), config.eps, all.count(), true);
                let tensor = |v: Vec<f64>| Tensor::from_vec(v, g.co, &Device::Cpu)?.to_dtype(T::DTYPE);
                let statistics = BatchStatistics {
                    mean: tensor(all.mean().to_vec())?,
                    var_unbiased: tensor(all.variance(1.0))?,
                };
                (norm, Some(statistics))
            }
            Statistics::Running => {
                let double = |t: &Tensor| t.detach().to_dtype(DType::F64)?.to_vec1::<f64>();
                let (mean, variance) = (double(given.running.0)?, double(given.running.1)?);
                (Affine::new(&gamma, &beta, (&mean, &variance), config.eps, count as f64, false), None)
            }
        };
        let all = [given.weight, given.scale, given.shift];
        let (wants, shapes) = (all.map(Tensor::track_op), all.map(|t| t.shape().clone()));
        Ok((Self { name, geometry, weight, y, norm, wants, shapes }, statistics))
    }

    /// relu(norm(y)), not stored.
    pub(super) fn activation(&self) -> Normalised<'_, T> {
        Normalised { x: &self.y, scale: &self.norm.scale, shift: &self.norm.shift }
    }

    pub(super) fn output(&self) -> [usize; 4] {
        let g = &self.geometry;
        [g.n, g.oh, g.ow, g.co]
    }

    /// The gradients of weight, scale and shift, given that of the convolution's output.
    pub(super) fn parameters(
        &self,
        engine: Engine,
        x: &Input<'_, T>,
        dy: &[T],
        gamma: Vec<T>,
        beta: Vec<T>,
    ) -> Result<[Option<Tensor>; 3]> {
        let weight = self.wants[0].then(|| match x {
            Input::Stored(x) => engine.grad_weight(&self.geometry, &Stored(x), &Stored(dy)),
            Input::Normalised(layer) => engine.grad_weight(&self.geometry, &layer.activation(), &Stored(dy)),
        });
        let tensor = |k: usize, v: Vec<T>| {
            self.wants[k].then(|| Tensor::from_vec(v, &self.shapes[k], &Device::Cpu)).transpose()
        };
        let weight = weight.map(|v| Tensor::from_vec(v, &self.shapes[0], &Device::Cpu)).transpose()?;
        Ok([weight, tensor(1, gamma)?, tensor(2, beta)?])
    }

    pub(super) fn grad_input(&self, engine: Engine, dy: &[T], onto: Option<Vec<T>>) -> Result<Vec<T>> {
        let view = View::new(&self.weight);
        Ok(engine.grad_input(&self.geometry, &Stored(dy), view.slice::<T>(self.name)?, onto))
    }
}

/// A block after its forward pass.
struct Block<T> {
    engine: Engine,
    layers: Vec<Layer<T>>,
    projection: Option<Layer<T>>,
    identity: bool,
}

pub(super) fn forward<T: Number>(
    x: &Tensor,
    layers: &[ConvNorm<'_>],
    shortcut: Shortcut<'_>,
    config: &BlockConfig,
) -> Result<BlockOut> {
    let x = x.contiguous()?;
    let (n, h, w, c) = x.dims4()?;
    let engine = Engine::new(config.precision);
    let mut statistics = Vec::new();
    let (block, y) = {
        let view = View::new(&x);
        let input = view.slice::<T>(NAME)?;
        let mut done: Vec<Layer<T>> = Vec::with_capacity(layers.len());
        for layer in layers {
            let (dims, from) = match done.last() {
                None => ([n, h, w, c], Input::Stored(input)),
                Some(before) => (before.output(), Input::Normalised(before)),
            };
            let (layer, seen) = Layer::forward(NAME, engine, config, layer, dims, &from)?;
            statistics.extend(seen);
            done.push(layer);
        }
        let Some(last) = done.last() else { bail!("{NAME}: needs at least one layer") };
        let projection = match shortcut {
            Shortcut::Projection(layer) => {
                let (layer, seen) =
                    Layer::forward(NAME, engine, config, &layer, [n, h, w, c], &Input::Stored(input))?;
                statistics.extend(seen);
                Some(layer)
            }
            _ => None,
        };
        let identity = matches!(shortcut, Shortcut::Identity);
        let other = projection.as_ref().map_or([n, h, w, c], Layer::output);
        if (identity || projection.is_some()) && other != last.output() {
            bail!(
                "{NAME}: the shortcut has the shape {other:?}, the layers give {:?}: they must be the same",
                last.output()
            )
        }
        let mut y = vec![T::zero(); last.y.len()];
        let other = match (&projection, identity) {
            (Some(layer), _) => Other::Normal(&layer.y, &layer.norm),
            (None, true) => Other::Image(input),
            (None, false) => Other::Nothing,
        };
        finish(engine.isa, &last.y, &last.norm, &other, &mut y);
        (Block { engine, layers: done, projection, identity }, y)
    };
    let shape = block.layers.last().map_or([n, h, w, c], Layer::output);
    let projection = if let Shortcut::Projection(layer) = shortcut { Some(layer) } else { None };
    let parameters: Vec<&Tensor> =
        layers.iter().chain(&projection).flat_map(|l| [l.weight, l.scale, l.shift]).collect();
    let tracked = x.track_op() || parameters.iter().any(|p| p.track_op());
    let y = if tracked {
        node(&x, &parameters, y, shape.to_vec(), block)?
    } else {
        Tensor::from_vec(y, shape.to_vec(), &Device::Cpu)?
    };
    Ok(BlockOut { y, statistics })
}

impl<T: Number> Backward for Block<T> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn backward(
        &self,
        x: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<Option<Tensor>>)> {
        let (xv, yv, gv) = (View::new(x), View::new(y), View::new(grad));
        let (input, out, grad) = (xv.slice::<T>(NAME)?, yv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
        let Some((last, before)) = self.layers.split_last() else {
            bail!("{NAME}: needs at least one layer")
        };
        let (engine, isa) = (self.engine, self.engine.isa);

        // Through the last ReLU, and the sums of both normalisations before it.
        let mut images: Vec<(&[T], Vec<T>)> = vec![(&last.y, last.norm.centre())];
        images.extend(self.projection.iter().map(|p| (&*p.y, p.norm.centre())));
        let mut d = vec![T::zero(); if self.identity { out.len() } else { 0 }];
        let mut spare = Buffer::new(if self.identity { 0 } else { out.len() });
        let masked: &mut [T] = if self.identity { &mut d } else { &mut spare };
        let sums = mask_by_output(isa, grad, out, &images, last.geometry.co, masked);

        let pull = last.norm.pull(&sums[..2]);
        let mut dy = Buffer::new(out.len());
        apply(isa, masked, &last.y, &pull, &mut dy);
        // Ordered as the arguments: the layers' from the last to the first, turned round at the end.
        let mut gradients: Vec<[Option<Tensor>; 3]> = Vec::with_capacity(self.layers.len() + 1);
        let mut dx = self.identity.then_some(d);
        let mut of_projection = None;
        if let Some(projection) = &self.projection {
            let pull = projection.norm.pull(&[sums[0].clone(), sums[2].clone()]);
            apply_in_place(isa, &mut spare, &projection.y, &pull);
            of_projection =
                Some(projection.parameters(engine, &Input::Stored(input), &spare, pull.gamma, pull.beta)?);
            if x.track_op() {
                dx = Some(projection.grad_input(engine, &spare, None)?);
            }
        }
        drop(spare);

        let (mut layer, mut pull) = (last, pull);
        for below in before.iter().rev() {
            gradients.push(layer.parameters(
                engine,
                &Input::Normalised(below),
                &dy,
                pull.gamma,
                pull.beta,
            )?);
            let mut da = Buffer::new(below.y.len());
            {
                let view = View::new(&layer.weight);
                engine.grad_input_into(&layer.geometry, &Stored(&dy), view.slice::<T>(NAME)?, &mut da);
            }
            let sums = mask_by_affine(isa, &mut da, &below.y, &below.norm);
            pull = below.norm.pull(&sums);
            apply_in_place(isa, &mut da, &below.y, &pull);
            (layer, dy) = (below, da);
        }
        gradients.push(layer.parameters(engine, &Input::Stored(input), &dy, pull.gamma, pull.beta)?);
        gradients.reverse();
        gradients.extend(of_projection);
        let dx = x.track_op().then(|| layer.grad_input(engine, &dy, dx)).transpose()?;
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), x.device())).transpose()?;
        Ok((dx, gradients.into_iter().flatten().collect()))
    }
}
