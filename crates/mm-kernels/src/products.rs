//! The three matrix products of a linear layer: its result, and the gradients of its input and of its weight.
//!
//! In `f32` and `f64` they are those of the crate `gemm`, in other precisions those of [`crate::conv`]. `gemm` packs the
//! weight of a forward product on one thread, number by number, because it lies across; here it is turned round before, by
//! blocks and on all threads. The result begins with the bias instead of zeros.
#![allow(unsafe_code)] // matrices as pointers; sizes are checked at the top of each function

use crate::buffers::Buffer;
use crate::conv::{Engine, Geometry, Number, Precision, Stored};
use crate::parallel::{filled, pieces};
use crate::scratch::Shared;
use crate::simd::{BLOCK, Isa, on, transpose};
use candle_core::{DType, Result, Shape};
use rayon::prelude::*;

/// Products below which a weight is not turned round.
const SMALL: usize = 1 << 20;
/// Outputs that one task turns round.
const LINES: usize = 4 * BLOCK;

/// A linear layer's sizes, and the numbers that it is computed in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Products {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) precision: Precision,
}

impl Products {
    /// What computes the products if `gemm` does not, and the layer as a convolution of one tap over a row of pixels.
    fn engine<T: Number>(&self, op: &'static str) -> Result<Option<(Engine, Geometry)>> {
        if self.precision == Precision::F32 || T::DTYPE != DType::F32 {
            return Ok(None);
        }
        let weight = Shape::from((self.outputs, self.inputs, 1, 1));
        let g = Geometry::new(op, [1, 1, self.rows, self.inputs], &weight, (1, 1, 0, 0, 1, 1), 1)?;
        Ok(Some((Engine::new(self.precision), g)))
    }

    fn is_empty(&self) -> bool {
        self.rows * self.inputs * self.outputs == 0
    }

    fn check<T>(&self, x: Option<&[T]>, w: Option<&[T]>, y: Option<&[T]>) {
        let sizes = [self.rows * self.inputs, self.outputs * self.inputs, self.rows * self.outputs];
        for (numbers, size) in [x, w, y].into_iter().zip(sizes) {
            assert!(numbers.is_none_or(|numbers| numbers.len() == size), "matrices have their sizes");
        }
    }

    /// y = x wᵀ + bias, into room that holds anything.
    pub(crate) fn forward_into<T: Number>(
        &self,
        op: &'static str,
        x: &[T],
        w: &[T],
        bias: Option<&[T]>,
        y: &mut [T],
    ) -> Result<()> {
        self.check(Some(x), Some(w), Some(y));
        if self.is_empty() || self.engine::<T>(op)?.is_some() {
            y.copy_from_slice(&self.forward(op, x, w, bias)?);
            return Ok(());
        }
        assert!(bias.is_none_or(|bias| bias.len() == self.outputs), "a bias per output");
        if let Some(bias) = bias {
            let size = (1usize << 14).div_ceil(self.outputs) * self.outputs;
            pieces(y, size, self.rows * self.outputs, |_, y| {
                y.chunks_exact_mut(self.outputs).for_each(|y| y.copy_from_slice(bias));
            });
        }
        // SAFETY: y has room for all rows, and holds numbers.
        unsafe { self.multiply(x, w, (y.as_mut_ptr(), bias.is_some())) };
        Ok(())
    }

    /// x wᵀ of matrices that are not empty, written or added.
    ///
    /// # Safety
    /// `y` is valid for all rows, which are initialised if they are added to.
    unsafe fn multiply<T: Number>(&self, x: &[T], w: &[T], y: (*mut T, bool)) {
        let (m, n) = (self.rows, self.outputs);
        // SAFETY: passed on.
        let product =
            |w: &[T], steps| unsafe { gemm([m, self.inputs, n], (x, (self.inputs, 1)), (w, steps), y) };
        if m < 2 * BLOCK || m * self.inputs * n < SMALL {
            product(w, (1, self.inputs));
        } else {
            product(&turned(w, self.inputs), (n, 1));
        }
    }

    /// y = x wᵀ + bias.
    pub(crate) fn forward<T: Number>(
        &self,
        op: &'static str,
        x: &[T],
        w: &[T],
        bias: Option<&[T]>,
    ) -> Result<Vec<T>> {
        self.check(Some(x), Some(w), None);
        assert!(bias.is_none_or(|bias| bias.len() == self.outputs), "a bias per output");
        if !self.is_empty()
            && let Some((engine, g)) = self.engine::<T>(op)?
        {
            return Ok(engine.forward(&g, &Stored(x), w, bias));
        }
        let (m, n) = (self.rows, self.outputs);
        let size = (1usize << 14).div_ceil(n.max(1)) * n;
        let mut y = match bias {
            // SAFETY: every number of a piece, which is some rows, is written.
            Some(bias) => unsafe {
                filled(m * n, size.max(1), m * n, |_, y| {
                    for y in y.chunks_exact_mut(n) {
                        y.iter_mut().zip(bias).for_each(|(y, &b)| _ = y.write(b));
                    }
                })
            },
            None if self.is_empty() => vec![T::zero(); m * n],
            None => Vec::with_capacity(m * n),
        };
        if !self.is_empty() {
            // SAFETY: y has room for m rows of n numbers, which hold the bias if they are added to.
            unsafe { self.multiply(x, w, (y.as_mut_ptr(), bias.is_some())) };
        }
        // SAFETY: the product writes all of it; what it did not write was written before.
        unsafe { y.set_len(m * n) };
        Ok(y)
    }

    /// dx = dy w.
    pub(crate) fn grad_input<T: Number>(&self, op: &'static str, dy: &[T], w: &[T]) -> Result<Vec<T>> {
        self.check(None, Some(w), Some(dy));
        if self.is_empty() {
            return Ok(vec![T::zero(); self.rows * self.inputs]);
        }
        if let Some((engine, g)) = self.engine::<T>(op)? {
            return Ok(engine.grad_input(&g, &Stored(dy), w));
        }
        let size = [self.rows, self.outputs, self.inputs];
        Ok(product(size, (dy, (self.outputs, 1)), (w, (self.inputs, 1))))
    }

    /// dw = dyᵀ x.
    pub(crate) fn grad_weight<T: Number>(&self, op: &'static str, x: &[T], dy: &[T]) -> Result<Vec<T>> {
        self.check(Some(x), None, Some(dy));
        if self.is_empty() {
            return Ok(vec![T::zero(); self.outputs * self.inputs]);
        }
        if let Some((engine, g)) = self.engine::<T>(op)? {
            return Ok(engine.grad_weight(&g, &Stored(x), &Stored(dy)));
        }
        let size = [self.outputs, self.rows, self.inputs];
        Ok(product(size, (dy, (1, self.outputs)), (x, (self.inputs, 1))))
    }
}

/// A matrix and the distances of its rows and columns.
type Matrix<'a, T> = (&'a [T], (usize, usize));

/// The product of (m, k) and (k, n), none of them empty.
fn product<T: Number>(size: [usize; 3], a: Matrix<'_, T>, b: Matrix<'_, T>) -> Vec<T> {
    let len = size[0] * size[2];
    let mut y = Vec::with_capacity(len);
    // SAFETY: there is room for all rows, and the product writes all of it.
    unsafe {
        gemm(size, a, b, (y.as_mut_ptr(), false));
        y.set_len(len);
    }
    y
}

/// Writes the product of (m, k) and (k, n), none of them empty, or adds it.
///
/// # Safety
/// `y` is valid for m n numbers, which are initialised if they are added to.
unsafe fn gemm<T: Number>(
    [m, k, n]: [usize; 3],
    (a, a_steps): Matrix<'_, T>,
    (b, b_steps): Matrix<'_, T>,
    (y, added): (*mut T, bool),
) {
    let end =
        |rows: usize, columns: usize, steps: (usize, usize)| (rows - 1) * steps.0 + (columns - 1) * steps.1;
    assert!(end(m, k, a_steps) < a.len() && end(k, n, b_steps) < b.len(), "factors have their sizes");
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { gemm::Parallelism::Rayon(threads) } else { gemm::Parallelism::None };
    // SAFETY: the factors lie within their numbers: asserted; the rest is the caller's promise.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y,
            1,
            n as isize,
            added,
            a.as_ptr(),
            a_steps.1 as isize,
            a_steps.0 as isize,
            b.as_ptr(),
            b_steps.1 as isize,
            b_steps.0 as isize,
            T::one(),
            T::one(),
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A matrix of so many columns, rows as columns.
fn turned<T: Number>(w: &[T], columns: usize) -> Buffer<T> {
    let (isa, rows) = (Isa::detect(), w.len() / columns);
    let mut out: Buffer<T> = Buffer::new(rows * columns);
    assert_eq!(w.len(), rows * columns, "whole rows");
    let to = Shared::new(out.as_mut_ptr());
    let job = |first: usize| {
        let mut block = [[T::zero(); BLOCK]; BLOCK];
        let mut room = [T::zero(); BLOCK * BLOCK];
        for row in (first..(first + LINES).min(rows)).step_by(BLOCK) {
            let here = BLOCK.min(rows - row);
            for column in (0..columns).step_by(BLOCK) {
                let wide = BLOCK.min(columns - column);
                for (k, line) in block.iter_mut().enumerate().take(here) {
                    let from = &w[(row + k) * columns + column..];
                    // Lines of a known length are copied without a call.
                    match from.first_chunk::<BLOCK>().filter(|_| wide == BLOCK) {
                        Some(from) => *line = *from,
                        None => line[..wide].copy_from_slice(&from[..wide]),
                    }
                }
                transpose(isa, &block, &mut room, BLOCK, BLOCK);
                for (u, line) in room.as_chunks::<BLOCK>().0.iter().enumerate().take(wide) {
                    let at = (column + u) * rows + row;
                    assert!(at + here <= rows * columns, "a piece of a column lies in the matrix");
                    // SAFETY: within the buffer, and these columns of it are this task's own.
                    unsafe {
                        let to = to.get().add(at);
                        if here == BLOCK {
                            to.cast::<[T; BLOCK]>().write_unaligned(*line);
                        } else {
                            std::ptr::copy_nonoverlapping(line.as_ptr(), to, here);
                        }
                    }
                }
            }
        }
    };
    (0..rows.div_ceil(LINES)).into_par_iter().for_each(|k| on(isa, || job(k * LINES)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        for (rows, columns) in [(1, 1), (16, 16), (70, 33), (129, 5), (3, 200)] {
            let w: Vec<f32> = (0..rows * columns).map(|i| i as f32).collect();
            let out = turned(&w, columns);
            for (i, x) in w.iter().enumerate() {
                assert_eq!(out[i % columns * rows + i / columns], *x, "{rows} {columns} {i}");
            }
        }
    }

    #[test]
    fn large_products_are_those_of_small_ones() -> Result<()> {
        let (rows, inputs, outputs) = (70, 130, 190);
        let all = Products { rows, inputs, outputs, precision: Precision::F32 };
        let draw =
            |len: usize, by: usize| -> Vec<f64> { (0..len).map(|i| ((i * by) % 17) as f64 - 8.0).collect() };
        let (x, w, bias) = (draw(rows * inputs, 5), draw(outputs * inputs, 7), draw(outputs, 3));
        assert!(rows * inputs * outputs > SMALL);
        let y = all.forward("test", &x, &w, Some(&bias))?;
        for (i, y) in y.iter().enumerate() {
            let (r, o) = (i / outputs, i % outputs);
            let expected: f64 = (0..inputs).map(|k| x[r * inputs + k] * w[o * inputs + k]).sum();
            assert_eq!(*y, expected + bias[o], "{r} {o}");
        }
        Ok(())
    }
}
