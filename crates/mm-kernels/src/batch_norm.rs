//! Batch normalisation per channel, with the statistics of the batch (training) or given ones (evaluation).
#![allow(unsafe_code)] // results are written into room that holds nothing yet

use crate::host::{ROWS, Real, View, by_dtype, column_sums, slice, slice_mut, sum_of, sum_pairs, together};
use crate::parallel::{filled, parts};
use crate::simd::{Isa, on};
use candle_core::backend::BackendStorage;
use candle_core::{
    CpuStorage, CustomOp3, DType, Device, InplaceOp2, Layout, Result, Shape, Tensor, Var, WithDType, bail,
};

const NAME: &str = "batch_norm";

/// What [`batch_norm_train`] returns.
#[derive(Debug, Clone)]
pub struct BatchNormOut {
    /// The normalised batch, of the shape of `x`.
    pub y: Tensor,
    /// The mean of each channel, `(C)`, outside every graph.
    pub mean: Tensor,
    /// The unbiased variance of each channel, `(C)`, outside every graph: what running statistics average.
    pub var_unbiased: Tensor,
}

/// Normalises each channel to mean 0 and variance 1 over the batch, then scales and shifts it.
///
/// ```text
/// y[b, c, ..] = (x[b, c, ..] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]
/// ```
///
/// where `mean` and `var` (biased) are taken over the batch and all dimensions after the channel's. Shapes: `x (B, C)`
/// or `(B, C, ..)`, `weight (C)`, `bias (C)`. On CPU the arguments are all `f32` or all `f64`. Gradients reach `x` - also
/// through the statistics - `weight` and `bias`. Running statistics are the caller's: see [`update_running`].
///
/// Errors: `x` of rank below two; one value per channel, which has no variance; a `weight` or `bias` that is not `(C)`.
pub fn batch_norm_train(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<BatchNormOut> {
    let (channels, count) = check(x, [("weight", weight), ("bias", bias)])?;
    if count <= 1 {
        bail!("{NAME}: expected more than 1 value per channel when training, got x of shape {:?}", x.shape())
    }
    let (weight, bias) = affine(x, channels, weight, bias)?;
    let unbiased = count as f64 / (count as f64 - 1.0);
    if !x.device().is_cpu() {
        let (mean, var) = composed_stats(x)?;
        let y = composed(x, &mean, &var, &weight, &bias, eps)?;
        let (mean, var) = (mean.detach().flatten_all()?, var.detach().flatten_all()?);
        return Ok(BatchNormOut { y, mean, var_unbiased: (var * unbiased)? });
    }
    let x = x.contiguous()?;
    let (mean, var) = by_dtype!(NAME, x.dtype(), T => {
        Ok(stats(View::new(&x).slice::<T>(NAME)?, channels, spatial(x.dims())))
    })?;
    let buffer = |values: Vec<f64>| Tensor::from_vec(values, channels, &Device::Cpu)?.to_dtype(x.dtype());
    let out_var = var.iter().map(|v| v * unbiased).collect();
    let op = BatchNorm { through_stats: true, scale: inverse_deviation(&var, eps), mean };
    let mean = buffer(op.mean.clone())?;
    Ok(BatchNormOut { y: x.apply_op3(&weight, &bias, op)?, mean, var_unbiased: buffer(out_var)? })
}

/// Normalises each channel by given statistics, which count as constants.
///
/// ```text
/// y[b, c, ..] = (x[b, c, ..] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]
/// ```
///
/// Shapes and dtypes are those of [`batch_norm_train`], with `mean (C)` and `var (C)`. Gradients reach `x`, `weight` and
/// `bias`.
pub fn batch_norm_eval(
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let given = [("mean", Some(mean)), ("var", Some(var)), ("weight", weight), ("bias", bias)];
    let (channels, _) = check(x, given)?;
    let (weight, bias) = affine(x, channels, weight, bias)?;
    if !x.device().is_cpu() {
        let dims = channel_dims(x);
        let (mean, var) = (mean.detach().reshape(dims.as_slice())?, var.detach().reshape(dims)?);
        return composed(x, &mean, &var, &weight, &bias, eps);
    }
    let mean = mean.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let var = var.detach().to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let op = BatchNorm { through_stats: false, scale: inverse_deviation(&var, eps), mean };
    x.contiguous()?.apply_op3(&weight, &bias, op)
}

/// Moves running statistics towards new ones, in place.
///
/// ```text
/// running = (1 - momentum) running + momentum new
/// ```
///
/// PyTorch's convention: `momentum` (usually 0.1) is the weight of the new value. Both have one shape and one dtype;
/// `running` must be contiguous. A `momentum` outside [0, 1] is an error.
pub fn update_running(running: &Var, new: &Tensor, momentum: f64) -> Result<()> {
    if !(0.0..=1.0).contains(&momentum) {
        bail!("update_running: momentum must be in [0, 1], got {momentum}")
    }
    if running.shape() != new.shape() {
        bail!("update_running: new {:?} must have the shape of running {:?}", new.shape(), running.shape())
    }
    if running.device().is_cpu() {
        return running.as_tensor().inplace_op2(&new.contiguous()?, &Lerp(momentum));
    }
    running.set(&((running.as_detached_tensor() * (1.0 - momentum))? + (new.detach() * momentum)?)?)
}

struct Lerp(f64);

impl InplaceOp2 for Lerp {
    fn name(&self) -> &'static str {
        "update_running"
    }

    fn cpu_fwd(&self, running: &mut CpuStorage, rl: &Layout, new: &CpuStorage, nl: &Layout) -> Result<()> {
        by_dtype!("update_running", new.dtype(), T => {
            let (keep, take) = (T::from_f64(1.0 - self.0), T::from_f64(self.0));
            let running = slice_mut::<T>("update_running", running, rl)?;
            for (r, &n) in running.iter_mut().zip(slice::<T>("update_running", new, nl)?) {
                *r = keep * *r + take * n;
            }
            Ok(())
        })
    }
}

/// The number of channels and of values per channel, once the shapes fit.
fn check<const N: usize>(x: &Tensor, given: [(&str, Option<&Tensor>); N]) -> Result<(usize, usize)> {
    let [_, channels, ..] = *x.dims() else {
        bail!("{NAME}: x must be (batch, channels, ..), got {:?}", x.shape())
    };
    for (what, tensor) in given {
        if let Some(t) = tensor.filter(|t| t.dims() != [channels]) {
            bail!("{NAME}: {what} {:?} does not fit x {:?}: it must be [{channels}]", t.shape(), x.shape())
        }
    }
    Ok((channels, x.elem_count().checked_div(channels).unwrap_or(0)))
}

fn affine(
    x: &Tensor,
    channels: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
) -> Result<(Tensor, Tensor)> {
    Ok((
        weight.map_or_else(|| Tensor::ones(channels, x.dtype(), x.device()), Tensor::contiguous)?,
        bias.map_or_else(|| Tensor::zeros(channels, x.dtype(), x.device()), Tensor::contiguous)?,
    ))
}

fn inverse_deviation(var: &[f64], eps: f64) -> Vec<f64> {
    var.iter().map(|v| 1.0 / (v + eps).sqrt()).collect()
}

struct BatchNorm {
    /// Whether the statistics depend on `x`.
    through_stats: bool,
    mean: Vec<f64>,
    /// 1 / sqrt(var + eps) of each channel.
    scale: Vec<f64>,
}

impl CustomOp3 for BatchNorm {
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
        by_dtype!(NAME, x.dtype(), T => {
                   let (x, w, b) = (slice::<T>(NAME, x, xl)?, slice::<T>(NAME, w, wl)?, slice::<T>(NAME, b, bl)?);
                   let (mean, scale) = (cast::<T>(&self.mean), cast::<T>(&self.scale));
                   let y = per_channel(x, x, spatial(xl.dims()), [&mean, &scale, w, b], |x, _, [mean, scale, w, b]| {
        (x - mean) * scale * w + b
        });
                   Ok((T::to_cpu_storage_owned(y), xl.shape().clone()))
               })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(NAME, x.dtype(), T => {
            let (xv, wv, gv) = (View::new(x), View::new(w), View::new(&grad));
            let (xs, ws, gs) = (xv.slice::<T>(NAME)?, wv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
            let (dx, dw, db) = self.pull(xs, ws, gs, spatial(x.dims()), x.track_op());
            let tensor = |values: Vec<T>, like: &Tensor| {
                like.track_op().then(|| Tensor::from_vec(values, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dx, x)?, tensor(dw, w)?, tensor(db, b)?))
        })
    }
}

impl BatchNorm {
    /// With n = (x - mean) scale: dw = sum g n, db = sum g, and
    /// dx = w scale (g - mean(g) - n mean(g n)) through the statistics, or w scale g past constants.
    fn pull<T: Real>(
        &self,
        x: &[T],
        w: &[T],
        g: &[T],
        space: usize,
        with_dx: bool,
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let channels = w.len();
        let (mean, scale) = (cast::<T>(&self.mean), cast::<T>(&self.scale));
        let (mut dw, mut db) = (vec![T::zero(); channels], vec![T::zero(); channels]);
        if space == 1 {
            let isa = Isa::detect();
            let sums = parts(x, ROWS * channels, |k, x| {
                let g = &g[k * ROWS * channels..];
                let mut sums = vec![T::zero(); 2 * channels];
                let (dw, db) = sums.split_at_mut(channels);
                on(isa, || {
                    for (x, g) in x.chunks_exact(channels).zip(g.chunks_exact(channels)) {
                        let constants = mean.iter().zip(&scale);
                        let sums = dw.iter_mut().zip(db.iter_mut());
                        for ((&x, &g), ((&mean, &scale), (dw, db))) in
                            x.iter().zip(g).zip(constants.zip(sums))
                        {
                            *dw += g * ((x - mean) * scale);
                            *db += g;
                        }
                    }
                });
                sums
            });
            dw = together(sums, 2 * channels);
            db = dw.split_off(channels);
        } else {
            for (i, (g, x)) in g.chunks_exact(space.max(1)).zip(x.chunks_exact(space.max(1))).enumerate() {
                let (mean, scale) = (mean[i % channels], scale[i % channels]);
                db[i % channels] += sum_of(g, |g| g);
                dw[i % channels] += sum_pairs(g, x, |g, x| g * ((x - mean) * scale));
            }
        }
        if !with_dx {
            return (Vec::new(), dw, db);
        }
        let factor: Vec<T> = w.iter().zip(&scale).map(|(&w, &s)| w * s).collect();
        let dx = if self.through_stats {
            let count = T::from_f64(x.len() as f64 / channels as f64);
            let mean_g: Vec<T> = db.iter().map(|&db| db / count).collect();
            let mean_gn: Vec<T> = dw.iter().map(|&dw| dw / count).collect();
            let constants = [&factor[..], &mean_g, &mean_gn, &mean, &scale];
            per_channel(g, x, space, constants, |g, x, [factor, mean_g, mean_gn, mean, scale]| {
                factor * (g - mean_g - (x - mean) * scale * mean_gn)
            })
        } else {
            per_channel(g, g, space, [&factor], |g, _, [factor]| factor * g)
        };
        (dx, dw, db)
    }
}

/// The number of values per sample and channel.
fn spatial(dims: &[usize]) -> usize {
    dims[2..].iter().product()
}

fn cast<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

/// f(x, y, the channel's constants) for each pair of values in memory order.
fn per_channel<T: Real, const K: usize>(
    x: &[T],
    y: &[T],
    space: usize,
    constants: [&[T]; K],
    f: impl Fn(T, T, [T; K]) -> T + Sync,
) -> Vec<T> {
    let (isa, channels) = (Isa::detect(), constants[0].len());
    if space == 1 {
        let size = ROWS * channels;
        assert!(y.len() == x.len() && x.len().is_multiple_of(channels.max(1)), "whole rows of both");
        // SAFETY: x and y are whole rows of channels, so each number of a piece has its own of them.
        return unsafe {
            filled(x.len(), size, x.len(), |k, out| {
                let rows = x[k * size..].chunks_exact(channels).zip(y[k * size..].chunks_exact(channels));
                on(isa, || {
                    // Slices of one known length: the compiler drops the bounds checks and vectorises.
                    let constants = constants.map(|values| &values[..channels]);
                    for ((x, y), out) in rows.zip(out.chunks_exact_mut(channels)) {
                        let (x, y, out) = (&x[..channels], &y[..channels], &mut out[..channels]);
                        for c in 0..channels {
                            out[c].write(f(x[c], y[c], constants.map(|values| values[c])));
                        }
                    }
                });
            })
        };
    }
    let mut out = Vec::with_capacity(x.len());
    for (i, (x, y)) in x.chunks_exact(space.max(1)).zip(y.chunks_exact(space.max(1))).enumerate() {
        let constants = constants.map(|values| values[i % channels]);
        out.extend(x.iter().zip(y).map(|(&x, &y)| f(x, y, constants)));
    }
    out
}

/// Mean and biased variance of each channel, in two passes: the variance of large values stays exact.
fn stats<T: Real>(x: &[T], channels: usize, space: usize) -> (Vec<f64>, Vec<f64>) {
    let count = x.len() as f64 / channels as f64;
    let average = |sums: Vec<T>| -> Vec<f64> { sums.iter().map(|s| s.to_f64() / count).collect() };
    let (mut sums, mut squares) = (vec![T::zero(); channels], vec![T::zero(); channels]);
    if space == 1 {
        sums = column_sums(x, channels);
    } else {
        x.chunks_exact(space).enumerate().for_each(|(i, block)| sums[i % channels] += sum_of(block, |x| x));
    }
    let mean = average(sums);
    let centre = cast::<T>(&mean);
    if space == 1 {
        let isa = Isa::detect();
        let parts = parts(x, ROWS * channels, |_, x| {
            let mut squares = vec![T::zero(); channels];
            on(isa, || {
                for row in x.chunks_exact(channels) {
                    for ((square, &x), &mean) in squares.iter_mut().zip(row).zip(&centre) {
                        *square += (x - mean) * (x - mean);
                    }
                }
            });
            squares
        });
        squares = together(parts, channels);
    } else {
        for (i, block) in x.chunks_exact(space).enumerate() {
            let mean = centre[i % channels];
            squares[i % channels] += sum_of(block, |x| (x - mean) * (x - mean));
        }
    }
    (mean, average(squares))
}

fn channel_dims(x: &Tensor) -> Vec<usize> {
    x.dims().iter().enumerate().map(|(i, &d)| if i == 1 { d } else { 1 }).collect()
}

// The same function in candle's own operations: every device but the CPU, and the reference of the tests.

fn composed_stats(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let over: Vec<usize> = (0..x.rank()).filter(|&d| d != 1).collect();
    let mean = x.mean_keepdim(over.as_slice())?;
    let var = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(over)?;
    Ok((mean, var))
}

fn composed(
    x: &Tensor,
    mean: &Tensor,
    var: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let dims = channel_dims(x);
    let normal = x.broadcast_sub(mean)?.broadcast_div(&(var + eps)?.sqrt()?)?;
    normal.broadcast_mul(&weight.reshape(dims.as_slice())?)?.broadcast_add(&bias.reshape(dims)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same, normal};

    #[test]
    fn the_compositions_are_the_same_functions() -> Result<()> {
        for shape in [vec![9, 3], vec![2, 3, 5, 7]] {
            let x = [(normal(&shape, 1)? + 2.0)?, normal(&[3], 2)?, normal(&[3], 3)?];
            let train = |x: &[Tensor]| {
                let (mean, var) = composed_stats(&x[0])?;
                composed(&x[0], &mean, &var, &x[1], &x[2], 1e-5)
            };
            assert_same(|x| Ok(batch_norm_train(&x[0], Some(&x[1]), Some(&x[2]), 1e-5)?.y), train, &x)?;
            let out = batch_norm_train(&x[0], None, None, 1e-5)?;
            let (mean, var) = composed_stats(&x[0])?;
            let count = (x[0].elem_count() / 3) as f64;
            assert_close(&out.mean, &mean.flatten_all()?, 1e-13)?;
            assert_close(&out.var_unbiased, &(var.flatten_all()? * (count / (count - 1.0)))?, 1e-13)?;

            let (mean, var) = (normal(&[3], 4)?, normal(&[3], 5)?.sqr()?);
            let cast = |t: &Tensor, x: &[Tensor]| t.to_dtype(x[0].dtype());
            let fused = |x: &[Tensor]| {
                batch_norm_eval(&x[0], &cast(&mean, x)?, &cast(&var, x)?, Some(&x[1]), Some(&x[2]), 1e-2)
            };
            let eval = |x: &[Tensor]| {
                let dims = channel_dims(&x[0]);
                let (mean, var) = (cast(&mean, x)?.reshape(dims.as_slice())?, cast(&var, x)?.reshape(dims)?);
                composed(&x[0], &mean, &var, &x[1], &x[2], 1e-2)
            };
            assert_same(fused, eval, &x)?;
        }
        Ok(())
    }
}
