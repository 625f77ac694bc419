//! Multi-head scaled dot-product attention, plain or with relative positions.

mod fused;
mod matrix;

use crate::host::{Real, View, by_dtype, slice};
use crate::parallel::pieces;
use crate::softmax::softmax_last;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, D, DType, Layout, Result, Shape, Tensor, WithDType, bail};

/// Multi-head attention of projected queries over projected keys and values.
///
/// ```text
/// out[b, i, head h] = sum_j softmax_j(q[b, i, h] · k[b, j, h] / sqrt(D / heads) + mask)[j] v[b, j, h]
/// ```
///
/// Shapes: `q (B, N, D)`, `k (B, M, D)`, `v (B, M, D)`; the result is `(B, N, D)`. Head `h` is the slice
/// `[h D / heads, (h + 1) D / heads)` of the last dimension. The projections before and after are the caller's.
///
/// `mask` is one of
/// - `u8` of shape `(B, M)` or `(B, 1, 1, M)`: a key marked 0 is not attended to, and gets no gradient; a query
///   without a single key receives zero (PyTorch: NaN);
/// - a float of `q`'s dtype that broadcasts to `(B, heads, N, M)`: added to the scores.
///
/// Gradients reach `q`, `k`, `v` and a float mask. Errors: shapes that do not fit, and `heads` that does not divide D.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>, heads: usize) -> Result<Tensor> {
    const NAME: &str = "attention";
    let width = check(NAME, q, k, v, heads)?;
    if is_fused(q, k, mask) {
        return fused::attend(NAME, [q, k, v], None, mask, heads);
    }
    let scaled = (q * (heads as f64 / width as f64).sqrt())?;
    let scores = split(&scaled, heads)?.matmul(&split(k, heads)?.t()?)?;
    weigh(NAME, &scores, &split(v, heads)?, mask)
}

/// The relative positions of [`attention_relative`].
#[derive(Debug, Clone, Copy)]
pub struct RelativePositions<'a> {
    /// The projected table of offsets, `(2N - 1, D)`: row r belongs to the offset N - 1 - r, from N - 1 (the
    /// query comes N - 1 places after the key) down to -(N - 1).
    pub table: &'a Tensor,
    /// u, added to every query before its product with a key, `(heads, D / heads)`.
    pub content_bias: &'a Tensor,
    /// v, added to every query before its product with a position, `(heads, D / heads)`.
    pub position_bias: &'a Tensor,
}

/// Multi-head self-attention with relative positions, as in Transformer-XL and the Conformer.
///
/// ```text
/// score[b, h, i, j] = ((q[b, i, h] + u[h]) · k[b, j, h] + (q[b, i, h] + v[h]) · p[r, h]) / sqrt(D / heads)
/// r = N - 1 - (i - j)
/// out[b, i, head h] = sum_j softmax_j(score[b, h, i, :] + mask)[j] value[b, j, h]
/// ```
///
/// Shapes: `q`, `k` and `v` `(B, N, D)`, of one length N; `p (2N - 1, D)`, `u` and `v` `(heads, D / heads)`
/// in `positions`; the result is `(B, N, D)`. Heads and `mask` are those of [`attention`]. The projections of
/// queries, keys, values and positions are the caller's.
///
/// Gradients reach `q`, `k`, `v`, a float mask, and all of `positions`. Errors: shapes that do not fit, and
/// `heads` that does not divide D.
///
/// Source: Dai et al., Transformer-XL, 2019, <https://arxiv.org/abs/1901.02860>, appendix B, with positions
/// on both sides as in Gulati et al., Conformer, 2020, <https://arxiv.org/abs/2005.08100>.
pub fn attention_relative(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    positions: &RelativePositions<'_>,
    mask: Option<&Tensor>,
    heads: usize,
) -> Result<Tensor> {
    const NAME: &str = "attention_relative";
    let width = check(NAME, q, k, v, heads)?;
    let RelativePositions { table, content_bias, position_bias } = *positions;
    let length = q.dim(1)?;
    if k.dim(1)? != length {
        bail!("{NAME}: k {:?} must have the length of q {:?}", k.shape(), q.shape())
    }
    let offsets = (2 * length).saturating_sub(1);
    if table.dims() != [offsets, width] {
        bail!(
            "{NAME}: the table {:?} does not fit q {:?}: it must be [{offsets}, {width}]",
            table.shape(),
            q.shape()
        )
    }
    for (what, bias) in [("content_bias", content_bias), ("position_bias", position_bias)] {
        if bias.dims() != [heads, width / heads] {
            bail!(
                "{NAME}: {what} {:?} does not fit {heads} heads of q {:?}: it must be [{heads}, {}]",
                bias.shape(),
                q.shape(),
                width / heads
            )
        }
    }
    if length == 0 {
        return q.zeros_like();
    }
    if is_fused(q, k, mask) {
        return fused::attend(NAME, [q, k, v], Some(positions), mask, heads);
    }
    let scale = (heads as f64 / width as f64).sqrt();
    let biased = |bias: &Tensor| split(&(q.broadcast_add(&bias.reshape(width)?)? * scale)?, heads);
    let content = biased(content_bias)?.matmul(&split(k, heads)?.t()?)?;
    let table = split(&table.unsqueeze(0)?, heads)?.t()?;
    let position = biased(position_bias)?.broadcast_matmul(&table)?;
    weigh(NAME, &add_shifted(&content, &position)?, &split(v, heads)?, mask)
}

/// Whether the kernel of the CPU applies, which has no gradient for a mask.
fn is_fused(q: &Tensor, k: &Tensor, mask: Option<&Tensor>) -> bool {
    q.device().is_cpu() && q.elem_count() * k.elem_count() > 0 && mask.is_none_or(|mask| !mask.track_op())
}

/// The width D, once the shapes fit.
fn check(op: &str, q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<usize> {
    let (&[batch, _, width], &[_, keys, _]) = (q.dims(), k.dims()) else {
        bail!("{op}: q and k must be (batch, length, width), got {:?} and {:?}", q.shape(), k.shape())
    };
    if k.dims() != [batch, keys, width] || v.dims() != k.dims() {
        bail!("{op}: k {:?} and v {:?} do not fit q {:?}", k.shape(), v.shape(), q.shape())
    }
    if heads == 0 || width % heads != 0 {
        bail!("{op}: {heads} heads do not divide a width of {width}")
    }
    let places = [heads, q.dim(1)?, keys, 8].iter().try_fold(batch, |n, &m| n.checked_mul(m));
    if places.is_none_or(|bytes| bytes > isize::MAX as usize) {
        bail!(
            "{op}: the scores of {batch} rows, {heads} heads, q {:?} and k {:?} do not fit in memory",
            q.shape(),
            k.shape()
        )
    }
    Ok(width)
}

/// (B, N, D) to (B, heads, N, D / heads).
fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, n, width) = x.dims3()?;
    x.reshape((batch, n, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// From scores (B, heads, N, M) and values (B, heads, M, D / heads) to the result (B, N, D).
fn weigh(op: &str, scores: &Tensor, values: &Tensor, mask: Option<&Tensor>) -> Result<Tensor> {
    let (batch, heads, queries, keys) = scores.dims4()?;
    let weights = match mask {
        None => softmax_last(scores)?,
        Some(mask) if mask.dtype() == DType::U8 => {
            let keep = key_mask(op, mask, batch, keys)?.broadcast_as(scores.shape())?;
            let masked = keep.where_cond(scores, &full(scores, MASKED)?)?;
            // A row without a key is uniform now; it must be zero.
            keep.where_cond(&softmax_last(&masked)?, &full(scores, 0.0)?)?
        }
        Some(mask) => softmax_last(&scores.broadcast_add(mask)?)?,
    };
    weights.matmul(values)?.transpose(1, 2)?.reshape((batch, queries, heads * values.dim(D::Minus1)?))
}

/// Far below every score and yet finite: a row of nothing else has a softmax without a NaN.
const MASKED: f64 = -1e30;

fn key_mask(op: &str, mask: &Tensor, batch: usize, keys: usize) -> Result<Tensor> {
    match *mask.dims() {
        [b, m] | [b, 1, 1, m] if b == batch && m == keys => mask.reshape((batch, 1, 1, keys)),
        _ => bail!("{op}: a key mask must be [{batch}, {keys}], got {:?}", mask.shape()),
    }
}

fn full(like: &Tensor, value: f64) -> Result<Tensor> {
    Tensor::new(value, like.device())?.to_dtype(like.dtype())?.broadcast_as(like.shape())
}

/// Adds to every score that of its offset: `y[.., i, j] = content[.., i, j] + position[.., i, N - 1 - (i -
/// j)]`.
///
/// `content (.., N, N)`, `position (.., N, 2N - 1)`, N at least one. Row i of the second begins at N - 1 - i:
/// nothing is gathered, padded or copied.
fn add_shifted(content: &Tensor, position: &Tensor) -> Result<Tensor> {
    if !content.device().is_cpu() {
        return composed(content, position);
    }
    content.contiguous()?.apply_op2(&position.contiguous()?, AddShifted)
}

struct AddShifted;

const SHIFT: &str = "attention_relative";

impl CustomOp2 for AddShifted {
    fn name(&self) -> &'static str {
        SHIFT
    }

    fn cpu_fwd(
        &self,
        content: &CpuStorage,
        cl: &Layout,
        position: &CpuStorage,
        pl: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        by_dtype!(SHIFT, content.dtype(), T => {
            let (content, position) = (slice::<T>(SHIFT, content, cl)?, slice::<T>(SHIFT, position, pl)?);
            let n = cl.dims().last().copied().unwrap_or(1);
            let mut y = content.to_vec();
            pieces(&mut y, n * n, content.len(), |matrix, y| {
                let position = &position[matrix * n * (2 * n - 1)..];
                for (i, (y, row)) in y.chunks_exact_mut(n).zip(position.chunks_exact(2 * n - 1)).enumerate() {
                    y.iter_mut().zip(&row[n - 1 - i..]).for_each(|(y, &p)| *y += p);
                }
            });
            Ok((T::to_cpu_storage_owned(y), cl.shape().clone()))
        })
    }

    fn bwd(
        &self,
        content: &Tensor,
        position: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let shifted = || {
            by_dtype!(SHIFT, grad.dtype(), T => {
                let moved = unshifted(View::new(&grad).slice::<T>(SHIFT)?, grad.dim(D::Minus1)?);
                Tensor::from_vec(moved, position.shape(), position.device())
            })
        };
        let dposition = position.track_op().then(shifted).transpose()?;
        Ok((content.track_op().then_some(grad), dposition))
    }
}

/// Row i of each matrix, from N values to 2N - 1 with zeros around: they begin at N - 1 - i.
fn unshifted<T: Real>(g: &[T], n: usize) -> Vec<T> {
    let mut out = vec![T::zero(); g.len() / n * (2 * n - 1)];
    pieces(&mut out, n * (2 * n - 1), g.len(), |matrix, out| {
        let g = &g[matrix * n * n..];
        for (i, (out, g)) in out.chunks_exact_mut(2 * n - 1).zip(g.chunks_exact(n)).enumerate() {
            out[n - 1 - i..][..n].copy_from_slice(g);
        }
    });
    out
}

/// The same function in candle's own operations: every device but the CPU, and the reference of the tests.
///
/// A column of zeros before the scores by offset moves each row by one more than the row above when the same
/// numbers are read in rows of one fewer.
fn composed(content: &Tensor, position: &Tensor) -> Result<Tensor> {
    let (batch, heads, n, offsets) = position.dims4()?;
    let padded = position.pad_with_zeros(D::Minus1, 1, 0)?.reshape((batch, heads, offsets + 1, n))?;
    let shifted = padded.narrow(2, 1, offsets)?.reshape((batch, heads, n, offsets))?;
    content + shifted.narrow(3, 0, n)?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same, normal};

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for n in [1, 2, 7] {
            let x = [normal(&[2, 3, n, n], 1)?, normal(&[2, 3, n, 2 * n - 1], 2)?];
            assert_same(|x| add_shifted(&x[0], &x[1]), |x| composed(&x[0], &x[1]), &x)?;
        }
        Ok(())
    }

    #[test]
    fn large_scores_on_threads_shift_like_small_ones() -> Result<()> {
        let x = [normal(&[1, 4, 100, 100], 1)?, normal(&[1, 4, 100, 199], 2)?];
        assert_close(&add_shifted(&x[0], &x[1])?, &composed(&x[0], &x[1])?, 0.0)
    }
}
