//! Matrices inside tensors, as a beginning and distances, and their products on this thread.
#![allow(unsafe_code)] // the crate `gemm` takes pointers; sizes are checked before

use crate::conv::Number;

/// A matrix inside some numbers: where it begins, and the distances of rows and of columns.
#[derive(Clone, Copy)]
pub(super) struct Matrix<'a, T> {
    numbers: &'a [T],
    first: usize,
    steps: (usize, usize),
}

impl<'a, T> Matrix<'a, T> {
    pub(super) fn new(numbers: &'a [T], first: usize, step: usize) -> Self {
        Self { numbers, first, steps: (step, 1) }
    }

    /// The same further on.
    pub(super) fn after(self, numbers: usize) -> Self {
        Self { first: self.first + numbers, ..self }
    }

    pub(super) fn turned(self) -> Self {
        Self { steps: (self.steps.1, self.steps.0), ..self }
    }

    /// The number of numbers up to the last one of `rows` rows and `columns` columns.
    fn end(&self, rows: usize, columns: usize) -> usize {
        self.first + (rows - 1) * self.steps.0 + (columns - 1) * self.steps.1 + 1
    }
}

/// y = factor a b, or added to y, for (m, k) and (k, n); rows of y lie `step` apart.
///
/// # Safety
/// `y` is valid for its m rows of n numbers, which no other thread uses, and initialised if added to.
pub(super) unsafe fn product<T: Number>(
    [m, k, n]: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    factor: f64,
    (y, step, added): (*mut T, usize, bool),
) {
    if m * n * k == 0 {
        return;
    }
    assert!(a.end(m, k) <= a.numbers.len() && b.end(k, n) <= b.numbers.len(), "factors have their sizes");
    // SAFETY: the factors lie within their numbers: asserted; the rest is the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y,
            1,
            step as isize,
            added,
            a.numbers.as_ptr().add(a.first),
            a.steps.1 as isize,
            a.steps.0 as isize,
            b.numbers.as_ptr().add(b.first),
            b.steps.1 as isize,
            b.steps.0 as isize,
            T::one(),
            T::from_f64(factor),
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// As [`product`], into a matrix of its own.
pub(super) fn product_into<T: Number>(
    size: [usize; 3],
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    factor: f64,
    y: &mut [T],
    added: bool,
) {
    assert!(y.len() >= size[0] * size[2], "the product has room");
    // SAFETY: y has room for all rows, one after another, and is borrowed mutably.
    unsafe { product(size, a, b, factor, (y.as_mut_ptr(), size[2], added)) };
}
