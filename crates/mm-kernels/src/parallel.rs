//! Loops over disjoint pieces of a result, on several threads where that pays.
#![allow(unsafe_code)] // results are written into room that holds nothing yet

use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Work, in elements touched, below which a loop stays on one thread: waking another takes some microseconds.
pub(crate) const SMALL: usize = 1 << 15;

/// Calls `f(index, piece)` for every piece of `size` elements of `out`; the last may be shorter.
///
/// What `f` writes must depend on the index and the piece alone: then the bits do not depend on the threads.
pub(crate) fn pieces<T: Send>(out: &mut [T], size: usize, work: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if size == 0 {
        return;
    }
    if work < SMALL {
        out.chunks_mut(size).enumerate().for_each(|(i, piece)| f(i, piece));
    } else {
        out.par_chunks_mut(size).enumerate().for_each(|(i, piece)| f(i, piece));
    }
}

/// As [`pieces`], over two results side by side, each with its size of a piece.
pub(crate) fn pieces2<T: Send, U: Send>(
    (a, a_size): (&mut [T], usize),
    (b, b_size): (&mut [U], usize),
    work: usize,
    f: impl Fn(usize, &mut [T], &mut [U]) + Sync,
) {
    if a_size == 0 || b_size == 0 {
        return;
    }
    if work < SMALL {
        let both = a.chunks_mut(a_size).zip(b.chunks_mut(b_size));
        both.enumerate().for_each(|(i, (a, b))| f(i, a, b));
    } else {
        let both = a.par_chunks_mut(a_size).zip(b.par_chunks_mut(b_size));
        both.enumerate().for_each(|(i, (a, b))| f(i, a, b));
    }
}

/// A vector of `len` numbers that `f(index, room)` writes, piece by piece as [`pieces`] cuts it: nothing is zeroed before.
///
/// # Safety
/// `f` must write every number of each piece that it gets.
pub(crate) unsafe fn filled<T: Copy + Send>(
    len: usize,
    size: usize,
    work: usize,
    f: impl Fn(usize, &mut [MaybeUninit<T>]) + Sync,
) -> Vec<T> {
    assert!(size > 0 || len == 0, "pieces of some size");
    let mut values = Vec::with_capacity(len);
    pieces(&mut values.spare_capacity_mut()[..len], size, work, f);
    // SAFETY: the capacity is at least `len`, the pieces are all of it, and the caller promises that each was written.
    unsafe { values.set_len(len) };
    values
}

/// What `f(index, piece)` makes of each piece of `x`, in their order.
pub(crate) fn parts<T: Sync, R: Send>(x: &[T], size: usize, f: impl Fn(usize, &[T]) -> R + Sync) -> Vec<R> {
    if size == 0 {
        return Vec::new();
    }
    if x.len() < SMALL {
        x.chunks(size).enumerate().map(|(i, piece)| f(i, piece)).collect()
    } else {
        x.par_chunks(size).enumerate().map(|(i, piece)| f(i, piece)).collect()
    }
}
