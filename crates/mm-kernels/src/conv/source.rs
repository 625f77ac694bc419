//! What a convolution reads: numbers as they are stored, or a function of each.
#![allow(unsafe_code)] // numbers are read at indices that the caller vouches for

use super::format::Format;
use crate::host::Real;
use std::any::TypeId;
use std::borrow::Cow;

/// What is correlated: numbers as they are stored, or a function of each.
pub(crate) trait Source<T>: Sync {
    /// The value at flat index `i` of channel `c`.
    ///
    /// # Safety
    /// `i` and `c` are in range.
    unsafe fn at(&self, i: usize, c: usize) -> T;
    /// Numbers stored.
    fn len(&self) -> usize;
    /// The numbers as the units of a format, if they lie in memory as such.
    fn units<F: Format<T>>(&self) -> Option<&[F::Unit]> {
        None
    }
    /// The numbers as `f32`, and the scale and shift of a [`Normalised`] source, if that is what they are.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only there is packing written for the processor
    fn raw(&self) -> Option<Raw<'_>> {
        None
    }
    /// The numbers, for an image of so many channels.
    fn numbers(&self, channels: usize) -> Cow<'_, [T]>
    where
        T: Clone;
}

/// The numbers themselves.
pub(crate) struct Stored<'a, T>(pub(crate) &'a [T]);

/// A source of `f32`, for the packing that is written for a processor.
#[derive(Clone, Copy)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // only there is packing written for the processor
pub(crate) struct Raw<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) affine: Option<(&'a [f32], &'a [f32])>,
}

/// A slice as one of another type, if the types are the same.
pub(super) fn same<A: 'static, B: 'static>(x: &[A]) -> Option<&[B]> {
    // SAFETY: the types are the same.
    (TypeId::of::<A>() == TypeId::of::<B>())
        .then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast(), x.len()) })
}

/// As [`same`], to write to.
#[cfg(feature = "onednn")]
pub(super) fn same_mut<A: 'static, B: 'static>(x: &mut [A]) -> Option<&mut [B]> {
    // SAFETY: the types are the same.
    (TypeId::of::<A>() == TypeId::of::<B>())
        .then(|| unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast(), x.len()) })
}

impl<T: Copy + Sync + 'static> Source<T> for Stored<'_, T> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, _: usize) -> T {
        debug_assert!(i < self.0.len());
        // SAFETY: the caller's promise.
        unsafe { *self.0.get_unchecked(i) }
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    fn numbers(&self, _: usize) -> Cow<'_, [T]> {
        Cow::Borrowed(self.0)
    }

    fn units<F: Format<T>>(&self) -> Option<&[F::Unit]> {
        same(self.0)
    }

    fn raw(&self) -> Option<Raw<'_>> {
        Some(Raw { x: same(self.0)?, affine: None })
    }
}

/// max(scale x + shift, 0) of each number: a batch normalisation and its ReLU.
pub(crate) struct Normalised<'a, T> {
    pub(crate) x: &'a [T],
    pub(crate) scale: &'a [T],
    pub(crate) shift: &'a [T],
}

impl<T: Real> Source<T> for Normalised<'_, T> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, c: usize) -> T {
        debug_assert!(i < self.x.len() && c < self.scale.len() && c < self.shift.len());
        // SAFETY: the caller's promise.
        let (x, a, b) =
            unsafe { (*self.x.get_unchecked(i), *self.scale.get_unchecked(c), *self.shift.get_unchecked(c)) };
        let y = x * a + b;
        if y > T::zero() || y.is_nan() { y } else { T::zero() }
    }

    fn len(&self) -> usize {
        self.x.len()
    }

    fn numbers(&self, channels: usize) -> Cow<'_, [T]> {
        assert!(channels <= self.scale.len() && channels <= self.shift.len());
        // SAFETY: the indices are those of x, and the channels are in range.
        Cow::Owned((0..self.x.len()).map(|i| unsafe { self.at(i, i % channels) }).collect())
    }

    fn raw(&self) -> Option<Raw<'_>> {
        Some(Raw { x: same(self.x)?, affine: Some((same(self.scale)?, same(self.shift)?)) })
    }
}
