//! A factor for every channel of every image, or for every row.
#![allow(unsafe_code)] // results are written into room that holds nothing yet

use crate::host::{View, by_dtype, slice, sum_pairs};
use crate::parallel::{filled, pieces};
use crate::simd::{Isa, on};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType, bail};

const NAME: &str = "scale_channels";
/// Numbers that one task works on, about.
const PIECE: usize = 1 << 14;

/// Multiplies every channel of every image with a factor of its own, as squeeze and excitation does.
///
/// ```text
/// y[b, i, j, c] = x[b, i, j, c] factor[b, c]
/// ```
///
/// Shapes: x (B, H, W, C), factor (B, 1, 1, C); y is (B, H, W, C). On CPU both are `f32` or both `f64`. Gradients reach
/// both. Errors: shapes that do not fit.
pub fn scale_channels(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    let [images, _, _, channels] = *x.dims() else {
        bail!("{NAME}: x must be (batch, height, width, channels), got {:?}", x.shape())
    };
    if factor.dims() != [images, 1, 1, channels] {
        bail!(
            "{NAME}: factor {:?} does not fit x {:?}: it must be [{images}, 1, 1, {channels}]",
            factor.shape(),
            x.shape()
        )
    }
    if !x.device().is_cpu() || x.elem_count() == 0 {
        return x.broadcast_mul(factor);
    }
    x.contiguous()?.apply_op2(&factor.contiguous()?, ScaleChannels)
}

struct ScaleChannels;

/// Multiplies every row with a factor of its own: the kernel of a convolution with the factors of a normalisation.
///
/// ```text
/// y[r, ..] = x[r, ..] factor[r]
/// ```
///
/// Shapes: x (R, ..) of rank two or more, factor (R); y has the shape of x. On CPU both are `f32` or both `f64`. Gradients
/// reach both. Errors: shapes that do not fit.
pub fn scale_rows(x: &Tensor, factor: &Tensor) -> Result<Tensor> {
    if x.rank() < 2 || factor.dims() != &x.dims()[..1] {
        bail!(
            "scale_rows: factor {:?} does not fit x {:?}: it must have a number for each of the first dimension",
            factor.shape(),
            x.shape()
        )
    }
    if !x.device().is_cpu() || x.elem_count() == 0 {
        let mut dims = vec![1; x.rank()];
        dims[0] = x.dim(0)?;
        return x.broadcast_mul(&factor.reshape(dims)?);
    }
    x.contiguous()?.apply_op2(&factor.contiguous()?, ScaleRows)
}

struct ScaleRows;

fn scaled_rows<T: WithDType + Send + Sync>(x: &[T], factor: &[T]) -> Vec<T> {
    let (isa, width) = (Isa::detect(), x.len() / factor.len());
    assert_eq!(x.len(), factor.len() * width, "rows of one length");
    let rows = PIECE.div_ceil(width);
    // SAFETY: pieces are whole rows, each of which is written.
    unsafe {
        filled(x.len(), rows * width, x.len(), |k, y| {
            let (x, factor) = (&x[k * rows * width..], &factor[k * rows..]);
            on(isa, || {
                for ((y, x), &factor) in y.chunks_exact_mut(width).zip(x.chunks_exact(width)).zip(factor) {
                    y.iter_mut().zip(x).for_each(|(y, &x)| _ = y.write(x * factor));
                }
            });
        })
    }
}

impl CustomOp2 for ScaleRows {
    fn name(&self) -> &'static str {
        "scale_rows"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        factor: &CpuStorage,
        fl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(self.name(), x.dtype(), T => {
            let y = scaled_rows(slice::<T>(self.name(), x, xl)?, slice::<T>(self.name(), factor, fl)?);
            Ok((T::to_cpu_storage_owned(y), xl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        factor: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        by_dtype!(self.name(), grad.dtype(), T => {
            let (xv, fv, gv) = (View::new(x), View::new(factor), View::new(&grad));
            let name = self.name();
            let (xs, fs, gs) = (xv.slice::<T>(name)?, fv.slice::<T>(name)?, gv.slice::<T>(name)?);
            let width = xs.len() / fs.len();
            let rows = xs.chunks_exact(width).zip(gs.chunks_exact(width));
            let sums = || rows.map(|(x, g)| sum_pairs(x, g, |x, g| x * g)).collect::<Vec<T>>();
            let tensor = |d: Vec<T>, like: &Tensor| Tensor::from_vec(d, like.shape(), like.device());
            let dx = x.track_op().then(|| tensor(scaled_rows(gs, fs), x)).transpose()?;
            Ok((dx, factor.track_op().then(|| tensor(sums(), factor)).transpose()?))
        })
    }
}

/// Pixels of a task, whose images may be several.
fn rows(channels: usize) -> usize {
    PIECE.div_ceil(channels)
}

fn scaled<T: WithDType + Send + Sync>(x: &[T], factor: &[T], pixels: usize, channels: usize) -> Vec<T> {
    assert_eq!(x.len(), factor.len() * pixels, "a factor for each channel of each image");
    let (isa, rows) = (Isa::detect(), rows(channels));
    // SAFETY: pieces are whole pixels, each of which is written.
    unsafe {
        filled(x.len(), rows * channels, x.len(), |k, y| {
            let x = &x[k * rows * channels..][..y.len()];
            on(isa, || {
                for (p, (y, x)) in y.chunks_exact_mut(channels).zip(x.chunks_exact(channels)).enumerate() {
                    let factor = &factor[(k * rows + p) / pixels * channels..][..channels];
                    for ((y, &x), &factor) in y.iter_mut().zip(x).zip(factor) {
                        y.write(x * factor);
                    }
                }
            });
        })
    }
}

impl CustomOp2 for ScaleChannels {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        factor: &CpuStorage,
        fl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (_, height, width, channels) = xl.shape().dims4()?;
        by_dtype!(NAME, x.dtype(), T => {
            let y = scaled(slice::<T>(NAME, x, xl)?, slice::<T>(NAME, factor, fl)?, height * width, channels);
            Ok((T::to_cpu_storage_owned(y), xl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        factor: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (grad, (_, height, width, channels)) = (grad.contiguous()?, x.dims4()?);
        by_dtype!(NAME, grad.dtype(), T => {
            let (xv, fv, gv) = (View::new(x), View::new(factor), View::new(&grad));
            let (xs, fs, gs) = (xv.slice::<T>(NAME)?, fv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
            let dx = x.track_op().then(|| scaled(gs, fs, height * width, channels));
            let sums = || {
                let (isa, size) = (Isa::detect(), height * width * channels);
                let mut sums: Vec<T> = vec![0.0; fs.len()];
                pieces(&mut sums, channels, xs.len(), |image, sums| {
                    let (x, g) = (&xs[image * size..][..size], &gs[image * size..][..size]);
                    // Sums of sums: one over thousands of pixels would round too often.
                    let mut part: Vec<T> = vec![0.0; channels];
                    on(isa, || {
                        for (x, g) in x.chunks(64 * channels).zip(g.chunks(64 * channels)) {
                            part.fill(0.0);
                            for (x, g) in x.chunks_exact(channels).zip(g.chunks_exact(channels)) {
                                part.iter_mut().zip(x).zip(g).for_each(|((sum, &x), &g)| *sum += x * g);
                            }
                            sums.iter_mut().zip(&part).for_each(|(sum, &part)| *sum += part);
                        }
                    });
                });
                sums
            };
            let dfactor = factor.track_op().then(sums);
            let tensor = |d: Option<Vec<T>>, like: &Tensor| {
                d.map(|d| Tensor::from_vec(d, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dx, x)?, tensor(dfactor, factor)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for (images, side, channels) in [(2, 3, 5), (3, 22, 24)] {
            let x = [normal(&[images, side, side, channels], 1)?, normal(&[images, 1, 1, channels], 2)?];
            assert_same(|x| scale_channels(&x[0], &x[1]), |x| x[0].broadcast_mul(&x[1]), &x)?;
        }
        for (rows, width) in [(3, 5), (90, 700)] {
            // Sums over a row of order one: the composition adds them up one by one, and rounds as often.
            let x = [(normal(&[rows, width, 1], 1)? / (width as f64).sqrt())?, normal(&[rows], 2)?];
            let composed = |x: &[Tensor]| x[0].broadcast_mul(&x[1].reshape((rows, 1, 1))?);
            assert_same(|x| scale_rows(&x[0], &x[1]), composed, &x)?;
        }
        Ok(())
    }
}
