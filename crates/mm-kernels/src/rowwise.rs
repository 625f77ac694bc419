//! Loops over the rows of a matrix with a vector of columns in registers.
//!
//! The constants of a column and its sums stay in registers while the loop runs down the rows. A loop is a [`Columns`]; it
//! is written once and run with the widest vectors that fit, and one number at a time for the columns that are left.
#![allow(unsafe_code)] // raw pointers down the rows, and calls for a detected instruction set
#![allow(clippy::wildcard_imports)] // of intrinsics: a list of fifty says less

use crate::simd::Isa;

/// A vector of floats.
pub(crate) trait Floats<T>: Copy {
    /// Numbers in it.
    const LANES: usize;
    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// Reads `LANES` numbers. Safety: `p` is valid for that many.
    unsafe fn load(p: *const T) -> Self;
    /// Writes `LANES` numbers. Safety: `p` is valid for that many.
    unsafe fn store(self, p: *mut T);
    /// self + b.
    unsafe fn add(self, b: Self) -> Self;
    /// self - b.
    unsafe fn sub(self, b: Self) -> Self;
    /// self * b + c; rounded once where the processor can.
    unsafe fn mul_add(self, b: Self, c: Self) -> Self;
    /// max(self, 0); NaN stays.
    unsafe fn relu(self) -> Self;
    /// self where `condition` is positive, else zero.
    unsafe fn where_positive(self, condition: Self) -> Self;
    /// self where a and b are equal, else zero.
    unsafe fn where_equal(self, a: Self, b: Self) -> Self;
    /// self where a is not at most b - larger, or NaN -, else `other`.
    unsafe fn unless_at_most(self, other: Self, a: Self, b: Self) -> Self;
    /// x in every lane.
    unsafe fn splat(x: T) -> Self;
}

/// A loop over rows for some neighbouring columns.
pub(crate) trait Columns<T> {
    /// Runs it for the columns `first .. first + N * V::LANES`.
    ///
    /// # Safety
    /// The columns exist in all that the loop reads and writes, and the instruction set of `V` is there.
    unsafe fn run<V: Floats<T>, const N: usize>(&mut self, first: usize);
}

/// Runs a loop over all of `columns` columns.
///
/// # Safety
/// The loop may be run for each of these columns.
pub(crate) unsafe fn over<T: Element>(isa: Isa, columns: usize, f: &mut impl Columns<T>) {
    // SAFETY: passed on.
    unsafe { T::over(isa, columns, f) }
}

/// Numbers with vectors.
pub(crate) trait Element: Sized {
    /// See [`over`].
    unsafe fn over(isa: Isa, columns: usize, f: &mut impl Columns<Self>);
}

/// One number.
#[derive(Clone, Copy)]
pub(crate) struct One<T>(pub(crate) T);

macro_rules! element {
    ($t:ty, $avx512:ident, $avx2:ident, $neon:ident) => {
        impl Floats<$t> for One<$t> {
            const LANES: usize = 1;
            // SAFETY of all: the trait's contract.
            #[inline(always)]
            unsafe fn zero() -> Self {
                Self(0.0)
            }
            #[inline(always)]
            unsafe fn load(p: *const $t) -> Self {
                Self(unsafe { *p })
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $t) {
                unsafe { *p = self.0 }
            }
            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                Self(self.0 + b.0)
            }
            #[inline(always)]
            unsafe fn sub(self, b: Self) -> Self {
                Self(self.0 - b.0)
            }
            #[inline(always)]
            unsafe fn mul_add(self, b: Self, c: Self) -> Self {
                Self(self.0 * b.0 + c.0)
            }
            #[inline(always)]
            unsafe fn relu(self) -> Self {
                Self(if self.0 > 0.0 || self.0.is_nan() { self.0 } else { 0.0 })
            }
            #[inline(always)]
            unsafe fn where_positive(self, condition: Self) -> Self {
                Self(if condition.0 > 0.0 { self.0 } else { 0.0 })
            }
            #[inline(always)]
            unsafe fn where_equal(self, a: Self, b: Self) -> Self {
                Self(if a.0 == b.0 { self.0 } else { 0.0 })
            }
            #[inline(always)]
            unsafe fn unless_at_most(self, other: Self, a: Self, b: Self) -> Self {
                if a.0 <= b.0 { other } else { self }
            }
            #[inline(always)]
            unsafe fn splat(x: $t) -> Self {
                Self(x)
            }
        }

        impl Element for $t {
            unsafe fn over(isa: Isa, columns: usize, f: &mut impl Columns<Self>) {
                #[cfg(target_arch = "x86_64")]
                {
                    #[target_feature(enable = "avx512f")]
                    unsafe fn avx512(columns: usize, f: &mut impl Columns<$t>) {
                        // SAFETY: passed on.
                        unsafe { blocks::<$t, x86::$avx512, _>(columns, f) }
                    }
                    #[target_feature(enable = "avx2,fma")]
                    unsafe fn avx2(columns: usize, f: &mut impl Columns<$t>) {
                        // SAFETY: passed on.
                        unsafe { blocks::<$t, x86::$avx2, _>(columns, f) }
                    }
                    match isa {
                        // SAFETY: `Isa` is only made of what the processor has; the rest is passed on.
                        Isa::Avx512 { .. } => return unsafe { avx512(columns, f) },
                        // SAFETY: as above.
                        Isa::Avx2 => return unsafe { avx2(columns, f) },
                        Isa::Portable => {}
                    }
                }
                #[cfg(target_arch = "aarch64")]
                if isa == Isa::Neon {
                    #[target_feature(enable = "neon")]
                    unsafe fn neon(columns: usize, f: &mut impl Columns<$t>) {
                        // SAFETY: passed on.
                        unsafe { blocks::<$t, arm::$neon, _>(columns, f) }
                    }
                    // SAFETY: as above.
                    return unsafe { neon(columns, f) };
                }
                let _ = isa;
                // SAFETY: passed on.
                unsafe { blocks::<$t, One<$t>, _>(columns, f) }
            }
        }
    };
}
element!(f32, Avx512F32, Avx2F32, NeonF32);
element!(f64, Avx512F64, Avx2F64, NeonF64);

#[inline(always)]
unsafe fn blocks<T, V: Floats<T>, F: Columns<T>>(columns: usize, f: &mut F)
where
    One<T>: Floats<T>,
{
    let mut first = 0;
    // SAFETY: the columns of each run are below `columns`.
    unsafe {
        while first + 4 * V::LANES <= columns {
            f.run::<V, 4>(first);
            first += 4 * V::LANES;
        }
        while first + V::LANES <= columns {
            f.run::<V, 1>(first);
            first += V::LANES;
        }
        while first < columns {
            f.run::<One<T>, 1>(first);
            first += 1;
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::Floats;
    use std::arch::x86_64::*;

    macro_rules! floats {
        ($name:ident, $reg:ty, $t:ty, $n:expr, $zero:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $fma:ident,
         $max:ident, $splat:ident, |$value:ident, $a:ident, $b:ident| $gt:expr, $eq:expr,
         |$x:ident, $y:ident, $p:ident, $q:ident| $blend:expr) => {
            #[derive(Clone, Copy)]
            pub(crate) struct $name(pub(crate) $reg);

            impl Floats<$t> for $name {
                const LANES: usize = $n;
                // SAFETY of all: the trait's contract, and the caller runs with the instruction set enabled.
                #[inline(always)]
                unsafe fn zero() -> Self {
                    Self(unsafe { $zero() })
                }
                #[inline(always)]
                unsafe fn load(p: *const $t) -> Self {
                    Self(unsafe { $load(p) })
                }
                #[inline(always)]
                unsafe fn store(self, p: *mut $t) {
                    unsafe { $store(p, self.0) }
                }
                #[inline(always)]
                unsafe fn add(self, b: Self) -> Self {
                    Self(unsafe { $add(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn sub(self, b: Self) -> Self {
                    Self(unsafe { $sub(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn mul_add(self, b: Self, c: Self) -> Self {
                    Self(unsafe { $fma(self.0, b.0, c.0) })
                }
                #[inline(always)]
                unsafe fn relu(self) -> Self {
                    // The second operand is the result where one is NaN.
                    Self(unsafe { $max($zero(), self.0) })
                }
                #[inline(always)]
                unsafe fn where_positive(self, condition: Self) -> Self {
                    let ($value, $a, $b) = (self.0, condition.0, unsafe { $zero() });
                    Self(unsafe { $gt })
                }
                #[inline(always)]
                unsafe fn where_equal(self, a: Self, b: Self) -> Self {
                    let ($value, $a, $b) = (self.0, a.0, b.0);
                    Self(unsafe { $eq })
                }
                #[inline(always)]
                unsafe fn unless_at_most(self, other: Self, a: Self, b: Self) -> Self {
                    let ($x, $y, $p, $q) = (self.0, other.0, a.0, b.0);
                    Self(unsafe { $blend })
                }
                #[inline(always)]
                unsafe fn splat(x: $t) -> Self {
                    Self(unsafe { $splat(x) })
                }
            }
        };
    }
    floats!(
        Avx512F32,
        __m512,
        f32,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_sub_ps,
        _mm512_fmadd_ps,
        _mm512_max_ps,
        _mm512_set1_ps,
        |v, a, b| _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b), v),
        _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b), v),
        |x, y, p, q| _mm512_mask_mov_ps(y, _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(p, q), x)
    );
    floats!(
        Avx512F64,
        __m512d,
        f64,
        8,
        _mm512_setzero_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_add_pd,
        _mm512_sub_pd,
        _mm512_fmadd_pd,
        _mm512_max_pd,
        _mm512_set1_pd,
        |v, a, b| _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_GT_OQ>(a, b), v),
        _mm512_maskz_mov_pd(_mm512_cmp_pd_mask::<_CMP_EQ_OQ>(a, b), v),
        |x, y, p, q| _mm512_mask_mov_pd(y, _mm512_cmp_pd_mask::<_CMP_NLE_UQ>(p, q), x)
    );
    floats!(
        Avx2F32,
        __m256,
        f32,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_sub_ps,
        _mm256_fmadd_ps,
        _mm256_max_ps,
        _mm256_set1_ps,
        |v, a, b| _mm256_and_ps(_mm256_cmp_ps::<_CMP_GT_OQ>(a, b), v),
        _mm256_and_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(a, b), v),
        |x, y, p, q| _mm256_blendv_ps(y, x, _mm256_cmp_ps::<_CMP_NLE_UQ>(p, q))
    );
    floats!(
        Avx2F64,
        __m256d,
        f64,
        4,
        _mm256_setzero_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_add_pd,
        _mm256_sub_pd,
        _mm256_fmadd_pd,
        _mm256_max_pd,
        _mm256_set1_pd,
        |v, a, b| _mm256_and_pd(_mm256_cmp_pd::<_CMP_GT_OQ>(a, b), v),
        _mm256_and_pd(_mm256_cmp_pd::<_CMP_EQ_OQ>(a, b), v),
        |x, y, p, q| _mm256_blendv_pd(y, x, _mm256_cmp_pd::<_CMP_NLE_UQ>(p, q))
    );
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod arm {
    use super::Floats;
    use std::arch::aarch64::*;

    macro_rules! floats {
        ($name:ident, $reg:ty, $t:ty, $n:expr, $dup:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $fma:ident,
         $max:ident, $gt:ident, $eq:ident, $le:ident, $select:ident) => {
            #[derive(Clone, Copy)]
            pub(crate) struct $name(pub(crate) $reg);

            impl Floats<$t> for $name {
                const LANES: usize = $n;
                // SAFETY of all: the trait's contract, and the caller runs with the instruction set enabled.
                #[inline(always)]
                unsafe fn zero() -> Self {
                    Self(unsafe { $dup(0.0) })
                }
                #[inline(always)]
                unsafe fn load(p: *const $t) -> Self {
                    Self(unsafe { $load(p) })
                }
                #[inline(always)]
                unsafe fn store(self, p: *mut $t) {
                    unsafe { $store(p, self.0) }
                }
                #[inline(always)]
                unsafe fn add(self, b: Self) -> Self {
                    Self(unsafe { $add(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn sub(self, b: Self) -> Self {
                    Self(unsafe { $sub(self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn mul_add(self, b: Self, c: Self) -> Self {
                    Self(unsafe { $fma(c.0, self.0, b.0) })
                }
                #[inline(always)]
                unsafe fn relu(self) -> Self {
                    Self(unsafe { $max(self.0, $dup(0.0)) })
                }
                #[inline(always)]
                unsafe fn where_positive(self, condition: Self) -> Self {
                    Self(unsafe { $select($gt(condition.0, $dup(0.0)), self.0, $dup(0.0)) })
                }
                #[inline(always)]
                unsafe fn where_equal(self, a: Self, b: Self) -> Self {
                    Self(unsafe { $select($eq(a.0, b.0), self.0, $dup(0.0)) })
                }
                #[inline(always)]
                unsafe fn unless_at_most(self, other: Self, a: Self, b: Self) -> Self {
                    Self(unsafe { $select($le(a.0, b.0), other.0, self.0) })
                }
                #[inline(always)]
                unsafe fn splat(x: $t) -> Self {
                    Self(unsafe { $dup(x) })
                }
            }
        };
    }
    floats!(
        NeonF32,
        float32x4_t,
        f32,
        4,
        vdupq_n_f32,
        vld1q_f32,
        vst1q_f32,
        vaddq_f32,
        vsubq_f32,
        vfmaq_f32,
        vmaxq_f32,
        vcgtq_f32,
        vceqq_f32,
        vcleq_f32,
        vbslq_f32
    );
    floats!(
        NeonF64,
        float64x2_t,
        f64,
        2,
        vdupq_n_f64,
        vld1q_f64,
        vst1q_f64,
        vaddq_f64,
        vsubq_f64,
        vfmaq_f64,
        vmaxq_f64,
        vcgtq_f64,
        vceqq_f64,
        vcleq_f64,
        vbslq_f64
    );
}
