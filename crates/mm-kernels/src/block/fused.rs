//! Blocks on the CPU: what they keep, and their backward pass.
//!
//! A chain of blocks is one node of the graph: the gradients between blocks stay in recycled memory, where candle would
//! zero, add and copy a tensor for each, on one thread.

use super::channels::{
    Affine, Moments, Other, apply, apply_in_place, finish, mask_by_affine, mask_by_output,
};
use super::{BatchStatistics, BlockConfig, BlockOut, ConvNorm, ResidualBlock, Shortcut, Statistics};
use crate::buffers::Buffer;
use crate::conv::{Engine, Geometry, Normalised, Number, Stored};
use crate::host::View;
use crate::nary::{Backward, node};
use crate::scratch;
use crate::simd::Isa;
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

    /// The gradient of the input into room for it, or added to what is there.
    pub(super) fn grad_input(&self, engine: Engine, dy: &[T], added: bool, dx: &mut [T]) -> Result<()> {
        let view = View::new(&self.weight);
        engine.grad_input_into(&self.geometry, &Stored(dy), view.slice::<T>(self.name)?, added, dx);
        Ok(())
    }
}

/// A block after its forward pass.
struct Block<T> {
    layers: Vec<Layer<T>>,
    projection: Option<Layer<T>>,
    identity: bool,
    /// Its result, unless it is the last of its chain.
    out: Buffer<T>,
}

/// Blocks one after the other.
struct Chain<T> {
    engine: Engine,
    blocks: Vec<Block<T>>,
}

impl<T: Number> Block<T> {
    /// Runs all but the last step, which [`Block::finish`] is.
    fn forward(
        engine: Engine,
        config: &BlockConfig,
        given: &ResidualBlock<'_>,
        dims: [usize; 4],
        input: &[T],
        statistics: &mut Vec<BatchStatistics>,
    ) -> Result<Self> {
        let mut layers: Vec<Layer<T>> = Vec::with_capacity(given.layers.len());
        for layer in given.layers {
            let (dims, from) = match layers.last() {
                None => (dims, Input::Stored(input)),
                Some(before) => (before.output(), Input::Normalised(before)),
            };
            let (layer, seen) = Layer::forward(NAME, engine, config, layer, dims, &from)?;
            statistics.extend(seen);
            layers.push(layer);
        }
        let Some(last) = layers.last() else { bail!("{NAME}: needs at least one layer") };
        let projection = match &given.shortcut {
            Shortcut::Projection(layer) => {
                let (layer, seen) = Layer::forward(NAME, engine, config, layer, dims, &Input::Stored(input))?;
                statistics.extend(seen);
                Some(layer)
            }
            _ => None,
        };
        let identity = matches!(given.shortcut, Shortcut::Identity);
        let other = projection.as_ref().map_or(dims, Layer::output);
        if (identity || projection.is_some()) && other != last.output() {
            bail!(
                "{NAME}: the shortcut has the shape {other:?}, the layers give {:?}: they must be the same",
                last.output()
            )
        }
        Ok(Self { layers, projection, identity, out: Buffer::new(0) })
    }

    fn last(&self) -> Result<&Layer<T>> {
        match self.layers.last() {
            Some(last) => Ok(last),
            None => bail!("{NAME}: needs at least one layer"),
        }
    }

    /// Normalises, adds the shortcut and cuts off below zero.
    ///
    /// # Safety
    /// `y` is valid for the numbers of the last layer's output.
    #[allow(unsafe_code)] // room that nothing has written to yet
    unsafe fn finish(&self, isa: Isa, last: &Layer<T>, input: &[T], y: *mut T) {
        let other = match (&self.projection, self.identity) {
            (Some(layer), _) => Other::Normal(&layer.y, &layer.norm),
            (None, true) => Other::Image(input),
            (None, false) => Other::Nothing,
        };
        // SAFETY: passed on.
        unsafe { finish(isa, &last.y, &last.norm, &other, y) };
    }

    /// The gradients of the parameters, and of the input where there is room for it; `dx` may hold anything.
    fn backward(
        &self,
        engine: Engine,
        input: &[T],
        out: &[T],
        grad: &[T],
        mut dx: Option<&mut [T]>,
    ) -> Result<Vec<[Option<Tensor>; 3]>> {
        let (isa, last) = (engine.isa, self.last()?);
        // Through the last ReLU, and the sums of both normalisations before it.
        let mut images: Vec<(&[T], Vec<T>)> = vec![(&last.y, last.norm.centre())];
        images.extend(self.projection.iter().map(|p| (&*p.y, p.norm.centre())));
        // Behind the identity, the masked gradient is the first part of the input's.
        let in_place = self.identity && dx.is_some();
        let mut spare = Buffer::new(if in_place { 0 } else { out.len() });
        let masked: &mut [T] = match &mut dx {
            Some(dx) if self.identity => dx,
            _ => &mut spare,
        };
        let sums = mask_by_output(isa, grad, out, &images, last.geometry.co, masked);

        let pull = last.norm.pull(&sums[..2]);
        let mut dy = Buffer::new(out.len());
        apply(isa, masked, &last.y, &pull, &mut dy);
        // Ordered as the arguments: the layers' from the last to the first, turned round at the end.
        let mut gradients: Vec<[Option<Tensor>; 3]> = Vec::with_capacity(self.layers.len() + 1);
        let mut of_projection = None;
        if let Some(projection) = &self.projection {
            let pull = projection.norm.pull(&[sums[0].clone(), sums[2].clone()]);
            apply_in_place(isa, &mut spare, &projection.y, &pull);
            of_projection =
                Some(projection.parameters(engine, &Input::Stored(input), &spare, pull.gamma, pull.beta)?);
            if let Some(dx) = &mut dx {
                projection.grad_input(engine, &spare, false, dx)?;
            }
        }
        drop(spare);

        let (mut layer, mut pull) = (last, pull);
        for below in self.layers[..self.layers.len() - 1].iter().rev() {
            gradients.push(layer.parameters(
                engine,
                &Input::Normalised(below),
                &dy,
                pull.gamma,
                pull.beta,
            )?);
            let mut da = Buffer::new(below.y.len());
            layer.grad_input(engine, &dy, false, &mut da)?;
            let sums = mask_by_affine(isa, &mut da, &below.y, &below.norm);
            pull = below.norm.pull(&sums);
            apply_in_place(isa, &mut da, &below.y, &pull);
            (layer, dy) = (below, da);
        }
        gradients.push(layer.parameters(engine, &Input::Stored(input), &dy, pull.gamma, pull.beta)?);
        gradients.reverse();
        gradients.extend(of_projection);
        if let Some(dx) = dx {
            layer.grad_input(engine, &dy, self.identity || self.projection.is_some(), dx)?;
        }
        Ok(gradients)
    }
}

#[allow(unsafe_code)] // room that nothing has written to yet
pub(super) fn forward<T: Number>(
    x: &Tensor,
    given: &[ResidualBlock<'_>],
    config: &BlockConfig,
) -> Result<BlockOut> {
    let x = x.contiguous()?;
    let mut dims: [usize; 4] = x.dims4()?.into();
    let engine = Engine::new(config.precision);
    let parameters: Vec<&Tensor> = given
        .iter()
        .flat_map(|block| block.layers.iter().chain(block.shortcut.projection()))
        .flat_map(|layer| [layer.weight, layer.scale, layer.shift])
        .collect();
    let tracked = x.track_op() || parameters.iter().any(|p| p.track_op());
    let mut statistics = Vec::new();
    let mut blocks: Vec<Block<T>> = Vec::with_capacity(given.len());
    let mut y = Vec::new();
    {
        let view = View::new(&x);
        let first = view.slice::<T>(NAME)?;
        for (k, block) in given.iter().enumerate() {
            let input = blocks.last().map_or(first, |before| &before.out);
            let mut block = Block::forward(engine, config, block, dims, input, &mut statistics)?;
            let last = block.last()?;
            dims = last.output();
            let len = last.y.len();
            if k + 1 == given.len() {
                // SAFETY: the last step writes every number of the result.
                y = unsafe { scratch::filled(len, |y| block.finish(engine.isa, last, input, y)) };
            } else {
                let mut out = Buffer::new(len);
                // SAFETY: the buffer has the size of the result.
                unsafe { block.finish(engine.isa, last, input, out.as_mut_ptr()) };
                block.out = out;
            }
            if !tracked {
                blocks.clear();
            }
            blocks.push(block);
        }
    }
    if blocks.is_empty() {
        bail!("{NAME}: needs at least one block")
    }
    let y = if tracked {
        node(&x, &parameters, y, dims.to_vec(), Chain { engine, blocks })?
    } else {
        Tensor::from_vec(y, dims.to_vec(), &Device::Cpu)?
    };
    Ok(BlockOut { y, statistics })
}

impl<T: Number> Backward for Chain<T> {
    fn name(&self) -> &'static str {
        NAME
    }

    #[allow(unsafe_code)] // room that nothing has written to yet
    fn backward(
        &self,
        x: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<Option<Tensor>>)> {
        let (xv, yv, gv) = (View::new(x), View::new(y), View::new(grad));
        let (input, out, last) = (xv.slice::<T>(NAME)?, yv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
        let mut gradients: Vec<Vec<[Option<Tensor>; 3]>> = Vec::with_capacity(self.blocks.len());
        let mut grad: Option<Buffer<T>> = None;
        let mut dx = None;
        for (k, block) in self.blocks.iter().enumerate().rev() {
            let out = if k + 1 == self.blocks.len() { out } else { &block.out };
            let above = grad.as_deref().unwrap_or(last);
            if k > 0 {
                let input = &self.blocks[k - 1].out;
                let mut below = Buffer::new(input.len());
                gradients.push(block.backward(self.engine, input, out, above, Some(&mut below))?);
                grad = Some(below);
            } else if x.track_op() {
                let mut done = Ok(Vec::new());
                // SAFETY: a block writes every number of the input's gradient before it reads it, or fails, and then no
                // number is read.
                let values = unsafe {
                    scratch::filled(input.len(), |p: *mut T| {
                        let dx = std::slice::from_raw_parts_mut(p, input.len());
                        done = block.backward(self.engine, input, out, above, Some(dx));
                    })
                };
                gradients.push(done?);
                dx = Some(Tensor::from_vec(values, x.shape(), x.device())?);
            } else {
                gradients.push(block.backward(self.engine, input, out, above, None)?);
            }
        }
        gradients.reverse();
        Ok((dx, gradients.into_iter().flatten().flatten().collect()))
    }
}
