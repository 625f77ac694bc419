//! The feed-forward part of a transformer's layer as one operation.
//!
//! Its inner tensors are the largest of such a layer, and as single operations each of them would be kept several times and
//! have a gradient that is zeroed, added and copied. Here two are kept: the sums before the activation, and what the second
//! product reads.
#![allow(unsafe_code)] // formulas over vectors of a detected instruction set

use crate::activation::{Activation, Gate, Gelu, Identity, Silu, Value};
use crate::buffers::Buffer;
use crate::conv::{Number, Precision};
use crate::host::{View, by_dtype, column_sums};
use crate::layer_norm::{self, layer_norm};
use crate::linear::linear_in;
use crate::nary::{Backward, node};
use crate::parallel::pieces2;
use crate::products::Products;
use crate::residual::{self, Kept, kept};
use crate::rng::StepRng;
use crate::simd::{Isa, on};
use crate::vmath::{Map, Mapped, Math, each, in_place2};
use candle_core::{D, Device, Result, Tensor, bail};

const NAME: &str = "feed_forward";
/// Numbers that one task works on.
const PIECE: usize = 1 << 13;

/// Tensors and settings of [`feed_forward`].
#[derive(Debug, Clone, Copy)]
pub struct FeedForward<'a> {
    /// Scale and shift, (D) each, and eps of a layer normalisation before the first map.
    pub norm: Option<(&'a Tensor, &'a Tensor, f64)>,
    /// Weight (F, D) and bias (F).
    pub expand: (&'a Tensor, &'a Tensor),
    /// The activation.
    pub gate: Gate,
    /// Weight (D, F) and bias (D).
    pub project: (&'a Tensor, &'a Tensor),
    /// Probability and key of the dropouts after the activation and after the second map.
    pub dropouts: [Option<(f64, StepRng)>; 2],
    /// What the second map's result is multiplied with before it is added.
    pub factor: f64,
    /// The numbers in which products are taken.
    pub precision: Precision,
}

/// x plus a multiple of two linear maps with an activation between them.
///
/// ```text
/// y = x + factor dropout(W2 dropout(gate(W1 norm(x) + b1)) + b2)
/// ```
///
/// Shapes: x (.., D), and y alike; those of the tensors are with [`FeedForward`]. The result is that of
/// [`layer_norm`](crate::layer_norm()), [`linear`](crate::linear()), the activation, [`dropout`](crate::dropout()) and
/// [`residual`](crate::residual()) one after another. On CPU all are `f32` or all `f64`. Gradients reach x and all tensors.
///
/// Errors: shapes that do not fit, by name, and probabilities outside [0, 1).
pub fn feed_forward(x: &Tensor, of: &FeedForward<'_>) -> Result<Tensor> {
    let Some(&width) = x.dims().last().filter(|_| x.rank() > 1) else {
        bail!("{NAME}: x must be (.., width), of rank two or more, got {:?}", x.shape())
    };
    let [inside, _] = *of.expand.0.dims() else {
        bail!("{NAME}: the first weight must be (inside, {width}), got {:?}", of.expand.0.shape())
    };
    let mut expected = vec![
        ("the first weight", of.expand.0, vec![inside, width]),
        ("the first bias", of.expand.1, vec![inside]),
        ("the second weight", of.project.0, vec![width, inside]),
        ("the second bias", of.project.1, vec![width]),
    ];
    if let Some((scale, shift, _)) = of.norm {
        expected.extend([("the norm's scale", scale, vec![width]), ("the norm's shift", shift, vec![width])]);
    }
    for (what, tensor, dims) in &expected {
        if tensor.dims() != dims {
            bail!("{NAME}: {what} {:?} does not fit x {:?}: it must be {dims:?}", tensor.shape(), x.shape())
        }
    }
    let numbers = (x.elem_count() / width.max(1)).checked_mul(inside).and_then(|n| n.checked_mul(8));
    if numbers.is_none_or(|bytes| bytes > isize::MAX as usize) {
        bail!("{NAME}: {inside} numbers for each row of x {:?} do not fit in memory", x.shape())
    }
    if !x.device().is_cpu() || x.elem_count() == 0 || inside == 0 {
        return composed(x, of);
    }
    by_dtype!(NAME, x.dtype(), T => match of.gate {
        Gate::None => run::<T, Identity>(x, of, width, inside),
        Gate::Gelu => run::<T, Gelu>(x, of, width, inside),
        Gate::Silu => run::<T, Silu>(x, of, width, inside),
    })
}

/// The gradient of an activation's argument, from the argument and the incoming gradient.
struct Slope<A>(std::marker::PhantomData<A>);

impl<T, A: Activation> Map<T, 2> for Slope<A> {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [x, grad]: [V; 2]) -> V {
        // SAFETY: passed on.
        unsafe { A::pull(x, A::value(x), grad) }
    }
}

/// Multiplies numbers that are kept, and makes the others zero.
fn drop_in_place<T: Number>(isa: Isa, values: &mut [T], first: usize, keep: &Kept) {
    if let Some((keep, scale)) = keep {
        let (keep, scale) = (&keep[first..first + values.len()], T::from_f64(*scale));
        on(isa, || {
            for (value, &keep) in values.iter_mut().zip(keep) {
                *value = if keep == 0 { T::zero() } else { *value * scale };
            }
        });
    }
}

/// Normalised rows, their moments, and the scale.
type Normed<T> = (Vec<T>, Vec<(f64, f64)>, Tensor);

/// What a forward pass keeps.
struct Pass<T, A> {
    up: Products,
    down: Products,
    /// The first map's input where it is not x, with the moments of its rows, and the scale.
    norm: Option<Normed<T>>,
    weights: [Tensor; 2],
    /// The activation's arguments, and its results after their dropout.
    sums: Buffer<T>,
    active: Buffer<T>,
    kept: [Kept; 2],
    factor: f64,
    /// Whether weights, biases, scale and shift want gradients, in the order of the arguments.
    wants: Vec<bool>,
    of: std::marker::PhantomData<A>,
}

fn run<T: Number + Mapped, A: Activation>(
    x: &Tensor,
    of: &FeedForward<'_>,
    width: usize,
    inside: usize,
) -> Result<Tensor> {
    let (isa, x) = (Isa::detect(), x.contiguous()?);
    let rows = x.elem_count() / width;
    let up = Products { rows, inputs: width, outputs: inside, precision: of.precision };
    let down = Products { rows, inputs: inside, outputs: width, precision: of.precision };
    let mut others = vec![of.expand.0, of.expand.1, of.project.0, of.project.1];
    if let Some((scale, shift, _)) = of.norm {
        others.extend([scale, shift]);
    }
    let wants: Vec<bool> = others.iter().map(|t| t.track_op()).collect();
    let plain = others.iter().map(|t| t.detach().contiguous()).collect::<Result<Vec<_>>>()?;
    let views: Vec<View<'_>> = plain.iter().map(View::new).collect();
    let values = views.iter().map(|view| view.slice::<T>(NAME)).collect::<Result<Vec<_>>>()?;
    let kept = [kept(rows * inside, of.dropouts[0])?, kept(rows * width, of.dropouts[1])?];
    let xv = View::new(&x);
    let xs = xv.slice::<T>(NAME)?;

    let norm = match (of.norm, &values[4..]) {
        (Some((_, _, eps)), [scale, shift]) => Some(layer_norm::normalise(xs, scale, shift, eps)),
        _ => None,
    };
    let input = norm.as_ref().map_or(xs, |(values, _)| values);
    let mut sums: Buffer<T> = Buffer::new(rows * inside);
    up.forward_into(NAME, input, values[0], Some(values[1]), &mut sums)?;
    let mut active: Buffer<T> = Buffer::new(rows * inside);
    let pieces = (&mut active[..], PIECE);
    pieces2(pieces, (&mut sums[..], PIECE), rows * inside, |k, active, sums| {
        each(isa, [&*sums], active, &Value::<A>::default());
        drop_in_place(isa, active, k * PIECE, &kept[0]);
    });
    let below = down.forward(NAME, &active, values[2], Some(values[3]))?;
    let y = residual::add(xs, &below, of.factor, &kept[1]);
    if !x.track_op() && !wants.contains(&true) {
        return Tensor::from_vec(y, x.shape(), &Device::Cpu);
    }
    let norm = norm.zip(plain.get(4)).map(|((values, rows), scale)| (values, rows, scale.clone()));
    let weights = [plain[0].clone(), plain[2].clone()];
    drop(xv);
    drop(views);
    let pass = Pass::<T, A> {
        up,
        down,
        norm,
        weights,
        sums,
        active,
        kept,
        factor: of.factor,
        wants,
        of: std::marker::PhantomData,
    };
    node(&x, &others, y, x.shape(), pass)
}

impl<T: Number + Mapped, A: Activation> Backward for Pass<T, A> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn backward(
        &self,
        x: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Vec<Option<Tensor>>)> {
        let isa = Isa::detect();
        let (xv, gv) = (View::new(x), View::new(grad));
        let (xs, gs) = (xv.slice::<T>(NAME)?, gv.slice::<T>(NAME)?);
        let views = [View::new(&self.weights[0]), View::new(&self.weights[1])];
        let (first, second) = (views[0].slice::<T>(NAME)?, views[1].slice::<T>(NAME)?);
        let scaled = (self.factor != 1.0 || self.kept[1].is_some())
            .then(|| residual::pull(gs, self.factor, &self.kept[1]));
        let above = scaled.as_deref().unwrap_or(gs);
        let wants = |k: usize| self.wants.get(k).copied().unwrap_or(false);
        let dw2 = wants(2).then(|| self.down.grad_weight(NAME, &self.active, above)).transpose()?;
        let db2 = wants(3).then(|| column_sums(above, self.down.outputs));
        let mut inner = self.down.grad_input(NAME, above, second)?;
        crate::parallel::pieces(&mut inner, PIECE, self.sums.len(), |k, inner| {
            drop_in_place(isa, inner, k * PIECE, &self.kept[0]);
            let sums = &self.sums[k * PIECE..][..inner.len()];
            in_place2(isa, sums, inner, &Slope::<A>(std::marker::PhantomData));
        });
        let input = self.norm.as_ref().map_or(xs, |(values, ..)| values);
        let dw1 = wants(0).then(|| self.up.grad_weight(NAME, input, &inner)).transpose()?;
        let db1 = wants(1).then(|| column_sums(&inner, self.up.outputs));
        let (mut dx, mut affine) = (None, Vec::new());
        if x.track_op() || wants(4) || wants(5) {
            let mut below = self.up.grad_input(NAME, &inner, first)?;
            if let Some((_, rows, scale)) = &self.norm {
                let scale = View::new(scale);
                let (of_x, dscale, dshift) =
                    layer_norm::pull(xs, scale.slice::<T>(NAME)?, &below, rows, x.track_op());
                affine = vec![Some(dscale), Some(dshift)];
                below = of_x;
            }
            if x.track_op() {
                dx = Some(residual::add(gs, &below, 1.0, &None));
            }
        }
        let widths = [self.up.outputs, self.up.inputs];
        let [inside, width] = widths;
        let shapes =
            [vec![inside, width], vec![inside], vec![width, inside], vec![width], vec![width], vec![width]];
        let values = [dw1, db1, dw2, db2].into_iter().chain(affine.into_iter().chain([None, None]));
        let others = values.zip(shapes).zip(&self.wants).map(|((values, shape), wants)| {
            values.filter(|_| *wants).map(|values| Tensor::from_vec(values, shape, &Device::Cpu)).transpose()
        });
        let dx = dx.map(|dx| Tensor::from_vec(dx, x.shape(), &Device::Cpu)).transpose()?;
        Ok((dx, others.collect::<Result<_>>()?))
    }
}

/// The same function operation by operation: every device but the CPU, and the reference of the tests.
fn composed(x: &Tensor, of: &FeedForward<'_>) -> Result<Tensor> {
    let input = match of.norm {
        Some((scale, shift, eps)) if x.dim(D::Minus1)? > 0 => layer_norm(x, Some(scale), Some(shift), eps)?,
        _ => x.clone(),
    };
    let sums = linear_in(&input, of.expand.0, Some(of.expand.1), of.precision)?;
    let mut active = of.gate.apply(&sums)?;
    if let Some((p, rng)) = of.dropouts[0] {
        active = crate::dropout(&active, p, rng)?;
    }
    let below = linear_in(&active, of.project.0, Some(of.project.1), of.precision)?;
    residual::residual(x, &below, of.factor, of.dropouts[1])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_same, normal};

    fn of(x: &[Tensor], norm: bool, gate: Gate, drop: bool) -> FeedForward<'_> {
        let key = |name| drop.then_some((0.3, StepRng::new(1).stream(name)));
        FeedForward {
            norm: norm.then(|| (&x[5], &x[6], 1e-5)),
            expand: (&x[1], &x[2]),
            gate,
            project: (&x[3], &x[4]),
            dropouts: [key("inside"), key("outside")],
            factor: if drop { 0.5 } else { 1.0 },
            precision: Precision::F32,
        }
    }

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for (rows, width, inside) in [(5, 4, 6), (300, 33, 130)] {
            let scaled = |shape: &[usize], seed| normal(shape, seed)? * (1.0 / (width as f64).sqrt());
            let mut inputs = vec![
                normal(&[1, rows, width], 1)?,
                scaled(&[inside, width], 2)?,
                scaled(&[inside], 3)?,
                scaled(&[width, inside], 4)?,
                scaled(&[width], 5)?,
                scaled(&[width], 6)?,
                scaled(&[width], 7)?,
            ];
            for norm in [true, false] {
                for (gate, drop) in [(Gate::Gelu, false), (Gate::Silu, true), (Gate::Silu, false)] {
                    let fused = |x: &[Tensor]| feed_forward(&x[0], &of(x, norm, gate, drop));
                    assert_same(fused, |x| composed(&x[0], &of(x, norm, gate, drop)), &inputs)?;
                }
                inputs.truncate(5);
            }
        }
        Ok(())
    }
}
