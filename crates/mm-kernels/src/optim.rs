//! One optimiser step for one parameter: SGD, Adam and AdamW with PyTorch's semantics.
//!
//! On CPU the parameter and its state are updated in place, without an allocation. Tensors that share storage with the
//! parameter - `var.as_tensor()`, a detached view - see the new values; take a copy where the old ones are needed, and
//! do not go backward through a graph that was built before the step.

use crate::host::{Real, by_dtype, slice, slice_mut};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, InplaceOp2, InplaceOp3, Layout, Result, Tensor, Var, WithDType, bail};
use rayon::prelude::*;

/// The settings of one [`sgd_step`]. The defaults are a plain step with learning rate 0.001.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SgdStep {
    /// Learning rate.
    pub lr: f64,
    /// Weight of the old buffer; 0 means that there is no buffer.
    pub momentum: f64,
    /// The new gradient enters the buffer with weight `1 - dampening`.
    pub dampening: f64,
    /// L2 penalty, coupled: `weight_decay * parameter` is added to the gradient.
    pub weight_decay: f64,
    /// Nesterov momentum; needs a momentum above 0 and no dampening.
    pub nesterov: bool,
    /// Multiplies the gradient before anything else.
    pub grad_scale: f64,
    /// Whether this is the parameter's first step: the buffer is then set to the gradient, whatever it held.
    pub first: bool,
}

impl Default for SgdStep {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            momentum: 0.0,
            dampening: 0.0,
            weight_decay: 0.0,
            nesterov: false,
            grad_scale: 1.0,
            first: false,
        }
    }
}

/// The settings of one [`adam_step`]. The defaults are those of PyTorch's Adam, at its first step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamStep {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Weight decay: L2 penalty in the gradient, or decoupled.
    pub weight_decay: f64,
    /// Whether the decay acts on the parameter alone (AdamW) and not on the gradient (Adam).
    pub decoupled: bool,
    /// Multiplies the gradient before anything else.
    pub grad_scale: f64,
    /// The number of this step, from 1, for the bias correction.
    pub step: u64,
}

impl Default for AdamStep {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
            grad_scale: 1.0,
            step: 1,
        }
    }
}

/// One step of stochastic gradient descent.
///
/// ```text
/// d = grad_scale g + weight_decay p
/// b = d                                  on the first step
/// b = momentum b + (1 - dampening) d     after it
/// p = p - lr b                           p - lr (d + momentum b) with Nesterov, p - lr d without momentum
/// ```
///
/// `param`, `grad` and the buffer have one shape and one dtype (`f32` or `f64` on CPU); the variables must be
/// contiguous. Errors: shapes that differ, momentum without a buffer, Nesterov without momentum or with dampening.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use mm_kernels::optim::{SgdStep, sgd_step};
/// let p = Var::new(&[1f64, 2.0], &Device::Cpu)?;
/// let g = Tensor::new(&[10f64, 10.0], &Device::Cpu)?;
/// sgd_step(&p, &g, None, &SgdStep { lr: 0.1, grad_scale: 0.5, ..SgdStep::default() })?;
/// assert_eq!(p.to_vec1::<f64>()?, [0.5, 1.5]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sgd_step(param: &Var, grad: &Tensor, momentum_buf: Option<&Var>, cfg: &SgdStep) -> Result<()> {
    same_shape("sgd_step", param, [("grad", grad)])?;
    if cfg.nesterov && (cfg.momentum <= 0.0 || cfg.dampening != 0.0) {
        bail!("sgd_step: Nesterov momentum needs a momentum above 0 and no dampening")
    }
    let buffer = match momentum_buf {
        _ if cfg.momentum == 0.0 => None,
        None => bail!("sgd_step: momentum {} needs a buffer", cfg.momentum),
        Some(buffer) => Some(buffer),
    };
    if let Some(buffer) = buffer {
        same_shape("sgd_step", param, [("momentum_buf", buffer.as_tensor())])?;
    }
    if !param.device().is_cpu() {
        return composed_sgd(param, grad, buffer, cfg);
    }
    let grad = grad.contiguous()?;
    let Some(buffer) = buffer else {
        return param.inplace_op2(&grad, &SgdPlain(cfg));
    };
    buffer.inplace_op3(&grad, param.as_tensor(), &SgdBuffer(cfg))?;
    param.inplace_op3(&grad, buffer.as_tensor(), &SgdParam(cfg))
}

/// One step of Adam, or with `decoupled` of AdamW.
///
/// ```text
/// p = p - lr weight_decay p              first, if decoupled
/// d = grad_scale g (+ weight_decay p     if coupled)
/// m = beta1 m + (1 - beta1) d
/// v = beta2 v + (1 - beta2) d²
/// p = p - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
/// ```
///
/// `param`, `grad`, `m` and `v` have one shape and one dtype (`f32` or `f64` on CPU); the variables must be contiguous.
/// The moments start at zero. Errors: shapes that differ, and step 0.
pub fn adam_step(param: &Var, grad: &Tensor, m: &Var, v: &Var, cfg: &AdamStep) -> Result<()> {
    same_shape("adam_step", param, [("grad", grad), ("m", m.as_tensor()), ("v", v.as_tensor())])?;
    if cfg.step == 0 {
        bail!("adam_step: steps count from 1")
    }
    if !param.device().is_cpu() {
        return composed_adam(param, grad, m, v, cfg);
    }
    let grad = grad.contiguous()?;
    m.inplace_op3(&grad, param.as_tensor(), &AdamFirst(cfg))?;
    v.inplace_op3(&grad, param.as_tensor(), &AdamSecond(cfg))?;
    param.inplace_op3(m.as_tensor(), v.as_tensor(), &AdamParam(cfg))
}

/// One step of AdamW: [`adam_step`] with decoupled weight decay, whatever `cfg.decoupled` says.
pub fn adamw_step(param: &Var, grad: &Tensor, m: &Var, v: &Var, cfg: &AdamStep) -> Result<()> {
    adam_step(param, grad, m, v, &AdamStep { decoupled: true, ..*cfg })
}

fn same_shape<const N: usize>(op: &str, param: &Var, others: [(&str, &Tensor); N]) -> Result<()> {
    for (what, tensor) in others {
        if tensor.shape() != param.shape() {
            bail!(
                "{op}: {what} {:?} must have the shape of the parameter {:?}",
                tensor.shape(),
                param.shape()
            )
        }
    }
    Ok(())
}

/// The gradient that an update works on: scaled, and with a coupled penalty where there is one.
///
/// Without a penalty the parameter is not multiplied by 0: an infinite parameter must not make the gradient NaN.
#[derive(Clone, Copy)]
struct Effective<T> {
    scale: T,
    decay: Option<T>,
}

impl<T: Real> Effective<T> {
    fn new(scale: f64, decay: f64) -> Self {
        Self { scale: T::from_f64(scale), decay: (decay != 0.0).then(|| T::from_f64(decay)) }
    }

    /// Calls `update(element, d)` for each element; `p` is read only where there is a penalty.
    #[inline]
    fn each(self, dst: &mut [T], grad: &[T], p: &[T], update: impl Fn(&mut T, T)) {
        match self.decay {
            None => dst.iter_mut().zip(grad).for_each(|(x, &g)| update(x, self.scale * g)),
            Some(decay) => {
                let all = dst.iter_mut().zip(grad).zip(p);
                all.for_each(|((x, &g), &p)| update(x, self.scale * g + decay * p));
            }
        }
    }
}

struct SgdPlain<'a>(&'a SgdStep);

impl InplaceOp2 for SgdPlain<'_> {
    fn name(&self) -> &'static str {
        "sgd_step"
    }

    fn cpu_fwd(&self, p: &mut CpuStorage, pl: &Layout, g: &CpuStorage, gl: &Layout) -> Result<()> {
        by_dtype!("sgd_step", g.dtype(), T => {
            let (p, g) = (slice_mut::<T>("sgd_step", p, pl)?, slice::<T>("sgd_step", g, gl)?);
            let (lr, scale) = (T::from_f64(self.0.lr), T::from_f64(self.0.grad_scale));
            if self.0.weight_decay == 0.0 {
                p.iter_mut().zip(g).for_each(|(p, &g)| *p -= lr * (scale * g));
            } else {
                let decay = T::from_f64(self.0.weight_decay);
                p.iter_mut().zip(g).for_each(|(p, &g)| *p -= lr * (scale * g + decay * *p));
            }
            Ok(())
        })
    }
}

/// Elements that one thread updates at a time.
const PIECE: usize = 1 << 15;

/// Defines an in-place operation over three CPU storages: the mutable first, then two read ones.
macro_rules! in_place {
    ($op:ident($cfg:ty), $name:literal, |$this:ident, $x:ident, $a:ident, $b:ident| <$t:ident> $body:expr) => {
        struct $op<'a>(&'a $cfg);

        impl InplaceOp3 for $op<'_> {
            fn name(&self) -> &'static str {
                $name
            }

            fn cpu_fwd(
                &self,
                x: &mut CpuStorage,
                xl: &Layout,
                a: &CpuStorage,
                al: &Layout,
                b: &CpuStorage,
                bl: &Layout,
            ) -> Result<()> {
                fn run<$t: Real>($this: &$cfg, $x: &mut [$t], $a: &[$t], $b: &[$t]) {
                    $body
                }
                by_dtype!($name, a.dtype(), T => {
                    let (a, b) = (slice::<T>($name, a, al)?, slice::<T>($name, b, bl)?);
                    let x = slice_mut::<T>($name, x, xl)?;
                    // Each element by itself: pieces change no bit.
                    if x.len() <= PIECE || x.len() != a.len() || x.len() != b.len() {
                        run::<T>(self.0, x, a, b);
                    } else {
                        let pieces = x.par_chunks_mut(PIECE).zip(a.par_chunks(PIECE)).zip(b.par_chunks(PIECE));
                        pieces.for_each(|((x, a), b)| run::<T>(self.0, x, a, b));
                    }
                    Ok(())
                })
            }
        }
    };
}

in_place!(SgdBuffer(SgdStep), "sgd_step", |cfg, buffer, grad, param| <T> {
    let d = Effective::new(cfg.grad_scale, cfg.weight_decay);
    if cfg.first {
        d.each(buffer, grad, param, |b, d| *b = d);
    } else {
        let (keep, take) = (T::from_f64(cfg.momentum), T::from_f64(1.0 - cfg.dampening));
        d.each(buffer, grad, param, |b, d| *b = keep * *b + take * d);
    }
});

in_place!(SgdParam(SgdStep), "sgd_step", |cfg, param, grad, buffer| <T> {
    let lr = T::from_f64(cfg.lr);
    if cfg.nesterov {
        let (scale, momentum) = (T::from_f64(cfg.grad_scale), T::from_f64(cfg.momentum));
        let decay = T::from_f64(cfg.weight_decay);
        let decays = cfg.weight_decay != 0.0;
        for ((p, &g), &b) in param.iter_mut().zip(grad).zip(buffer) {
            let d = if decays { scale * g + decay * *p } else { scale * g };
            *p -= lr * (d + momentum * b);
        }
    } else {
        param.iter_mut().zip(buffer).for_each(|(p, &b)| *p -= lr * b);
    }
});

in_place!(AdamFirst(AdamStep), "adam_step", |cfg, m, grad, param| <T> {
    let take = T::from_f64(1.0 - cfg.beta1);
    effective_adam(cfg).each(m, grad, param, |m, d| *m += take * (d - *m));
});

in_place!(AdamSecond(AdamStep), "adam_step", |cfg, v, grad, param| <T> {
    let (keep, take) = (T::from_f64(cfg.beta2), T::from_f64(1.0 - cfg.beta2));
    effective_adam(cfg).each(v, grad, param, |v, d| *v = keep * *v + take * d * d);
});

in_place!(AdamParam(AdamStep), "adam_step", |cfg, param, m, v| <T> {
    let (size, root) = corrections(cfg);
    let (size, root, eps) = (T::from_f64(size), T::from_f64(root), T::from_f64(cfg.eps));
    let keep = T::from_f64(decoupled_keep(cfg));
    for ((p, &m), &v) in param.iter_mut().zip(m).zip(v) {
        *p = keep * *p - size * m / (v.sqrt() / root + eps);
    }
});

fn effective_adam<T: Real>(cfg: &AdamStep) -> Effective<T> {
    Effective::new(cfg.grad_scale, if cfg.decoupled { 0.0 } else { cfg.weight_decay })
}

/// lr / (1 - beta1^step) and sqrt(1 - beta2^step).
fn corrections(cfg: &AdamStep) -> (f64, f64) {
    let correction = |beta: f64| 1.0 - beta.powf(cfg.step as f64);
    (cfg.lr / correction(cfg.beta1), correction(cfg.beta2).sqrt())
}

fn decoupled_keep(cfg: &AdamStep) -> f64 {
    if cfg.decoupled { 1.0 - cfg.lr * cfg.weight_decay } else { 1.0 }
}

// The same updates in candle's own operations: every device but the CPU, and the reference of the tests.

fn composed_effective(param: &Var, grad: &Tensor, scale: f64, decay: f64) -> Result<Tensor> {
    let scaled = (grad.detach() * scale)?;
    if decay == 0.0 { Ok(scaled) } else { scaled + (param.as_detached_tensor() * decay)? }
}

fn composed_sgd(param: &Var, grad: &Tensor, buffer: Option<&Var>, cfg: &SgdStep) -> Result<()> {
    let mut d = composed_effective(param, grad, cfg.grad_scale, cfg.weight_decay)?;
    if let Some(buffer) = buffer {
        let b = if cfg.first {
            d.copy()?
        } else {
            ((buffer.as_detached_tensor() * cfg.momentum)? + (&d * (1.0 - cfg.dampening))?)?
        };
        buffer.set(&b)?;
        d = if cfg.nesterov { (d + (b * cfg.momentum)?)? } else { b };
    }
    param.set(&(param.as_detached_tensor() - (d * cfg.lr)?)?)
}

fn composed_adam(param: &Var, grad: &Tensor, m: &Var, v: &Var, cfg: &AdamStep) -> Result<()> {
    let d =
        composed_effective(param, grad, cfg.grad_scale, if cfg.decoupled { 0.0 } else { cfg.weight_decay })?;
    let first = ((m.as_detached_tensor() * cfg.beta1)? + (&d * (1.0 - cfg.beta1))?)?;
    let second = ((v.as_detached_tensor() * cfg.beta2)? + (d.sqr()? * (1.0 - cfg.beta2))?)?;
    m.set(&first)?;
    v.set(&second)?;
    let (size, root) = corrections(cfg);
    let change = (first * size)?.div(&((second.sqrt()? / root)? + cfg.eps)?)?;
    param.set(&((param.as_detached_tensor() * decoupled_keep(cfg))? - change)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, normal};

    /// Parameter and two states after three steps along fixed gradients.
    fn run(step: impl Fn(&Var, &Tensor, &Var, &Var, u64) -> Result<()>) -> Result<Tensor> {
        let vars = [normal(&[3, 5], 1)?, normal(&[3, 5], 2)?, normal(&[3, 5], 3)?.sqr()?];
        let [p, a, b] = vars.map(|x| Var::from_tensor(&x).expect("a variable"));
        for n in 1..4 {
            step(&p, &normal(&[3, 5], 10 + n)?, &a, &b, n)?;
        }
        Tensor::stack(&[p.as_tensor(), a.as_tensor(), b.as_tensor()], 0)
    }

    #[test]
    fn the_compositions_are_the_same_updates() -> Result<()> {
        let plain = SgdStep { lr: 0.1, grad_scale: 0.7, weight_decay: 0.05, ..SgdStep::default() };
        let heavy = SgdStep { momentum: 0.9, ..plain };
        for cfg in [plain, heavy, SgdStep { dampening: 0.2, ..heavy }, SgdStep { nesterov: true, ..heavy }] {
            let at = |n| SgdStep { first: n == 1, ..cfg };
            let fused = run(|p, g, buffer, _, n| sgd_step(p, g, Some(buffer), &at(n)))?;
            let composed = run(|p, g, buffer, _, n| {
                composed_sgd(p, g, (cfg.momentum != 0.0).then_some(buffer), &at(n))
            })?;
            assert_close(&fused, &composed, 1e-13)?;
        }
        for decoupled in [false, true] {
            let cfg =
                AdamStep { lr: 0.1, grad_scale: 0.7, weight_decay: 0.05, decoupled, ..AdamStep::default() };
            let at = |step| AdamStep { step, ..cfg };
            let fused = run(|p, g, m, v, n| adam_step(p, g, m, v, &at(n)))?;
            let composed = run(|p, g, m, v, n| composed_adam(p, g, m, v, &at(n)))?;
            assert_close(&fused, &composed, 1e-13)?;
        }
        Ok(())
    }
}
