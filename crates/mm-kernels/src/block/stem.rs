//! Convolution, batch normalisation, ReLU and maximum pooling as one operation: the stem of a residual network.
#![allow(unsafe_code)] // raw pointers to pixels

use super::channels::{Affine, apply_in_place, gather, sums_of, vectors};
use super::fused::{Input, Layer};
use super::{BlockConfig, BlockOut, ConvNorm, conv_norm};
use crate::buffers::Buffer;
use crate::conv::{Engine, Number, Window};
use crate::host::{View, by_dtype};
use crate::nary::{Backward, node};
use crate::pool::{PoolConfig, max_pool2d_nhwc};
use crate::rowwise::{Columns, Floats, over};
use crate::scratch::{self, Shared};
use crate::simd::Isa;
use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

const NAME: &str = "conv_norm_pool";

/// Convolution, normalisation, ReLU and maximum pooling.
///
/// ```text
/// y = max_pool(relu(norm(conv(x))))
/// ```
///
/// `x` and the result are channels last, `(B, H, W, C)`. One operation of the graph; the activation before the pooling,
/// the largest of a residual network, is not stored. Ties of a window go to the first place in row-major order, as in
/// PyTorch. The window may have 255 elements at most, and no dilation.
///
/// Errors: shapes that do not fit, by name; a window that does not fit the image.
pub fn conv_norm_pool(
    x: &Tensor,
    layer: &ConvNorm<'_>,
    pool: &PoolConfig,
    config: &BlockConfig,
) -> Result<BlockOut> {
    if x.rank() != 4 {
        bail!("{NAME}: x must be (batch, height, width, channels), got {:?}", x.shape())
    }
    if pool.dilation != (1, 1) || pool.kernel.0.saturating_mul(pool.kernel.1) > 255 {
        bail!("{NAME}: the window must have no dilation and at most 255 elements, got {pool:?}")
    }
    if pool.padding.0 > pool.kernel.0 / 2 || pool.padding.1 > pool.kernel.1 / 2 {
        bail!("{NAME}: the padding of a window must be at most half of it, got {pool:?}")
    }
    if !x.device().is_cpu() {
        return composed(x, layer, pool, config);
    }
    by_dtype!(NAME, x.dtype(), T => forward::<T>(x, layer, pool, config))
}

fn composed(x: &Tensor, layer: &ConvNorm<'_>, pool: &PoolConfig, config: &BlockConfig) -> Result<BlockOut> {
    let mut statistics = Vec::new();
    let y = crate::relu(&conv_norm(x, layer, config, &mut statistics)?)?;
    Ok(BlockOut { y: max_pool2d_nhwc(&y, pool)?, statistics })
}

/// The window over the output of the convolution.
#[derive(Debug, Clone, Copy)]
struct Pool {
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
    h: usize,
    w: usize,
    c: usize,
    oh: usize,
    ow: usize,
}

impl Pool {
    /// The taps (number, row, column) of a place that lie in the image.
    fn taps(&self, row: usize, column: usize) -> impl Iterator<Item = (u32, usize, usize)> {
        let Self { kernel, stride, padding, h, w, .. } = *self;
        (0..kernel.0 * kernel.1).filter_map(move |k| {
            let r = (row * stride.0 + k / kernel.1).checked_sub(padding.0).filter(|&r| r < h)?;
            let c = (column * stride.1 + k % kernel.1).checked_sub(padding.1).filter(|&c| c < w)?;
            Some((k as u32, r, c))
        })
    }
}

struct Stem<T> {
    engine: Engine,
    layer: Layer<T>,
    pool: Pool,
    /// The number of the tap of each maximum.
    chosen: Buffer<T>,
}

fn forward<T: Number>(
    x: &Tensor,
    given: &ConvNorm<'_>,
    pool: &PoolConfig,
    config: &BlockConfig,
) -> Result<BlockOut> {
    let x = x.contiguous()?;
    let (n, h, w, c) = x.dims4()?;
    let engine = Engine::new(config.precision);
    let (layer, statistics) = {
        let view = View::new(&x);
        Layer::forward(NAME, engine, config, given, [n, h, w, c], &Input::Stored(view.slice::<T>(NAME)?))?
    };
    let [_, h, w, c] = layer.output();
    let window = Window { kernel: pool.kernel, stride: pool.stride, padding: pool.padding, dilation: (1, 1) };
    let (oh, ow) = window.output(NAME, h, w)?;
    let pool = Pool { kernel: pool.kernel, stride: pool.stride, padding: pool.padding, h, w, c, oh, ow };
    let mut chosen = Buffer::new(n * oh * ow * c);
    // SAFETY: every place of every row is written.
    let y = unsafe {
        scratch::filled(chosen.len(), |y| {
            maxima(engine.isa, &pool, &layer.y, &layer.norm, y, &mut chosen);
        })
    };
    let parameters = [given.weight, given.scale, given.shift];
    let shape = vec![n, oh, ow, c];
    let y = if x.track_op() || parameters.iter().any(|p| p.track_op()) {
        node(&x, &parameters, y, shape, Stem { engine, layer, pool, chosen })?
    } else {
        Tensor::from_vec(y, shape, &Device::Cpu)?
    };
    Ok(BlockOut { y, statistics: statistics.into_iter().collect() })
}

/// One row of places, for some channels.
struct Maxima<'a, T> {
    pool: &'a Pool,
    row: usize,
    image: &'a [T],
    norm: &'a Affine<T>,
    y: *mut T,
    chosen: &'a mut [T],
}

impl<T: Number> Columns<T> for Maxima<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize) {
        let (pool, c) = (self.pool, self.pool.c);
        // SAFETY: the channels exist; taps lie in the image, and places in the rows of y and chosen.
        unsafe {
            let (scale, shift): ([V; N], [V; N]) =
                (vectors(&self.norm.scale, first), vectors(&self.norm.shift, first));
            for column in 0..pool.ow {
                let (mut best, mut taps) = ([V::splat(T::from_f64(f64::NEG_INFINITY)); N], [V::zero(); N]);
                for (tap, r, q) in pool.taps(self.row, column) {
                    let x = self.image.as_ptr().add((r * pool.w + q) * c + first);
                    let tap = V::splat(T::from_f64(f64::from(tap)));
                    for v in 0..N {
                        let value = V::load(x.add(v * V::LANES)).mul_add(scale[v], shift[v]);
                        taps[v] = tap.unless_at_most(taps[v], value, best[v]);
                        best[v] = value.unless_at_most(best[v], value, best[v]);
                    }
                }
                for v in 0..N {
                    let at = column * c + first + v * V::LANES;
                    best[v].relu().store(self.y.add(at));
                    taps[v].store(self.chosen.as_mut_ptr().add(at));
                }
            }
        }
    }
}

/// The maxima of relu(scale x + shift), and their taps.
///
/// # Safety
/// `y` is valid for as many numbers as `chosen` has.
unsafe fn maxima<T: Number>(isa: Isa, pool: &Pool, x: &[T], norm: &Affine<T>, y: *mut T, chosen: &mut [T]) {
    let (size, row) = (pool.h * pool.w * pool.c, pool.ow * pool.c);
    let y = Shared::new(y);
    chosen.par_chunks_exact_mut(row).enumerate().for_each(|(k, chosen)| {
        let image = &x[k / pool.oh * size..][..size];
        // SAFETY: image, rows and constants have the channels of the pool; each row is written by one thread.
        unsafe {
            let y = y.get().add(k * row);
            over(isa, pool.c, &mut Maxima { pool, row: k % pool.oh, image, norm, y, chosen });
        }
    });
}

/// Some rows of the gradient before the ReLU, for some channels, from the places of an image.
struct Spread<'a, T> {
    pool: &'a Pool,
    rows: std::ops::Range<usize>,
    y: &'a [T],
    grad: &'a [T],
    chosen: &'a [T],
    d: &'a mut [T],
}

impl<T: Number> Columns<T> for Spread<'_, T> {
    #[inline(always)]
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize) {
        let (p, c) = (self.pool, self.pool.c);
        let top = (self.rows.start + p.padding.0 + 1).saturating_sub(p.kernel.0).div_ceil(p.stride.0);
        let bottom = ((self.rows.end - 1 + p.padding.0) / p.stride.0).min(p.oh - 1);
        for (row, column) in (top..=bottom).flat_map(|row| (0..p.ow).map(move |column| (row, column))) {
            let at = (row * p.ow + column) * c + first;
            // SAFETY: the channels exist; the place is one of the image's, and taps lie in the rows of d.
            unsafe {
                let mut chosen = [V::zero(); N];
                let mut g = [V::zero(); N];
                for v in 0..N {
                    let at = at + v * V::LANES;
                    chosen[v] = V::load(self.chosen.as_ptr().add(at));
                    g[v] =
                        V::load(self.grad.as_ptr().add(at)).where_positive(V::load(self.y.as_ptr().add(at)));
                }
                for (tap, r, q) in p.taps(row, column) {
                    if !self.rows.contains(&r) {
                        continue;
                    }
                    let d = self.d.as_mut_ptr().add(((r - self.rows.start) * p.w + q) * c + first);
                    let tap = V::splat(T::from_f64(f64::from(tap)));
                    for v in 0..N {
                        let d = d.add(v * V::LANES);
                        V::load(d).add(g[v].where_equal(chosen[v], tap)).store(d);
                    }
                }
            }
        }
    }
}

/// The gradient before the ReLU from that of the maxima, and its sums for the normalisation.
fn unpool<T: Number>(isa: Isa, stem: &Stem<T>, y: &[T], grad: &[T], d: &mut [T]) -> Vec<Vec<f64>> {
    let (p, centre) = (&stem.pool, stem.layer.norm.centre());
    let (c, image, places) = (p.c, p.h * p.w * p.c, p.oh * p.ow * p.c);
    let rows = (256 / p.w).clamp(1, p.h);
    let pieces = d
        .par_chunks_mut(image)
        .enumerate()
        .flat_map(|(n, d)| d.par_chunks_mut(rows * p.w * c).enumerate().map(move |(k, d)| (n, k, d)));
    let parts = pieces.map(|(n, k, d)| {
        let rows = k * rows..k * rows + d.len() / (p.w * c);
        let x = &stem.layer.y[n * image + rows.start * p.w * c..][..d.len()];
        let of = n * places..(n + 1) * places;
        let (y, grad, chosen) = (&y[of.clone()], &grad[of.clone()], &stem.chosen[of]);
        d.fill(T::zero());
        // SAFETY: places and rows have the channels of the pool.
        unsafe { over(isa, c, &mut Spread { pool: p, rows, y, grad, chosen, d }) };
        sums_of(isa, d, x, &centre)
    });
    gather(parts.collect(), 2, c)
}

impl<T: Number> Backward for Stem<T> {
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
        let (engine, layer) = (self.engine, &self.layer);
        let mut d = Buffer::new(layer.y.len());
        let sums = unpool::<T>(engine.isa, self, out, grad, &mut d);
        let pull = layer.norm.pull(&sums);
        apply_in_place(engine.isa, &mut d, &layer.y, &pull);
        let parameters = layer.parameters(engine, &Input::Stored(input), &d, pull.gamma, pull.beta)?;
        let mut dx = None;
        if x.track_op() {
            let mut values = vec![T::zero(); input.len()];
            layer.grad_input(engine, &d, false, &mut values)?;
            dx = Some(Tensor::from_vec(values, x.shape(), x.device())?);
        }
        Ok((dx, parameters.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::Statistics;
    use crate::testing::{assert_same, normal};

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for statistics in [Statistics::Batch, Statistics::Running] {
            for (pool, o) in [
                (PoolConfig::square(3, 2, 1), 20),
                (PoolConfig::square(2, 2, 0), 3),
                (PoolConfig::square(5, 3, 2), 17),
            ] {
                let config = BlockConfig { statistics, ..BlockConfig::default() };
                let inputs = [
                    normal(&[2, 9, 8, 3], 1)?,
                    normal(&[o, 3, 3, 3], 2)?,
                    normal(&[o], 3)?,
                    normal(&[o], 4)?,
                ];
                let run = |fused: bool, x: &[Tensor]| {
                    let (mean, var) = (
                        normal(&[o], 5)?.to_dtype(x[0].dtype())?,
                        (normal(&[o], 6)?.sqr()? + 0.5)?.to_dtype(x[0].dtype())?,
                    );
                    let layer = ConvNorm {
                        weight: &x[1],
                        scale: &x[2],
                        shift: &x[3],
                        running: (&mean, &var),
                        stride: 1,
                        padding: 1,
                    };
                    Ok(if fused {
                        conv_norm_pool(&x[0], &layer, &pool, &config)?
                    } else {
                        composed(&x[0], &layer, &pool, &config)?
                    }
                    .y)
                };
                assert_same(|x| run(true, x), |x| run(false, x), &inputs)?;
            }
        }
        Ok(())
    }
}
