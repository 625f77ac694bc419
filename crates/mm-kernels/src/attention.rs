//! Multi-head scaled dot-product attention.

use crate::softmax::softmax_last;
use candle_core::{DType, Result, Tensor, bail};

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
    let (batch, queries, width) = q.dims3()?;
    let keys = k.dim(1)?;
    if k.dims() != [batch, keys, width] || v.dims() != k.dims() {
        bail!("attention: k {:?} and v {:?} do not fit q {:?}", k.shape(), v.shape(), q.shape())
    }
    if heads == 0 || width % heads != 0 {
        bail!("attention: {heads} heads do not divide a width of {width}")
    }
    let split = |x: &Tensor| {
        let n = x.dim(1)?;
        x.reshape((batch, n, heads, width / heads))?.transpose(1, 2)?.contiguous()
    };
    let scaled = (q * (heads as f64 / width as f64).sqrt())?;
    let scores = split(&scaled)?.matmul(&split(k)?.t()?)?;
    let weights = match mask {
        None => softmax_last(&scores)?,
        Some(mask) if mask.dtype() == DType::U8 => {
            let keep = key_mask(mask, batch, keys)?.broadcast_as(scores.shape())?;
            let masked = keep.where_cond(&scores, &full(&scores, MASKED)?)?;
            // A row without a key is uniform now; it must be zero.
            keep.where_cond(&softmax_last(&masked)?, &full(&scores, 0.0)?)?
        }
        Some(mask) => softmax_last(&scores.broadcast_add(mask)?)?,
    };
    weights.matmul(&split(v)?)?.transpose(1, 2)?.reshape((batch, queries, width))
}

/// Far below every score and yet finite: a row of nothing else has a softmax without a NaN.
const MASKED: f64 = -1e30;

fn key_mask(mask: &Tensor, batch: usize, keys: usize) -> Result<Tensor> {
    match *mask.dims() {
        [b, m] | [b, 1, 1, m] if b == batch && m == keys => mask.reshape((batch, 1, 1, keys)),
        _ => bail!("attention: a key mask must be [{batch}, {keys}], got {:?}", mask.shape()),
    }
}

fn full(like: &Tensor, value: f64) -> Result<Tensor> {
    Tensor::new(value, like.device())?.to_dtype(like.dtype())?.broadcast_as(like.shape())
}
