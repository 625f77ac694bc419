//! Convolution, batch normalisation, shortcut and ReLU as one operation: the block of a residual network.

mod channels;
mod fused;
mod stem;

use crate::conv::{Conv2dConfig, Precision, conv2d_nhwc};
use crate::host::by_dtype;
use crate::{batch_norm_eval, batch_norm_train, relu};
use candle_core::{Result, Tensor, bail};
pub use stem::conv_norm_pool;

/// A convolution without bias and the batch normalisation of its output.
#[derive(Debug, Clone, Copy)]
pub struct ConvNorm<'a> {
    /// The kernel of the convolution, `(O, I, KH, KW)`.
    pub weight: &'a Tensor,
    /// The scale of the normalisation, `(O)`.
    pub scale: &'a Tensor,
    /// The shift of the normalisation, `(O)`.
    pub shift: &'a Tensor,
    /// Running mean and variance, `(O)` each: what normalises in [`Statistics::Running`].
    pub running: (&'a Tensor, &'a Tensor),
    /// Stride of the convolution, both ways.
    pub stride: usize,
    /// Padding of the convolution, both ways.
    pub padding: usize,
}

/// Which statistics normalise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Statistics {
    /// Those of the batch (training); gradients pass through them.
    Batch,
    /// The running ones (evaluation), as constants.
    Running,
}

/// Settings of [`residual_block`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockConfig {
    /// Which statistics normalise; default `Batch`.
    pub statistics: Statistics,
    /// Added to the variance; default 1e-5.
    pub eps: f64,
    /// The numbers in which products are taken; default `F32`.
    pub precision: Precision,
}

impl Default for BlockConfig {
    fn default() -> Self {
        Self { statistics: Statistics::Batch, eps: 1e-5, precision: Precision::F32 }
    }
}

/// The statistics of one normalisation over a batch, outside every graph: what running statistics average.
#[derive(Debug, Clone)]
pub struct BatchStatistics {
    /// The mean of each channel, `(O)`.
    pub mean: Tensor,
    /// The unbiased variance of each channel, `(O)`.
    pub var_unbiased: Tensor,
}

/// What [`residual_block`] returns.
#[derive(Debug, Clone)]
pub struct BlockOut {
    /// The result, `(B, OH, OW, O)`.
    pub y: Tensor,
    /// In training, one entry per layer in order, then that of the shortcut if it has one; empty in evaluation.
    pub statistics: Vec<BatchStatistics>,
}

/// The way round the layers of a block.
#[derive(Debug, Clone, Copy)]
pub enum Shortcut<'a> {
    /// None: `y = relu(norm_n(conv_n(…)))`.
    None,
    /// The input itself.
    Identity,
    /// The input through a convolution and a normalisation.
    Projection(ConvNorm<'a>),
}

impl<'a> Shortcut<'a> {
    fn projection(&self) -> Option<&ConvNorm<'a>> {
        if let Self::Projection(layer) = self { Some(layer) } else { None }
    }
}

/// The layers of one block and the way round them; see [`residual_block`].
#[derive(Debug, Clone, Copy)]
pub struct ResidualBlock<'a> {
    /// At least one.
    pub layers: &'a [ConvNorm<'a>],
    /// What is added before the last ReLU.
    pub shortcut: Shortcut<'a>,
}

/// A chain of convolutions and normalisations with ReLU between them, and a shortcut added before the last ReLU.
///
/// ```text
/// a_0 = x,   a_l = relu(norm_l(conv_l(a_{l-1})))  for l < n,   y = relu(norm_n(conv_n(a_{n-1})) + shortcut(x))
/// ```
///
/// `x` and the result are channels last, `(B, H, W, C)`. One operation of the graph: what lies between the layers is
/// neither kept in full nor given a gradient tensor of its own.
pub fn residual_block(
    x: &Tensor,
    layers: &[ConvNorm<'_>],
    shortcut: Shortcut<'_>,
    config: &BlockConfig,
) -> Result<BlockOut> {
    residual_blocks(x, &[ResidualBlock { layers, shortcut }], config)
}

/// [`residual_block`]s one after the other, as one operation of the graph.
///
/// The same numbers, with less done between blocks: gradients between them are no tensors of the graph, which candle
/// fills with zeros, adds to and copies on one thread. The statistics are those of all blocks in order.
///
/// Errors: shapes that do not fit, by name; no block, or a block without layers.
pub fn residual_blocks(x: &Tensor, blocks: &[ResidualBlock<'_>], config: &BlockConfig) -> Result<BlockOut> {
    if x.rank() != 4 {
        bail!("residual_block: x must be (batch, height, width, channels), got {:?}", x.shape())
    }
    if !x.device().is_cpu() {
        return composed(x, blocks, config);
    }
    by_dtype!(fused::NAME, x.dtype(), T => fused::forward::<T>(x, blocks, config))
}

fn composed(x: &Tensor, blocks: &[ResidualBlock<'_>], config: &BlockConfig) -> Result<BlockOut> {
    let mut statistics = Vec::new();
    let mut x = x.clone();
    for block in blocks {
        let Some((last, before)) = block.layers.split_last() else {
            bail!("residual_block: needs at least one layer")
        };
        let mut a = x.clone();
        for layer in before {
            a = relu(&conv_norm(&a, layer, config, &mut statistics)?)?;
        }
        let y = conv_norm(&a, last, config, &mut statistics)?;
        let y = match &block.shortcut {
            Shortcut::None => y,
            Shortcut::Identity => (y + x)?,
            Shortcut::Projection(layer) => (y + conv_norm(&x, layer, config, &mut statistics)?)?,
        };
        x = relu(&y)?;
    }
    if blocks.is_empty() {
        bail!("residual_block: needs at least one block")
    }
    Ok(BlockOut { y: x, statistics })
}

fn conv_norm(
    x: &Tensor,
    layer: &ConvNorm<'_>,
    config: &BlockConfig,
    statistics: &mut Vec<BatchStatistics>,
) -> Result<Tensor> {
    let conv = Conv2dConfig {
        stride: (layer.stride, layer.stride),
        padding: (layer.padding, layer.padding),
        precision: config.precision,
        ..Conv2dConfig::default()
    };
    let y = conv2d_nhwc(x, layer.weight, None, &conv)?;
    let rows = y.reshape(((), y.dim(3)?))?;
    let normal = match config.statistics {
        Statistics::Batch => {
            let out = batch_norm_train(&rows, Some(layer.scale), Some(layer.shift), config.eps)?;
            statistics.push(BatchStatistics { mean: out.mean, var_unbiased: out.var_unbiased });
            out.y
        }
        Statistics::Running => {
            let (mean, var) = layer.running;
            batch_norm_eval(&rows, mean, var, Some(layer.scale), Some(layer.shift), config.eps)?
        }
    };
    normal.reshape(y.shape())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_close, assert_same, normal};
    use candle_core::Var;

    fn layer<'a>(p: &'a [Tensor], running: &'a [Tensor], stride: usize, padding: usize) -> ConvNorm<'a> {
        let running = (&running[0], &running[1]);
        ConvNorm { weight: &p[0], scale: &p[1], shift: &p[2], running, stride, padding }
    }

    /// Parameters of a layer, and running statistics.
    fn parameters(o: usize, i: usize, k: usize, seed: u64) -> Result<[Tensor; 3]> {
        Ok([normal(&[o, i, k, k], seed)?, normal(&[o], seed + 1)?, normal(&[o], seed + 2)?])
    }

    #[test]
    fn the_composition_is_the_same_function() -> Result<()> {
        for statistics in [Statistics::Batch, Statistics::Running] {
            let config = BlockConfig { statistics, ..BlockConfig::default() };
            for (name, stride, out) in [("identity", 1, 5), ("projection", 2, 8), ("none", 2, 8)] {
                let mut inputs = vec![normal(&[2, 7, 6, 5], 1)?];
                inputs.extend(parameters(out, 5, 3, 10)?);
                inputs.extend(parameters(out, out, 3, 20)?);
                inputs.extend(parameters(out, 5, 1, 30)?);
                inputs.truncate(if name == "projection" { 10 } else { 7 });
                let run = |fused: bool, x: &[Tensor]| {
                    let running = [normal(&[out], 40)?, (normal(&[out], 41)?.sqr()? + 0.5)?];
                    let running = [running[0].to_dtype(x[0].dtype())?, running[1].to_dtype(x[0].dtype())?];
                    let layers = [layer(&x[1..4], &running, stride, 1), layer(&x[4..7], &running, 1, 1)];
                    let shortcut = match name {
                        "identity" => Shortcut::Identity,
                        "projection" => Shortcut::Projection(layer(&x[7..10], &running, stride, 0)),
                        _ => Shortcut::None,
                    };
                    if fused {
                        residual_block(&x[0], &layers, shortcut, &config)
                    } else {
                        composed(&x[0], &[ResidualBlock { layers: &layers, shortcut }], &config)
                    }
                };
                assert_same(|x| Ok(run(true, x)?.y), |x| Ok(run(false, x)?.y), &inputs)?;
                let (a, b) = (run(true, &inputs)?, run(false, &inputs)?);
                assert_eq!(a.statistics.len(), b.statistics.len());
                for (a, b) in a.statistics.iter().zip(&b.statistics) {
                    assert_close(&a.mean, &b.mean, 1e-12)?;
                    assert_close(&a.var_unbiased, &b.var_unbiased, 1e-12)?;
                }
            }
        }
        Ok(())
    }

    /// Three blocks in one operation are the three operations, bit for bit, and so are their gradients.
    #[test]
    fn a_chain_is_its_blocks() -> Result<()> {
        let mut inputs = vec![normal(&[2, 7, 6, 5], 1)?];
        for (k, [o, i, side]) in
            [[5, 5, 3], [5, 5, 3], [8, 5, 3], [8, 8, 3], [8, 5, 1], [8, 8, 3]].into_iter().enumerate()
        {
            inputs.extend(parameters(o, i, side, 10 * (1 + k as u64))?);
        }
        let config = BlockConfig::default();
        let running = [normal(&[8], 40)?, normal(&[8], 41)?.sqr()?];
        let narrow = [running[0].narrow(0, 0, 5)?, running[1].narrow(0, 0, 5)?];
        let run = |chained: bool, x: &[Tensor]| {
            let at =
                |k: usize, stride| layer(&x[1 + 3 * k..], if k < 2 { &narrow } else { &running }, stride, 1);
            let down = ConvNorm { padding: 0, ..at(4, 2) };
            let layers = [vec![at(0, 1), at(1, 1)], vec![at(2, 2), at(3, 1)], vec![at(5, 1)]];
            let shortcuts = [Shortcut::Identity, Shortcut::Projection(down), Shortcut::Identity];
            let blocks: Vec<_> = layers
                .iter()
                .zip(shortcuts)
                .map(|(layers, shortcut)| ResidualBlock { layers, shortcut })
                .collect();
            if chained {
                return residual_blocks(&x[0], &blocks, &config);
            }
            let mut out = BlockOut { y: x[0].clone(), statistics: Vec::new() };
            for block in blocks {
                let next = residual_block(&out.y, block.layers, block.shortcut, &config)?;
                out.statistics.extend(next.statistics);
                out.y = next.y;
            }
            Ok(out)
        };
        let values = |chained: bool| -> Result<Vec<Vec<f64>>> {
            let vars: Vec<Var> = inputs.iter().map(Var::from_tensor).collect::<Result<_>>()?;
            let x: Vec<Tensor> = vars.iter().map(|v| v.as_tensor().clone()).collect();
            let out = run(chained, &x)?;
            let weights = normal(out.y.dims(), 50)?;
            let grads = (&out.y * weights)?.sum_all()?.backward()?;
            let mut all = vec![out.y];
            all.extend(out.statistics.into_iter().flat_map(|s| [s.mean, s.var_unbiased]));
            for var in &vars {
                all.extend(grads.get(var).cloned());
            }
            all.iter().map(|t| t.flatten_all()?.to_vec1()).collect()
        };
        let (chained, single) = (values(true)?, values(false)?);
        assert_eq!(chained.len(), 1 + 2 * 6 + inputs.len());
        assert_eq!(chained, single);
        Ok(())
    }
}
