//! The largest value of each window.

use super::{Plan, PoolConfig, first_dims, last_dims, turned};
use crate::host::{Real, View, by_dtype, slice};
use crate::parallel::{pieces, pieces2};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use std::sync::OnceLock;

/// Maximum over windows of images, channels first.
///
/// ```text
/// y[b, c, i, j] = max_{k, l} x[b, c, i s - p + k d, j s - p + l d]
/// OH = floor((H + 2p - d (K - 1) - 1) / s) + 1
/// ```
///
/// with `x` = -inf outside its borders. Shapes: `x (B, C, H, W)` to `(B, C, OH, OW)`; B may be zero. On CPU
/// `x` is `f32` or `f64`. It is turned to channels last and back inside: [`max_pool2d_nhwc`] is faster.
///
/// The gradient of a window goes to its first maximum, row by row, as in PyTorch. A NaN in a window is its
/// maximum (the last one, if there are several), as in PyTorch. A window with no element of the input in it,
/// which only a dilated one can be, gives -inf and passes no gradient.
///
/// Errors: sizes of zero, a kernel larger than the padded input, padding above half of the kernel.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use mm_kernels::{PoolConfig, max_pool2d};
/// let x = Tensor::new(&[[[[1f32, 5.0, 2.0], [4.0, 3.0, 6.0]]]], &Device::Cpu)?;
/// let y = max_pool2d(&x, &PoolConfig::square(2, 1, 0))?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [5.0, 6.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn max_pool2d(x: &Tensor, config: &PoolConfig) -> Result<Tensor> {
    let plan = Plan::windows("max_pool2d", first_dims("max_pool2d", x)?, config)?;
    if !x.device().is_cpu() {
        return composed(x, &plan, config, (2, 3));
    }
    turned(x, |x| apply("max_pool2d", x, plan))
}

/// [`max_pool2d`] with channels last: `x (B, H, W, C)` to `(B, OH, OW, C)`.
pub fn max_pool2d_nhwc(x: &Tensor, config: &PoolConfig) -> Result<Tensor> {
    let plan = Plan::windows("max_pool2d_nhwc", last_dims("max_pool2d_nhwc", x)?, config)?;
    if !x.device().is_cpu() {
        return composed(x, &plan, config, (1, 2));
    }
    apply("max_pool2d_nhwc", x, plan)
}

fn apply(name: &'static str, x: &Tensor, plan: Plan) -> Result<Tensor> {
    let most = plan.rows.most_taps().saturating_mul(plan.columns.most_taps());
    if u32::try_from(most).is_err() {
        bail!("{name}: a window must hold at most {} elements, got {most}", u32::MAX)
    }
    let keep = x.track_op();
    x.contiguous()?.apply_op1(MaxPool { name, plan, most, keep, taps: OnceLock::new() })
}

struct MaxPool {
    name: &'static str,
    plan: Plan,
    /// A bound on the taps of a window.
    most: usize,
    /// Whether there will be a backward pass.
    keep: bool,
    taps: OnceLock<Taps>,
}

/// For each output, which tap of its window was the largest: the position among the taps inside the input,
/// row by row.
enum Taps {
    U8(Vec<u8>),
    U16(Vec<u16>),
    U32(Vec<u32>),
}

/// A type that holds the number of a tap; `()` where nobody will ask.
trait Tap: Copy + Default + Send + Sync {
    fn new(tap: u32) -> Self;
    fn index(self) -> usize;
}

macro_rules! tap {
    ($t:ty) => {
        impl Tap for $t {
            #[inline]
            fn new(tap: u32) -> Self {
                tap as $t
            }
            #[inline]
            fn index(self) -> usize {
                self as usize
            }
        }
    };
}
tap!(u8);
tap!(u16);
tap!(u32);

impl Tap for () {
    fn new(_tap: u32) -> Self {}
    fn index(self) -> usize {
        0
    }
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(self.name, x.dtype(), T => {
            let x = slice::<T>(self.name, x, layout)?;
            let (y, taps) = match self.most {
                _ if !self.keep => (forward::<T, ()>(&self.plan, x).0, None),
                ..=0x100 => kept(forward(&self.plan, x), Taps::U8),
                0x101..=0x1_0000 => kept(forward(&self.plan, x), Taps::U16),
                _ => kept(forward(&self.plan, x), Taps::U32),
            };
            if let Some(taps) = taps {
                self.taps.get_or_init(|| taps);
            }
            Ok((T::to_cpu_storage_owned(y), Shape::from(self.plan.output_shape())))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(taps) = self.taps.get() else { bail!("{}: backward before forward", self.name) };
        let grad = grad.contiguous()?;
        by_dtype!(self.name, grad.dtype(), T => {
            let view = View::new(&grad);
            let g = view.slice::<T>(self.name)?;
            let dx = match taps {
                Taps::U8(taps) => backward(&self.plan, taps, g),
                Taps::U16(taps) => backward(&self.plan, taps, g),
                Taps::U32(taps) => backward(&self.plan, taps, g),
            };
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

fn kept<T, I>((y, taps): (Vec<T>, Vec<I>), wrap: fn(Vec<I>) -> Taps) -> (Vec<T>, Option<Taps>) {
    (y, Some(wrap(taps)))
}

fn forward<T: Real, I: Tap>(plan: &Plan, x: &[T]) -> (Vec<T>, Vec<I>) {
    let (c, oh, w) = (plan.c, plan.rows.places(), plan.columns.size());
    let row = plan.columns.places() * c;
    let (mut y, mut taps) = (vec![T::zero(); plan.outputs()], vec![I::default(); plan.outputs()]);
    pieces2((&mut y, row), (&mut taps, row), plan.work(), |i, y, taps| {
        let x = &x[i / oh * plan.plane()..][..plan.plane()];
        let rows = plan.rows.span(i % oh);
        let mut starts = Vec::with_capacity(rows.taps * plan.columns.most_taps());
        for (ox, (y, taps)) in y.chunks_exact_mut(c).zip(taps.chunks_exact_mut(c)).enumerate() {
            let columns = plan.columns.span(ox);
            starts.clear();
            starts.extend(rows.indices().flat_map(|iy| columns.indices().map(move |ix| (iy * w + ix) * c)));
            window(x, &starts, y, taps);
        }
    });
    (y, taps)
}

/// The maximum over the taps that begin at `starts`, for every channel.
fn window<T: Real, I: Tap>(x: &[T], starts: &[usize], y: &mut [T], taps: &mut [I]) {
    if starts.is_empty() {
        y.fill(T::from_f64(f64::NEG_INFINITY));
        return;
    }
    let mut c = 0;
    while c + 16 <= y.len() {
        lanes::<T, I, 16>(x, starts, c, y, taps);
        c += 16;
    }
    while c + 4 <= y.len() {
        lanes::<T, I, 4>(x, starts, c, y, taps);
        c += 4;
    }
    while c < y.len() {
        lanes::<T, I, 1>(x, starts, c, y, taps);
        c += 1;
    }
}

/// The channels from `c` to `c + L`, which stay in registers over all taps.
#[inline]
fn lanes<T: Real, I: Tap, const L: usize>(x: &[T], starts: &[usize], c: usize, y: &mut [T], taps: &mut [I]) {
    let (mut best, mut tap) = ([T::zero(); L], [0; L]);
    best.copy_from_slice(&x[starts[0] + c..][..L]);
    for (&start, t) in starts[1..].iter().zip(1u32..) {
        let values = &x[start + c..][..L];
        for l in 0..L {
            let value = values[l];
            // Both comparisons always: a branch would keep this loop from being vectorised.
            let better = (value > best[l]) | value.is_nan();
            best[l] = if better { value } else { best[l] };
            tap[l] = if better { t } else { tap[l] };
        }
    }
    y[c..c + L].copy_from_slice(&best);
    for (kept, tap) in taps[c..c + L].iter_mut().zip(tap) {
        *kept = I::new(tap);
    }
}

/// Every thread fills some rows of one image, and takes from each window only what belongs there.
fn backward<T: Real, I: Tap>(plan: &Plan, taps: &[I], g: &[T]) -> Vec<T> {
    /// The target of a tap in the rows of another thread.
    const ELSEWHERE: usize = usize::MAX;
    let (c, w, block) = (plan.c, plan.columns.size(), plan.block());
    let (oh, ow) = (plan.rows.places(), plan.columns.places());
    let mut dx = vec![T::zero(); plan.n * plan.plane()];
    pieces(&mut dx, plan.plane(), plan.work(), |image, dx| {
        pieces(dx, block * w * c, plan.work(), |piece, dx| {
            let own = piece * block..piece * block + dx.len() / (w * c);
            let mut targets = Vec::with_capacity(plan.rows.most_taps() * plan.columns.most_taps());
            for oy in plan.rows.touching(own.start, own.end) {
                for ox in 0..ow {
                    let columns = plan.columns.span(ox);
                    targets.clear();
                    for iy in plan.rows.span(oy).indices() {
                        let row = own.contains(&iy).then(|| (iy - own.start) * w);
                        let start = |ix| row.map_or(ELSEWHERE, |row| (row + ix) * c);
                        targets.extend(columns.indices().map(start));
                    }
                    let at = ((image * oh + oy) * ow + ox) * c;
                    for (ch, (&tap, &g)) in taps[at..at + c].iter().zip(&g[at..at + c]).enumerate() {
                        match targets.get(tap.index()) {
                            Some(&start) if start != ELSEWHERE => dx[start + ch] += g,
                            _ => {}
                        }
                    }
                }
            }
        });
    });
    dx
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
///
/// One selection per tap of the kernel, and the larger of two at a time. `dims` are those of height and
/// width.
fn composed(x: &Tensor, plan: &Plan, config: &PoolConfig, dims: (usize, usize)) -> Result<Tensor> {
    let PoolConfig { kernel, stride, padding, dilation, .. } = *config;
    let mut padded = x.clone();
    for (dim, padding) in [(dims.0, padding.0), (dims.1, padding.1)] {
        if padding > 0 {
            let mut shape = padded.dims().to_vec();
            shape[dim] = padding;
            let border =
                Tensor::new(f64::NEG_INFINITY, x.device())?.to_dtype(x.dtype())?.broadcast_as(shape)?;
            padded = Tensor::cat(&[&border, &padded, &border], dim)?;
        }
    }
    let taps = |places: usize, stride: usize, offset: usize| {
        let indices: Vec<u32> = (0..places).map(|o| (o * stride + offset) as u32).collect();
        Tensor::from_vec(indices, places, x.device())
    };
    let padded = padded.contiguous()?;
    let mut best: Option<Tensor> = None;
    for ky in 0..kernel.0 {
        let rows = padded.index_select(&taps(plan.rows.places(), stride.0, ky * dilation.0)?, dims.0)?;
        for kx in 0..kernel.1 {
            let tap = rows.index_select(&taps(plan.columns.places(), stride.1, kx * dilation.1)?, dims.1)?;
            best = Some(match best {
                None => tap,
                Some(best) => (tap.gt(&best)? + tap.ne(&tap)?)?.where_cond(&tap, &best)?,
            });
        }
    }
    let Some(best) = best else { bail!("max_pool2d: the kernel is empty") };
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same, normal};
    use candle_core::Var;

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for (kernel, stride, padding, dilation) in [
            ((3, 3), (2, 2), (1, 1), (1, 1)),
            ((2, 4), (1, 3), (1, 2), (3, 1)),
            ((2, 2), (2, 2), (0, 0), (1, 1)),
        ] {
            let config = PoolConfig { stride, padding, dilation, ..PoolConfig::new(kernel) };
            let x = [normal(&[2, 7, 9, 21], 1)?];
            let plan = |dims| Plan::windows("max_pool2d", dims, &config);
            let last = plan([2, 7, 9, 21])?;
            assert_same(
                |x| max_pool2d_nhwc(&x[0], &config),
                |x| composed(&x[0], &last, &config, (1, 2)),
                &x,
            )?;
            let first = plan([2, 9, 21, 7])?;
            assert_same(|x| max_pool2d(&x[0], &config), |x| composed(&x[0], &first, &config, (2, 3)), &x)?;
        }
        Ok(())
    }

    #[test]
    fn the_composition_sees_ties_and_nans_alike() -> Result<()> {
        let config = PoolConfig::square(3, 2, 1);
        for nan in [false, true] {
            // Few distinct values: every window has ties.
            let draw = (normal(&[2, 6, 5, 4], 1)? * 2.0)?.round()?;
            let x = if nan { draw.gt(1.5)?.where_cond(&(draw.zeros_like()? / 0.0)?, &draw)? } else { draw };
            let plan = Plan::windows("max_pool2d", [2, 6, 5, 4], &config)?;
            let mut results = Vec::new();
            for fused in [true, false] {
                let x = Var::from_tensor(&x)?;
                let y =
                    if fused { max_pool2d_nhwc(&x, &config)? } else { composed(&x, &plan, &config, (1, 2))? };
                let grads = (normal(y.dims(), 3)? * &y)?.sum_all()?.backward()?;
                results.push((flat(&y)?, grads.get(x.as_tensor()).expect("a gradient").clone()));
            }
            let [(a, da), (b, db)] = &results[..] else { unreachable!() };
            assert!(a.iter().zip(b).all(|(a, b)| a == b || (a.is_nan() && b.is_nan())));
            assert!(!nan || a.iter().any(|a| a.is_nan()));
            assert_close(da, db, 0.0)?;
        }
        Ok(())
    }

    fn flat(x: &Tensor) -> Result<Vec<f64>> {
        x.flatten_all()?.to_vec1()
    }

    #[test]
    fn the_number_of_threads_and_the_type_of_the_taps_change_no_bit() -> Result<()> {
        // Large enough for several threads; windows of 3, 272 and 66 000 taps.
        for (shape, kernel, stride) in [
            ([2, 40, 33, 72], (3, 1), (1, 1)),
            ([1, 40, 33, 24], (17, 16), (5, 4)),
            ([1, 310, 300, 1], (300, 220), (3, 40)),
        ] {
            let config = PoolConfig { stride, padding: (1, 0), ..PoolConfig::new(kernel) };
            let x = Var::from_tensor(&normal(&shape, 1)?)?;
            let run = || -> Result<(Vec<f64>, Vec<f64>)> {
                let y = max_pool2d_nhwc(&x, &config)?;
                let grads = (normal(y.dims(), 3)? * &y)?.sum_all()?.backward()?;
                let dx = flat(grads.get(x.as_tensor()).expect("a gradient"))?;
                Ok((flat(&y)?, dx))
            };
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool").install(run)?;
            let three =
                rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool").install(run)?;
            assert!(one == three);
            // The gradient of the sum is as large as the incoming one: no window is lost or counted twice.
            let incoming: f64 = normal(&[one.0.len()], 3)?.sum_all()?.to_scalar()?;
            assert!((one.1.iter().sum::<f64>() - incoming).abs() < 1e-9);
            // Without a graph no tap is kept, and the values are the same.
            assert!(flat(&max_pool2d_nhwc(&x.detach(), &config)?)? == one.0);
        }
        Ok(())
    }
}
