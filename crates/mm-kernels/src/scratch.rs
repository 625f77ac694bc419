//! Working memory of the kernels: one block per thread and use, kept between calls.
#![allow(unsafe_code)] // a block of bytes is lent as numbers

use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
use std::cell::Cell;
use std::mem::{align_of, size_of};

/// A cache line.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

/// Lines of zeros, from the allocator's zeroed memory: nothing is written.
#[allow(clippy::same_length_and_capacity)] // the block is full: all of it is zeros
pub(crate) fn zeroed(lines: usize) -> Vec<Line> {
    if lines == 0 {
        return Vec::new();
    }
    let layout = Layout::array::<Line>(lines).unwrap_or_else(|_| handle_alloc_error(Layout::new::<Line>()));
    // SAFETY: the layout has a size above zero.
    let p = unsafe { alloc_zeroed(layout) };
    if p.is_null() {
        handle_alloc_error(layout);
    }
    // SAFETY: the global allocator gave this block with the layout of `lines` lines, and zeros are lines.
    unsafe { Vec::from_raw_parts(p.cast(), lines, lines) }
}

/// Lines as numbers.
pub(crate) fn view<T: Bytes>(lines: &[Line], len: usize) -> &[T] {
    assert!(len <= size_of_val(lines) / size_of::<T>());
    // SAFETY: the lines hold that many initialised bytes, are aligned to 64, and any bytes are a `T`.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), len) }
}

/// As [`view`], to write to.
pub(crate) fn view_mut<T: Bytes>(lines: &mut [Line], len: usize) -> &mut [T] {
    assert!(len <= size_of_val(lines) / size_of::<T>());
    // SAFETY: as in `view`, and borrowed mutably.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), len) }
}

thread_local! {
    static KEPT: [Cell<Vec<Line>>; 3] = const { [Cell::new(Vec::new()), Cell::new(Vec::new()), Cell::new(Vec::new())] };
}

/// The most lines of a block that a thread keeps: 16 MiB.
const KEPT_LINES: usize = (16 << 20) / size_of::<Line>();

/// The lines that hold `len` numbers.
#[allow(clippy::expect_used)] // as `Vec` does where no memory is that large; public functions refuse such sizes before
pub(crate) fn lines<T>(len: usize) -> usize {
    let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| isize::try_from(bytes).is_ok());
    bytes.expect("numbers fit into memory").div_ceil(size_of::<Line>())
}

/// Types that may be read from any bytes.
///
/// # Safety
/// Every bit pattern is a value, and the alignment is at most 64.
pub(crate) unsafe trait Bytes: Copy + 'static {}
// SAFETY: numbers without invalid bit patterns.
unsafe impl Bytes for f32 {}
// SAFETY: as above.
unsafe impl Bytes for f64 {}
// SAFETY: as above.
unsafe impl Bytes for u32 {}

/// Lends `len` numbers of this thread's block `slot` (0 to 2); they hold whatever they last held.
///
/// A slot that is in use further up the stack is lent anew, from fresh memory.
pub(crate) fn with<T: Bytes, R>(slot: usize, len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    const { assert!(align_of::<T>() <= 64) };
    let mut block = KEPT.with(|kept| kept[slot].take());
    let lines = lines::<T>(len);
    if block.len() < lines {
        block = zeroed(lines);
    }
    let result = f(view_mut(&mut block, len));
    // A thread keeps what the next call will want, not the largest it ever had.
    if block.len() <= KEPT_LINES {
        KEPT.with(|kept| kept[slot].set(block));
    }
    result
}

/// A vector of `len` numbers that `fill` writes, every one of them.
///
/// # Safety
/// `fill` must write all `len` numbers from its pointer on, and nothing else.
pub(crate) unsafe fn filled<T: Bytes>(len: usize, fill: impl FnOnce(*mut T)) -> Vec<T> {
    let mut values = Vec::with_capacity(len);
    fill(values.as_mut_ptr());
    // SAFETY: the capacity is `len`, and the caller promises that all were written.
    unsafe { values.set_len(len) };
    values
}

/// A pointer that several threads write through, each to numbers of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: every use says why no two threads touch the same number.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(crate) fn new(p: *mut T) -> Self {
        Self(p)
    }

    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_kept_apart_and_aligned() {
        with::<f32, _>(0, 10, |a| {
            assert_eq!(a.as_ptr() as usize % 64, 0);
            a.fill(1.0);
            with::<f64, _>(1, 3, |b| b.fill(2.0));
            with::<f32, _>(0, 20, |inner| inner.fill(3.0));
            assert!(a.iter().all(|&a| a == 1.0));
        });
        // SAFETY: both numbers are written.
        let v = unsafe { filled::<f32>(2, |p| p.cast::<[f32; 2]>().write([4.0, 5.0])) };
        assert_eq!(v, [4.0, 5.0]);
    }
}
