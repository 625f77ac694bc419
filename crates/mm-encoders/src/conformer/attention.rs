//! Self-attention over relative positions.

use super::{ConformerConfig, parts::Affine, parts::Scaled};
use candle_core::{D, Result, Tensor};
use mm_core::{Init, Mode, Scope};
use mm_kernels::{RelativePositions, attention_relative, dropout, linear, softmax_last};

#[derive(Debug)]
pub(super) struct Attention {
    heads: usize,
    released: bool,
    weights_dropout: f64,
    norm: Scaled,
    query: Affine,
    key: Affine,
    value: Affine,
    position: Tensor,
    content_bias: Tensor,
    position_bias: Tensor,
    out: Affine,
}

impl Attention {
    pub(super) fn new(mut scope: Scope<'_>, config: &ConformerConfig) -> Result<Self> {
        let (dim, heads) = (config.dim, config.heads);
        let mut affine = |name: &str| Affine::new(scope.child(name), dim, dim);
        let (query, key, value, out) = (affine("query")?, affine("key")?, affine("value")?, affine("out")?);
        let norm = Scaled::new(&mut scope.child("norm"), dim)?;
        let glorot = Init::xavier_uniform(dim, dim);
        let position = scope.child("position").param("weight", (dim, dim), glorot)?;
        let head = (heads, dim / heads);
        let init = Init::xavier_uniform(head.0, head.1);
        let content_bias = scope.param("content_bias", head, init)?;
        let position_bias = scope.param("position_bias", head, init)?;
        let (released, weights_dropout) = (config.released, config.weights_dropout);
        Ok(Self {
            heads,
            released,
            weights_dropout,
            norm,
            query,
            key,
            value,
            position,
            content_bias,
            position_bias,
            out,
        })
    }

    pub(super) fn forward(
        &self,
        x: &Tensor,
        table: &Tensor,
        keys: Option<&Tensor>,
        mode: Mode,
    ) -> Result<Tensor> {
        let x = self.norm.layer_norm(x)?;
        let table = linear(table, &self.position, None)?;
        let (q, k, v) = (self.query.forward(&x)?, self.key.forward(&x)?, self.value.forward(&x)?);
        // The kernel knows neither dropout of weights nor what the released code does.
        let y = if self.released || (mode.is_train() && self.weights_dropout > 0.0) {
            let scores = self.scores(&q, &k, &table)?;
            weigh(&scores, &v, keys, self.weights_dropout, mode)?
        } else {
            let positions = RelativePositions {
                table: &table,
                content_bias: &self.content_bias,
                position_bias: &self.position_bias,
            };
            attention_relative(&q, &k, &v, &positions, keys, self.heads)?
        };
        self.out.forward(&y)
    }

    /// (B, heads, N, N).
    fn scores(&self, q: &Tensor, k: &Tensor, table: &Tensor) -> Result<Tensor> {
        let (_, _, dim) = q.dims3()?;
        let biased = |bias: &Tensor| split(&q.broadcast_add(&bias.reshape(dim)?)?, self.heads);
        let content = biased(&self.content_bias)?.matmul(&split(k, self.heads)?.t()?)?;
        let table = split(&table.unsqueeze(0)?, self.heads)?.t()?;
        let position = shift(&biased(&self.position_bias)?.broadcast_matmul(&table)?)?;
        let width = if self.released { dim } else { dim / self.heads };
        (content + position)? * (width as f64).powf(-0.5)
    }
}

/// Moves row i of (B, heads, N, R) to the left by N - 1 - i, and keeps N of the R columns.
///
/// A column of zeros goes before the scores by offset, and the same numbers are read in rows of N. With a table of
/// 2N - 1 offsets only scores of the own row arrive. With the released code's N, those of keys two or more places after
/// the query are the next query's, and the one between is zero.
fn shift(position: &Tensor) -> Result<Tensor> {
    let (batch, heads, n, offsets) = position.dims4()?;
    let padded = position.pad_with_zeros(D::Minus1, 1, 0)?.reshape((batch, heads, offsets + 1, n))?;
    padded.narrow(2, 1, offsets)?.reshape((batch, heads, n, offsets))?.narrow(3, 0, n)
}

/// (B, N, D) to (B, heads, N, D / heads).
pub(crate) fn split(x: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, n, width) = x.dims3()?;
    x.reshape((batch, n, heads, width / heads))?.transpose(1, 2)?.contiguous()
}

/// Far below every score and yet finite: a row of nothing else has a softmax without a NaN.
const MASKED: f64 = -1e30;

/// From scores (B, heads, N, M) and values (B, M, D) to (B, N, D); attention weights are dropped in training, which the
/// kernels do not. `keys` (B, M) as in [`mm_kernels::attention()`].
pub(crate) fn weigh(
    scores: &Tensor,
    values: &Tensor,
    keys: Option<&Tensor>,
    p: f64,
    mode: Mode,
) -> Result<Tensor> {
    let (batch, heads, queries, places) = scores.dims4()?;
    let weights = match keys {
        None => softmax_last(scores)?,
        Some(keys) => {
            let keep = keys.reshape((batch, 1, 1, places))?.broadcast_as(scores.shape())?;
            let full = |value: f64| {
                Tensor::new(value, scores.device())?.to_dtype(scores.dtype())?.broadcast_as(scores.shape())
            };
            let weights = softmax_last(&keep.where_cond(scores, &full(MASKED)?)?)?;
            // A row without a key is uniform now; it must be zero.
            keep.where_cond(&weights, &full(0.0)?)?
        }
    };
    let weights = match mode.stream("weights") {
        Mode::Train(rng) => dropout(&weights, p, rng)?,
        Mode::Eval => weights,
    };
    weights.matmul(&split(values, heads)?)?.transpose(1, 2)?.reshape((batch, queries, values.dim(2)?))
}
