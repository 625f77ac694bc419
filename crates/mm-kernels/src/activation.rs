//! Element-wise activations, each one pass forward and one pass backward.
//!
//! candle's own `relu` passes a gradient at zero, and the backward passes of its two GELUs use constants of
//! six digits; these do neither. All functions but `glu` keep the shape; on CPU they take `f32` and `f64`, the former with
//! exponentials over whole registers, whose errors `vmath.rs` states: below 3e-7.
#![allow(unsafe_code)] // formulas over vectors of a detected instruction set

use crate::host::{View, by_dtype, slice};
use crate::parallel::pieces;
use crate::simd::Isa;
use crate::vmath::{Map, Mapped, Math, each, in_place, map};
use candle_core::backend::BackendStorage;
use candle_core::shape::Dim;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use std::f64::consts::{FRAC_1_SQRT_2, PI};
use std::marker::PhantomData;

/// Rectified linear unit: `y = max(x, 0)`, with gradient 0 at 0 (as in PyTorch; candle passes 1 there).
///
/// A NaN stays a NaN, so that a diverged run is seen.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    apply::<Relu>(x)
}

/// Gaussian error linear unit, exact: `y = x Φ(x) = x (1 + erf(x / sqrt 2)) / 2`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply::<Gelu>(x)
}

/// Gaussian error linear unit, tanh form: `y = x (1 + tanh(sqrt(2/π) (x + 0.044715 x³))) / 2`.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    apply::<GeluTanh>(x)
}

/// Sigmoid linear unit (swish): `y = x sigmoid(x)`.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply::<Silu>(x)
}

/// Logistic function: `y = 1 / (1 + exp(-x))`.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    apply::<Sigmoid>(x)
}

/// Hyperbolic tangent.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    apply::<Tanh>(x)
}

/// Gated linear unit: the first half of a dimension, times the logistic function of the second.
///
/// ```text
/// y = a sigmoid(b),   (a, b) = x split in two along dim
/// ```
///
/// Shapes: `x (.., 2 C, ..)` to `(.., C, ..)`, `dim` being the one that is halved. Errors: a dimension that
/// does not exist or is odd. Source: Dauphin et al., 2016, <https://arxiv.org/abs/1612.08083>.
///
/// ```
/// use candle_core::{D, Device, Tensor};
/// let x = Tensor::new(&[[4f32, -2.0, 0.0, 0.0]], &Device::Cpu)?;
/// assert_eq!(mm_kernels::glu(&x, D::Minus1)?.to_vec2::<f32>()?, [[2.0, -1.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[allow(clippy::needless_pass_by_value)] // as candle's own operations take a dimension
pub fn glu<D: Dim>(x: &Tensor, dim: D) -> Result<Tensor> {
    let dim = dim.to_index(x.shape(), "glu")?;
    let size = x.dim(dim)?;
    if size % 2 != 0 {
        bail!("glu: dimension {dim} of x {:?} must be even, got {size}", x.shape())
    }
    if !x.device().is_cpu() {
        return composed_glu(x, dim);
    }
    x.contiguous()?.apply_op1(Glu { dim })
}

/// An activation by its name, for operations that take one with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Gate {
    /// The number itself.
    None,
    /// [`gelu`].
    Gelu,
    /// [`silu`].
    Silu,
}

impl Gate {
    /// The activation as an operation of its own.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::None => Ok(x.clone()),
            Self::Gelu => gelu(x),
            Self::Silu => silu(x),
        }
    }

    /// The activation of every number in its place, on this thread.
    pub(crate) fn in_place<T: Mapped>(self, isa: Isa, y: &mut [T]) {
        match self {
            Self::None => {}
            Self::Gelu => in_place(isa, y, &Value::<Gelu>::default()),
            Self::Silu => in_place(isa, y, &Value::<Silu>::default()),
        }
    }
}

/// The value of an activation.
pub(crate) struct Value<A>(PhantomData<A>);

impl<A> Default for Value<A> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, A: Activation> Map<T, 1> for Value<A> {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [x]: [V; 1]) -> V {
        // SAFETY: passed on.
        unsafe { A::value(x) }
    }
}

/// One activation: its value, and its gradient `pull` from the argument, the result and the incoming gradient.
pub(crate) trait Activation: Send + Sync + 'static {
    const NAME: &'static str;
    /// # Safety
    /// The instruction set of V is there.
    unsafe fn value<T, V: Math<T>>(x: V) -> V;
    /// # Safety
    /// The instruction set of V is there.
    unsafe fn pull<T, V: Math<T>>(x: V, y: V, grad: V) -> V;
    /// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
    fn composed(x: &Tensor) -> Result<Tensor>;
}

fn apply<A: Activation>(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return A::composed(x);
    }
    x.contiguous()?.apply_op1(Elementwise::<A>(PhantomData))
}

struct Elementwise<A>(PhantomData<A>);

impl<T, A: Activation> Map<T, 1> for Elementwise<A> {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [x]: [V; 1]) -> V {
        // SAFETY: passed on.
        unsafe { A::value(x) }
    }
}

impl<T, A: Activation> Map<T, 3> for Elementwise<A> {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [x, y, grad]: [V; 3]) -> V {
        // SAFETY: passed on.
        unsafe { A::pull(x, y, grad) }
    }
}

impl<A: Activation> CustomOp1 for Elementwise<A> {
    fn name(&self) -> &'static str {
        A::NAME
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(A::NAME, x.dtype(), T => {
            let y = map(Isa::detect(), [slice::<T>(A::NAME, x, layout)?], self);
            Ok((T::to_cpu_storage_owned(y), layout.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        by_dtype!(A::NAME, grad.dtype(), T => {
            let (xv, yv, gv) = (View::new(x), View::new(y), View::new(&grad));
            let all = [xv.slice::<T>(A::NAME)?, yv.slice::<T>(A::NAME)?, gv.slice::<T>(A::NAME)?];
            Ok(Some(Tensor::from_vec(map(Isa::detect(), all, self), x.shape(), x.device())?))
        })
    }
}

/// The gate y / x of an activation y = x gate(x) with gate(0) = 1/2: a division instead of another erf, tanh or exp.
///
/// Near zero y may be denormal and the quotient coarse; the gate is 1/2 there to more digits than a float has.
#[inline(always)]
unsafe fn gate<T, V: Math<T>>(x: V, y: V) -> V {
    // SAFETY: passed on.
    unsafe { y.div(x).unless_at_most(V::of(0.5), x.abs(), V::of(1e-30)) }
}

#[inline(always)]
unsafe fn logistic<T, V: Math<T>>(x: V) -> V {
    // SAFETY: passed on.
    unsafe { V::of(1.0).div(V::of(1.0).add(V::zero().sub(x).exp())) }
}

// SAFETY of all functions of vectors below: the caller's promise about the instruction set is passed on.

pub(crate) struct Identity;
impl Activation for Identity {
    const NAME: &'static str = "identity";
    #[inline(always)]
    unsafe fn value<T, V: Math<T>>(x: V) -> V {
        x
    }
    #[inline(always)]
    unsafe fn pull<T, V: Math<T>>(_x: V, _y: V, grad: V) -> V {
        grad
    }
    fn composed(x: &Tensor) -> Result<Tensor> {
        Ok(x.clone())
    }
}

struct Relu;
impl Activation for Relu {
    const NAME: &'static str = "relu";
    #[inline(always)]
    unsafe fn value<T, V: Math<T>>(x: V) -> V {
        unsafe { x.relu() }
    }
    #[inline(always)]
    unsafe fn pull<T, V: Math<T>>(_x: V, y: V, grad: V) -> V {
        unsafe { grad.unless_at_most(V::zero(), y, V::zero()) }
    }
    fn composed(x: &Tensor) -> Result<Tensor> {
        // Not `relu`, whose backward pass lets the gradient through where x is 0.
        x.le(0.0)?.where_cond(&x.zeros_like()?, x)
    }
}

pub(crate) struct Gelu;
impl Activation for Gelu {
    const NAME: &'static str = "gelu";
    #[inline(always)]
    unsafe fn value<T, V: Math<T>>(x: V) -> V {
        unsafe { x.mul(x.normal_cdf()) }
    }
    #[inline(always)]
    unsafe fn pull<T, V: Math<T>>(x: V, y: V, grad: V) -> V {
        unsafe {
            let density = V::of(-0.5).mul(x).mul(x).exp().mul(V::of(1.0 / (2.0 * PI).sqrt()));
            grad.mul(x.mul_add(density, gate(x, y)))
        }
    }
    fn composed(x: &Tensor) -> Result<Tensor> {
        // Not `gelu_erf`, whose backward pass has a constant of six digits.
        x * (x * FRAC_1_SQRT_2)?.erf()?.affine(0.5, 0.5)?
    }
}

/// The cubic coefficient of the tanh form.
const CUBIC: f64 = 0.044_715;

struct GeluTanh;
impl Activation for GeluTanh {
    const NAME: &'static str = "gelu_tanh";
    #[inline(always)]
    unsafe fn value<T, V: Math<T>>(x: V) -> V {
        unsafe {
            let inner = V::of(CUBIC).mul(x).mul(x).mul_add(x, x).mul(V::of((2.0 / PI).sqrt()));
            V::of(0.5).mul(x).mul(V::of(1.0).add(inner.tanh()))
        }
    }
    #[inline(always)]
    unsafe fn pull<T, V: Math<T>>(x: V, y: V, grad: V) -> V {
        // With s = (1 + tanh u) / 2 = y / x: the derivative of s in u is 2 s (1 - s).
        unsafe {
            let (one, s) = (V::of(1.0), gate(x, y));
            let slope = V::of((2.0 / PI).sqrt()).mul(V::of(3.0 * CUBIC).mul(x).mul_add(x, one));
            grad.mul(V::of(2.0).mul(x).mul(s).mul(one.sub(s)).mul_add(slope, s))
        }
    }
    fn composed(x: &Tensor) -> Result<Tensor> {
        // Not `gelu`, whose backward pass has constants of six digits.
        let inner = ((x.sqr()? * x)? * CUBIC)?.add(x)?;
        x * (inner * (2.0 / PI).sqrt())?.tanh()?.affine(0.5, 0.5)?
    }
}

pub(crate) struct Silu;
impl Activation for Silu {
    const NAME: &'static str = "silu";
    #[inline(always)]
    unsafe fn value<T, V: Math<T>>(x: V) -> V {
        unsafe { x.mul(logistic(x)) }
    }
    #[inline(always)]
    unsafe fn pull<T, V: Math<T>>(x: V, y: V, grad: V) -> V {
        unsafe {
            let s = gate(x, y);
            grad.mul(y.mul_add(V::of(1.0).sub(s), s))
        }
    }
    fn composed(x: &Tensor) -> Result<Tensor> {
        x.silu()
    }
}

struct Sigmoid;
impl Activation for Sigmoid {
    const NAME: &'static str = "sigmoid";
    #[inline(always)]
    unsafe fn value<T, V: Math<T>>(x: V) -> V {
        unsafe { logistic(x) }
    }
    #[inline(always)]
    unsafe fn pull<T, V: Math<T>>(_x: V, y: V, grad: V) -> V {
        unsafe { grad.mul(y).mul(V::of(1.0).sub(y)) }
    }
    fn composed(x: &Tensor) -> Result<Tensor> {
        x.neg()?.exp()?.affine(1.0, 1.0)?.recip()
    }
}

struct Tanh;
impl Activation for Tanh {
    const NAME: &'static str = "tanh";
    #[inline(always)]
    unsafe fn value<T, V: Math<T>>(x: V) -> V {
        unsafe { x.tanh() }
    }
    #[inline(always)]
    unsafe fn pull<T, V: Math<T>>(_x: V, y: V, grad: V) -> V {
        unsafe { grad.mul(V::of(1.0).sub(y.mul(y))) }
    }
    fn composed(x: &Tensor) -> Result<Tensor> {
        x.tanh()
    }
}

/// a sigmoid(b) of each half.
struct Gated;
impl<T> Map<T, 2> for Gated {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [a, b]: [V; 2]) -> V {
        unsafe { a.mul(logistic(b)) }
    }
}
/// The gradient of a, from b and the incoming gradient.
struct GatedA;
impl<T> Map<T, 2> for GatedA {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [b, grad]: [V; 2]) -> V {
        unsafe { grad.mul(logistic(b)) }
    }
}
/// The gradient of b, from a, b and the incoming gradient.
struct GatedB;
impl<T> Map<T, 3> for GatedB {
    #[inline(always)]
    unsafe fn call<V: Math<T>>(&self, [a, b, grad]: [V; 3]) -> V {
        unsafe {
            let s = logistic(b);
            grad.mul(a).mul(s).mul(V::of(1.0).sub(s))
        }
    }
}

struct Glu {
    dim: usize,
}

impl Glu {
    /// The shape of the result, and the number of values that lie together in each half.
    fn halves(&self, dims: &[usize]) -> (Shape, usize) {
        let mut halved = dims.to_vec();
        halved[self.dim] /= 2;
        let run = halved[self.dim..].iter().product();
        (Shape::from(halved), run)
    }
}

impl CustomOp1 for Glu {
    fn name(&self) -> &'static str {
        "glu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        by_dtype!(self.name(), x.dtype(), T => {
            let x = slice::<T>(self.name(), x, layout)?;
            let (isa, (shape, run)) = (Isa::detect(), self.halves(layout.dims()));
            let mut y = vec![T::default(); x.len() / 2];
            pieces(&mut y, run, x.len(), |i, y| {
                let (a, b) = x[2 * i * run..][..2 * run].split_at(run);
                each(isa, [a, b], y, &Gated);
            });
            Ok((T::to_cpu_storage_owned(y), shape))
        })
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        by_dtype!(self.name(), grad.dtype(), T => {
            let (xv, gv) = (View::new(x), View::new(&grad));
            let (xs, gs) = (xv.slice::<T>(self.name())?, gv.slice::<T>(self.name())?);
            let (isa, (_, run)) = (Isa::detect(), self.halves(x.dims()));
            let mut dx = vec![T::default(); xs.len()];
            pieces(&mut dx, 2 * run, xs.len(), |i, dx| {
                let (a, b) = xs[2 * i * run..][..2 * run].split_at(run);
                let (da, db) = dx.split_at_mut(run);
                let g = &gs[i * run..][..run];
                each(isa, [b, g], da, &GatedA);
                each(isa, [a, b, g], db, &GatedB);
            });
            Ok(Some(Tensor::from_vec(dx, x.shape(), x.device())?))
        })
    }
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
fn composed_glu(x: &Tensor, dim: usize) -> Result<Tensor> {
    let half = x.dim(dim)? / 2;
    x.narrow(dim, 0, half)? * Sigmoid::composed(&x.narrow(dim, half, half)?)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same, normal};
    use candle_core::{Device, Var};

    fn same<A: Activation>() -> Result<()> {
        let x = (normal(&[5, 7], 1)? * 2.0)?;
        assert_same(|x| apply::<A>(&x[0]), |x| A::composed(&x[0]), &[x])
    }

    #[test]
    fn the_compositions_are_the_same_functions() -> Result<()> {
        same::<Relu>()?;
        same::<Gelu>()?;
        same::<GeluTanh>()?;
        same::<Silu>()?;
        same::<Sigmoid>()?;
        same::<Tanh>()
    }

    #[test]
    fn the_composition_of_glu_is_the_same_function() -> Result<()> {
        for dim in 0..3 {
            assert_same(|x| glu(&x[0], dim), |x| composed_glu(&x[0], dim), &[normal(&[4, 6, 2], 1)?])?;
        }
        // On several threads.
        assert_same(|x| glu(&x[0], 1), |x| composed_glu(&x[0], 1), &[normal(&[6, 8, 999], 1)?])
    }

    #[test]
    fn both_forms_of_relu_stop_the_gradient_at_zero() -> Result<()> {
        for f in [apply::<Relu>, Relu::composed] {
            let x = Var::new(&[-1f32, 0.0, 1.0], &Device::Cpu)?;
            let grads = f(x.as_tensor())?.sum_all()?.backward()?;
            let expected = Tensor::new(&[0f32, 0.0, 1.0], &Device::Cpu)?;
            assert_close(grads.get(x.as_tensor()).expect("a gradient"), &expected, 0.0)?;
        }
        Ok(())
    }
}
