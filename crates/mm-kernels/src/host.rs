//! What the CPU kernels share: the two float types, contiguous views of tensors, and sums that vectorise.

use crate::parallel::parts;
use crate::simd::{Isa, on};
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Error, Layout, Result, Storage, StorageRef, Tensor, WithDType, bail};
use std::iter::Sum;
use std::ops::Neg;

/// The element types the CPU kernels are written for: `f32` and `f64`.
pub(crate) trait Real: WithDType + Neg<Output = Self> + Sum<Self> + crate::rowwise::Element {
    fn exp(self) -> Self;
    fn ln(self) -> Self;
    fn sqrt(self) -> Self;
    fn is_nan(self) -> bool;
}

macro_rules! real {
    ($t:ty) => {
        impl Real for $t {
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn is_nan(self) -> bool {
                self.is_nan()
            }
        }
    };
}
real!(f32);
real!(f64);

/// Runs the body with `$t` bound to the Rust type of `$dtype`; any other type is an error that names the operation.
macro_rules! by_dtype {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $t = f64;
                $body
            }
            other => Err($crate::host::unsupported($op, other)),
        }
    };
}
pub(crate) use by_dtype;

pub(crate) fn unsupported(op: &'static str, dtype: DType) -> Error {
    Error::UnsupportedDTypeForOp(dtype, op).bt()
}

/// The elements of a contiguous CPU storage, from its start offset on.
pub(crate) fn slice<'a, T: Real>(
    op: &'static str,
    storage: &'a CpuStorage,
    layout: &Layout,
) -> Result<&'a [T]> {
    check_dtype::<T>(op, storage.dtype())?;
    let (start, end) = span(op, layout)?;
    Ok(&storage.as_slice::<T>()?[start..end])
}

/// As [`slice`], to write to.
pub(crate) fn slice_mut<'a, T: Real>(
    op: &'static str,
    storage: &'a mut CpuStorage,
    layout: &Layout,
) -> Result<&'a mut [T]>
where
    CpuStorage: AsMutSlice<T>,
{
    check_dtype::<T>(op, storage.dtype())?;
    let (start, end) = span(op, layout)?;
    match storage.as_mut_slice() {
        Some(all) => Ok(&mut all[start..end]),
        None => bail!("{op}: the storage does not hold {:?}", T::DTYPE),
    }
}

/// candle offers no typed mutable access to a CPU storage.
pub(crate) trait AsMutSlice<T> {
    fn as_mut_slice(&mut self) -> Option<&mut [T]>;
}

impl AsMutSlice<f32> for CpuStorage {
    fn as_mut_slice(&mut self) -> Option<&mut [f32]> {
        if let CpuStorage::F32(v) = self { Some(v) } else { None }
    }
}

impl AsMutSlice<f64> for CpuStorage {
    fn as_mut_slice(&mut self) -> Option<&mut [f64]> {
        if let CpuStorage::F64(v) = self { Some(v) } else { None }
    }
}

fn span(op: &'static str, layout: &Layout) -> Result<(usize, usize)> {
    layout.contiguous_offsets().ok_or_else(|| Error::RequiresContiguous { op }.bt())
}

fn check_dtype<T: Real>(op: &'static str, got: DType) -> Result<()> {
    if got != T::DTYPE {
        bail!("{op}: all arguments must have one dtype, got {:?} and {got:?}", T::DTYPE)
    }
    Ok(())
}

/// A read lock on a tensor's CPU storage.
pub(crate) struct View<'a> {
    storage: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> View<'a> {
    pub(crate) fn new(tensor: &'a Tensor) -> Self {
        let (storage, layout) = tensor.storage_and_layout();
        Self { storage, layout }
    }

    pub(crate) fn slice<T: Real>(&self, op: &'static str) -> Result<&[T]> {
        match &*self.storage {
            Storage::Cpu(storage) => slice(op, storage, self.layout),
            _ => bail!("{op}: expected a tensor on the CPU"),
        }
    }
}

const LANES: usize = 16;

/// The sum of f(x, y), in 16 interleaved partial sums: that vectorises, and rounds less than one running sum.
#[inline(always)]
pub(crate) fn sum_pairs<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::zero(); LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let mut tail = T::zero();
    for (&x, &y) in xs.remainder().iter().zip(ys.remainder()) {
        tail += f(x, y);
    }
    for (x, y) in xs.zip(ys) {
        for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
            *lane += f(x, y);
        }
    }
    for lane in lanes {
        tail += lane;
    }
    tail
}

/// The sum of f(x); see [`sum_pairs`].
#[inline(always)]
pub(crate) fn sum_of<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    sum_pairs(x, x, |x, _| f(x))
}

/// The largest element, -inf where there is none; a NaN anywhere is returned, so that it is not hidden.
#[inline]
pub(crate) fn largest<T: Real>(x: &[T]) -> T {
    let start = T::from_f64(f64::NEG_INFINITY);
    x.iter().fold(start, |a, &b| if b > a || b.is_nan() { b } else { a })
}

/// Rows whose sums are one number each: the cut, and so the bits, do not depend on the number of threads.
pub(crate) const ROWS: usize = 256;

/// The sum over rows of a row-major matrix with so many columns, on several threads where that pays.
pub(crate) fn column_sums<T: Real>(matrix: &[T], columns: usize) -> Vec<T> {
    let isa = Isa::detect();
    let sums = parts(matrix, ROWS * columns, |_, rows| {
        let mut sums = vec![T::zero(); columns];
        on(isa, || add_rows(rows, &mut sums));
        sums
    });
    together(sums, columns)
}

/// The sum of vectors, in their order.
pub(crate) fn together<T: Real>(parts: Vec<Vec<T>>, len: usize) -> Vec<T> {
    let mut parts = parts.into_iter();
    let mut all = parts.next().unwrap_or_else(|| vec![T::zero(); len]);
    for part in parts {
        for (all, part) in all.iter_mut().zip(part) {
            *all += part;
        }
    }
    all
}

/// The sum over rows of a row-major matrix with `out.len()` columns, added to `out`.
#[inline(always)]
pub(crate) fn add_rows<T: Real>(matrix: &[T], out: &mut [T]) {
    if out.is_empty() {
        return;
    }
    // Four rows at once: `out` is read and written a quarter as often.
    let n = out.len();
    let blocks = matrix.chunks_exact(4 * n);
    let rest = blocks.remainder();
    for block in blocks {
        let (ab, cd) = block.split_at(2 * n);
        let ((a, b), (c, d)) = (ab.split_at(n), cd.split_at(n));
        for ((((o, &a), &b), &c), &d) in out.iter_mut().zip(a).zip(b).zip(c).zip(d) {
            *o += (a + b) + (c + d);
        }
    }
    for row in rest.chunks_exact(n) {
        for (o, &r) in out.iter_mut().zip(row) {
            *o += r;
        }
    }
}
