//! Convolutions over images and sequences, forward and backward.
//!
//! | file | what it holds |
//! |---|---|
//! | `mod.rs` | the operations and their settings |
//! | `geometry.rs` | shapes, checked once |
//! | `engine.rs` | which driver and which numbers a convolution runs on |
//! | `correlate.rs` | forward pass and gradient of the input: packing, tasks |
//! | `grad_weight.rs` | gradient of the weight |
//! | `tile.rs` | the inner loops, in registers |
//! | `format.rs` | numbers in packed panels: plain, bf16, bf16x3 |
//! | `depthwise.rs` | one channel per group |
//! | `reference.rs` | the definition as loops, for tests |

mod correlate;
mod crop;
mod depthwise;
mod engine;
mod format;
mod geometry;
mod grad_weight;
mod pack_input;
mod pack_weights;
mod panels;
#[cfg(test)]
mod reference;
mod source;
mod taps;
mod tile;

use crate::activation::Gate;
use crate::host::{View, by_dtype, column_sums, slice};
use crate::simd::Isa;
use candle_core::{CpuStorage, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType, bail};
pub(crate) use engine::{Engine, Number};
use format::Bf16;
pub(crate) use geometry::{Geometry, Window};
pub(crate) use source::{Normalised, Stored};

/// The numbers in which the products of a convolution or a linear layer of `f32` tensors are taken on a CPU.
///
/// Tensors, sums and parameters stay `f32`. `f64` tensors are always computed in `f64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum Precision {
    /// `f32` throughout.
    #[default]
    F32,
    /// Factors rounded to bfloat16 (8 bits), sums in `f32`.
    Bf16,
    /// Factors as a sum of two bfloat16, three products, sums in `f32`: an error of about 2^-16 of each factor.
    Bf16x3,
}

impl Precision {
    /// Whether this processor computes in it; where it does not, `F32` takes its place, and one line on the standard error
    /// says so.
    ///
    /// bfloat16 needs the instructions AVX512-BF16; processors with AMX have them too, whose tiles are not used yet.
    pub fn is_native(self) -> bool {
        self == Self::F32 || Bf16::new(Isa::detect()).is_some()
    }
}

/// Settings of [`conv2d`] and [`conv2d_nhwc`]: pairs are (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Steps of the kernel over the input; default (1, 1), each at least 1.
    pub stride: (usize, usize),
    /// Zeros added on both sides; default (0, 0).
    pub padding: (usize, usize),
    /// Distance between the taps of the kernel; default (1, 1), each at least 1.
    pub dilation: (usize, usize),
    /// Groups of channels that do not see each other; default 1, a divisor of both numbers of channels.
    pub groups: usize,
    /// The numbers in which products are taken; default `F32`.
    pub precision: Precision,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: (1, 1), padding: (0, 0), dilation: (1, 1), groups: 1, precision: Precision::F32 }
    }
}

/// Settings of [`conv1d`] and [`conv1d_nlc`]; see [`Conv2dConfig`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conv1dConfig {
    /// Steps of the kernel over the input; default 1, at least 1.
    pub stride: usize,
    /// Zeros added on both sides; default 0.
    pub padding: usize,
    /// Distance between the taps of the kernel; default 1, at least 1.
    pub dilation: usize,
    /// Groups of channels that do not see each other; default 1, a divisor of both numbers of channels.
    pub groups: usize,
    /// The numbers in which products are taken; default `F32`.
    pub precision: Precision,
}

impl Default for Conv1dConfig {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1, precision: Precision::F32 }
    }
}

impl Conv1dConfig {
    fn over_width(&self) -> Conv2dConfig {
        Conv2dConfig {
            stride: (self.stride, self.stride), // a height of one has one place, whatever the stride
            padding: (0, self.padding),
            dilation: (self.dilation, self.dilation),
            groups: self.groups,
            precision: self.precision,
        }
    }
}

/// Convolution (cross-correlation, as in PyTorch) of images, channels first.
///
/// ```text
/// y[b, o, i, j] = bias[o] + sum_{c, k, l} weight[o, c, k, l] x[b, group(o) C/g + c, i s - p + k d, j s - p + l d]
/// ```
///
/// with `x` zero outside its borders. Shapes: `x (B, C, H, W)`, `weight (O, C / groups, KH, KW)`, `bias (O)`; the result
/// is `(B, O, OH, OW)`, `OH = floor((H + 2p - d (KH - 1) - 1) / s) + 1`. The layout of PyTorch and candle, turned to
/// channels last and back inside: networks of several layers are faster with [`conv2d_nhwc`].
///
/// On CPU the arguments are all `f32` or all `f64`. Gradients reach `x`, `weight` and `bias`; that of an argument
/// outside every graph - the data under a first layer - is not computed. Errors: shapes that do not fit, by name.
pub fn conv2d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: &Conv2dConfig) -> Result<Tensor> {
    if x.rank() != 4 {
        bail!("conv2d: x must be (batch, channels, height, width), got {:?}", x.shape())
    }
    if !x.device().is_cpu() {
        return composed(x, weight, bias, config);
    }
    conv("conv2d", &x.permute((0, 2, 3, 1))?, weight, bias, config)?.permute((0, 3, 1, 2))?.contiguous()
}

/// [`conv2d`] with channels last: `x (B, H, W, C)` to `(B, OH, OW, O)`; `weight (O, C / groups, KH, KW)` as ever.
///
/// The layout in which the CPU kernels work: nothing is turned round.
pub fn conv2d_nhwc(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
) -> Result<Tensor> {
    if x.rank() != 4 {
        bail!("conv2d_nhwc: x must be (batch, height, width, channels), got {:?}", x.shape())
    }
    if !x.device().is_cpu() {
        let y = composed(&x.permute((0, 3, 1, 2))?.contiguous()?, weight, bias, config)?;
        return y.permute((0, 2, 3, 1))?.contiguous();
    }
    conv("conv2d_nhwc", x, weight, bias, config)
}

/// [`conv2d_nhwc`] and an activation.
///
/// Where no argument is part of a graph, as in a frozen network, the activation is taken of each run of pixels as soon as it
/// is there, and nothing else is stored; otherwise the two are operations one after the other.
pub fn conv2d_nhwc_then(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
    gate: Gate,
) -> Result<Tensor> {
    let tracked = x.track_op() || weight.track_op() || bias.is_some_and(Tensor::track_op);
    if tracked || x.rank() != 4 || !x.device().is_cpu() {
        return gate.apply(&conv2d_nhwc(x, weight, bias, config)?);
    }
    conv_then("conv2d_nhwc", x, weight, bias, config, gate)
}

/// [`conv1d_nlc`] and an activation; see [`conv2d_nhwc_then`].
pub fn conv1d_nlc_then(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv1dConfig,
    gate: Gate,
) -> Result<Tensor> {
    if x.rank() != 3 || weight.rank() != 3 {
        return gate.apply(&conv1d_nlc(x, weight, bias, config)?);
    }
    conv2d_nhwc_then(&x.unsqueeze(1)?, &weight.unsqueeze(2)?, bias, &config.over_width(), gate)?.squeeze(1)
}

/// Convolution (cross-correlation) of sequences, channels first: `x (B, C, L)`, `weight (O, C / groups, K)`, `bias (O)`
/// to `(B, O, OL)`. See [`conv2d`] for the equation, and [`conv1d_nlc`] for the faster layout.
pub fn conv1d(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: &Conv1dConfig) -> Result<Tensor> {
    if x.rank() != 3 || weight.rank() != 3 {
        bail!(
            "conv1d: x must be (batch, channels, length) and weight (out, in / groups, kernel), got {:?} and {:?}",
            x.shape(),
            weight.shape()
        )
    }
    conv2d(&x.unsqueeze(2)?, &weight.unsqueeze(2)?, bias, &config.over_width())?.squeeze(2)
}

/// [`conv1d`] with channels last: `x (B, L, C)` to `(B, OL, O)`; `weight (O, C / groups, K)` as ever.
pub fn conv1d_nlc(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv1dConfig,
) -> Result<Tensor> {
    if x.rank() != 3 || weight.rank() != 3 {
        bail!(
            "conv1d_nlc: x must be (batch, length, channels) and weight (out, in / groups, kernel), got {:?} and {:?}",
            x.shape(),
            weight.shape()
        )
    }
    conv2d_nhwc(&x.unsqueeze(1)?, &weight.unsqueeze(2)?, bias, &config.over_width())?.squeeze(1)
}

fn conv(
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
) -> Result<Tensor> {
    conv_then(name, x, weight, bias, config, Gate::None)
}

fn conv_then(
    name: &'static str,
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    config: &Conv2dConfig,
    gate: Gate,
) -> Result<Tensor> {
    let (n, h, w, ci) = x.dims4()?;
    let ((sh, sw), (ph, pw), (dh, dw)) = (config.stride, config.padding, config.dilation);
    let geometry =
        Geometry::new(name, [n, h, w, ci], weight.shape(), (sh, sw, ph, pw, dh, dw), config.groups)?;
    if let Some(bias) = bias
        && bias.dims() != [geometry.co]
    {
        bail!(
            "{name}: bias {:?} does not fit weight {:?}: bias must be [{}]",
            bias.shape(),
            weight.shape(),
            geometry.co
        )
    }
    let op = Conv { name, geometry, precision: config.precision, gate };
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    match bias {
        None => x.apply_op2(&weight, op),
        Some(bias) => x.apply_op3(&weight, &bias.contiguous()?, op),
    }
}

struct Conv {
    name: &'static str,
    geometry: Geometry,
    precision: Precision,
    /// Only where no gradient will be asked for.
    gate: Gate,
}

impl Conv {
    fn forward(
        &self,
        (x, xl): (&CpuStorage, &Layout),
        (w, wl): (&CpuStorage, &Layout),
        bias: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let g = &self.geometry;
        by_dtype!(self.name, wl_dtype(w), T => {
            let (x, w) = (slice::<T>(self.name, x, xl)?, slice::<T>(self.name, w, wl)?);
            let bias = bias.map(|(b, bl)| slice::<T>(self.name, b, bl)).transpose()?;
            let isa = Isa::detect();
            let gate = |y: &mut [T]| self.gate.in_place(isa, y);
            let then = (self.gate != Gate::None).then_some(&gate as &(dyn Fn(&mut [T]) + Sync));
            let y = Engine::new(self.precision).forward_then(g, &Stored(x), w, bias, then);
            Ok((T::to_cpu_storage_owned(y), Shape::from((g.n, g.oh, g.ow, g.co))))
        })
    }

    fn backward(&self, x: &Tensor, w: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        by_dtype!(self.name, grad.dtype(), T => {
            let (xv, wv, gv) = (View::new(x), View::new(w), View::new(grad));
            let (xs, ws) = (xv.slice::<T>(self.name)?, wv.slice::<T>(self.name)?);
            let gs = gv.slice::<T>(self.name)?;
            let (engine, g, gs) = (Engine::new(self.precision), &self.geometry, Stored(gs));
            let dx = x.track_op().then(|| engine.grad_input(g, &gs, ws));
            let dw = w.track_op().then(|| engine.grad_weight(g, &Stored(xs), &gs));
            let tensor = |d: Option<Vec<T>>, like: &Tensor| {
                d.map(|d| Tensor::from_vec(d, like.shape(), like.device())).transpose()
            };
            Ok((tensor(dx, x)?, tensor(dw, w)?))
        })
    }
}

fn wl_dtype(storage: &CpuStorage) -> candle_core::DType {
    candle_core::backend::BackendStorage::dtype(storage)
}

impl CustomOp2 for Conv {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        xl: &Layout,
        w: &CpuStorage,
        wl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward((x, xl), (w, wl), None)
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        self.backward(x, w, &grad.contiguous()?)
    }
}

impl CustomOp3 for Conv {
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
        self.forward((x, xl), (w, wl), Some((b, bl)))
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
        let (dx, dw) = self.backward(x, w, &grad)?;
        Ok((dx, dw, grad_bias(self.name, b, &grad)?))
    }
}

fn grad_bias(name: &'static str, bias: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if !bias.track_op() {
        return Ok(None);
    }
    by_dtype!(name, grad.dtype(), T => {
        let sums = column_sums(View::new(grad).slice::<T>(name)?, bias.elem_count());
        Ok(Some(Tensor::from_vec(sums, bias.shape(), grad.device())?))
    })
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
///
/// candle's backward takes the output padding of both axes from the height and fails where they differ; an input that is
/// padded by hand and cut to what the kernel touches needs none.
#[allow(clippy::disallowed_methods)] // padded and cut as described, its gradient is right
fn composed(x: &Tensor, weight: &Tensor, bias: Option<&Tensor>, config: &Conv2dConfig) -> Result<Tensor> {
    let (n, ci, h, w) = x.dims4()?;
    let ((sh, sw), (ph, pw), (dh, dw)) = (config.stride, config.padding, config.dilation);
    let g = Geometry::new("conv2d", [n, h, w, ci], weight.shape(), (sh, sw, ph, pw, dh, dw), config.groups)?;
    let x = x.pad_with_zeros(2, ph, ph)?.pad_with_zeros(3, pw, pw)?;
    let (used_h, used_w) = ((g.oh - 1) * sh + (g.kh - 1) * dh + 1, (g.ow - 1) * sw + (g.kw - 1) * dw + 1);
    let x = x.narrow(2, 0, used_h)?.narrow(3, 0, used_w)?.contiguous()?;
    if (sh, dh) != (sw, dw) {
        bail!("conv2d: away from the CPU, stride and dilation must be the same for height and width")
    }
    let y = x.conv2d(weight, 0, sh, dh, config.groups)?;
    match bias {
        Some(bias) => y.broadcast_add(&bias.reshape((1, g.co, 1, 1))?),
        None => Ok(y),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same, normal};
    use candle_core::DType;

    #[test]
    fn an_activation_behind_is_the_same_in_a_graph_and_outside() -> Result<()> {
        for (groups, gate) in [(1, Gate::Silu), (40, Gate::Silu), (2, Gate::Gelu)] {
            let config = Conv2dConfig { padding: (1, 1), groups, ..Conv2dConfig::default() };
            for (dtype, tol) in [(DType::F64, 1e-12), (DType::F32, 1e-6)] {
                let [x, w, b] =
                    [normal(&[2, 30, 41, 40], 1)?, normal(&[40, 40 / groups, 3, 3], 2)?, normal(&[40], 3)?];
                let [x, w, b] = [x.to_dtype(dtype)?, w.to_dtype(dtype)?, b.to_dtype(dtype)?];
                for bias in [Some(&b), None] {
                    let expected = gate.apply(&conv2d_nhwc(&x, &w, bias, &config)?)?;
                    assert_close(&conv2d_nhwc_then(&x, &w, bias, &config, gate)?, &expected, tol)?;
                    let variable = candle_core::Var::from_tensor(&w)?;
                    let y = conv2d_nhwc_then(&x, variable.as_tensor(), bias, &config, gate)?;
                    assert_close(&y, &expected, tol)?;
                    assert!(y.sum_all()?.backward()?.get(variable.as_tensor()).is_some());
                }
            }
        }
        Ok(())
    }

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for (groups, stride, padding, dilation) in [(1, 1, 1, 1), (1, 2, 1, 1), (2, 2, 3, 1), (3, 1, 2, 2)] {
            let config = Conv2dConfig {
                stride: (stride, stride),
                padding: (padding, padding),
                dilation: (dilation, dilation),
                groups,
                ..Conv2dConfig::default()
            };
            let inputs = [normal(&[2, 6, 7, 8], 1)?, normal(&[12, 6 / groups, 3, 3], 2)?, normal(&[12], 3)?];
            assert_same(
                |x| conv2d(&x[0], &x[1], Some(&x[2]), &config),
                |x| composed(&x[0], &x[1], Some(&x[2]), &config),
                &inputs,
            )?;
        }
        Ok(())
    }
}
