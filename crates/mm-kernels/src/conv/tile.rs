//! The inner loops of convolutions: a block of sums that stays in registers.
#![allow(unsafe_code)] // raw pointers into packed panels; the drivers check every size before they form them

use crate::simd::{Isa, Lanes, Portable};

/// What the sums of a tile start from.
#[derive(Debug)]
pub(crate) enum Start<O> {
    /// Zero.
    Zero,
    /// A row of values, the same for every pixel.
    Row(*const O),
    /// What `y` holds.
    Y,
}

/// `y[i][..] = start + sum_k a[k][i] b[k][..]` for the M pixels i of a tile and NV registers of channels.
///
/// `k` runs over `run` steps and, for each, over `offsets`: `a[k][i]` lies at `a + offset + step * a_step + i`, `b[k]` at
/// `b + k * NV * LANES`. Steps are channels and offsets taps: what neighbouring taps share is read at once.
#[derive(Debug)]
pub(crate) struct Tile<'a, U, O> {
    pub(crate) a: *const U,
    pub(crate) offsets: &'a [usize],
    pub(crate) run: usize,
    pub(crate) a_step: usize,
    pub(crate) b: *const U,
    pub(crate) y: *mut O,
    pub(crate) y_stride: usize,
    pub(crate) start: Start<O>,
}

#[inline(always)]
unsafe fn tile<V: Lanes, const M: usize, const NV: usize>(t: &Tile<'_, V::Unit, V::Out>) {
    // SAFETY: the caller of the tile vouches for the ranges that its documentation names.
    unsafe {
        let mut sums = [[V::zero(); NV]; M];
        match t.start {
            Start::Zero => {}
            Start::Row(row) => {
                for v in 0..NV {
                    let value = V::load(row.add(v * V::LANES));
                    for sums in &mut sums {
                        sums[v] = value;
                    }
                }
            }
            Start::Y => {
                for (i, sums) in sums.iter_mut().enumerate() {
                    for (v, sum) in sums.iter_mut().enumerate() {
                        *sum = V::load(t.y.add(i * t.y_stride + v * V::LANES));
                    }
                }
            }
        }
        let mut b = t.b;
        for step in 0..t.run {
            let channel = t.a.add(step * t.a_step);
            for &offset in t.offsets {
                let a = channel.add(offset);
                let mut factors = [V::factors(b); NV];
                for (v, factors) in factors.iter_mut().enumerate().skip(1) {
                    *factors = V::factors(b.add(v * V::LANES));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let pixel = V::broadcast(a.add(i));
                    for v in 0..NV {
                        sums[v] = sums[v].multiply_add(pixel, factors[v]);
                    }
                }
                b = b.add(NV * V::LANES);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(t.y.add(i * t.y_stride + v * V::LANES));
            }
        }
    }
}

/// `y[i][..] += sum_p a[p][i] b[p][..]` for M input channels i and NV registers of output channels.
///
/// `p` runs over `images` images of `rows` rows of `pixels` steps: `a[p][i]` lies at
/// `a + image * a_image + row * a_row + step * a_step + i`, `b[p]` at `b + image * b_image + row * b_row + step * b_step`.
#[derive(Debug)]
pub(crate) struct GradTile<U, O> {
    pub(crate) a: *const U,
    pub(crate) a_image: usize,
    pub(crate) a_row: usize,
    pub(crate) a_step: usize,
    pub(crate) images: usize,
    pub(crate) rows: usize,
    pub(crate) pixels: usize,
    pub(crate) b: *const U,
    pub(crate) b_image: usize,
    pub(crate) b_row: usize,
    pub(crate) b_step: usize,
    pub(crate) y: *mut O,
    pub(crate) y_stride: usize,
}

#[inline(always)]
unsafe fn grad_tile<V: Lanes, const M: usize, const NV: usize>(t: &GradTile<V::Unit, V::Out>) {
    // SAFETY: the caller of the tile vouches for the ranges that its documentation names.
    unsafe {
        let mut sums = [[V::zero(); NV]; M];
        for (i, sums) in sums.iter_mut().enumerate() {
            for (v, sum) in sums.iter_mut().enumerate() {
                *sum = V::load(t.y.add(i * t.y_stride + v * V::LANES));
            }
        }
        for image in 0..t.images {
            for row in 0..t.rows {
                let mut a = t.a.add(image * t.a_image + row * t.a_row);
                let mut b = t.b.add(image * t.b_image + row * t.b_row);
                for _ in 0..t.pixels {
                    let mut factors = [V::factors(b); NV];
                    for (v, factors) in factors.iter_mut().enumerate().skip(1) {
                        *factors = V::factors(b.add(v * V::LANES));
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let channel = V::broadcast(a.add(i));
                        for v in 0..NV {
                            sums[v] = sums[v].multiply_add(channel, factors[v]);
                        }
                    }
                    a = a.wrapping_add(t.a_step);
                    b = b.wrapping_add(t.b_step);
                }
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                sum.store(t.y.add(i * t.y_stride + v * V::LANES));
            }
        }
    }
}

type TileFn<U, O> = for<'a, 'b> unsafe fn(&'a Tile<'b, U, O>);
type GradFn<U, O> = for<'a> unsafe fn(&'a GradTile<U, O>);

/// The tiles of one instruction set and one kind of number with NV registers of channels.
pub(crate) struct Width<U: 'static, O: 'static> {
    /// NV.
    pub(crate) registers: usize,
    /// Tiles of 1, 2, … pixels.
    pub(crate) tiles: &'static [TileFn<U, O>],
    /// Tiles of 1, 2, … input channels.
    pub(crate) grads: &'static [GradFn<U, O>],
}

/// All tiles of one instruction set and one kind of number.
pub(crate) struct Tiles<U: 'static, O: 'static> {
    /// Numbers in a register.
    pub(crate) lanes: usize,
    /// By rising number of registers.
    pub(crate) widths: &'static [Width<U, O>],
}

impl<U, O> Tiles<U, O> {
    /// The width for `channels` channels and rows of `pixels` pixels: many registers for few pixels, so that enough sums
    /// are under way, and none for channels that do not exist.
    pub(crate) fn width(&self, channels: usize, pixels: usize) -> &Width<U, O> {
        let mut best = &self.widths[0];
        for width in self.widths {
            let useful = width.registers == 1 || channels > (width.registers - 1) * self.lanes;
            if useful && (width.tiles.len() >= pixels || width.registers <= 2) {
                best = width;
            }
        }
        best
    }
}

macro_rules! widths {
    ($($nv:literal: $($m:literal)*),*; $tile:ident, $grad:ident) => {
        &[$(Width { registers: $nv, tiles: &[$($tile::<$m, $nv>),*], grads: &[$($grad::<$m, $nv>),*] }),*]
    };
}

macro_rules! instantiate {
    ($(#[$feature:meta])* $lanes:ty, $tiles:ident, $tile:ident, $grad:ident, $($widths:tt)*) => {
        $(#[$feature])*
        unsafe fn $tile<const M: usize, const NV: usize>(t: &Tile<'_, <$lanes as Lanes>::Unit, <$lanes as Lanes>::Out>) {
            // SAFETY: the caller's promise is passed on, and the instruction set is enabled here.
            unsafe { tile::<$lanes, M, NV>(t) }
        }
        $(#[$feature])*
        unsafe fn $grad<const M: usize, const NV: usize>(t: &GradTile<<$lanes as Lanes>::Unit, <$lanes as Lanes>::Out>) {
            // SAFETY: as above.
            unsafe { grad_tile::<$lanes, M, NV>(t) }
        }
        static $tiles: Tiles<<$lanes as Lanes>::Unit, <$lanes as Lanes>::Out> =
            Tiles { lanes: <$lanes as Lanes>::LANES, widths: widths!($($widths)*; $tile, $grad) };
    };
}

// 32 registers: at most 28 sums, two to four factors, one broadcast.
#[cfg(target_arch = "x86_64")]
use crate::simd::x86::{Avx2F32, Avx2F64, Avx512Bf16, Avx512F32, Avx512F64};
#[cfg(target_arch = "x86_64")]
instantiate!(#[target_feature(enable = "avx512f")] Avx512F32, AVX512_F32, avx512_f32, avx512_f32_grad,
    1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, 2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, 4: 1 2 3 4 5 6 7);
#[cfg(target_arch = "x86_64")]
instantiate!(#[target_feature(enable = "avx512f")] Avx512F64, AVX512_F64, avx512_f64, avx512_f64_grad,
    1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, 2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, 4: 1 2 3 4 5 6 7);
#[cfg(target_arch = "x86_64")]
instantiate!(#[target_feature(enable = "avx512f,avx512bf16")] Avx512Bf16, AVX512_BF16, avx512_bf16, avx512_bf16_grad,
    1: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, 2: 1 2 3 4 5 6 7 8 9 10 11 12 13 14, 4: 1 2 3 4 5 6 7);
// 16 registers: at most 12 sums.
#[cfg(target_arch = "x86_64")]
instantiate!(#[target_feature(enable = "avx2,fma")] Avx2F32, AVX2_F32, avx2_f32, avx2_f32_grad,
    1: 1 2 3 4 5 6, 2: 1 2 3 4 5 6, 4: 1 2 3);
#[cfg(target_arch = "x86_64")]
instantiate!(#[target_feature(enable = "avx2,fma")] Avx2F64, AVX2_F64, avx2_f64, avx2_f64_grad,
    1: 1 2 3 4 5 6, 2: 1 2 3 4 5 6, 4: 1 2 3);
#[cfg(target_arch = "aarch64")]
use crate::simd::arm::{NeonF32, NeonF64};
#[cfg(target_arch = "aarch64")]
instantiate!(#[target_feature(enable = "neon")] NeonF32, NEON_F32, neon_f32, neon_f32_grad,
    1: 1 2 3 4 5 6 7 8 9 10 11 12, 2: 1 2 3 4 5 6 7 8 9 10 11 12, 4: 1 2 3 4 5 6);
#[cfg(target_arch = "aarch64")]
instantiate!(#[target_feature(enable = "neon")] NeonF64, NEON_F64, neon_f64, neon_f64_grad,
    1: 1 2 3 4 5 6 7 8 9 10 11 12, 2: 1 2 3 4 5 6 7 8 9 10 11 12, 4: 1 2 3 4 5 6);
instantiate!(Portable<f32>, PORTABLE_F32, portable_f32, portable_f32_grad, 1: 1 2 3 4, 2: 1 2 3 4, 4: 1 2);
instantiate!(Portable<f64>, PORTABLE_F64, portable_f64, portable_f64_grad, 1: 1 2 3 4, 2: 1 2 3 4, 4: 1 2);

/// Numbers for which there are tiles of like factors and sums.
pub(crate) trait Native: Sized + 'static {
    /// The tiles of an instruction set.
    fn tiles(isa: Isa) -> &'static Tiles<Self, Self>;
}

impl Native for f32 {
    fn tiles(isa: Isa) -> &'static Tiles<f32, f32> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 { .. } => &AVX512_F32,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2_F32,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &NEON_F32,
            Isa::Portable => &PORTABLE_F32,
        }
    }
}

impl Native for f64 {
    fn tiles(isa: Isa) -> &'static Tiles<f64, f64> {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 { .. } => &AVX512_F64,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2_F64,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &NEON_F64,
            Isa::Portable => &PORTABLE_F64,
        }
    }
}

/// The tiles of pairs of bfloat16, where the processor has them.
pub(crate) fn bf16_tiles(isa: Isa) -> Option<&'static Tiles<u32, f32>> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 { bf16: true } => Some(&AVX512_BF16),
        _ => None,
    }
}
