//! Vector registers: one trait, and what each processor offers of it.
//!
//! The kernels of convolutions are written once, over [`Lanes`]. A function with `#[target_feature]` per instruction set
//! instantiates them, and [`Isa::detect`] says which of those may be called.
#![allow(unsafe_code)] // intrinsics and raw pointers are what this file is for

/// An instruction set for which the kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isa {
    /// 512-bit vectors; `bf16` says whether there are bfloat16 products.
    #[cfg(target_arch = "x86_64")]
    Avx512 { bf16: bool },
    /// 256-bit vectors with fused multiply-add.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 128-bit vectors of ARM.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain Rust: everything else, and Miri.
    Portable,
}

impl Isa {
    /// The best one that this processor has.
    pub(crate) fn detect() -> Self {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            let has_avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if has_avx512 {
                return Self::Avx512 { bf16: is_x86_feature_detected!("avx512bf16") };
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        #[cfg(all(target_arch = "aarch64", not(miri)))]
        if std::arch::is_aarch64_feature_detected!("neon") {
            return Self::Neon;
        }
        Self::Portable
    }

    /// All that this processor has, for tests.
    #[cfg(test)]
    pub(crate) fn available() -> Vec<Self> {
        let mut all = vec![Self::Portable];
        match Self::detect() {
            #[cfg(target_arch = "x86_64")]
            best @ Self::Avx512 { bf16: true } => {
                all.extend([Self::Avx2, Self::Avx512 { bf16: false }, best]);
            }
            #[cfg(target_arch = "x86_64")]
            best @ Self::Avx512 { bf16: false } => all.extend([Self::Avx2, best]),
            Self::Portable => {}
            #[allow(unreachable_patterns)]
            best => all.push(best),
        }
        all
    }
}

/// Runs `f` compiled for the instruction set.
pub(crate) fn on<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        fn avx512<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        #[target_feature(enable = "avx2,fma")]
        fn avx2<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        match isa {
            // SAFETY: `Isa` is only made of what the processor has.
            Isa::Avx512 { .. } => return unsafe { avx512(f) },
            // SAFETY: as above.
            Isa::Avx2 => return unsafe { avx2(f) },
            Isa::Portable => {}
        }
    }
    let _ = isa;
    f()
}

/// Side of the blocks that [`transpose`] turns round.
pub(crate) const BLOCK: usize = 16;

/// Writes the columns of a block as rows: `out[u * pitch + k] = block[k][u]` for all u and the first `columns` k.
#[inline(always)]
pub(crate) fn transpose<U: Copy>(
    isa: Isa,
    block: &[[U; BLOCK]; BLOCK],
    out: &mut [U],
    pitch: usize,
    columns: usize,
) {
    assert!(columns <= BLOCK && (BLOCK - 1) * pitch + columns <= out.len());
    #[cfg(target_arch = "x86_64")]
    if size_of::<U>() == 4 && matches!(isa, Isa::Avx512 { .. }) {
        // SAFETY: the processor has it; a block is sixteen rows of sixteen times four bytes; the masked rows that are
        // written end within `out`.
        unsafe { x86::transpose(block.as_ptr().cast(), out.as_mut_ptr().cast(), pitch, columns) };
        return;
    }
    let _ = isa;
    for u in 0..BLOCK {
        for (out, row) in out[u * pitch..u * pitch + columns].iter_mut().zip(block) {
            *out = row[u];
        }
    }
}

/// A register of sums and what is multiplied into it.
///
/// One step is `sum[lane] += a * b[lane]`, where `a` and `b` are factors of type `Unit`: a number, or a pair of numbers
/// whose two products are both added.
pub(crate) trait Lanes: Copy {
    /// A factor in memory.
    type Unit: Copy;
    /// A sum in memory.
    type Out: Copy;
    /// A register of factors.
    type Factor: Copy;
    /// Sums in a register.
    const LANES: usize;

    /// All sums zero.
    unsafe fn zero() -> Self;
    /// `LANES` sums from `p`. Safety: `p` is valid for that many reads.
    unsafe fn load(p: *const Self::Out) -> Self;
    /// `LANES` sums to `p`. Safety: `p` is valid for that many writes.
    unsafe fn store(self, p: *mut Self::Out);
    /// `LANES` factors from `p`. Safety: `p` is valid for that many reads.
    unsafe fn factors(p: *const Self::Unit) -> Self::Factor;
    /// One factor in every lane. Safety: `p` is valid for one read.
    unsafe fn broadcast(p: *const Self::Unit) -> Self::Factor;
    /// `self + a * b`.
    unsafe fn multiply_add(self, a: Self::Factor, b: Self::Factor) -> Self;
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86 {
    use super::Lanes;
    use std::arch::x86_64::{
        __m256, __m256bh, __m256d, __m256i, __m512, __m512bh, __m512d, __m512i, _mm256_broadcast_sd,
        _mm256_broadcast_ss, _mm256_fmadd_pd, _mm256_fmadd_ps, _mm256_loadu_pd, _mm256_loadu_ps,
        _mm256_setzero_pd, _mm256_setzero_ps, _mm256_storeu_pd, _mm256_storeu_ps, _mm512_castps_si512,
        _mm512_castsi512_ps, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_cvtneps_pbh,
        _mm512_dpbf16_ps, _mm512_fmadd_pd, _mm512_fmadd_ps, _mm512_loadu_epi16, _mm512_loadu_epi32,
        _mm512_loadu_pd, _mm512_loadu_ps, _mm512_mask_storeu_epi32, _mm512_maskz_loadu_ps, _mm512_max_ps,
        _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_set1_pd, _mm512_set1_ps, _mm512_setzero_pd,
        _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_i32x4, _mm512_slli_epi32,
        _mm512_storeu_epi32, _mm512_storeu_pd, _mm512_storeu_ps, _mm512_sub_ps, _mm512_unpackhi_epi32,
        _mm512_unpackhi_epi64, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    };

    /// What becomes of the numbers that [`pack`] reads.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum Part {
        /// Sixteen numbers, as they are.
        Whole,
        /// Thirty-two, rounded to bfloat16, in pairs.
        Rounded,
        /// What rounding leaves of thirty-two, rounded, in pairs.
        Rest,
    }

    /// Channels of up to sixteen pixels, turned round: `out[u * pitch + k]` is unit u of pixel k.
    ///
    /// With `affine`, max(scale x + shift, 0) of each number.
    ///
    /// # Safety
    /// `x + k * stride` holds 16 (`Whole`) or 32 numbers for k below `pixels`, at most 16, and so do both of `affine`;
    /// `out[u * pitch..][..pixels]` may be written for u below 16. The processor has AVX-512, and its bfloat16 if the part
    /// is not `Whole`.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(crate) unsafe fn pack(
        part: Part,
        x: *const f32,
        stride: usize,
        pixels: usize,
        affine: Option<(*const f32, *const f32)>,
        out: *mut i32,
        pitch: usize,
    ) {
        // SAFETY: the caller's promise; a bfloat16 register is 512 or 256 bits like another.
        unsafe {
            let zero = _mm512_setzero_ps();
            let constants = |at: usize| match affine {
                Some((scale, shift)) => (_mm512_loadu_ps(scale.add(at)), _mm512_loadu_ps(shift.add(at))),
                None => (zero, zero),
            };
            let (low, high) = (constants(0), if part == Part::Whole { (zero, zero) } else { constants(16) });
            let load = |p: *const f32, (scale, shift): (__m512, __m512)| {
                let x = _mm512_loadu_ps(p);
                if affine.is_some() { _mm512_max_ps(zero, _mm512_fmadd_ps(x, scale, shift)) } else { x }
            };
            let rest = |x: __m512| {
                let bits = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                let rounded = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits));
                _mm512_sub_ps(x, _mm512_castsi512_ps(rounded))
            };
            let mut rows = [_mm512_setzero_si512(); 16];
            for (k, row) in rows.iter_mut().enumerate().take(pixels) {
                let p = x.add(k * stride);
                *row = match part {
                    Part::Whole => _mm512_castps_si512(load(p, low)),
                    Part::Rounded => std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(
                        load(p.add(16), high),
                        load(p, low),
                    )),
                    Part::Rest => std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(
                        rest(load(p.add(16), high)),
                        rest(load(p, low)),
                    )),
                };
            }
            turn(rows, out, pitch, pixels);
        }
    }

    /// Where the pairs of [`pair_run`] come from and go to.
    #[derive(Debug, Clone, Copy)]
    pub(crate) struct Pairs {
        /// Whether the pairs are of what rounding leaves.
        pub(crate) rest: bool,
        /// Pairs of pixels.
        pub(crate) units: usize,
        /// Channels, at most 16.
        pub(crate) count: usize,
        /// Numbers from the first pixel of one unit to that of the next.
        pub(crate) step: usize,
        /// Numbers from the first pixel of a unit to its second.
        pub(crate) ahead: usize,
        /// Units of output from one to the next.
        pub(crate) out_step: usize,
    }

    /// For each unit the numbers of two pixels as bfloat16, channel by channel, the first pixel in the low half.
    ///
    /// With `affine`, max(scale x + shift, 0) of each number.
    ///
    /// # Safety
    /// `x + u * step` and `x + u * step + ahead` hold `count` numbers for each unit u, and so do both of `affine`;
    /// `out[u * out_step ..][..count]` may be written, and so may what lies between units. The processor has AVX-512 with
    /// bytes and words, and its bfloat16.
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    pub(crate) unsafe fn pair_run(
        p: &Pairs,
        x: *const f32,
        affine: Option<(*const f32, *const f32)>,
        out: *mut i32,
    ) {
        // SAFETY: the caller's promise: masked lanes are not touched; a bfloat16 register is as wide as another.
        unsafe {
            let (zero, mask) =
                (_mm512_setzero_ps(), if p.count >= 16 { 0xffff } else { (1u16 << p.count) - 1 });
            let constants = affine.map(|(scale, shift)| {
                (_mm512_maskz_loadu_ps(mask, scale), _mm512_maskz_loadu_ps(mask, shift))
            });
            let load = |p: *const f32| {
                let x = _mm512_maskz_loadu_ps(mask, p);
                match constants {
                    Some((scale, shift)) => _mm512_max_ps(zero, _mm512_fmadd_ps(x, scale, shift)),
                    None => x,
                }
            };
            let rest = |x: __m512| {
                let bits = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                let rounded = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits));
                _mm512_sub_ps(x, _mm512_castsi512_ps(rounded))
            };
            // Of 32 halves, 0 to 15 of the first pixel and 16 to 31 of the second, channel by channel.
            let mut order = [0u16; 32];
            for (k, o) in order.iter_mut().enumerate() {
                *o = (k / 2 + 16 * (k % 2)) as u16;
            }
            let order = _mm512_loadu_epi16(order.as_ptr().cast());
            // Whole registers are written where the next units cover what is too much: masked stores are slow.
            let spill = 16usize.saturating_sub(p.count).div_ceil(p.out_step.max(1));
            let whole = if p.out_step <= 16 || p.count == 16 { p.units.saturating_sub(spill) } else { 0 };
            for u in 0..p.units {
                let at = x.add(u * p.step);
                let (mut first, mut second) = (load(at), load(at.add(p.ahead)));
                if p.rest {
                    (first, second) = (rest(first), rest(second));
                }
                let both = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
                let unit = _mm512_permutexvar_epi16(order, both);
                let out = out.add(u * p.out_step);
                if u < whole {
                    _mm512_storeu_epi32(out, unit);
                } else {
                    _mm512_mask_storeu_epi32(out, mask, unit);
                }
            }
        }
    }

    /// As [`pack`] of `Whole`, where there is no bfloat16.
    ///
    /// # Safety
    /// As there.
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn pack_whole(
        x: *const f32,
        stride: usize,
        pixels: usize,
        affine: Option<(*const f32, *const f32)>,
        out: *mut i32,
        pitch: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = _mm512_setzero_ps();
            let (scale, shift) = match affine {
                Some((scale, shift)) => (_mm512_loadu_ps(scale), _mm512_loadu_ps(shift)),
                None => (zero, zero),
            };
            let mut rows = [_mm512_setzero_si512(); 16];
            for (k, row) in rows.iter_mut().enumerate().take(pixels) {
                let mut x = _mm512_loadu_ps(x.add(k * stride));
                if affine.is_some() {
                    x = _mm512_max_ps(zero, _mm512_fmadd_ps(x, scale, shift));
                }
                *row = _mm512_castps_si512(x);
            }
            turn(rows, out, pitch, pixels);
        }
    }

    /// Sixteen rows of sixteen 32-bit numbers, turned round.
    ///
    /// # Safety
    /// `rows` holds 256 numbers; `out[u * pitch ..][..columns]` may be written for u below 16.
    #[target_feature(enable = "avx512f")]
    pub(crate) unsafe fn transpose(rows: *const i32, out: *mut i32, pitch: usize, columns: usize) {
        // SAFETY: the caller's promise; the shuffles move registers only.
        unsafe {
            let mut a = [_mm512_setzero_si512(); 16];
            for (i, a) in a.iter_mut().enumerate() {
                *a = _mm512_loadu_epi32(rows.add(16 * i));
            }
            turn(a, out, pitch, columns);
        }
    }

    /// The rows, turned round and written.
    ///
    /// # Safety
    /// `out[u * pitch ..][..columns]` may be written for u below 16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn turn(mut a: [__m512i; 16], out: *mut i32, pitch: usize, columns: usize) {
        // SAFETY: the caller's promise; the shuffles move registers only.
        unsafe {
            // Pairs of rows, then fours, within each quarter of a register; then the quarters.
            let mut b = a;
            for i in 0..8 {
                b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
            }
            for i in 0..4 {
                for j in 0..2 {
                    a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + j + 2]);
                    a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + j + 2]);
                }
            }
            // a[4 i + c] holds, in quarter q, column 4 q + c of rows 4 i .. 4 i + 4.
            let mask = if columns >= 16 { 0xffff } else { (1u16 << columns) - 1 };
            for c in 0..4 {
                let low = _mm512_shuffle_i32x4::<0x88>(a[c], a[4 + c]);
                let high = _mm512_shuffle_i32x4::<0x88>(a[8 + c], a[12 + c]);
                let low2 = _mm512_shuffle_i32x4::<0xdd>(a[c], a[4 + c]);
                let high2 = _mm512_shuffle_i32x4::<0xdd>(a[8 + c], a[12 + c]);
                let column = [
                    _mm512_shuffle_i32x4::<0x88>(low, high),
                    _mm512_shuffle_i32x4::<0x88>(low2, high2),
                    _mm512_shuffle_i32x4::<0xdd>(low, high),
                    _mm512_shuffle_i32x4::<0xdd>(low2, high2),
                ];
                for (q, column) in column.into_iter().enumerate() {
                    _mm512_mask_storeu_epi32(out.add((4 * q + c) * pitch), mask, column);
                }
            }
        }
    }

    macro_rules! lanes {
        ($name:ident, $reg:ty, $t:ty, $n:expr, $zero:ident, $load:ident, $store:ident, $fma:ident, |$p:ident| $splat:expr) => {
            #[derive(Clone, Copy)]
            pub(crate) struct $name($reg);

            impl Lanes for $name {
                type Unit = $t;
                type Out = $t;
                type Factor = $reg;
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
                unsafe fn factors(p: *const $t) -> $reg {
                    unsafe { $load(p) }
                }
                #[inline(always)]
                unsafe fn broadcast($p: *const $t) -> $reg {
                    unsafe { $splat }
                }
                #[inline(always)]
                unsafe fn multiply_add(self, a: $reg, b: $reg) -> Self {
                    Self(unsafe { $fma(a, b, self.0) })
                }
            }
        };
    }
    lanes!(
        Avx512F32,
        __m512,
        f32,
        16,
        _mm512_setzero_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_fmadd_ps,
        |p| _mm512_set1_ps(*p)
    );
    lanes!(
        Avx512F64,
        __m512d,
        f64,
        8,
        _mm512_setzero_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd,
        |p| _mm512_set1_pd(*p)
    );
    lanes!(
        Avx2F32,
        __m256,
        f32,
        8,
        _mm256_setzero_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_fmadd_ps,
        |p| _mm256_broadcast_ss(&*p)
    );
    lanes!(
        Avx2F64,
        __m256d,
        f64,
        4,
        _mm256_setzero_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd,
        |p| _mm256_broadcast_sd(&*p)
    );

    /// Sums in f32 of products of pairs of bfloat16; a pair is one `u32`, the first number in the low half.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512Bf16(__m512);

    impl Lanes for Avx512Bf16 {
        type Unit = u32;
        type Out = f32;
        type Factor = __m512i;
        const LANES: usize = 16;

        // SAFETY of all: the trait's contract, and the caller runs with the instruction set enabled.
        #[inline(always)]
        unsafe fn zero() -> Self {
            Self(unsafe { _mm512_setzero_ps() })
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self {
            Self(unsafe { _mm512_loadu_ps(p) })
        }
        #[inline(always)]
        unsafe fn store(self, p: *mut f32) {
            unsafe { _mm512_storeu_ps(p, self.0) }
        }
        #[inline(always)]
        unsafe fn factors(p: *const u32) -> __m512i {
            unsafe { _mm512_loadu_epi32(p.cast()) }
        }
        #[inline(always)]
        unsafe fn broadcast(p: *const u32) -> __m512i {
            unsafe { _mm512_set1_epi32((*p).cast_signed()) }
        }
        #[inline(always)]
        unsafe fn multiply_add(self, a: __m512i, b: __m512i) -> Self {
            // SAFETY: both types are 512 bits without invalid values.
            let (a, b) = unsafe {
                (std::mem::transmute::<__m512i, __m512bh>(a), std::mem::transmute::<__m512i, __m512bh>(b))
            };
            Self(unsafe { _mm512_dpbf16_ps(self.0, a, b) })
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(crate) mod arm {
    use super::Lanes;
    use std::arch::aarch64::{
        float32x4_t, float64x2_t, vdupq_n_f32, vdupq_n_f64, vfmaq_f32, vfmaq_f64, vld1q_dup_f32,
        vld1q_dup_f64, vld1q_f32, vld1q_f64, vst1q_f32, vst1q_f64,
    };

    macro_rules! lanes {
        ($name:ident, $reg:ty, $t:ty, $n:expr, $dup:ident, $load:ident, $store:ident, $fma:ident, $splat:ident) => {
            #[derive(Clone, Copy)]
            pub(crate) struct $name($reg);

            impl Lanes for $name {
                type Unit = $t;
                type Out = $t;
                type Factor = $reg;
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
                unsafe fn factors(p: *const $t) -> $reg {
                    unsafe { $load(p) }
                }
                #[inline(always)]
                unsafe fn broadcast(p: *const $t) -> $reg {
                    unsafe { $splat(p) }
                }
                #[inline(always)]
                unsafe fn multiply_add(self, a: $reg, b: $reg) -> Self {
                    Self(unsafe { $fma(self.0, a, b) })
                }
            }
        };
    }
    lanes!(NeonF32, float32x4_t, f32, 4, vdupq_n_f32, vld1q_f32, vst1q_f32, vfmaq_f32, vld1q_dup_f32);
    lanes!(NeonF64, float64x2_t, f64, 2, vdupq_n_f64, vld1q_f64, vst1q_f64, vfmaq_f64, vld1q_dup_f64);
}

/// Four numbers in plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Portable<T>([T; 4]);

macro_rules! portable {
    ($t:ty) => {
        impl Lanes for Portable<$t> {
            type Unit = $t;
            type Out = $t;
            type Factor = [$t; 4];
            const LANES: usize = 4;

            #[inline(always)]
            unsafe fn zero() -> Self {
                Self([0.0; 4])
            }
            #[inline(always)]
            unsafe fn load(p: *const $t) -> Self {
                // SAFETY: the trait's contract; an array has the alignment of its elements.
                Self(unsafe { p.cast::<[$t; 4]>().read() })
            }
            #[inline(always)]
            unsafe fn store(self, p: *mut $t) {
                // SAFETY: as in `load`.
                unsafe { p.cast::<[$t; 4]>().write(self.0) }
            }
            #[inline(always)]
            unsafe fn factors(p: *const $t) -> [$t; 4] {
                // SAFETY: as in `load`.
                unsafe { p.cast::<[$t; 4]>().read() }
            }
            #[inline(always)]
            unsafe fn broadcast(p: *const $t) -> [$t; 4] {
                // SAFETY: the trait's contract.
                [unsafe { *p }; 4]
            }
            #[inline(always)]
            unsafe fn multiply_add(self, a: [$t; 4], b: [$t; 4]) -> Self {
                let [mut s, mut i] = [self.0, [0.0; 4]];
                for ((i, a), b) in i.iter_mut().zip(a).zip(b) {
                    *i = a * b;
                }
                for (s, i) in s.iter_mut().zip(i) {
                    *s += i;
                }
                Self(s)
            }
        }
    };
}
portable!(f32);
portable!(f64);
