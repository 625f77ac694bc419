//! Which driver and which numbers a convolution runs on.
#![allow(unsafe_code)] // hands room for results to the drivers

use super::Precision;
use super::correlate::{Base, Done, correlate, tasks};
use super::crop::Crop;
use super::depthwise;
use super::format::{Bf16, Bf16x3, Format, Plain};
use super::geometry::Geometry;
use super::grad_weight::grad_weight as weight_driver;
use super::source::Source;
#[cfg(feature = "onednn")]
use super::source::{same, same_mut};
use super::taps::Correlation;
use super::tile::Native;
use crate::host::Real;
#[cfg(feature = "onednn")]
use crate::parallel::pieces;
use crate::scratch::{self, Bytes};
use crate::simd::Isa;
use std::sync::Once;

/// The element types with CPU kernels, and what they can be computed in.
pub(crate) trait Number: Real + Bytes + Native + Default {
    /// Runs `f` with the format of a precision.
    fn with<R>(isa: Isa, precision: Precision, f: impl WithFormat<Self, R>) -> R;
}

/// `f32` in place of bfloat16, said once.
#[allow(clippy::print_stderr)] // the one line that tells why a run is not faster
fn without_bf16(isa: Isa) -> Plain {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        eprintln!("mm-kernels: this processor has no bfloat16 products; they are computed in f32");
    });
    Plain(isa)
}

/// A function of a format.
pub(crate) trait WithFormat<T, R> {
    /// Calls it.
    fn call<F>(self, format: F) -> R
    where
        F: Format<T>,
        F::Unit: Bytes;
}

impl Number for f32 {
    fn with<R>(isa: Isa, precision: Precision, f: impl WithFormat<Self, R>) -> R {
        match precision {
            Precision::F32 => f.call(Plain(isa)),
            Precision::Bf16 => match Bf16::new(isa) {
                Some(format) => f.call(format),
                None => f.call(without_bf16(isa)),
            },
            Precision::Bf16x3 => match Bf16x3::new(isa) {
                Some(format) => f.call(format),
                None => f.call(without_bf16(isa)),
            },
        }
    }
}

impl Number for f64 {
    fn with<R>(isa: Isa, _: Precision, f: impl WithFormat<Self, R>) -> R {
        f.call(Plain(isa))
    }
}

/// What is called with finished numbers, each once, in runs of no certain size.
pub(crate) type Then<'a, T> = Option<&'a (dyn Fn(&mut [T]) + Sync)>;

/// Where and how a convolution is computed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Engine {
    pub(crate) isa: Isa,
    pub(crate) precision: Precision,
}

impl Engine {
    pub(crate) fn new(precision: Precision) -> Self {
        Self { isa: Isa::detect(), precision }
    }

    /// `y`.
    pub(crate) fn forward<T: Number>(
        self,
        g: &Geometry,
        x: &impl Source<T>,
        w: &[T],
        bias: Option<&[T]>,
    ) -> Vec<T> {
        self.forward_then(g, x, w, bias, None)
    }

    /// `y` after `then`, which gets every number once, in runs of no certain size that are still in the cache.
    pub(crate) fn forward_then<T: Number>(
        self,
        g: &Geometry,
        x: &impl Source<T>,
        w: &[T],
        bias: Option<&[T]>,
        then: Then<'_, T>,
    ) -> Vec<T> {
        #[cfg(feature = "onednn")]
        if let Some(y) = self.library(
            |x, w, y| crate::onednn::forward(g, x, w, same_or_none(bias), y),
            x,
            w,
            g.n * g.oh * g.ow * g.co,
        ) {
            let mut y = y;
            if let Some(then) = then {
                pieces(&mut y, 1 << 13, g.n * g.oh * g.ow * g.co, |_, y| then(y));
            }
            return y;
        }
        if depthwise::is(g) {
            return depthwise::forward(self.isa, g, &x.numbers(g.ci), w, bias, then);
        }
        let crop = Crop::new(g);
        let (correlation, w) = (Correlation::forward(&crop.geometry), &*crop.weight(w));
        let base = bias.map_or(Base::Zero, Base::Bias);
        let each = then.map(|then| move |_: usize, y: &mut [T]| then(y));
        let done = each.as_ref().map(|each| each as &(dyn Fn(usize, &mut [T]) + Sync));
        let run = |y| {
            let run = Run { isa: self.isa, c: &correlation, x, w, base, y, done };
            T::with(self.isa, self.precision, run);
        };
        // SAFETY: a correlation writes every number of its output.
        unsafe { scratch::filled(g.n * g.oh * g.ow * g.co, run) }
    }

    /// `y` into room for it, and `done(task, pixels)` called with each finished run of pixels.
    pub(crate) fn forward_into<T: Number>(
        self,
        g: &Geometry,
        x: &impl Source<T>,
        w: &[T],
        y: &mut [T],
        done: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        assert_eq!(y.len(), g.n * g.oh * g.ow * g.co, "the output has the size of its geometry");
        let crop = Crop::new(g);
        let (c, w, y) = (Correlation::forward(&crop.geometry), &*crop.weight(w), y.as_mut_ptr());
        let run = Run { isa: self.isa, c: &c, x, w, base: Base::Zero, y, done: Some(done) };
        T::with(self.isa, self.precision, run);
    }

    /// The gradient of `x` into room for it, or added to what is there.
    pub(crate) fn grad_input_into<T: Number>(
        self,
        g: &Geometry,
        dy: &impl Source<T>,
        w: &[T],
        added: bool,
        dx: &mut [T],
    ) {
        assert_eq!(dx.len(), g.n * g.h * g.w * g.ci, "the gradient has the size of the input");
        let crop = Crop::new(g);
        let (c, w, y) = (Correlation::grad_input(&crop.geometry), &*crop.weight(w), dx.as_mut_ptr());
        let base = if added { Base::Added } else { Base::Zero };
        let run = Run { isa: self.isa, c: &c, x: dy, w, base, y, done: None };
        T::with(self.isa, self.precision, run);
    }

    /// How often `done` of [`Engine::forward`] is called.
    pub(crate) fn tasks<T: Number>(self, g: &Geometry) -> usize {
        struct Count<'a>(&'a Correlation);
        impl<T: Number> WithFormat<T, usize> for Count<'_> {
            fn call<F: Format<T>>(self, format: F) -> usize {
                tasks::<T, F>(format, self.0)
            }
        }
        T::with(self.isa, self.precision, Count(&Correlation::forward(&Crop::new(g).geometry)))
    }

    /// The gradient of `x`.
    pub(crate) fn grad_input<T: Number>(self, g: &Geometry, dy: &impl Source<T>, w: &[T]) -> Vec<T> {
        let len = g.n * g.h * g.w * g.ci;
        #[cfg(feature = "onednn")]
        if let Some(dx) = self.library(|dy, w, dx| crate::onednn::grad_input(g, dy, w, dx), dy, w, len) {
            return dx;
        }
        if depthwise::is(g) {
            return depthwise::grad_input(self.isa, g, &dy.numbers(g.co), w);
        }
        let crop = Crop::new(g);
        let (c, w) = (Correlation::grad_input(&crop.geometry), &*crop.weight(w));
        let run = |y| {
            let run = Run { isa: self.isa, c: &c, x: dy, w, base: Base::Zero, y, done: None };
            T::with(self.isa, self.precision, run);
        };
        // SAFETY: a correlation writes every number of its output.
        unsafe { scratch::filled(len, run) }
    }

    /// The gradient of the weight.
    pub(crate) fn grad_weight<T: Number>(
        self,
        g: &Geometry,
        x: &impl Source<T>,
        dy: &impl Source<T>,
    ) -> Vec<T> {
        struct Sum<'a, X, Y>(Isa, &'a Geometry, &'a X, &'a Y);
        impl<T: Number, X: Source<T>, Y: Source<T>> WithFormat<T, Vec<T>> for Sum<'_, X, Y> {
            fn call<F>(self, format: F) -> Vec<T>
            where
                F: Format<T>,
                F::Unit: Bytes,
            {
                weight_driver::<T, F, X, Y>(self.0, format, self.1, self.2, self.3)
            }
        }
        if depthwise::is(g) {
            return depthwise::grad_weight(self.isa, g, &x.numbers(g.ci), &dy.numbers(g.co));
        }
        #[cfg(feature = "onednn")]
        if let Some(dy) = dy.raw().filter(|dy| dy.affine.is_none()).map(|dy| dy.x) {
            let call = |x: &[f32], _: &[f32], dw: &mut [f32]| crate::onednn::grad_weight(g, x, dy, dw);
            if let Some(dw) = self.library(call, x, &[], g.co * g.ci_group() * g.kh * g.kw) {
                return dw;
            }
        }
        let crop = Crop::new(g);
        crop.restore(T::with(self.isa, self.precision, Sum(self.isa, &crop.geometry, x, dy)))
    }
}

#[cfg(feature = "onednn")]
fn same_or_none<T: 'static>(values: Option<&[T]>) -> Option<&[f32]> {
    values.and_then(same)
}

#[cfg(feature = "onednn")]
impl Engine {
    /// What oneDNN computes of plain `f32` numbers; `None` for other numbers and precisions, and where the library fails:
    /// then our own kernels compute it.
    fn library<T: Number>(
        self,
        call: impl FnOnce(&[f32], &[f32], &mut [f32]) -> candle_core::Result<()>,
        x: &impl Source<T>,
        w: &[T],
        len: usize,
    ) -> Option<Vec<T>> {
        let raw = x.raw().filter(|raw| raw.affine.is_none() && self.precision == Precision::F32)?;
        let mut out = vec![T::zero(); len];
        call(raw.x, same(w)?, same_mut(&mut out)?).ok()?;
        Some(out)
    }
}

struct Run<'a, T, S> {
    isa: Isa,
    c: &'a Correlation,
    x: &'a S,
    w: &'a [T],
    base: Base<'a, T>,
    y: *mut T,
    done: Done<'a, T>,
}

impl<T: Number, S: Source<T>> WithFormat<T, ()> for Run<'_, T, S> {
    fn call<F>(self, format: F)
    where
        F: Format<T>,
        F::Unit: Bytes,
    {
        // SAFETY: `Engine` passes room for the whole output, initialised where it is added to.
        unsafe { correlate(self.isa, format, self.c, self.x, self.w, self.base, self.y, self.done) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::reference;
    use super::super::source::Stored;
    use super::*;
    use crate::StepRng;

    fn random(len: usize, seed: u64) -> Vec<f64> {
        let mut draws = StepRng::new(seed).draws();
        (0..len).map(|_| draws.normal()).collect()
    }

    fn close(what: &str, got: &[f64], expected: &[f64], tol: f64) {
        assert_eq!(got.len(), expected.len(), "{what}");
        let scale = expected.iter().fold(1e-30f64, |a, b| a.max(b.abs()));
        for (i, (g, e)) in got.iter().zip(expected).enumerate() {
            assert!((g - e).abs() <= tol * scale, "{what}: element {i} is {g}, expected {e}, scale {scale}");
        }
    }

    fn check(g: &Geometry) {
        let (x, w) = (random(g.n * g.h * g.w * g.ci, 1), random(g.co * g.ci_group() * g.kh * g.kw, 2));
        let (dy, bias) = (random(g.n * g.oh * g.ow * g.co, 3), random(g.co, 4));
        let y = reference::forward(g, &x, &w, Some(&bias));
        let dx = reference::grad_input(g, &dy, &w);
        let dw = reference::grad_weight(g, &x, &dy);
        let single = |v: &[f64]| -> Vec<f32> { v.iter().map(|&v| v as f32).collect() };
        let double = |v: Vec<f32>| -> Vec<f64> { v.into_iter().map(f64::from).collect() };
        for isa in Isa::available() {
            let e = Engine { isa, precision: Precision::F32 };
            let what = |part: &str| format!("{part} {e:?} {g:?}");
            close(&what("y"), &e.forward(g, &Stored(&x), &w, Some(&bias)), &y, 1e-12);
            close(&what("dx"), &e.grad_input(g, &Stored(&dy), &w), &dx, 1e-12);
            close(&what("dw"), &e.grad_weight(g, &Stored(&x), &Stored(&dy)), &dw, 1e-12);
            let (mut sum, twice) = (dx.clone(), dx.iter().map(|d| 2.0 * d).collect::<Vec<_>>());
            e.grad_input_into(g, &Stored(&dy), &w, true, &mut sum);
            close(&what("2 dx"), &sum, &twice, 1e-12);
            let (xs, ws, ds, bs) = (single(&x), single(&w), single(&dy), single(&bias));
            for (precision, tol) in
                [(Precision::F32, 1e-5), (Precision::Bf16x3, 1e-4), (Precision::Bf16, 2e-2)]
            {
                let e = Engine { isa, precision };
                let what = |part: &str| format!("{part} {e:?} {g:?}");
                close(&what("y"), &double(e.forward(g, &Stored(&xs), &ws, Some(&bs))), &y, tol);
                close(&what("dx"), &double(e.grad_input(g, &Stored(&ds), &ws)), &dx, tol);
                close(&what("dw"), &double(e.grad_weight(g, &Stored(&xs), &Stored(&ds))), &dw, tol);
            }
        }
    }

    fn geometry(
        x: [usize; 4],
        w: [usize; 4],
        window: (usize, usize, usize, usize, usize, usize),
        groups: usize,
    ) -> Geometry {
        Geometry::new("test", x, &candle_core::Shape::from(w.to_vec()), window, groups)
            .expect("a valid geometry")
    }

    #[test]
    fn equals_the_definition() {
        for (x, w, window, groups) in [
            ([2, 5, 6, 3], [4, 3, 3, 3], (1, 1, 1, 1, 1, 1), 1),
            ([2, 7, 8, 5], [33, 5, 3, 3], (2, 2, 1, 1, 1, 1), 1),
            ([1, 9, 40, 17], [70, 17, 3, 3], (1, 1, 1, 1, 1, 1), 1),
            ([3, 13, 11, 1], [20, 1, 7, 7], (2, 2, 3, 3, 1, 1), 1),
            ([2, 12, 13, 3], [64, 3, 7, 7], (2, 2, 3, 3, 1, 1), 1),
            ([2, 6, 7, 20], [40, 20, 1, 1], (1, 1, 0, 0, 1, 1), 1),
            ([2, 6, 7, 20], [40, 20, 1, 1], (2, 2, 0, 0, 1, 1), 1),
            ([2, 6, 9, 12], [24, 4, 3, 3], (1, 2, 2, 1, 2, 1), 3),
            ([2, 8, 9, 6], [12, 1, 3, 3], (2, 1, 1, 1, 1, 2), 6),
            ([2, 1, 37, 40], [40, 1, 1, 31], (1, 1, 0, 15, 1, 1), 40),
            ([1, 1, 300, 17], [17, 1, 1, 4], (2, 2, 0, 3, 2, 2), 17),
            ([2, 5, 6, 3], [4, 3, 3, 3], (usize::MAX, 1 << 40, 1, 1, 1, 1), 1),
            ([1, 3, 2, 4], [5, 4, 5, 5], (1, 1, 2, 2, 1, 1), 1),
            ([2, 1, 50, 1], [16, 1, 1, 10], (5, 5, 0, 0, 1, 1), 1),
            ([2, 1, 23, 24], [48, 24, 1, 3], (2, 2, 0, 0, 1, 1), 1),
            ([2, 1, 19, 32], [32, 2, 1, 16], (1, 1, 0, 8, 1, 1), 16),
            ([1, 10, 10, 4], [6, 4, 2, 2], (3, 3, 0, 0, 1, 1), 1),
            ([1, 4, 4, 2], [3, 2, 1, 1], (3, 3, 2, 2, 1, 1), 1),
            ([2, 2, 2, 9], [20, 9, 1, 1], (2, 2, 0, 0, 1, 1), 1),
            ([3, 1, 2, 9], [20, 9, 1, 1], (1, 2, 0, 0, 1, 1), 1),
            ([0, 4, 4, 2], [3, 2, 3, 3], (1, 1, 1, 1, 1, 1), 1),
            // Small images: taps that see only the border, and many images at a time.
            ([40, 1, 1, 20], [33, 20, 3, 3], (1, 1, 1, 1, 1, 1), 1),
            ([70, 2, 2, 20], [70, 20, 3, 3], (1, 1, 1, 1, 1, 1), 1),
            ([70, 2, 2, 20], [70, 20, 3, 3], (2, 2, 1, 1, 1, 1), 1),
            ([19, 4, 3, 8], [16, 4, 3, 3], (1, 1, 1, 1, 1, 1), 2),
            ([3, 2, 1, 5], [4, 5, 5, 5], (1, 1, 4, 4, 2, 2), 1),
        ] {
            check(&geometry(x, w, window, groups));
        }
    }

    /// Small sizes of every kind, drawn: where images, strides and kernels are of like size, special cases meet.
    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn equals_the_definition_of_drawn_sizes() {
        let mut draws = StepRng::new(11).draws();
        let mut one_of = |n: usize| draws.below(n);
        let mut checked = 0;
        while checked < 400 {
            let groups = [1, 1, 1, 2, 3][one_of(5)];
            let (ci, co) = (groups * (1 + one_of(20)), groups * (1 + one_of(40)));
            let x = [one_of(4), 1 + one_of(6), 1 + one_of(9), ci];
            let w = [co, ci / groups, 1 + one_of(4), 1 + one_of(4)];
            let window = (1 + one_of(4), 1 + one_of(4), one_of(3), one_of(3), 1 + one_of(2), 1 + one_of(3));
            let of = candle_core::Shape::from(w.to_vec());
            if let Ok(g) = Geometry::new("test", x, &of, window, groups) {
                check(&g);
                checked += 1;
            }
        }
    }

    /// Sizes at which the input and the batch are cut into blocks and chunks.
    #[test]
    #[cfg_attr(miri, ignore = "too slow")]
    fn equals_the_definition_in_blocks() {
        check(&geometry([2, 7, 7, 520], [64, 520, 3, 3], (1, 1, 1, 1, 1, 1), 1));
        check(&geometry([3, 30, 31, 40], [48, 40, 3, 3], (2, 2, 1, 1, 1, 1), 1));
        check(&geometry([1, 1, 1500, 24], [32, 24, 1, 3], (1, 1, 0, 1, 1, 1), 1));
        check(&geometry([1, 1, 700, 300], [40, 300, 1, 1], (1, 1, 0, 0, 1, 1), 1));
        check(&geometry([1, 1, 9000, 100], [64, 100, 1, 3], (1, 1, 0, 1, 1, 1), 1));
    }
}
