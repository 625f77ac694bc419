//! The mean of each window or bin.

use super::{Axis, Plan, PoolConfig, first_dims, last_dims, turned};
use crate::host::{Real, View, by_dtype, slice};
use crate::parallel::pieces;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};

/// Mean over windows of images, channels first.
///
/// ```text
/// y[b, c, i, j] = sum_{k, l} x[b, c, i s - p + k d, j s - p + l d] / count
/// OH = floor((H + 2p - d (K - 1) - 1) / s) + 1
/// ```
///
/// with `x` = 0 outside its borders, and `count` the size KH KW of the window, or the number of its elements
/// inside the borders where `count_include_pad` is false. Shapes: `x (B, C, H, W)` to `(B, C, OH, OW)`; B may
/// be zero. On CPU `x` is `f32` or `f64`. It is turned to channels last and back inside: [`avg_pool2d_nhwc`]
/// is faster.
///
/// Differences to PyTorch: there, an average has no dilation and can be given a divisor. A dilated window
/// with no element of the input in it gives 0.
///
/// Errors: sizes of zero, a kernel larger than the padded input, padding above half of the kernel.
pub fn avg_pool2d(x: &Tensor, config: &PoolConfig) -> Result<Tensor> {
    let plan = Plan::windows("avg_pool2d", first_dims("avg_pool2d", x)?, config)?;
    let op = AvgPool { name: "avg_pool2d", plan, count: fixed_count(config) };
    if x.device().is_cpu() { turned(x, |x| x.contiguous()?.apply_op1(op)) } else { composed(x, &op) }
}

/// [`avg_pool2d`] with channels last: `x (B, H, W, C)` to `(B, OH, OW, C)`.
pub fn avg_pool2d_nhwc(x: &Tensor, config: &PoolConfig) -> Result<Tensor> {
    let plan = Plan::windows("avg_pool2d_nhwc", last_dims("avg_pool2d_nhwc", x)?, config)?;
    let op = AvgPool { name: "avg_pool2d_nhwc", plan, count: fixed_count(config) };
    if x.device().is_cpu() { x.contiguous()?.apply_op1(op) } else { composed_last(x, &op) }
}

/// Mean over bins that cover images of any size, channels first.
///
/// ```text
/// y[b, c, i, j] = mean over k, l of x[b, c, k, l]
/// floor(i H / OH) <= k < ceil((i + 1) H / OH),   floor(j W / OW) <= l < ceil((j + 1) W / OW)
/// ```
///
/// Shapes: `x (B, C, H, W)` to `(B, C, OH, OW)` with `output = (OH, OW)`, which may also be larger than the
/// input; B may be zero. Bins overlap where OH does not divide H, as in PyTorch. On CPU `x` is `f32` or
/// `f64`. It is turned to channels last and back inside: [`adaptive_avg_pool2d_nhwc`] is faster. Errors:
/// sizes of zero.
pub fn adaptive_avg_pool2d(x: &Tensor, output: (usize, usize)) -> Result<Tensor> {
    const NAME: &str = "adaptive_avg_pool2d";
    let op = AvgPool { name: NAME, plan: Plan::bins(NAME, first_dims(NAME, x)?, output)?, count: None };
    if x.device().is_cpu() { turned(x, |x| x.contiguous()?.apply_op1(op)) } else { composed(x, &op) }
}

/// [`adaptive_avg_pool2d`] with channels last: `x (B, H, W, C)` to `(B, OH, OW, C)`.
pub fn adaptive_avg_pool2d_nhwc(x: &Tensor, output: (usize, usize)) -> Result<Tensor> {
    const NAME: &str = "adaptive_avg_pool2d_nhwc";
    let op = AvgPool { name: NAME, plan: Plan::bins(NAME, last_dims(NAME, x)?, output)?, count: None };
    if x.device().is_cpu() { x.contiguous()?.apply_op1(op) } else { composed_last(x, &op) }
}

/// The size of the window, where that is what a sum is divided by.
fn fixed_count(config: &PoolConfig) -> Option<f64> {
    config.count_include_pad.then_some(config.kernel.0 as f64 * config.kernel.1 as f64)
}

#[derive(Clone, Copy)]
struct AvgPool {
    name: &'static str,
    plan: Plan,
    /// What every sum is divided by; none: by the number of its terms.
    count: Option<f64>,
}

impl AvgPool {
    fn factor(&self, taps: usize) -> f64 {
        1.0 / self.count.unwrap_or(taps.max(1) as f64)
    }
}

impl CustomOp1 for AvgPool {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(self.name, x.dtype(), T => {
            let y = self.forward(slice::<T>(self.name, x, layout)?);
            Ok((T::to_cpu_storage_owned(y), Shape::from(self.plan.output_shape())))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        by_dtype!(self.name, grad.dtype(), T => {
            let dx = self.backward(View::new(&grad).slice::<T>(self.name)?);
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

impl AvgPool {
    fn forward<T: Real>(&self, x: &[T]) -> Vec<T> {
        let plan = &self.plan;
        let (c, oh, w) = (plan.c, plan.rows.places(), plan.columns.size());
        let mut y = vec![T::zero(); plan.outputs()];
        pieces(&mut y, plan.columns.places() * c, plan.work(), |i, y| {
            let x = &x[i / oh * plan.plane()..][..plan.plane()];
            let rows = plan.rows.span(i % oh);
            for (ox, y) in y.chunks_exact_mut(c).enumerate() {
                let columns = plan.columns.span(ox);
                for iy in rows.indices() {
                    for ix in columns.indices() {
                        let start = (iy * w + ix) * c;
                        for (y, &x) in y.iter_mut().zip(&x[start..start + c]) {
                            *y += x;
                        }
                    }
                }
                let factor = T::from_f64(self.factor(rows.taps * columns.taps));
                for y in y {
                    *y *= factor;
                }
            }
        });
        y
    }

    /// Every thread fills some rows of one image, and takes from each window only what belongs there.
    fn backward<T: Real>(&self, g: &[T]) -> Vec<T> {
        let plan = &self.plan;
        let (c, w, block) = (plan.c, plan.columns.size(), plan.block());
        let (oh, ow) = (plan.rows.places(), plan.columns.places());
        let mut dx = vec![T::zero(); plan.n * plan.plane()];
        pieces(&mut dx, plan.plane(), plan.work(), |image, dx| {
            pieces(dx, block * w * c, plan.work(), |piece, dx| {
                let own = piece * block..piece * block + dx.len() / (w * c);
                for oy in plan.rows.touching(own.start, own.end) {
                    let rows = plan.rows.span(oy);
                    for ox in 0..ow {
                        let columns = plan.columns.span(ox);
                        let factor = T::from_f64(self.factor(rows.taps * columns.taps));
                        let g = &g[((image * oh + oy) * ow + ox) * c..][..c];
                        for iy in rows.indices().filter(|iy| own.contains(iy)) {
                            for ix in columns.indices() {
                                let start = ((iy - own.start) * w + ix) * c;
                                for (dx, &g) in dx[start..start + c].iter_mut().zip(g) {
                                    *dx += factor * g;
                                }
                            }
                        }
                    }
                }
            });
        });
        dx
    }
}

// The same function in candle's own operations: every device but the CPU, and the reference of the tests.

/// A mean over windows is a product with one matrix from the left and one from the right: `Y = R X C^T`.
fn composed(x: &Tensor, op: &AvgPool) -> Result<Tensor> {
    let Plan { n, c, rows, columns } = op.plan;
    let (h, w, oh, ow) = (rows.size(), columns.size(), rows.places(), columns.places());
    let right = matrix(&columns, op.count.is_none(), x)?;
    let left = (matrix(&rows, op.count.is_none(), x)? / op.count.unwrap_or(1.0))?;
    let turned = x.reshape((n * c * h, w))?.matmul(&right.t()?)?.reshape((n * c, h, ow))?.transpose(1, 2)?;
    let y = turned.reshape((n * c * ow, h))?.matmul(&left.t()?)?.reshape((n * c, ow, oh))?;
    y.transpose(1, 2)?.reshape((n, c, oh, ow))
}

fn composed_last(x: &Tensor, op: &AvgPool) -> Result<Tensor> {
    composed(&x.permute((0, 3, 1, 2))?.contiguous()?, op)?.permute((0, 2, 3, 1))?.contiguous()
}

/// The matrix (places, size) with a one for each tap of a place, or a share of one if it is to be a mean.
fn matrix(axis: &Axis, mean: bool, like: &Tensor) -> Result<Tensor> {
    let (size, places) = (axis.size(), axis.places());
    let mut entries = vec![0.0; places * size];
    for (o, row) in entries.chunks_exact_mut(size).enumerate() {
        let span = axis.span(o);
        for i in span.indices() {
            row[i] = if mean { 1.0 / span.taps as f64 } else { 1.0 };
        }
    }
    Tensor::from_vec(entries, (places, size), &candle_core::Device::Cpu)?
        .to_dtype(like.dtype())?
        .to_device(like.device())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};
    use candle_core::Var;

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for (kernel, stride, padding, dilation, count_include_pad) in [
            ((3, 3), (2, 2), (1, 1), (1, 1), true),
            ((3, 2), (2, 1), (1, 1), (1, 1), false),
            ((2, 4), (1, 3), (1, 2), (3, 1), false),
        ] {
            let config =
                PoolConfig { stride, padding, dilation, count_include_pad, ..PoolConfig::new(kernel) };
            let x = [normal(&[2, 7, 9, 21], 1)?];
            let op = |dims| {
                let plan = Plan::windows("avg_pool2d", dims, &config)?;
                Ok(AvgPool { name: "avg_pool2d", plan, count: fixed_count(&config) })
            };
            let (last, first): (Result<_>, Result<_>) = (op([2, 7, 9, 21]), op([2, 9, 21, 7]));
            let (last, first) = (last?, first?);
            assert_same(|x| avg_pool2d_nhwc(&x[0], &config), |x| composed_last(&x[0], &last), &x)?;
            assert_same(|x| avg_pool2d(&x[0], &config), |x| composed(&x[0], &first), &x)?;
        }
        Ok(())
    }

    #[test]
    fn the_adaptive_composition_is_the_same_function() -> Result<()> {
        for output in [(1, 1), (3, 4), (7, 11)] {
            let x = [normal(&[2, 7, 9, 3], 1)?];
            let plan = Plan::bins("op", [2, 7, 9, 3], output)?;
            let op = AvgPool { name: "op", plan, count: None };
            assert_same(|x| adaptive_avg_pool2d_nhwc(&x[0], output), |x| composed_last(&x[0], &op), &x)?;
        }
        Ok(())
    }

    #[test]
    fn the_number_of_threads_changes_no_bit() -> Result<()> {
        let x = Var::from_tensor(&normal(&[2, 90, 33, 40], 1)?)?;
        let config = PoolConfig::square(3, 2, 1);
        let run = || -> Result<(Vec<f64>, Vec<f64>)> {
            let y = avg_pool2d_nhwc(&x, &config)?;
            let grads = (normal(y.dims(), 3)? * &y)?.sum_all()?.backward()?;
            let dx = grads.get(x.as_tensor()).expect("a gradient").flatten_all()?.to_vec1()?;
            Ok((y.detach().flatten_all()?.to_vec1()?, dx))
        };
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool").install(run)?;
        let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool").install(run)?;
        assert!(one == three);
        Ok(())
    }
}
