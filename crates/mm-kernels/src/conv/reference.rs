//! The definition of a convolution, as loops: what the fast kernels are tested against.

use super::geometry::Geometry;
use crate::host::Real;

/// Calls `f(x index, weight index, y index)` for every product of the convolution.
fn products(g: &Geometry, mut f: impl FnMut(usize, usize, usize)) {
    let (cig, cog) = (g.ci_group(), g.co_group());
    for n in 0..g.n {
        for (oy, ox) in (0..g.oh).flat_map(|oy| (0..g.ow).map(move |ox| (oy, ox))) {
            for (ky, kx) in (0..g.kh).flat_map(|ky| (0..g.kw).map(move |kx| (ky, kx))) {
                let (Some(r), Some(c)) = (g.row(oy, ky), g.column(ox, kx)) else { continue };
                let (x, y) = (((n * g.h + r) * g.w + c) * g.ci, ((n * g.oh + oy) * g.ow + ox) * g.co);
                for o in 0..g.co {
                    for i in 0..cig {
                        let w = ((o * cig + i) * g.kh + ky) * g.kw + kx;
                        f(x + o / cog * cig + i, w, y + o);
                    }
                }
            }
        }
    }
}

pub(crate) fn forward<T: Real>(g: &Geometry, x: &[T], w: &[T], bias: Option<&[T]>) -> Vec<T> {
    let mut y = vec![T::zero(); g.n * g.oh * g.ow * g.co];
    if let Some(bias) = bias {
        y.chunks_exact_mut(g.co).for_each(|row| row.copy_from_slice(bias));
    }
    products(g, |i, j, k| y[k] += x[i] * w[j]);
    y
}

pub(crate) fn grad_input<T: Real>(g: &Geometry, dy: &[T], w: &[T]) -> Vec<T> {
    let mut dx = vec![T::zero(); g.n * g.h * g.w * g.ci];
    products(g, |i, j, k| dx[i] += dy[k] * w[j]);
    dx
}

pub(crate) fn grad_weight<T: Real>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let mut dw = vec![T::zero(); g.co * g.ci_group() * g.kh * g.kw];
    products(g, |i, j, k| dw[j] += x[i] * dy[k]);
    dw
}
