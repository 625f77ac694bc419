//! Group normalisation: mean 0 and variance 1 over the channels of a group and all places of one sample.

use crate::host::{Real, View, add_rows, by_dtype, slice, sum_of, sum_pairs};
use crate::parallel::{pieces, pieces2};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, D, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::OnceLock;

/// Normalises each group of channels of each sample, then scales and shifts each channel.
///
/// ```text
/// y[b, c, ..] = (x[b, c, ..] - mean[b, g]) / sqrt(var[b, g] + eps) * weight[c] + bias[c]
/// g = floor(c groups / C)
/// ```
///
/// where `mean` and `var` (biased) are taken over the `C / groups` channels of the group and all dimensions
/// after the channel's. Shapes: `x (B, C)` or `(B, C, ..)`, `weight (C)`, `bias (C)`; the shape of `x` is
/// kept. `groups` = 1 is a layer norm over a sample, `groups` = C an instance norm. On CPU the arguments are
/// all `f32` or all `f64`. Gradients reach `x`, `weight` and `bias`.
///
/// Difference to PyTorch: a group of a single value is not an error; it gives the bias.
///
/// Errors: `x` of rank below two, `groups` that does not divide C, a `weight` or `bias` that is not `(C)`.
///
/// Source: Wu and He, Group Normalization, 2018, <https://arxiv.org/abs/1803.08494>.
pub fn group_norm(
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let [_, channels, ..] = *x.dims() else {
        bail!("group_norm: x must be (batch, channels, ..), got {:?}", x.shape())
    };
    let space = x.dims()[2..].iter().product();
    normalise("group_norm", x, Sample { channels, groups, space, last: false }, weight, bias, eps)
}

/// [`group_norm`] with channels last: `x (B, C)` or `(B, .., C)`.
pub fn group_norm_nhwc(
    x: &Tensor,
    groups: usize,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let [_, places @ .., channels] = x.dims() else {
        bail!("group_norm_nhwc: x must be (batch, .., channels), got {:?}", x.shape())
    };
    let sample = Sample { channels: *channels, groups, space: places.iter().product(), last: true };
    normalise("group_norm_nhwc", x, sample, weight, bias, eps)
}

fn normalise(
    name: &'static str,
    x: &Tensor,
    sample: Sample,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let Sample { channels, groups, .. } = sample;
    if groups == 0 || channels == 0 || channels % groups != 0 {
        bail!("{name}: groups must divide the {channels} channels of x {:?}, got {groups}", x.shape())
    }
    for (what, tensor) in [("weight", weight), ("bias", bias)] {
        if let Some(t) = tensor.filter(|t| t.dims() != [channels]) {
            bail!("{name}: {what} {:?} does not fit x {:?}: it must be [{channels}]", t.shape(), x.shape())
        }
    }
    let weight = weight.map_or_else(|| Tensor::ones(channels, x.dtype(), x.device()), Tensor::contiguous)?;
    let bias = bias.map_or_else(|| Tensor::zeros(channels, x.dtype(), x.device()), Tensor::contiguous)?;
    if !x.device().is_cpu() {
        return composed(x, &sample, &weight, &bias, eps);
    }
    x.contiguous()?.apply_op3(&weight, &bias, GroupNorm { name, sample, eps, moments: OnceLock::new() })
}

/// One sample of a batch: `channels` times `space` values, the channels first or last.
#[derive(Debug, Clone, Copy)]
struct Sample {
    channels: usize,
    groups: usize,
    space: usize,
    last: bool,
}

impl Sample {
    fn len(&self) -> usize {
        self.channels * self.space
    }

    /// Values of one group.
    fn count(&self) -> f64 {
        (self.len() / self.groups) as f64
    }

    /// The sums over places of f(x, y, the channel's constant), one for each channel.
    #[inline]
    fn sums<T: Real>(&self, x: &[T], y: &[T], constants: &[T], f: impl Fn(T, T, T) -> T) -> Vec<T> {
        let mut sums = vec![T::zero(); self.channels];
        if self.last {
            for (x, y) in x.chunks_exact(self.channels).zip(y.chunks_exact(self.channels)) {
                for (((sum, &x), &y), &constant) in sums.iter_mut().zip(x).zip(y).zip(constants) {
                    *sum += f(x, y, constant);
                }
            }
        } else if self.space > 0 {
            let rows = x.chunks_exact(self.space).zip(y.chunks_exact(self.space));
            for ((sum, (x, y)), &constant) in sums.iter_mut().zip(rows).zip(constants) {
                *sum = sum_pairs(x, y, |x, y| f(x, y, constant));
            }
        }
        sums
    }

    /// out = f(x, y, the channel's constants), value by value.
    #[inline]
    fn map<T: Real, const K: usize>(
        &self,
        (x, y): (&[T], &[T]),
        out: &mut [T],
        constants: [&[T]; K],
        f: impl Fn(T, T, [T; K]) -> T,
    ) {
        if self.last {
            let n = self.channels;
            // Slices of one known length: the compiler drops the bounds checks and vectorises.
            let constants = constants.map(|values| &values[..n]);
            for ((out, x), y) in out.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(y.chunks_exact(n)) {
                let (out, x, y) = (&mut out[..n], &x[..n], &y[..n]);
                for c in 0..n {
                    out[c] = f(x[c], y[c], constants.map(|values| values[c]));
                }
            }
        } else if self.space > 0 {
            let rows = out.chunks_exact_mut(self.space).zip(x.chunks_exact(self.space));
            for (c, ((out, x), y)) in rows.zip(y.chunks_exact(self.space)).enumerate() {
                let constants = constants.map(|values| values[c]);
                for ((out, &x), &y) in out.iter_mut().zip(x).zip(y) {
                    *out = f(x, y, constants);
                }
            }
        }
    }

    /// A value of each group, repeated for each of its channels.
    fn spread<T: Real>(&self, groups: impl Iterator<Item = T>) -> Vec<T> {
        let per_group = self.channels / self.groups;
        groups.flat_map(|value| std::iter::repeat_n(value, per_group)).collect()
    }

    /// The mean over each group, from sums over its channels, repeated for each of its channels.
    fn group_means<T: Real>(&self, sums: &[T]) -> Vec<T> {
        let count = T::from_f64(self.count());
        self.spread(sums.chunks_exact(self.channels / self.groups).map(|sums| sum_of(sums, |s| s) / count))
    }
}

struct GroupNorm {
    name: &'static str,
    sample: Sample,
    eps: f64,
    /// Mean and 1 / sqrt(var + eps) of each group of each sample, kept for the backward pass.
    moments: OnceLock<Vec<(f64, f64)>>,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        self.name
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
        by_dtype!(self.name, x.dtype(), T => {
            let x = slice::<T>(self.name, x, xl)?;
            let (y, moments) = self.forward(x, slice::<T>(self.name, w, wl)?, slice::<T>(self.name, b, bl)?);
            self.moments.get_or_init(|| moments);
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
        let Some(moments) = self.moments.get() else { bail!("{}: backward before forward", self.name) };
        let grad = grad.contiguous()?;
        by_dtype!(self.name, x.dtype(), T => {
            let (xv, wv, gv) = (View::new(x), View::new(w), View::new(&grad));
            let (xs, ws) = (xv.slice::<T>(self.name)?, wv.slice::<T>(self.name)?);
            let (dx, dw, db) = self.pull(xs, ws, gv.slice::<T>(self.name)?, moments, x.track_op());
            let tensor = |values: Vec<T>, like: &Tensor| {
                like.track_op().then(|| Tensor::from_vec(values, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dx, x)?, tensor(dw, w)?, tensor(db, b)?))
        })
    }
}

impl GroupNorm {
    fn forward<T: Real>(&self, x: &[T], w: &[T], b: &[T]) -> (Vec<T>, Vec<(f64, f64)>) {
        let s = &self.sample;
        let samples = x.len().checked_div(s.len()).unwrap_or(0);
        let (mut y, mut moments) = (vec![T::zero(); x.len()], vec![(0.0, 0.0); samples * s.groups]);
        pieces2((&mut y, s.len()), (&mut moments, s.groups), x.len(), |i, y, moments| {
            let x = &x[i * s.len()..][..s.len()];
            // Two passes: the variance of large values stays exact.
            let mean = s.group_means(&s.sums(x, x, w, |x, _, _| x));
            let var = s.group_means(&s.sums(x, x, &mean, |x, _, mean| (x - mean) * (x - mean)));
            let eps = T::from_f64(self.eps);
            let scale: Vec<T> = var.into_iter().map(|var| T::one() / (var + eps).sqrt()).collect();
            s.map((x, x), y, [&mean, &scale, w, b], |x, _, [mean, scale, w, b]| (x - mean) * scale * w + b);
            for (g, moments) in moments.iter_mut().enumerate() {
                let c = g * s.channels / s.groups;
                *moments = (WithDType::to_f64(mean[c]), WithDType::to_f64(scale[c]));
            }
        });
        (y, moments)
    }

    /// With n = (x - mean) scale and h = g w, means over a group: dx = scale (h - mean(h) - n mean(h n)), and
    /// dw = sum g n, db = sum g over places and samples.
    fn pull<T: Real>(
        &self,
        x: &[T],
        w: &[T],
        g: &[T],
        moments: &[(f64, f64)],
        with_dx: bool,
    ) -> (Vec<T>, Vec<T>, Vec<T>) {
        let s = &self.sample;
        let samples = x.len().checked_div(s.len()).unwrap_or(0);
        let constants = |i: usize| {
            let moments = &moments[i * s.groups..][..s.groups];
            let mean: Vec<T> = s.spread(moments.iter().map(|m| T::from_f64(m.0)));
            (mean, s.spread(moments.iter().map(|m| T::from_f64(m.1))))
        };
        // The sums of g and of g n of each channel of each sample.
        let mut sums = vec![T::zero(); samples * 2 * s.channels];
        pieces(&mut sums, 2 * s.channels, x.len(), |i, sums| {
            let (x, g) = (&x[i * s.len()..][..s.len()], &g[i * s.len()..][..s.len()]);
            let (mean, scale) = constants(i);
            let (of_g, of_gn) = sums.split_at_mut(s.channels);
            of_g.copy_from_slice(&s.sums(g, g, w, |g, _, _| g));
            of_gn.copy_from_slice(&s.sums(g, x, &mean, |g, x, mean| g * (x - mean)));
            of_gn.iter_mut().zip(scale).for_each(|(sum, scale)| *sum *= scale);
        });
        let mut totals = vec![T::zero(); 2 * s.channels];
        add_rows(&sums, &mut totals);
        let dw = totals.split_off(s.channels);
        if !with_dx {
            return (Vec::new(), dw, totals);
        }
        let mut dx = vec![T::zero(); x.len()];
        pieces(&mut dx, s.len(), x.len(), |i, dx| {
            let (x, g) = (&x[i * s.len()..][..s.len()], &g[i * s.len()..][..s.len()]);
            let (mean, scale) = constants(i);
            let (of_g, of_gn) = sums[i * 2 * s.channels..][..2 * s.channels].split_at(s.channels);
            let weighted = |sums: &[T]| -> Vec<T> { sums.iter().zip(w).map(|(&s, &w)| s * w).collect() };
            let (mean_h, mean_hn) = (s.group_means(&weighted(of_g)), s.group_means(&weighted(of_gn)));
            s.map(
                (x, g),
                dx,
                [&mean, &scale, w, &mean_h, &mean_hn],
                |x, g, [mean, scale, w, mean_h, mean_hn]| {
                    scale * (g * w - mean_h - (x - mean) * scale * mean_hn)
                },
            );
        });
        (dx, dw, totals)
    }
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed(x: &Tensor, sample: &Sample, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let Sample { channels, groups, space, last } = *sample;
    let batch = x.dim(0)?;
    let per_group = channels / groups;
    let grouped = if last {
        x.reshape((batch, space, groups, per_group))?.transpose(1, 2)?.reshape((
            batch,
            groups,
            space * per_group,
        ))?
    } else {
        x.reshape((batch, groups, per_group * space))?
    };
    let centred = grouped.broadcast_sub(&grouped.mean_keepdim(D::Minus1)?)?;
    let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    let normal = centred.broadcast_div(&deviation)?;
    let y = if last {
        let normal = normal.reshape((batch, groups, space, per_group))?.transpose(1, 2)?;
        normal.reshape((batch, space, channels))?.broadcast_mul(weight)?.broadcast_add(bias)?
    } else {
        let (weight, bias) = (weight.reshape((channels, 1))?, bias.reshape((channels, 1))?);
        normal.reshape((batch, channels, space))?.broadcast_mul(&weight)?.broadcast_add(&bias)?
    };
    y.reshape(x.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};
    use candle_core::Var;

    #[test]
    fn the_compositions_are_the_same_functions() -> Result<()> {
        let (w, b) = (normal(&[6], 2)?, normal(&[6], 3)?);
        for groups in [1, 2, 3] {
            // The last holds enough places for the interleaved sums.
            for shape in [vec![4, 6], vec![2, 6, 5], vec![2, 6, 5, 7]] {
                let x = [(normal(&shape, 1)? + 2.0)?, w.clone(), b.clone()];
                let space = shape[2..].iter().product();
                let sample = Sample { channels: 6, groups, space, last: false };
                let fused = |x: &[Tensor]| group_norm(&x[0], groups, Some(&x[1]), Some(&x[2]), 1e-2);
                assert_same(fused, |x| composed(&x[0], &sample, &x[1], &x[2], 1e-2), &x)?;

                let mut turned = shape.clone();
                turned[1..].rotate_left(1);
                let x = [(normal(&turned, 1)? + 2.0)?, w.clone(), b.clone()];
                let sample = Sample { last: true, ..sample };
                let fused = |x: &[Tensor]| group_norm_nhwc(&x[0], groups, Some(&x[1]), Some(&x[2]), 1e-2);
                assert_same(fused, |x| composed(&x[0], &sample, &x[1], &x[2], 1e-2), &x)?;
            }
        }
        Ok(())
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() -> Result<()> {
        let (x, w) = (Var::from_tensor(&normal(&[5, 12, 700], 1)?)?, Var::from_tensor(&normal(&[12], 2)?)?);
        let run = || -> Result<Vec<f64>> {
            let y = group_norm(&x, 3, Some(&w), None, 1e-5)?;
            let grads = (normal(y.dims(), 3)? * y)?.sum_all()?.backward()?;
            let gradient = |x: &Var| grads.get(x.as_tensor()).expect("a gradient").flatten_all()?.to_vec1();
            Ok([gradient(&x)?, gradient(&w)?].concat())
        };
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool").install(run)?;
        let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool").install(run)?;
        assert!(one == three);
        Ok(())
    }
}
